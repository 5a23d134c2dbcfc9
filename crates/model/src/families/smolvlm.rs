//! SmolVLM and Idefics3: SigLIP tower, pixel shuffle, one linear connector, Llama decoder.
//! Quirks: the tie flag may stand at the root or in text_config; the features replace the embeddings of `<image>`
//! tokens one for one; every tile has the size of the position table.

use std::sync::Arc;

use crate::batch::Tile;
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::decoder::{Decoder, DecoderConfig, LLAMA};
use crate::families::siglip::{Siglip, SiglipConfig};
use crate::families::{Features, Vision, VisionSizes};
use crate::tape::{Shuffle, Tape};
use crate::weights::{Layout, LinearId, Part};

/// The image side of a SmolVLM or Idefics3 model.
pub struct SmolVlm {
    tower: Siglip,
    connector: LinearId,
    factor: usize,
}

impl SmolVlm {
    /// Declares all tensors of a configuration.
    pub fn declare(layout: &mut Layout, root: &Keys) -> Result<(Self, Decoder), ModelError> {
        let vision = SiglipConfig::read(&root.section("vision_config"))?;
        let text = root.section("text_config");
        // Root first: it wins in transformers, whose default at the root is "not tied".
        let tied = match (root.flag("tie_word_embeddings")?, text.flag("tie_word_embeddings")?) {
            (Some(flag), _) => flag,
            (None, flag) => flag.unwrap_or(false),
        };
        let factor = root.size("scale_factor", 2)?;
        if vision.table_side() % factor != 0 || vision.table_side() == 0 {
            return Err(root.problem(
                format!("{0} x {0} patches cannot be merged by scale_factor {factor}", vision.table_side()),
                "image_size / patch_size must be a multiple of scale_factor",
            ));
        }
        let text_config = DecoderConfig::read(&text, tied, &LLAMA)?;
        let tower = Siglip::declare(layout, vision.clone(), "model.vision_model.");
        let connector = layout.linear(
            &[("model.connector.modality_projection.proj".to_string(), text_config.width)],
            vision.width * factor * factor,
            false,
            Part::Connector,
            1.0,
        );
        let decoder = Decoder::declare(layout, text_config, "model.text_model.", "lm_head");
        Ok((Self { tower, connector, factor }, decoder))
    }

    fn features_per_tile(&self) -> usize {
        (self.tower.config.table_side() / self.factor).pow(2)
    }
}

impl Vision for SmolVlm {
    fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String> {
        let side = self.tower.config.image_size as u32;
        match tiles.iter().find(|tile| tile.height != side || tile.width != side) {
            Some(tile) => {
                Err(format!("a tile is {} x {} pixels, the tower takes {side} x {side}", tile.width, tile.height))
            }
            None => Ok(tiles.len() * self.features_per_tile()),
        }
    }

    fn features<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Features {
        let x = self.tower.forward(tape, tiles);
        let side = self.tower.config.table_side();
        let shuffle = Shuffle {
            tiles: tiles.len(),
            height: side,
            width: side,
            depth: self.tower.config.width,
            factor: self.factor,
        };
        let x = tape.pixel_shuffle(x, shuffle);
        Features { rows: tape.linear_f32(x, self.connector), deep: Vec::new() }
    }

    fn sizes(&self) -> VisionSizes {
        VisionSizes {
            tile_side: Some(self.tower.config.image_size),
            features_per_tile: self.features_per_tile(),
            pixels_per_feature: self.tower.config.patch_size * self.factor,
        }
    }
}
