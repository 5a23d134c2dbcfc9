//! Model families, each written once as a forward pass over the tape.
//! A family knows its layers and the names of its tensors; training, sampling and devices are not its business.
//!
//! A family is a decoder and, if it sees, a [`Vision`] in front of it: pictures become features, features take the
//! place of image tokens. What a new family adds is one file with a `Vision`, one line in [`SUPPORTED`] and one arm in
//! [`Family::declare`].

pub mod decoder;
pub mod internvit;
pub mod internvl;
pub mod llava_onevision;
pub mod mosaic;
pub mod qwen2_5_vl;
pub mod qwen2_vl;
pub mod qwen3_vl;
pub mod qwen_vision;
pub mod siglip;
pub mod smolvlm;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use crate::batch::{Segment, Tile};
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::decoder::{Decoder, DecoderConfig, DeepStack, Dialect, LLAMA, QWEN2, QWEN3};
use crate::families::internvl::InternVl;
use crate::families::llava_onevision::LlavaOnevision;
use crate::families::qwen2_5_vl::Qwen25Vl;
use crate::families::qwen2_vl::Qwen2Vl;
use crate::families::qwen3_vl::Qwen3Vl;
use crate::families::smolvlm::SmolVlm;
use crate::positions::{Positions, around_pictures};
use crate::tape::{Attend, Tape, Var};
use crate::weights::{Layout, Naming};

/// `model_type` of every family that can be loaded.
pub const SUPPORTED: [&str; 10] = [
    "smolvlm",
    "idefics3",
    "llava_onevision",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llama",
    "qwen2",
    "qwen3",
];

/// What stands before a decoder and turns pictures into features.
pub trait Vision {
    /// Features that these tiles become, hence image tokens that they need; an error says which tile the tower cannot
    /// take.
    fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String>;

    /// Rows and columns of features of one picture, where rotary positions follow them (multi-axis rotary).
    fn grid(&self, _tile: &Tile) -> Option<(u32, u32)> {
        None
    }

    /// Tiles to features, in the order of the tiles. Tiles may have any size that [`Vision::num_features`] accepts.
    fn features<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Features;

    /// Sizes, for descriptions.
    fn sizes(&self) -> VisionSizes;
}

/// What a tower makes of pictures.
pub struct Features {
    /// `[features, D]` in f32: they take the place of image tokens.
    pub rows: Var,
    /// Of the same shape: they are added after each of the first blocks. Empty in most families.
    pub deep: Vec<Var>,
}

/// Sizes of what a tower reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VisionSizes {
    /// Side of a tile in pixels, if all tiles have one size.
    pub tile_side: Option<usize>,
    /// Tokens that one tile takes in a prompt; 0 if that depends on its size.
    pub features_per_tile: usize,
    /// Side in pixels of what one token stands for.
    pub pixels_per_feature: usize,
}

/// A model family with its tensors.
pub struct Family {
    /// `model_type` of the configuration.
    pub name: &'static str,
    /// The language part.
    pub decoder: Decoder,
    /// The image part.
    pub vision: Option<Box<dyn Vision>>,
    /// How checkpoints of the family spell names. The first is how fresh models are written.
    pub namings: &'static [Naming],
}

impl Family {
    /// Chooses the family by `model_type` and declares its tensors: image tower, connector, decoder.
    pub(crate) fn declare(layout: &mut Layout, path: &Path, json: &Value) -> Result<Self, ModelError> {
        let root = Keys::root(path, json);
        let found = root.word("model_type").unwrap_or("");
        let Some(name) = SUPPORTED.into_iter().find(|name| *name == found) else {
            return Err(ModelError::UnknownFamily { found: found.to_string() });
        };
        let mut namings: &'static [Naming] = &[&[]];
        let (decoder, vision): (_, Option<Box<dyn Vision>>) = match name {
            "smolvlm" | "idefics3" => {
                let (vision, decoder) = SmolVlm::declare(layout, &root)?;
                (decoder, Some(Box::new(vision)))
            }
            "qwen2_vl" => {
                namings = &qwen_vision::NAMINGS;
                let (vision, decoder) = Qwen2Vl::declare(layout, &root)?;
                (decoder, Some(Box::new(vision)))
            }
            "qwen2_5_vl" => {
                namings = &qwen_vision::NAMINGS;
                let (vision, decoder) = Qwen25Vl::declare(layout, &root)?;
                (decoder, Some(Box::new(vision)))
            }
            "qwen3_vl" => {
                namings = &qwen_vision::NAMINGS;
                let (vision, decoder) = Qwen3Vl::declare(layout, &root)?;
                (decoder, Some(Box::new(vision)))
            }
            "llava_onevision" => {
                let (vision, decoder) = LlavaOnevision::declare(layout, &root)?;
                namings = &llava_onevision::NAMINGS;
                (decoder, Some(Box::new(vision)))
            }
            "internvl" => {
                let (vision, decoder) = InternVl::declare(layout, &root)?;
                namings = &internvl::NAMINGS;
                (decoder, Some(Box::new(vision)))
            }
            "qwen2" => (text_model(layout, &root, &QWEN2)?, None),
            "qwen3" => (text_model(layout, &root, &QWEN3)?, None),
            _ => (text_model(layout, &root, &LLAMA)?, None),
        };
        Ok(Family { name, decoder, vision, namings })
    }

    /// Features that pictures become; an error says what the family cannot take.
    pub(crate) fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String> {
        match &self.vision {
            Some(vision) => vision.num_features(tiles),
            None if tiles.is_empty() => Ok(0),
            None => Err("the model has no image tower, the prompt has images".into()),
        }
    }

    /// Rotary positions of packed rows that stand at `places` of their own texts, and for each segment by how much the
    /// next token's position falls short of its place.
    pub(crate) fn positions(
        &self,
        places: &[u32],
        segments: &[Segment],
        tiles: &[Arc<Tile>],
        placements: &[u32],
    ) -> Result<(Positions, Vec<u32>), String> {
        match &self.vision {
            Some(vision) if self.decoder.config.rope.has_axes() => {
                let grids: Vec<_> = tiles.iter().filter_map(|tile| vision.grid(tile)).collect();
                around_pictures(places, segments, placements, &grids)
            }
            _ => Ok((Positions::text(places.to_vec()), vec![0; segments.len()])),
        }
    }

    /// Packed tokens to the last residual stream `[T, D]`.
    pub(crate) fn forward<'w>(
        &'w self,
        tape: &mut Tape<'w>,
        ids: Rc<[u32]>,
        positions: &Positions,
        tiles: &[Arc<Tile>],
        placements: Rc<[u32]>,
        attend: &Attend,
    ) -> Var {
        let mut x = tape.embed(self.decoder.embedding, ids);
        let mut deep = DeepStack::default();
        if let Some(vision) = self.vision.as_ref().filter(|_| !tiles.is_empty()) {
            let features = vision.features(tape, tiles);
            x = tape.place(x, features.rows, placements.clone(), self.decoder.config.width);
            deep = DeepStack { features: features.deep, rows: placements };
        }
        self.decoder.forward(tape, x, positions, attend, deep)
    }
}

fn text_model(layout: &mut Layout, root: &Keys, dialect: &Dialect) -> Result<Decoder, ModelError> {
    let tied = root.flag("tie_word_embeddings")?.unwrap_or(false);
    Ok(Decoder::declare(layout, DecoderConfig::read(root, tied, dialect)?, "model.", "lm_head"))
}

/// The supported family whose name is most like `found`, if any is.
pub fn nearest(found: &str) -> Option<&'static str> {
    let found = found.to_lowercase();
    let distance = |name: &str| edit_distance(found.as_bytes(), name.as_bytes());
    let alike = |name: &&str| {
        let shared = found.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        shared >= 4 || distance(name) <= 2
    };
    // qwen3_moe begins as qwen3 does, though fewer letters lie between it and qwen3_vl.
    let beginning = SUPPORTED.into_iter().filter(|name| found.starts_with(name)).max_by_key(|name| name.len());
    beginning.or_else(|| SUPPORTED.into_iter().filter(alike).min_by_key(|name| distance(name)))
}

/// Single-letter changes that turn one word into the other.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_families_are_told_what_is_near() {
        assert_eq!(nearest("qwen2_moe"), Some("qwen2"));
        assert_eq!(nearest("qwen3_moe"), Some("qwen3"));
        assert_eq!(nearest("qwen3_vl_moe"), Some("qwen3_vl"));
        assert_eq!(nearest("llama4"), Some("llama"));
        assert_eq!(nearest("Llama"), Some("llama"));
        assert_eq!(nearest("mamba"), None);
        assert_eq!(nearest(""), None);
    }
}
