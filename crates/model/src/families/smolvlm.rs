//! SmolVLM and Idefics3: SigLIP tower, pixel shuffle, one linear connector, Llama decoder.
//! Quirks: the tie flag may stand at the root or in text_config; the features replace the embeddings of `<image>`
//! tokens one for one; every tile has the size of the position table.

use std::rc::Rc;
use std::sync::Arc;

use crate::batch::Tile;
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::llama::{Llama, LlamaConfig};
use crate::families::siglip::{Siglip, SiglipConfig};
use crate::tape::{Attend, Shuffle, Tape, Var};
use crate::weights::{Layout, LinearId, Part};

/// A SmolVLM or Idefics3 model's tensors.
pub struct SmolVlm {
    tower: Siglip,
    connector: LinearId,
    /// The language part.
    pub decoder: Llama,
    factor: usize,
}

impl SmolVlm {
    /// Declares all tensors of a configuration.
    pub fn declare(layout: &mut Layout, root: &Keys) -> Result<Self, ModelError> {
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
        let text_config = LlamaConfig::read(&text, tied)?;
        let tower = Siglip::declare(layout, vision.clone(), "model.vision_model.");
        let connector = layout.linear(
            &[("model.connector.modality_projection.proj".to_string(), text_config.width)],
            vision.width * factor * factor,
            false,
            Part::Connector,
            1.0,
        );
        let decoder = Llama::declare(layout, text_config, "model.text_model.", "lm_head");
        Ok(Self { tower, connector, decoder, factor })
    }

    /// Side of a tile in pixels.
    pub fn tile_side(&self) -> usize {
        self.tower.config.image_size
    }

    /// Features that one tile becomes.
    pub fn features_per_tile(&self) -> usize {
        (self.tower.config.table_side() / self.factor).pow(2)
    }

    /// Width, layers and patch side of the tower, for descriptions.
    pub fn tower_config(&self) -> &SiglipConfig {
        &self.tower.config
    }

    /// Tiles to features `[tiles * features, D]` in f32.
    pub fn features<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Var {
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
        tape.linear_f32(x, self.connector)
    }

    /// Packed tokens to the last residual stream `[T, D]`.
    pub fn forward<'w>(
        &'w self,
        tape: &mut Tape<'w>,
        ids: Rc<[u32]>,
        positions: &[u32],
        tiles: &[Arc<Tile>],
        placements: Rc<[u32]>,
        attend: &Attend,
    ) -> Var {
        let mut x = tape.embed(self.decoder.embedding, ids);
        if !tiles.is_empty() {
            let features = self.features(tape, tiles);
            x = tape.place(x, features, placements, self.decoder.config.width);
        }
        self.decoder.forward(tape, x, positions, attend)
    }
}
