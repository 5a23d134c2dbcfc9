//! The SigLIP image tower: patches, learned positions, pre-norm blocks, full attention.
//! Quirks: tanh GELU. In SmolVLM / Idefics3 position ids go through a float32 `bucketize`, which is not the identity for
//! every grid, and the last norm is read; LLaVA-OneVision counts patches plainly and reads the stream before the norm.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::pixel_shuffle;

use crate::batch::{Segment, Tile};
use crate::config::Keys;
use crate::error::ModelError;
use crate::tape::{Attend, Tape, Var, typed};
use crate::weights::{Fill, Layout, LinearId, ParamId, Part};

/// Numbers of a tower.
#[derive(Clone, Debug)]
pub struct SiglipConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward.
    pub hidden: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Heads.
    pub num_heads: usize,
    /// Side of the image that the position table is made for.
    pub image_size: usize,
    /// Side of a patch.
    pub patch_size: usize,
    /// Added to the variance.
    pub eps: f32,
    /// The activation.
    pub activation: Activation,
    /// Whether position ids go through `bucketize`.
    pub bucketized: bool,
    /// Blocks that are run; what follows is kept but not read.
    pub num_read: usize,
    /// Whether the last norm is applied.
    pub normed: bool,
    /// Whether the checkpoint holds a pooling head, which nothing reads.
    pub head: bool,
}

/// Sizes where `vision_config` says nothing.
struct Defaults {
    width: usize,
    num_layers: usize,
    num_heads: usize,
    patch_size: usize,
}

const IDEFICS3: Defaults = Defaults { width: 1152, num_layers: 12, num_heads: 16, patch_size: 32 };
const PLAIN: Defaults = Defaults { width: 768, num_layers: 12, num_heads: 12, patch_size: 16 };

impl SiglipConfig {
    /// Reads a `vision_config` of SmolVLM or Idefics3.
    pub fn read(vision: &Keys) -> Result<Self, ModelError> {
        Self::read_with(vision, &IDEFICS3)
    }

    /// Reads a `vision_config` of SigLIP itself, of which the hidden state `feature_layer` is used.
    pub fn read_plain(vision: &Keys, feature_layer: i64) -> Result<Self, ModelError> {
        let config = Self::read_with(vision, &PLAIN)?;
        Ok(Self {
            bucketized: false,
            num_read: layer_read(vision, feature_layer, config.num_layers)?,
            normed: false,
            head: vision.flag("vision_use_head")?.unwrap_or(true),
            ..config
        })
    }

    fn read_with(vision: &Keys, defaults: &Defaults) -> Result<Self, ModelError> {
        let width = vision.size("hidden_size", defaults.width)?;
        let num_heads = vision.size("num_attention_heads", defaults.num_heads)?;
        if width % num_heads != 0 || vision.size("num_channels", 3)? != 3 {
            return Err(vision.problem(
                format!("vision width {width} does not divide into {num_heads} heads, or channels are not 3"),
                "hidden_size must be a multiple of num_attention_heads, num_channels 3",
            ));
        }
        let num_layers = vision.size("num_hidden_layers", defaults.num_layers)?;
        Ok(Self {
            width,
            hidden: vision.size("intermediate_size", 3072)?,
            num_layers,
            num_heads,
            image_size: vision.size("image_size", 224)?,
            patch_size: vision.size("patch_size", defaults.patch_size)?,
            eps: vision.number("layer_norm_eps", 1e-6)? as f32,
            activation: vision.activation("hidden_act", Activation::GeluTanh)?,
            bucketized: true,
            num_read: num_layers,
            normed: true,
            head: false,
        })
    }

    /// Patches on one side of the position table.
    pub fn table_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Row of the position table for each of `height x width` patches.
    ///
    /// Idefics3 compares `i / n` with `k / N` in float32 and takes the number of boundaries not above it; where both
    /// grids are equal the result is still off by one for a few sizes, which the published checkpoints live with.
    pub fn position_rows(&self, height: usize, width: usize) -> Vec<u32> {
        let side = self.table_side();
        if !self.bucketized {
            return (0..height).flat_map(|row| (0..width).map(move |column| (row * side + column) as u32)).collect();
        }
        let step = 1.0 / side as f64;
        // torch.arange fills float32 in vectors of eight, two at a time: the first of each vector is rounded before the
        // rest are added to it, what is left over is computed alone. The bits decide which bucket a patch falls into.
        let num_boundaries = ((1.0 - step) / step).ceil() as usize;
        let num_in_vectors = num_boundaries / 16 * 16;
        let boundaries: Vec<f32> = (0..num_boundaries)
            .map(|i| {
                if i < num_in_vectors {
                    let base = (step + (i / 8 * 8) as f64 * step) as f32;
                    (f64::from(base) + (i % 8) as f64 * step) as f32
                } else {
                    (step + i as f64 * step) as f32
                }
            })
            .collect();
        let buckets = |count: usize| -> Vec<u32> {
            let step = 1.0 / count as f32;
            (0..count)
                .map(|i| {
                    let at = (i as f32 * step).min(1.0 - 1e-6);
                    boundaries.iter().filter(|boundary| **boundary <= at).count() as u32
                })
                .collect()
        };
        let (rows, columns) = (buckets(height), buckets(width));
        rows.iter().flat_map(|row| columns.iter().map(move |column| row * side as u32 + column)).collect()
    }
}

/// The hidden state of the tower that a model reads, under `vision_feature_layer` at its root.
pub fn feature_layer(root: &Keys, default: i64) -> Result<i64, ModelError> {
    let Some(value) = root.get("vision_feature_layer") else { return Ok(default) };
    let only = value.as_array().filter(|list| list.len() == 1).map_or(value, |list| &list[0]);
    only.as_i64().ok_or_else(|| {
        root.problem(
            format!("vision_feature_layer is {value}, not one number"),
            "published checkpoints read one hidden state, mostly -1; several side by side are not supported",
        )
    })
}

/// Blocks to run for a hidden state: they are counted from 0, the embedded patches, or backwards from -1.
pub fn layer_read(vision: &Keys, feature_layer: i64, num_layers: usize) -> Result<usize, ModelError> {
    let states = num_layers as i64 + 1;
    let index = if feature_layer < 0 { feature_layer + states } else { feature_layer };
    match (0..states).contains(&index) {
        true => Ok(index as usize),
        false => Err(vision.problem(
            format!("vision_feature_layer is {feature_layer}, the tower has {states} hidden states"),
            "it lies between -(num_hidden_layers + 1) and num_hidden_layers",
        )),
    }
}

struct Block {
    norm_in: (ParamId, ParamId),
    qkv: LinearId,
    out: LinearId,
    norm_mid: (ParamId, ParamId),
    up: LinearId,
    down: LinearId,
}

/// A tower's tensors.
pub struct Siglip {
    /// Its numbers.
    pub config: SiglipConfig,
    patch: LinearId,
    positions: ParamId,
    blocks: Vec<Rc<Block>>,
    norm: (ParamId, ParamId),
}

impl Siglip {
    /// Declares the tensors under `prefix` (`model.vision_model.`).
    pub fn declare(layout: &mut Layout, config: SiglipConfig, prefix: &str) -> Self {
        let part = Part::Vision;
        let width = config.width;
        let patch_values = 3 * config.patch_size * config.patch_size;
        let patch = layout.linear_shaped(
            &[(format!("{prefix}embeddings.patch_embedding"), vec![width, 3, config.patch_size, config.patch_size])],
            patch_values,
            true,
            part,
            1.0,
        );
        let positions = layout.tensor(
            &format!("{prefix}embeddings.position_embedding.weight"),
            &[config.table_side() * config.table_side(), width],
            part,
            true,
            // Half as strong as a patch at birth: much smaller, and patches would hardly know where they are.
            Fill::Normal(0.5),
        );
        let blocks = (0..config.num_layers)
            .map(|i| {
                let name = format!("{prefix}encoder.layers.{i}.");
                Rc::new(match i < config.num_read {
                    true => Block::declare(layout, &config, &name),
                    false => layout.unread(|layout| Block::declare(layout, &config, &name)),
                })
            })
            .collect();
        let last = format!("{prefix}post_layernorm");
        let norm = match config.normed {
            true => norm(layout, &last, width),
            false => layout.unread(|layout| norm(layout, &last, width)),
        };
        if config.head {
            layout.unread(|layout| declare_head(layout, &config, &format!("{prefix}head.")));
        }
        Self { config, patch, positions, blocks, norm }
    }

    /// Tiles of one size to features `[tiles * patches, D]`: normed and as operand, or the f32 stream before the norm.
    pub fn forward<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Var {
        let config = &self.config;
        let (height, width) = (tiles[0].height as usize, tiles[0].width as usize);
        let side = config.patch_size;
        let patches = (height / side) * (width / side);
        let values = 3 * side * side;

        let operand = tape.operand();
        let mut columns = tape.arena().take(operand, tiles.len() * patches * values);
        typed!(&mut columns, columns => {
            for (tile, out) in tiles.iter().zip(columns.chunks_exact_mut(patches * values)) {
                pixel_shuffle::im2col(&tile.pixels, 3, height, width, side, out);
            }
        });
        let columns = tape.constant(columns);
        let x = tape.linear_f32(columns, self.patch);
        let one_tile = config.position_rows(height / side, width / side);
        let rows: Vec<u32> = (0..tiles.len()).flat_map(|_| one_tile.iter().copied()).collect();
        let mut x = tape.add_table_rows(x, self.positions, rows.into());

        let segments: Vec<Segment> = (0..tiles.len())
            .map(|i| Segment { start: (i * patches) as u32, len: patches as u32, parent: None })
            .collect();
        let attend = Attend::Packed(segments.into());
        let head_dim = config.width / config.num_heads;
        let heads = Heads {
            num_heads: config.num_heads,
            num_kv_heads: config.num_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: false,
        };
        for block in &self.blocks[..config.num_read] {
            let (block, attend) = (block.clone(), attend.clone());
            x = tape.block(x, move |tape, x| {
                let h = tape.layer_norm(x, block.norm_in.0, block.norm_in.1, config.eps);
                let qkv = tape.linear(h, block.qkv);
                let attended = tape.attention(qkv, heads, &attend, 0);
                let x = tape.linear_add(attended, block.out, x);
                let h = tape.layer_norm(x, block.norm_mid.0, block.norm_mid.1, config.eps);
                let h = tape.linear(h, block.up);
                let h = tape.activation(h, config.activation);
                tape.linear_add(h, block.down, x)
            });
        }
        match config.normed {
            true => tape.layer_norm(x, self.norm.0, self.norm.1, config.eps),
            false => x,
        }
    }
}

fn norm(layout: &mut Layout, name: &str, width: usize) -> (ParamId, ParamId) {
    let weight = layout.tensor(&format!("{name}.weight"), &[width], Part::Vision, false, Fill::Constant(1.0));
    (weight, layout.tensor(&format!("{name}.bias"), &[width], Part::Vision, false, Fill::Constant(0.0)))
}

impl Block {
    fn declare(layout: &mut Layout, config: &SiglipConfig, prefix: &str) -> Block {
        let (width, part) = (config.width, Part::Vision);
        let gain_out = 1.0 / ((2 * config.num_layers) as f32).sqrt();
        let name = |tail: &str| format!("{prefix}{tail}");
        Block {
            norm_in: norm(layout, &name("layer_norm1"), width),
            qkv: layout.linear(
                &["q_proj", "k_proj", "v_proj"].map(|tail| (name(&format!("self_attn.{tail}")), width)),
                width,
                true,
                part,
                1.0,
            ),
            out: layout.linear(&[(name("self_attn.out_proj"), width)], width, true, part, gain_out),
            norm_mid: norm(layout, &name("layer_norm2"), width),
            up: layout.linear(&[(name("mlp.fc1"), config.hidden)], width, true, part, 1.0),
            down: layout.linear(&[(name("mlp.fc2"), width)], config.hidden, true, part, gain_out),
        }
    }
}

/// The pooling head that some checkpoints carry along.
fn declare_head(layout: &mut Layout, config: &SiglipConfig, prefix: &str) {
    let (width, part) = (config.width, Part::Vision);
    let mut plain = |tail: &str, shape: &[usize]| {
        layout.tensor(&format!("{prefix}{tail}"), shape, part, true, Fill::Normal(0.02));
    };
    plain("probe", &[1, 1, width]);
    plain("attention.in_proj_weight", &[3 * width, width]);
    plain("attention.in_proj_bias", &[3 * width]);
    let name = |tail: &str| format!("{prefix}{tail}");
    layout.linear(&[(name("attention.out_proj"), width)], width, true, part, 1.0);
    norm(layout, &name("layernorm"), width);
    layout.linear(&[(name("mlp.fc1"), config.hidden)], width, true, part, 1.0);
    layout.linear(&[(name("mlp.fc2"), width)], config.hidden, true, part, 1.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(side: usize) -> SiglipConfig {
        SiglipConfig {
            width: 8,
            hidden: 8,
            num_layers: 1,
            num_heads: 1,
            image_size: side,
            patch_size: 1,
            eps: 1e-6,
            activation: Activation::GeluTanh,
            bucketized: true,
            num_read: 1,
            normed: true,
            head: false,
        }
    }

    // Made by torch 2.11; the identity for 8, 12, 16, 26, 27 and 32 patches a side, not for 19, 25, 29, 31, 40.
    #[test]
    fn position_rows_follow_float32_bucketize() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/ops/position_ids.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for (side, want) in golden.as_object().unwrap() {
            let want: Vec<u32> = want.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
            let side: usize = side.parse().unwrap();
            assert_eq!(config(side).position_rows(1, side), want, "{side} patches a side");
        }
    }
}
