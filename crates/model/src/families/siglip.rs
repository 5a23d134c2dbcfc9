//! The SigLIP image tower as SmolVLM / Idefics3 use it: patches, learned positions, pre-norm blocks, full attention.
//! Quirks: tanh GELU; position ids go through a float32 `bucketize`, which is not the identity for every grid.

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
}

impl SiglipConfig {
    /// Reads a `vision_config` of SmolVLM or Idefics3.
    pub fn read(vision: &Keys) -> Result<Self, ModelError> {
        let width = vision.size("hidden_size", 1152)?;
        let num_heads = vision.size("num_attention_heads", 16)?;
        if width % num_heads != 0 || vision.size("num_channels", 3)? != 3 {
            return Err(vision.problem(
                format!("vision width {width} does not divide into {num_heads} heads, or channels are not 3"),
                "hidden_size must be a multiple of num_attention_heads, num_channels 3",
            ));
        }
        let activation = vision.activation("hidden_act", Activation::GeluTanh)?;
        Ok(Self {
            width,
            hidden: vision.size("intermediate_size", 3072)?,
            num_layers: vision.size("num_hidden_layers", 12)?,
            num_heads,
            image_size: vision.size("image_size", 224)?,
            patch_size: vision.size("patch_size", 32)?,
            eps: vision.number("layer_norm_eps", 1e-6)? as f32,
            activation,
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
        let gain_out = 1.0 / ((2 * config.num_layers) as f32).sqrt();
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
        let norm = |layout: &mut Layout, name: &str| {
            let weight = layout.tensor(&format!("{name}.weight"), &[width], part, false, Fill::Constant(1.0));
            (weight, layout.tensor(&format!("{name}.bias"), &[width], part, false, Fill::Constant(0.0)))
        };
        let blocks = (0..config.num_layers)
            .map(|i| {
                let name = |tail: &str| format!("{prefix}encoder.layers.{i}.{tail}");
                Rc::new(Block {
                    norm_in: norm(layout, &name("layer_norm1")),
                    qkv: layout.linear(
                        &[
                            (name("self_attn.q_proj"), width),
                            (name("self_attn.k_proj"), width),
                            (name("self_attn.v_proj"), width),
                        ],
                        width,
                        true,
                        part,
                        1.0,
                    ),
                    out: layout.linear(&[(name("self_attn.out_proj"), width)], width, true, part, gain_out),
                    norm_mid: norm(layout, &name("layer_norm2")),
                    up: layout.linear(&[(name("mlp.fc1"), config.hidden)], width, true, part, 1.0),
                    down: layout.linear(&[(name("mlp.fc2"), width)], config.hidden, true, part, gain_out),
                })
            })
            .collect();
        let norm = norm(layout, &format!("{prefix}post_layernorm"));
        Self { config, patch, positions, blocks, norm }
    }

    /// Tiles of one size to normed features `[tiles * patches, D]`, as operand.
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
        for block in &self.blocks {
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
        tape.layer_norm(x, self.norm.0, self.norm.1, config.eps)
    }
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
