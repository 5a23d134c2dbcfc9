//! Qwen2-VL: a tower over pictures of any size with rotary positions, a merger of 2 x 2 patches, a Qwen2 decoder with
//! positions in three axes.
//! Quirks: `hidden_size` of the vision_config is the decoder's width, `embed_dim` the tower's; quick GELU in the
//! tower, exact GELU in the merger; published configurations are flat (no text_config); the tie flag counts wherever it
//! is set.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;

use crate::batch::Tile;
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::decoder::{Decoder, DecoderConfig, Dialect, QWEN2};
use crate::families::qwen_vision::{Block, FeedForward, Merger, PatchConfig};
use crate::families::{Features, Vision, VisionSizes};
use crate::tape::Tape;
use crate::weights::{Layout, LinearId};

/// The decoder of Qwen2-VL and Qwen2.5-VL.
pub const DIALECT: Dialect = Dialect {
    vocabulary: 152064,
    width: 8192,
    hidden: 29568,
    num_layers: 80,
    num_heads: 64,
    eps: 1e-5,
    theta: 1e6,
    ..QWEN2
};

/// The image side of a Qwen2-VL model.
pub struct Qwen2Vl {
    config: PatchConfig,
    patch: LinearId,
    blocks: Vec<Rc<Block>>,
    merger: Merger,
}

/// Reads the decoder's part of a flat or nested configuration and checks that positions have three axes.
pub fn read_decoder(root: &Keys, dialect: &Dialect) -> Result<DecoderConfig, ModelError> {
    let nested = root.section("text_config");
    let inner = nested.flag("tie_word_embeddings")?.unwrap_or(false);
    let tied = root.flag("tie_word_embeddings")?.unwrap_or(false) || inner;
    let config = match root.get("text_config") {
        Some(_) => DecoderConfig::read(&nested, tied, dialect)?,
        None => DecoderConfig::read(root, tied, dialect)?,
    };
    if !config.rope.has_axes() {
        return Err(root.problem(
            "the decoder has no mrope_section".into(),
            "rope_scaling (or rope_parameters) of the published config.json holds it",
        ));
    }
    Ok(config)
}

impl Qwen2Vl {
    /// Declares all tensors of a configuration.
    pub fn declare(layout: &mut Layout, root: &Keys) -> Result<(Self, Decoder), ModelError> {
        let vision = root.section("vision_config");
        let defaults =
            PatchConfig { width: 1280, num_heads: 16, num_layers: 32, side: 14, merge: 2, frames: 2, theta: 10000.0 };
        let config = PatchConfig::read(&vision, "embed_dim", defaults)?;
        let activation = vision.activation("hidden_act", Activation::QuickGelu)?;
        let hidden = config.width * vision.size("mlp_ratio", 4)?;
        let decoder = read_decoder(root, &DIALECT)?;

        let patch = config.declare_patch(layout, false);
        let names = FeedForward::Plain(["mlp.fc1", "mlp.fc2"]);
        let blocks = config.declare_blocks(layout, hidden, activation, names);
        let names = ["model.visual.merger.ln_q", "model.visual.merger.mlp.0", "model.visual.merger.mlp.2"];
        let merger = Merger::declare(layout, names, &config, config.width, false, decoder.width);
        let decoder = Decoder::declare(layout, decoder, "model.language_model.", "lm_head");
        Ok((Self { config, patch, blocks, merger }, decoder))
    }
}

impl Vision for Qwen2Vl {
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
        for block in &self.blocks {
            x = self.config.block(tape, block, &patches, &patches.pictures, x);
        }
        Features { rows: self.merger.forward(tape, x), deep: Vec::new() }
    }

    fn sizes(&self) -> VisionSizes {
        self.config.sizes()
    }
}
