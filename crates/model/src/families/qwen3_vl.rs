//! Qwen3-VL: a tower with a learned position table beside rotary positions, features of several depths (DeepStack), a
//! Qwen3 decoder with interleaved positions in three axes.
//! Quirks: the position table is square and read bilinearly, corners on corners; the last merger norms patches, the
//! others norm whole features (`use_postshuffle_norm`); their features are added after the first layers of the decoder,
//! at image tokens only; tanh GELU in the tower, exact GELU in the mergers.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::interpolate::Interpolation;

use crate::batch::Tile;
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::decoder::{Decoder, Dialect, QWEN3};
use crate::families::qwen_vision::{Block, FeedForward, Merger, PatchConfig};
use crate::families::qwen2_vl::read_decoder;
use crate::families::{Features, Vision, VisionSizes};
use crate::tape::{Tape, Var};
use crate::weights::{Fill, Layout, LinearId, ParamId, Part};

/// The decoder of Qwen3-VL.
const DIALECT: Dialect = Dialect { interleaved: true, max_positions: 128_000, theta: 500_000.0, ..QWEN3 };

/// The image side of a Qwen3-VL model.
pub struct Qwen3Vl {
    config: PatchConfig,
    patch: LinearId,
    positions: ParamId,
    /// Side of the position table.
    table_side: usize,
    blocks: Vec<Rc<Block>>,
    merger: Merger,
    /// Layers after which features are taken, and what makes them, in the order of the decoder's layers.
    deep: Vec<(usize, Merger)>,
}

impl Qwen3Vl {
    /// Declares all tensors of a configuration.
    pub fn declare(layout: &mut Layout, root: &Keys) -> Result<(Self, Decoder), ModelError> {
        let vision = root.section("vision_config");
        let defaults =
            PatchConfig { width: 1152, num_heads: 16, num_layers: 27, side: 16, merge: 2, frames: 2, theta: 10000.0 };
        let config = PatchConfig::read(&vision, "hidden_size", defaults)?;
        let activation = vision.activation("hidden_act", Activation::GeluTanh)?;
        let hidden = vision.size("intermediate_size", 4304)?;
        let num_positions = vision.size("num_position_embeddings", 2304)?;
        let table_side = num_positions.isqrt();
        let taken = vision.sizes("deepstack_visual_indexes")?.unwrap_or_else(|| vec![8, 16, 24]);
        let decoder = read_decoder(root, &DIALECT)?;
        let width_out = vision.size("out_hidden_size", decoder.width)?;
        let stacks = taken.len() <= decoder.num_layers && taken.iter().all(|layer| *layer < config.num_layers);
        if !stacks || width_out != decoder.width || table_side * table_side != num_positions {
            return Err(root.problem(
                format!(
                    "out_hidden_size {width_out}, num_position_embeddings {num_positions} or deepstack_visual_indexes \
                     {taken:?} do not fit the rest"
                ),
                "out_hidden_size is the decoder's hidden_size, the position table square, the indexes below depth",
            ));
        }

        let (width, part) = (config.width, Part::Vision);
        let patch = config.declare_patch(layout, true);
        let positions =
            layout.tensor("model.visual.pos_embed.weight", &[num_positions, width], part, true, Fill::Normal(0.5));
        let names = FeedForward::Plain(["mlp.linear_fc1", "mlp.linear_fc2"]);
        let blocks = config.declare_blocks(layout, hidden, activation, names);
        let mut merger = |prefix: String, over: usize| {
            let names = ["norm", "linear_fc1", "linear_fc2"].map(|tail| format!("{prefix}.{tail}"));
            let names = [names[0].as_str(), names[1].as_str(), names[2].as_str()];
            Merger::declare(layout, names, &config, over, false, width_out)
        };
        let last = merger("model.visual.merger".into(), width);
        let deep = taken
            .into_iter()
            .enumerate()
            .map(|(i, layer)| (layer, merger(format!("model.visual.deepstack_merger_list.{i}"), config.merged_width())))
            .collect();
        let decoder = Decoder::declare(layout, decoder, "model.language_model.", "lm_head");
        Ok((Self { config, patch, positions, table_side, blocks, merger: last, deep }, decoder))
    }
}

impl Vision for Qwen3Vl {
    fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String> {
        self.config.num_features(tiles)
    }

    fn grid(&self, tile: &Tile) -> Option<(u32, u32)> {
        Some(self.config.grid(tile))
    }

    fn features<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Features {
        let units: Vec<_> = tiles.iter().map(|tile| self.config.in_order(tile)).collect();
        let patches = self.config.cut(tape, tiles, &units);
        let mut x = tape.linear_f32(patches.columns, self.patch);
        for (tile, picture) in tiles.iter().zip(patches.pictures.iter()) {
            let columns = tile.width as usize / self.config.side;
            // Packed row of every patch, by its place in the picture.
            let mut rows = vec![0; picture.len as usize];
            for at in picture.start..picture.start + picture.len {
                let (row, column) = (patches.rows[at as usize], patches.patch_columns[at as usize]);
                rows[row as usize * columns + column as usize] = at;
            }
            let to = (tile.height as usize / self.config.side, columns);
            let from = (self.table_side, self.table_side);
            let read = tape.interpolate(self.positions, from, to, Interpolation::BilinearLinspace);
            x = tape.add_rows(x, read, rows.into(), self.config.width);
        }
        let mut deep: Vec<Option<Var>> = vec![None; self.deep.len()];
        for (layer, block) in self.blocks.iter().enumerate() {
            x = self.config.block(tape, block, &patches, &patches.pictures, x);
            for (slot, (taken, merger)) in deep.iter_mut().zip(&self.deep) {
                if *taken == layer {
                    *slot = Some(merger.forward(tape, x));
                }
            }
        }
        Features { rows: self.merger.forward(tape, x), deep: deep.into_iter().flatten().collect() }
    }

    fn sizes(&self) -> VisionSizes {
        self.config.sizes()
    }
}
