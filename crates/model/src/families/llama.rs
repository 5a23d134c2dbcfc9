//! The Llama decoder: root-mean-square norms, rotary attention with grouped heads, gated feed-forward.
//! Used alone (text models) and as the language part of SmolVLM / Idefics3.
//! Quirks: `rms_norm_eps` is 1e-6 when the key is missing; `head_dim` need not be width / heads.

use std::rc::Rc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::rope::RopeTable;

use crate::config::{Keys, inverse_frequencies};
use crate::error::ModelError;
use crate::tape::{Attend, Tape, Var};
use crate::weights::{Fill, Layout, LinearId, ParamId, Part};

/// Numbers of a decoder.
#[derive(Clone, Debug)]
pub struct LlamaConfig {
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
    /// Rotary frequencies.
    pub inverse_frequencies: Vec<f32>,
    /// Longest text that the model was made for.
    pub max_positions: usize,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl LlamaConfig {
    /// Reads a `text_config` (or the root of a text model).
    pub fn read(text: &Keys, tied: bool) -> Result<Self, ModelError> {
        let width = text.size("hidden_size", 4096)?;
        let num_heads = text.size("num_attention_heads", 32)?;
        let num_kv_heads = text.size("num_key_value_heads", num_heads)?;
        let head_dim = text.size("head_dim", width / num_heads)?;
        if num_heads % num_kv_heads != 0 || head_dim % 2 != 0 {
            return Err(text.problem(
                format!("{num_heads} query heads, {num_kv_heads} key heads of {head_dim} do not fit together"),
                "query heads must be a multiple of key heads, and head_dim even",
            ));
        }
        let act = text.word("hidden_act").unwrap_or("silu");
        if act != "silu" {
            return Err(text.problem(format!("hidden_act \"{act}\" is not supported here"), "Llama decoders use silu"));
        }
        if text.flag("attention_bias")?.unwrap_or(false) || text.flag("mlp_bias")?.unwrap_or(false) {
            return Err(text.problem("biases in the decoder are not supported".into(), "Llama decoders have none"));
        }
        Ok(Self {
            vocabulary: text.size("vocab_size", 32000)?,
            width,
            hidden: text.size("intermediate_size", 11008)?,
            num_layers: text.size("num_hidden_layers", 32)?,
            num_heads,
            num_kv_heads,
            head_dim,
            eps: text.number("rms_norm_eps", 1e-6)? as f32,
            inverse_frequencies: inverse_frequencies(text, head_dim)?,
            max_positions: text.size("max_position_embeddings", 2048)?,
            initializer_range: text.number("initializer_range", 0.02)? as f32,
            tied,
        })
    }
}

struct Block {
    norm_in: ParamId,
    qkv: LinearId,
    out: LinearId,
    norm_mid: ParamId,
    gate_up: LinearId,
    down: LinearId,
}

/// A decoder's tensors.
pub struct Llama {
    /// Its numbers.
    pub config: LlamaConfig,
    /// The embedding table `[V, D]`.
    pub embedding: ParamId,
    blocks: Vec<Rc<Block>>,
    /// The last norm.
    pub norm: ParamId,
    /// The head `[V, D]`.
    pub head: LinearId,
}

impl Llama {
    /// Declares the tensors; names begin with `prefix` (`model.` or `model.text_model.`), the head is `lm_head`.
    pub fn declare(layout: &mut Layout, config: LlamaConfig, prefix: &str, head_name: &str) -> Self {
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
                Rc::new(Block {
                    norm_in: layout.tensor(&name("input_layernorm.weight"), &[width], part, false, one),
                    qkv: layout.linear(
                        &[
                            (name("self_attn.q_proj"), queries),
                            (name("self_attn.k_proj"), keys),
                            (name("self_attn.v_proj"), keys),
                        ],
                        width,
                        false,
                        part,
                        1.0,
                    ),
                    out: layout.linear(&[(name("self_attn.o_proj"), width)], queries, false, part, gain_out),
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
    pub fn forward<'w>(&'w self, tape: &mut Tape<'w>, x: Var, positions: &[u32], attend: &Attend) -> Var {
        let config = &self.config;
        let table = Rc::new(RopeTable::one_axis(positions, config.head_dim, &config.inverse_frequencies));
        let heads = Heads {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            causal: true,
        };
        let mut x = x;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (block, table, attend) = (block.clone(), table.clone(), attend.clone());
            let (width, rotated) = (
                (config.num_heads + 2 * config.num_kv_heads) * config.head_dim,
                config.num_heads + config.num_kv_heads,
            );
            x = tape.block(x, move |tape, x| {
                let h = tape.rms_norm(x, block.norm_in, config.eps);
                let qkv = tape.linear(h, block.qkv);
                let qkv = tape.rope(qkv, width, rotated, config.head_dim, table.clone());
                let attended = tape.attention(qkv, heads, &attend, layer);
                let x = tape.linear_add(attended, block.out, x);
                let h = tape.rms_norm(x, block.norm_mid, config.eps);
                let gate_up = tape.linear(h, block.gate_up);
                let h = tape.gated(gate_up, Activation::Silu, config.hidden);
                tape.linear_add(h, block.down, x)
            });
        }
        x
    }
}
