//! InternVL 2, 2.5 and 3 in the Hugging Face layout: InternViT tower, pixel shuffle, a projector of a layer norm and
//! two matrices, Qwen2 or Llama decoder.
//!
//! Quirks: the class token is dropped before the shuffle; the projector's norm adds 1e-5 whatever the tower adds; the
//! head is tied unless the root says otherwise; published checkpoints spell names without the leading `model.`.

use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;

use crate::batch::Tile;
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::decoder::{Decoder, DecoderConfig, LLAMA, QWEN2, QWEN3};
use crate::families::internvit::{InternVit, InternVitConfig};
use crate::families::siglip::feature_layer;
use crate::families::{Features, Vision, VisionSizes};
use crate::tape::{Shuffle, Tape};
use crate::weights::{Fill, Layout, LinearId, Naming, ParamId, Part};

/// How checkpoints spell names: published ones (and those that transformers 5 saves), and the names of a loaded model.
pub const NAMINGS: [Naming; 2] = [
    &[("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.", "")],
    &[],
];

const PROJECTOR_EPS: f32 = 1e-5;

/// The image side of an InternVL model.
pub struct InternVl {
    tower: InternVit,
    norm: (ParamId, ParamId),
    project_in: LinearId,
    activation: Activation,
    project_out: LinearId,
    factor: usize,
}

impl InternVl {
    /// Declares all tensors of a configuration.
    pub fn declare(layout: &mut Layout, root: &Keys) -> Result<(Self, Decoder), ModelError> {
        match root.word("vision_feature_select_strategy").unwrap_or("default") {
            "default" => {}
            other => {
                return Err(root.problem(
                    format!("vision_feature_select_strategy \"{other}\" is not supported"),
                    "InternVL drops the class token: \"default\"",
                ));
            }
        }
        let vision = InternVitConfig::read(&root.section("vision_config"), feature_layer(root, -1)?)?;
        let ratio = root.number("downsample_ratio", 0.5)?;
        let factor = (1.0 / ratio) as usize;
        if !(0.01..=1.0).contains(&ratio) || !vision.table_side().is_multiple_of(factor) {
            return Err(root.problem(
                format!("{0} x {0} patches cannot be merged by a downsample_ratio of {ratio}", vision.table_side()),
                "image_size / patch_size must be a multiple of 1 / downsample_ratio",
            ));
        }
        let features = (vision.table_side() / factor).pow(2);
        let stated = root.size("image_seq_length", features)?;
        if stated != features {
            return Err(root.problem(
                format!("image_seq_length is {stated}, the tower makes {features} features of a tile"),
                "it follows from image_size, patch_size and downsample_ratio",
            ));
        }
        let text = root.section("text_config");
        let dialect = match text.word("model_type").unwrap_or("qwen2") {
            "qwen2" => &QWEN2,
            "llama" => &LLAMA,
            "qwen3" => &QWEN3,
            other => {
                return Err(root.problem(
                    format!("the decoder \"{other}\" is not supported inside InternVL"),
                    "supported: qwen2, qwen3, llama",
                ));
            }
        };
        let tied = root.flag("tie_word_embeddings")?.unwrap_or(true);
        let text_config = DecoderConfig::read(&text, tied, dialect)?;
        let activation = root.activation("projector_hidden_act", Activation::GeluErf)?;
        let tower = InternVit::declare(layout, vision.clone(), "model.vision_tower.");
        let wide = vision.width * factor * factor;
        let part = Part::Connector;
        let name = |tail: &str| format!("model.multi_modal_projector.{tail}");
        let norm = (
            layout.tensor(&name("layer_norm.weight"), &[wide], part, false, Fill::Constant(1.0)),
            layout.tensor(&name("layer_norm.bias"), &[wide], part, false, Fill::Constant(0.0)),
        );
        let width = text_config.width;
        let project_in = layout.linear(&[(name("linear_1"), width)], wide, true, part, 1.0);
        let project_out = layout.linear(&[(name("linear_2"), width)], width, true, part, 1.0);
        let decoder = Decoder::declare(layout, text_config, "model.language_model.", "lm_head");
        Ok((Self { tower, norm, project_in, activation, project_out, factor }, decoder))
    }

    fn features_per_tile(&self) -> usize {
        (self.tower.config.table_side() / self.factor).pow(2)
    }
}

impl Vision for InternVl {
    fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String> {
        let side = self.tower.config.image_size as u32;
        match tiles.iter().find(|tile| tile.height != side || tile.width != side || tile.cuts.is_some()) {
            Some(tile) => Err(format!(
                "a tile is {} x {} pixels, the tower takes {side} x {side}, one by one",
                tile.width, tile.height
            )),
            None => Ok(tiles.len() * self.features_per_tile()),
        }
    }

    fn features<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Features {
        let x = self.tower.forward(tape, tiles);
        let side = self.tower.config.table_side();
        let (depth, factor) = (self.tower.config.width, self.factor);
        let x = tape.pixel_shuffle(x, Shuffle { tiles: tiles.len(), height: side, width: side, depth, factor });
        let h = tape.layer_norm(x, self.norm.0, self.norm.1, PROJECTOR_EPS);
        let h = tape.linear(h, self.project_in);
        let h = tape.activation(h, self.activation);
        Features { rows: tape.linear_f32(h, self.project_out), deep: Vec::new() }
    }

    fn sizes(&self) -> VisionSizes {
        VisionSizes {
            tile_side: Some(self.tower.config.image_size),
            features_per_tile: self.features_per_tile(),
            pixels_per_feature: self.tower.config.patch_size * self.factor,
        }
    }
}
