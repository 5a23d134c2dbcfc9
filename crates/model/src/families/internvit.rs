//! The InternViT image tower in its Hugging Face layout: class token, learned positions, pre-norm blocks with layer
//! scale, full attention.
//!
//! Quirks: GELU is exact; the norm of a block may be a layer norm or a root-mean-square norm; the larger towers norm
//! queries and keys over all heads at once, always with 1e-6; what is read is the stream itself, since the last norm is
//! the identity where `use_mean_pooling` is on (all published checkpoints).

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::head_norm::NormedHeads;
use foveate_kernels::cpu::pixel_shuffle;

use crate::batch::{Segment, Tile};
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::siglip::layer_read;
use crate::tape::{Attend, Tape, Var, typed};
use crate::weights::{Fill, Layout, LinearId, ParamId, Part};

/// Numbers of a tower.
#[derive(Clone, Debug)]
pub struct InternVitConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward.
    pub hidden: usize,
    /// Number of blocks in the checkpoint.
    pub num_layers: usize,
    /// Blocks that are run; what follows is kept but not read.
    pub num_read: usize,
    /// Heads.
    pub num_heads: usize,
    /// Side of a tile.
    pub image_size: usize,
    /// Side of a patch.
    pub patch_size: usize,
    /// Added to the variance.
    pub eps: f32,
    /// The activation.
    pub activation: Activation,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether queries and keys are normed.
    pub qk_norm: bool,
    /// Whether blocks norm by the root mean square alone.
    pub rms: bool,
    /// Whether there is a position table.
    pub positions: bool,
    /// Whether the checkpoint holds a mask token, which nothing reads.
    pub mask_token: bool,
    /// Whether a layer norm stands behind the last block.
    pub last_norm: bool,
    /// Whether what it gives is read, instead of what stands before it.
    pub reads_norm: bool,
    /// First value of the layer scales of a fresh tower.
    pub layer_scale: f32,
}

/// What norms queries and keys is written without its epsilon in transformers: the default of the class.
const QK_EPS: f32 = 1e-6;

impl InternVitConfig {
    /// Reads a `vision_config`; `feature_layer` is the hidden state that the model reads.
    pub fn read(vision: &Keys, feature_layer: i64) -> Result<Self, ModelError> {
        let width = vision.size("hidden_size", 1024)?;
        let num_heads = vision.size("num_attention_heads", 16)?;
        if width % num_heads != 0 || vision.size("num_channels", 3)? != 3 {
            return Err(vision.problem(
                format!("vision width {width} does not divide into {num_heads} heads, or channels are not 3"),
                "hidden_size must be a multiple of num_attention_heads, num_channels 3",
            ));
        }
        let (image_size, patch_size) = (square(vision, "image_size", 448)?, square(vision, "patch_size", 14)?);
        if !image_size.is_multiple_of(patch_size) {
            return Err(vision.problem(
                format!("an image_size of {image_size} is no multiple of the patch_size {patch_size}"),
                "published InternVL towers read 448 pixels in patches of 14",
            ));
        }
        let rms = match vision.word("norm_type").unwrap_or("layer_norm") {
            "layer_norm" => false,
            "rms_norm" => true,
            other => {
                return Err(vision
                    .problem(format!("norm_type \"{other}\" is not supported"), "supported: layer_norm, rms_norm"));
            }
        };
        let flag = |key: &str, default: bool| Ok(vision.flag(key)?.unwrap_or(default));
        let num_layers = vision.size("num_hidden_layers", 24)?;
        let num_read = layer_read(vision, feature_layer, num_layers)?;
        Ok(Self {
            width,
            hidden: vision.size("intermediate_size", 4096)?,
            num_layers,
            num_read,
            num_heads,
            image_size,
            patch_size,
            eps: vision.number("layer_norm_eps", 1e-6)? as f32,
            activation: vision.activation("hidden_act", Activation::GeluErf)?,
            qkv_bias: flag("attention_bias", false)?,
            qk_norm: flag("use_qk_norm", false)?,
            rms,
            positions: flag("use_absolute_position_embeddings", true)?,
            mask_token: flag("use_mask_token", false)?,
            last_norm: !flag("use_mean_pooling", true)?,
            reads_norm: feature_layer == -1,
            layer_scale: vision.number("layer_scale_init_value", 0.1)? as f32,
        })
    }

    /// Patches on one side of a tile.
    pub fn table_side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// A side length that is written as one number or as two equal ones.
fn square(keys: &Keys, key: &str, default: usize) -> Result<usize, ModelError> {
    if !keys.get(key).is_some_and(serde_json::Value::is_array) {
        return keys.size(key, default);
    }
    match keys.sizes(key)?.as_deref() {
        Some(&[height, width]) if height == width && height > 0 => Ok(height),
        other => Err(keys.problem(format!("{key} is {other:?}, not a square"), "supported: square tiles and patches")),
    }
}

#[derive(Clone, Copy)]
enum Norm {
    Layer(ParamId, ParamId),
    RootMeanSquare(ParamId),
}

impl Norm {
    fn apply<'w>(self, tape: &mut Tape<'w>, x: Var, eps: f32) -> Var {
        match self {
            Norm::Layer(weight, bias) => tape.layer_norm(x, weight, bias, eps),
            Norm::RootMeanSquare(weight) => tape.rms_norm(x, weight, eps),
        }
    }
}

struct Block {
    norm_in: Norm,
    qkv: LinearId,
    qk_norms: Option<(ParamId, ParamId)>,
    out: LinearId,
    scale_attention: ParamId,
    norm_mid: Norm,
    up: LinearId,
    down: LinearId,
    scale_mlp: ParamId,
}

/// A tower's tensors.
pub struct InternVit {
    /// Its numbers.
    pub config: InternVitConfig,
    class_token: ParamId,
    patch: LinearId,
    positions: Option<ParamId>,
    blocks: Vec<Rc<Block>>,
    last_norm: Option<(ParamId, ParamId)>,
}

impl InternVit {
    /// Declares the tensors under `prefix` (`model.vision_tower.`).
    pub fn declare(layout: &mut Layout, config: InternVitConfig, prefix: &str) -> Self {
        let part = Part::Vision;
        let (width, side) = (config.width, config.patch_size);
        let vector = |layout: &mut Layout, name: &str, shape: &[usize], fill: Fill| {
            layout.tensor(&format!("{prefix}embeddings.{name}"), shape, part, true, fill)
        };
        let class_token = vector(layout, "cls_token", &[1, 1, width], Fill::Normal(0.02));
        if config.mask_token {
            layout.unread(|layout| vector(layout, "mask_token", &[1, 1, width], Fill::Constant(0.0)));
        }
        let patch = layout.linear_shaped(
            &[(format!("{prefix}embeddings.patch_embeddings.projection"), vec![width, 3, side, side])],
            3 * side * side,
            true,
            part,
            1.0,
        );
        let rows = config.table_side().pow(2) + 1;
        let positions =
            config.positions.then(|| vector(layout, "position_embeddings", &[1, rows, width], Fill::Normal(0.5)));
        let blocks = (0..config.num_layers)
            .map(|i| {
                let name = format!("{prefix}encoder.layer.{i}.");
                Rc::new(match i < config.num_read {
                    true => Block::declare(layout, &config, &name),
                    false => layout.unread(|layout| Block::declare(layout, &config, &name)),
                })
            })
            .collect();
        let last_norm = config.last_norm.then(|| {
            let declare = |layout: &mut Layout| layer_norm(layout, &format!("{prefix}layernorm"), width);
            match config.reads_norm {
                true => declare(layout),
                false => layout.unread(declare),
            }
        });
        Self { config, class_token, patch, positions, blocks, last_norm }
    }

    /// Tiles, each as large as the position table, to the stream `[tiles * patches, D]` in f32, class tokens left out.
    pub fn forward<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Var {
        let config = &self.config;
        let (side, width, num_tiles) = (config.patch_size, config.width, tiles.len());
        let patches = config.table_side().pow(2);
        let values = 3 * side * side;
        let operand = tape.operand();
        let mut columns = tape.arena().take(operand, num_tiles * patches * values);
        typed!(&mut columns, columns => {
            for (tile, out) in tiles.iter().zip(columns.chunks_exact_mut(patches * values)) {
                pixel_shuffle::im2col(&tile.pixels, 3, config.image_size, config.image_size, side, out);
            }
        });
        let columns = tape.constant(columns);
        let embedded = tape.linear_f32(columns, self.patch);

        // A row of the class token everywhere, then the patches on all rows but the first of each tile.
        let rows = patches + 1;
        let behind_class: Rc<[u32]> =
            (0..num_tiles * rows).filter(|row| row % rows != 0).map(|row| row as u32).collect();
        let x = tape.embed(self.class_token, vec![0; num_tiles * rows].into());
        let mut x = tape.place(x, embedded, behind_class.clone(), width);
        if let Some(table) = self.positions {
            x = tape.add_table_rows(x, table, (0..num_tiles).flat_map(|_| 0..rows as u32).collect());
        }
        let segments: Vec<Segment> =
            (0..num_tiles).map(|i| Segment { start: (i * rows) as u32, len: rows as u32, parent: None }).collect();
        let attend = Attend::Packed(segments.into());
        let head_dim = width / config.num_heads;
        let heads = Heads {
            num_heads: config.num_heads,
            num_kv_heads: config.num_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: false,
        };
        // To the norm, all queries of a row are one head, and so are all keys.
        let normed = NormedHeads { width: 3 * width, queries: 1, keys: 1, head_dim: width };
        for block in &self.blocks[..config.num_read] {
            let (block, attend) = (block.clone(), attend.clone());
            x = tape.block(x, move |tape, x| {
                let h = block.norm_in.apply(tape, x, config.eps);
                let qkv = tape.linear(h, block.qkv);
                let qkv = match block.qk_norms {
                    Some((queries, keys)) => tape.head_norm(qkv, normed, queries, keys, QK_EPS),
                    None => qkv,
                };
                let attended = tape.attention(qkv, heads, &attend, 0);
                let h = tape.linear(attended, block.out);
                let x = tape.layer_scale(h, block.scale_attention, x);
                let h = block.norm_mid.apply(tape, x, config.eps);
                let h = tape.linear(h, block.up);
                let h = tape.activation(h, config.activation);
                let h = tape.linear(h, block.down);
                tape.layer_scale(h, block.scale_mlp, x)
            });
        }
        if let Some((weight, bias)) = self.last_norm.filter(|_| config.reads_norm) {
            x = tape.layer_norm_f32(x, weight, bias, config.eps);
        }
        tape.gather(x, behind_class, width)
    }
}

fn layer_norm(layout: &mut Layout, name: &str, width: usize) -> (ParamId, ParamId) {
    let weight = layout.tensor(&format!("{name}.weight"), &[width], Part::Vision, false, Fill::Constant(1.0));
    (weight, layout.tensor(&format!("{name}.bias"), &[width], Part::Vision, false, Fill::Constant(0.0)))
}

impl Block {
    fn declare(layout: &mut Layout, config: &InternVitConfig, prefix: &str) -> Block {
        let part = Part::Vision;
        let width = config.width;
        let name = |tail: &str| format!("{prefix}{tail}");
        let one = Fill::Constant(1.0);
        let norm = |layout: &mut Layout, tail: &str| match config.rms {
            true => Norm::RootMeanSquare(layout.tensor(&name(&format!("{tail}.weight")), &[width], part, false, one)),
            false => {
                let (weight, bias) = layer_norm(layout, &name(tail), width);
                Norm::Layer(weight, bias)
            }
        };
        let scale = |layout: &mut Layout, tail: &str| {
            layout.tensor(&name(tail), &[width], part, false, Fill::Constant(config.layer_scale))
        };
        let norm_in = norm(layout, "layernorm_before");
        let qkv = layout.linear(
            &["q_proj", "k_proj", "v_proj"].map(|tail| (name(&format!("attention.{tail}")), width)),
            width,
            config.qkv_bias,
            part,
            1.0,
        );
        let qk_norms = config.qk_norm.then(|| {
            let mut weight =
                |tail: &str| layout.tensor(&name(&format!("attention.{tail}.weight")), &[width], part, false, one);
            (weight("q_norm"), weight("k_norm"))
        });
        Block {
            norm_in,
            qkv,
            qk_norms,
            out: layout.linear(&[(name("attention.projection_layer"), width)], width, true, part, 1.0),
            scale_attention: scale(layout, "lambda_1"),
            norm_mid: norm(layout, "layernorm_after"),
            up: layout.linear(&[(name("mlp.fc1"), config.hidden)], width, true, part, 1.0),
            down: layout.linear(&[(name("mlp.fc2"), width)], config.hidden, true, part, 1.0),
            scale_mlp: scale(layout, "lambda_2"),
        }
    }
}
