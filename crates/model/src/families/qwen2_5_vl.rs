//! Qwen2.5-VL: as Qwen2-VL, but most layers of the tower attend within windows, norms are root-mean-square, and the
//! feed-forward is gated.
//! Quirks: a window is `window_size` pixels a side (112 = 4 x 4 features), smaller at the right and lower border;
//! patches are read window by window and features put back in order after the merger; the layers in
//! `fullatt_block_indexes` see the whole picture; the gated feed-forward has biases, the decoder's has none.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;

use crate::batch::{Segment, Tile};
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::decoder::Decoder;
use crate::families::qwen_vision::{Block, FeedForward, Merger, PatchConfig};
use crate::families::qwen2_vl::{DIALECT, read_decoder};
use crate::families::{Features, Vision, VisionSizes};
use crate::tape::Tape;
use crate::weights::{Layout, LinearId};

/// The image side of a Qwen2.5-VL model.
pub struct Qwen25Vl {
    config: PatchConfig,
    /// Side of a window in features.
    window: usize,
    patch: LinearId,
    blocks: Vec<Rc<Block>>,
    /// Layers that see the whole picture.
    whole: Vec<usize>,
    merger: Merger,
    width_out: usize,
}

impl Qwen25Vl {
    /// Declares all tensors of a configuration.
    pub fn declare(layout: &mut Layout, root: &Keys) -> Result<(Self, Decoder), ModelError> {
        let vision = root.section("vision_config");
        let defaults =
            PatchConfig { width: 3584, num_heads: 16, num_layers: 32, side: 14, merge: 2, frames: 2, theta: 10000.0 };
        let config = PatchConfig::read(&vision, "hidden_size", defaults)?;
        let activation = vision.activation("hidden_act", Activation::Silu)?;
        let hidden = vision.size("intermediate_size", 3420)?;
        let whole = vision.sizes("fullatt_block_indexes")?.unwrap_or_else(|| vec![7, 15, 23, 31]);
        let window = vision.size("window_size", 112)? / config.merge / config.side;
        let decoder = read_decoder(root, &DIALECT)?;
        let width_out = vision.size("out_hidden_size", decoder.width)?;
        if window == 0 || width_out != decoder.width {
            return Err(root.problem(
                format!(
                    "out_hidden_size {width_out} is not the decoder's {}, or window_size is too small",
                    decoder.width
                ),
                "window_size must hold at least one feature (patch_size times spatial_merge_size pixels)",
            ));
        }

        let patch = config.declare_patch(layout, false);
        let blocks = config.declare_blocks(layout, hidden, activation, FeedForward::Gated);
        let names = ["model.visual.merger.ln_q", "model.visual.merger.mlp.0", "model.visual.merger.mlp.2"];
        let merger = Merger::declare(layout, names, &config, config.width, true, width_out);
        let decoder = Decoder::declare(layout, decoder, "model.language_model.", "lm_head");
        Ok((Self { config, window, patch, blocks, whole, merger, width_out }, decoder))
    }
}

/// Features of a picture window by window, and the number in each window.
fn by_window((rows, columns): (u32, u32), window: u32) -> (Vec<(u32, u32)>, Vec<u32>) {
    let (mut units, mut counts) = (Vec::new(), Vec::new());
    for top in (0..rows).step_by(window as usize) {
        for left in (0..columns).step_by(window as usize) {
            let (bottom, right) = ((top + window).min(rows), (left + window).min(columns));
            units.extend((top..bottom).flat_map(|row| (left..right).map(move |column| (row, column))));
            counts.push((bottom - top) * (right - left));
        }
    }
    (units, counts)
}

impl Vision for Qwen25Vl {
    fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String> {
        self.config.num_features(tiles)
    }

    fn grid(&self, tile: &Tile) -> Option<(u32, u32)> {
        Some(self.config.grid(tile))
    }

    fn features<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Features {
        let patches_of_unit = (self.config.merge * self.config.merge) as u32;
        let mut units = Vec::with_capacity(tiles.len());
        let mut windows: Vec<Segment> = Vec::new();
        // Where each feature lies after the merger, by its place in the picture.
        let mut places = Vec::new();
        let mut start = 0;
        for tile in tiles {
            let grid = self.config.grid(tile);
            let (order, counts) = by_window(grid, self.window as u32);
            let first = places.len();
            places.resize(first + order.len(), 0u32);
            for (at, (row, column)) in order.iter().enumerate() {
                places[first + (row * grid.1 + column) as usize] = (first + at) as u32;
            }
            units.push(order);
            for count in counts {
                let len = count * patches_of_unit;
                windows.push(Segment { start, len, parent: None });
                start += len;
            }
        }
        let windows: Rc<[Segment]> = windows.into();
        let patches = self.config.cut(tape, tiles, &units);
        let mut x = tape.linear_f32(patches.columns, self.patch);
        for (layer, block) in self.blocks.iter().enumerate() {
            let within = if self.whole.contains(&layer) { &patches.pictures } else { &windows };
            x = self.config.block(tape, block, &patches, within, x);
        }
        let merged = self.merger.forward(tape, x);
        Features { rows: tape.gather(merged, places.into(), self.width_out), deep: Vec::new() }
    }

    fn sizes(&self) -> VisionSizes {
        self.config.sizes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_smaller_at_the_border() {
        let (units, counts) = by_window((3, 5), 2);
        assert_eq!(counts, [4, 4, 2, 2, 2, 1]);
        assert_eq!(units[..5], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]);
        assert_eq!(units.len(), 15);
        assert_eq!(by_window((1, 1), 4), (vec![(0, 0)], vec![1]));
    }
}
