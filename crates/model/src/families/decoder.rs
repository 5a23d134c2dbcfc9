//! The decoder of all families: root-mean-square norms, rotary attention with grouped heads, gated feed-forward.
//! Used alone (Llama, Qwen2, Qwen3) and as the language part of the vision-language families.
//!
//! Quirks: `rms_norm_eps` is 1e-6 when the key is missing, 1e-5 in Qwen2-VL; `head_dim` need not be width / heads;
//! Qwen2 has biases on query, key and value whatever the configuration says; Qwen3 norms every query and key head;
//! multi-axis rotary gives frequencies to axes in blocks (Qwen2-VL) or in turns (Qwen3-VL).

use std::rc::Rc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::head_norm::NormedHeads;

use crate::config::{Keys, rotary};
use crate::error::ModelError;
use crate::positions::{Positions, Rope};
use crate::tape::{Attend, Tape, Var};
use crate::weights::{Fill, Layout, LinearId, ParamId, Part};

/// What the code of a family says and its configuration need not: which parts a block has, and defaults of keys.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Query, key and value have biases.
    pub qkv_bias: bool,
    /// Query and key heads are normed one by one.
    pub head_norm: bool,
    /// Multi-axis rotary gives frequencies to axes in turns instead of blocks.
    pub interleaved: bool,
    /// Default of `vocab_size`.
    pub vocabulary: usize,
    /// Default of `hidden_size`.
    pub width: usize,
    /// Default of `intermediate_size`.
    pub hidden: usize,
    /// Default of `num_hidden_layers`.
    pub num_layers: usize,
    /// Default of `num_attention_heads`.
    pub num_heads: usize,
    /// Default of `head_dim`; width / heads if there is none.
    pub head_dim: Option<usize>,
    /// Default of `max_position_embeddings`.
    pub max_positions: usize,
    /// Default of `rms_norm_eps`.
    pub eps: f64,
    /// Default of `rope_theta`.
    pub theta: f64,
}

/// Llama, also inside SmolVLM and Idefics3.
pub const LLAMA: Dialect = Dialect {
    qkv_bias: false,
    head_norm: false,
    interleaved: false,
    vocabulary: 32000,
    width: 4096,
    hidden: 11008,
    num_layers: 32,
    num_heads: 32,
    head_dim: None,
    max_positions: 2048,
    eps: 1e-6,
    theta: 10000.0,
};

/// Qwen2 and Qwen2.5, also inside LLaVA-OneVision and InternVL.
pub const QWEN2: Dialect = Dialect { qkv_bias: true, vocabulary: 151936, hidden: 22016, max_positions: 32768, ..LLAMA };

/// Qwen3.
pub const QWEN3: Dialect = Dialect { qkv_bias: false, head_norm: true, head_dim: Some(128), ..QWEN2 };

/// Numbers of a decoder.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward.
    pub hidden: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Rotary frequencies and their axes.
    pub rope: Rope,
    /// Longest text that the model was made for.
    pub max_positions: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the projection after attention has one.
    pub out_bias: bool,
    /// Whether query and key heads are normed one by one.
    pub head_norm: bool,
}

impl DecoderConfig {
    /// Reads a `text_config` (or the root of a text model).
    pub fn read(text: &Keys, tied: bool, dialect: &Dialect) -> Result<Self, ModelError> {
        let width = text.size("hidden_size", dialect.width)?;
        let num_heads = text.size("num_attention_heads", dialect.num_heads)?;
        let num_kv_heads = text.size("num_key_value_heads", num_heads)?;
        let head_dim = text.size("head_dim", dialect.head_dim.unwrap_or(width / num_heads))?;
        if num_heads % num_kv_heads != 0 || head_dim % 2 != 0 {
            return Err(text.problem(
                format!("{num_heads} query heads, {num_kv_heads} key heads of {head_dim} do not fit together"),
                "query heads must be a multiple of key heads, and head_dim even",
            ));
        }
        let act = text.word("hidden_act").unwrap_or("silu");
        if act != "silu" {
            return Err(text.problem(format!("hidden_act \"{act}\" is not supported here"), "decoders use silu"));
        }
        if text.flag("mlp_bias")?.unwrap_or(false) {
            return Err(text.problem(
                "biases in the feed-forward of the decoder are not supported".into(),
                "published Llama, Qwen2 and Qwen3 decoders have none",
            ));
        }
        let num_layers = text.size("num_hidden_layers", dialect.num_layers)?;
        let slides = text.flag("use_sliding_window")?.unwrap_or(false) && text.get("sliding_window").is_some();
        if slides && text.number("max_window_layers", 28.0)? < num_layers as f64 {
            return Err(text.problem(
                "use_sliding_window is on, every token would have to see all earlier ones".into(),
                "published Qwen2 and Qwen3 checkpoints have it off; supported is full attention in every layer",
            ));
        }
        let attention_bias = text.flag("attention_bias")?.unwrap_or(false);
        Ok(Self {
            vocabulary: text.size("vocab_size", dialect.vocabulary)?,
            width,
            hidden: text.size("intermediate_size", dialect.hidden)?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            eps: text.number("rms_norm_eps", dialect.eps)? as f32,
            rope: rotary(text, head_dim, dialect.theta, dialect.interleaved)?,
            max_positions: text.size("max_position_embeddings", dialect.max_positions)?,
            initializer_range: text.number("initializer_range", 0.02)? as f32,
            tied,
            qkv_bias: dialect.qkv_bias || attention_bias,
            // Qwen2 knows no such key, and has no bias here.
            out_bias: attention_bias && !dialect.qkv_bias,
            head_norm: dialect.head_norm,
        })
    }
}

struct Block {
    norm_in: ParamId,
    qkv: LinearId,
    head_norms: Option<(ParamId, ParamId)>,
    out: LinearId,
    norm_mid: ParamId,
    gate_up: LinearId,
    down: LinearId,
}

/// A decoder's tensors.
pub struct Decoder {
    /// Its numbers.
    pub config: DecoderConfig,
    /// The embedding table `[V, D]`.
    pub embedding: ParamId,
    blocks: Vec<Rc<Block>>,
    /// The last norm.
    pub norm: ParamId,
    /// The head `[V, D]`.
    pub head: LinearId,
}

/// Image features that are added to the residual stream after each of the first blocks (DeepStack, Meng et al. 2024).
#[derive(Default)]
pub struct DeepStack {
    /// `[features, D]` in f32, one for each of the first blocks.
    pub features: Vec<Var>,
    /// Row of each feature.
    pub rows: Rc<[u32]>,
}

impl Decoder {
    /// Declares the tensors; names begin with `prefix` (`model.` or `model.text_model.`), the head is `lm_head`.
    pub fn declare(layout: &mut Layout, config: DecoderConfig, prefix: &str, head_name: &str) -> Self {
        let part = Part::Language;
        let std = config.initializer_range;
        // Projections into the residual stream start smaller, so that depth does not grow it (GPT-2, section 2.3).
        let gain_out = 1.0 / ((2 * config.num_layers) as f32).sqrt();
        let (width, head_dim) = (config.width, config.head_dim);
        let one = Fill::Constant(1.0);
        let embedding = layout.tensor(
            &format!("{prefix}embed_tokens.weight"),
            &[config.vocabulary, width],
            part,
            true,
            Fill::Normal(std),
        );
        let blocks = (0..config.num_layers)
            .map(|i| {
                let name = |tail: &str| format!("{prefix}layers.{i}.{tail}");
                let (queries, keys) = (config.num_heads * head_dim, config.num_kv_heads * head_dim);
                let norm_in = layout.tensor(&name("input_layernorm.weight"), &[width], part, false, one);
                let qkv = layout.linear(
                    &[
                        (name("self_attn.q_proj"), queries),
                        (name("self_attn.k_proj"), keys),
                        (name("self_attn.v_proj"), keys),
                    ],
                    width,
                    config.qkv_bias,
                    part,
                    1.0,
                );
                let head_norms = config.head_norm.then(|| {
                    let mut norm = |tail: &str| layout.tensor(&name(tail), &[head_dim], part, false, one);
                    (norm("self_attn.q_norm.weight"), norm("self_attn.k_norm.weight"))
                });
                Rc::new(Block {
                    norm_in,
                    qkv,
                    head_norms,
                    out: layout.linear(&[(name("self_attn.o_proj"), width)], queries, config.out_bias, part, gain_out),
                    norm_mid: layout.tensor(&name("post_attention_layernorm.weight"), &[width], part, false, one),
                    gate_up: layout.linear(
                        &[(name("mlp.gate_proj"), config.hidden), (name("mlp.up_proj"), config.hidden)],
                        width,
                        false,
                        part,
                        1.0,
                    ),
                    down: layout.linear(&[(name("mlp.down_proj"), width)], config.hidden, false, part, gain_out),
                })
            })
            .collect();
        let norm = layout.tensor(&format!("{prefix}norm.weight"), &[width], part, false, one);
        let head = if config.tied {
            layout.linear_from(embedding)
        } else {
            layout.linear(&[(head_name.to_string(), config.vocabulary)], width, false, part, 1.0)
        };
        Self { config, embedding, blocks, norm, head }
    }

    /// Embedded tokens `[T, D]` to the last residual stream `[T, D]` (not yet normed).
    pub fn forward<'w>(
        &'w self,
        tape: &mut Tape<'w>,
        x: Var,
        positions: &Positions,
        attend: &Attend,
        deep: DeepStack,
    ) -> Var {
        let config = &self.config;
        let table = Rc::new(positions.table(&config.rope, config.head_dim));
        let heads = Heads {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            causal: true,
        };
        let normed = NormedHeads {
            width: (config.num_heads + 2 * config.num_kv_heads) * config.head_dim,
            queries: config.num_heads,
            keys: config.num_kv_heads,
            head_dim: config.head_dim,
        };
        let mut x = x;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (block, table, attend) = (block.clone(), table.clone(), attend.clone());
            x = tape.block(x, move |tape, x| {
                let h = tape.rms_norm(x, block.norm_in, config.eps);
                let qkv = tape.linear(h, block.qkv);
                let qkv = match block.head_norms {
                    Some((queries, keys)) => tape.head_norm(qkv, normed, queries, keys, config.eps),
                    None => qkv,
                };
                let qkv = tape.rope(qkv, normed.width, normed.count(), config.head_dim, table.clone());
                let attended = tape.attention(qkv, heads, &attend, layer);
                let x = tape.linear_add(attended, block.out, x);
                let h = tape.rms_norm(x, block.norm_mid, config.eps);
                let gate_up = tape.linear(h, block.gate_up);
                let h = tape.gated(gate_up, Activation::Silu, config.hidden);
                tape.linear_add(h, block.down, x)
            });
            if let Some(features) = deep.features.get(layer) {
                x = tape.add_rows(x, *features, deep.rows.clone(), config.width);
            }
        }
        x
    }
}
