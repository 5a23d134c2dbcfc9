//! LLaVA-OneVision: SigLIP tower read before its last norm, a projector of two matrices, Qwen2 decoder, any-resolution
//! tiles with a learned newline at the end of every row of features.
//!
//! Quirks: `vision_feature_layer` counts hidden states, so -1 is the stream behind the last block and the tower's last
//! norm is never read (it has no gradient); a tile need not be a multiple of the patch, what is left over is not seen;
//! features that show padding are left out; above `anyres_max_9` tiles' worth of features the grid is resampled
//! bilinearly, without antialiasing; several pictures in one conversation are not cut, each ends with one newline; the
//! tie flag of published checkpoints stands in text_config alone.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;

use crate::batch::Tile;
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::decoder::{Decoder, DecoderConfig, QWEN2, QWEN3};
use crate::families::mosaic::Mosaic;
use crate::families::siglip::{Siglip, SiglipConfig, feature_layer};
use crate::families::{Features, Vision, VisionSizes};
use crate::tape::Tape;
use crate::weights::{Fill, Layout, LinearId, Naming, ParamId, Part};

/// How checkpoints spell names: published ones, those that transformers 5 saves, and the names of a loaded model in
/// versions 5 and 4.
pub const NAMINGS: [Naming; 4] = [
    &[
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    ],
    &[("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.", "")],
    &[],
    &[("model.vision_tower.", "model.vision_tower.vision_model.")],
];

/// The image side of a LLaVA-OneVision model.
pub struct LlavaOnevision {
    tower: Siglip,
    project_in: LinearId,
    activation: Activation,
    project_out: LinearId,
    newline: ParamId,
    width: usize,
    max_tiles: usize,
}

impl LlavaOnevision {
    /// Declares all tensors of a configuration.
    pub fn declare(layout: &mut Layout, root: &Keys) -> Result<(Self, Decoder), ModelError> {
        match root.word("vision_feature_select_strategy").unwrap_or("full") {
            "full" => {}
            other => {
                return Err(root.problem(
                    format!("vision_feature_select_strategy \"{other}\" is not supported"),
                    "SigLIP has no class token to drop: \"full\"",
                ));
            }
        }
        let vision = SiglipConfig::read_plain(&root.section("vision_config"), feature_layer(root, -1)?)?;
        let max_tiles = max_tiles(root.word("vision_aspect_ratio").unwrap_or("anyres_max_9")).ok_or_else(|| {
            root.problem(
                format!("vision_aspect_ratio {:?} is not supported", root.word("vision_aspect_ratio")),
                "it reads anyres_max_N with N from 1 to 1024",
            )
        })?;
        let text = root.section("text_config");
        let dialect = match text.word("model_type").unwrap_or("qwen2") {
            "qwen2" => &QWEN2,
            "qwen3" => &QWEN3,
            other => {
                return Err(root.problem(
                    format!("the decoder \"{other}\" is not supported inside LLaVA-OneVision"),
                    "supported: qwen2, qwen3",
                ));
            }
        };
        // Either place counts: transformers carries the flag of text_config to the root.
        let tied = [root.flag("tie_word_embeddings")?, text.flag("tie_word_embeddings")?].contains(&Some(true));
        let text_config = DecoderConfig::read(&text, tied, dialect)?;
        let activation = root.activation("projector_hidden_act", Activation::GeluErf)?;
        let bias = root.flag("multimodal_projector_bias")?.unwrap_or(true);
        let (width, part) = (text_config.width, Part::Connector);
        let tower = Siglip::declare(layout, vision.clone(), "model.vision_tower.");
        let name = |tail: &str| format!("model.multi_modal_projector.{tail}");
        let project_in = layout.linear(&[(name("linear_1"), width)], vision.width, bias, part, 1.0);
        let project_out = layout.linear(&[(name("linear_2"), width)], width, bias, part, 1.0);
        let newline =
            layout.tensor("model.image_newline", &[width], part, true, Fill::Normal(1.0 / (width as f32).sqrt()));
        let decoder = Decoder::declare(layout, text_config, "model.language_model.", "lm_head");
        Ok((Self { tower, project_in, activation, project_out, newline, width, max_tiles }, decoder))
    }

    fn side(&self) -> usize {
        self.tower.config.table_side()
    }
}

/// The `9` of `anyres_max_9`.
pub fn max_tiles(aspect_ratio: &str) -> Option<usize> {
    let number = aspect_ratio.strip_prefix("anyres_max_")?.parse().ok()?;
    (1..=1024).contains(&number).then_some(number)
}

impl Vision for LlavaOnevision {
    fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String> {
        let side = self.tower.config.image_size as u32;
        let whole = self.side().pow(2);
        let mut total = 0;
        let mut index = 0;
        while let Some(tile) = tiles.get(index) {
            let mut count = 1;
            total += whole;
            match &tile.cuts {
                None => total += 1,
                Some(cuts) => {
                    if cuts.rows.min(cuts.columns).min(cuts.picture_height).min(cuts.picture_width) == 0 {
                        return Err(format!("a picture without extent: {cuts:?}"));
                    }
                    let following = u64::from(cuts.rows) * u64::from(cuts.columns);
                    if following > (tiles.len() - index - 1) as u64 {
                        return Err(format!("{cuts:?} ask for more tiles than follow"));
                    }
                    count += following as usize;
                    total += Mosaic::of(cuts, self.side(), self.max_tiles).num_features();
                }
            }
            for (place, tile) in tiles[index..index + count].iter().enumerate() {
                if tile.height != side || tile.width != side {
                    return Err(format!(
                        "a tile is {} x {} pixels, the tower takes {side} x {side}",
                        tile.width, tile.height
                    ));
                }
                if place > 0 && tile.cuts.is_some() {
                    return Err("a picture begins among the tiles of another".into());
                }
            }
            index += count;
        }
        Ok(total)
    }

    fn features<'w>(&'w self, tape: &mut Tape<'w>, tiles: &[Arc<Tile>]) -> Features {
        let x = self.tower.forward(tape, tiles);
        let x = tape.as_operand(x);
        let h = tape.linear(x, self.project_in);
        let h = tape.activation(h, self.activation);
        let projected = tape.linear_f32(h, self.project_out);

        let order = Order::of(tiles, self.side(), self.max_tiles);
        // Newlines everywhere; whatever is not one is written over.
        let newlines = tape.embed(self.newline, vec![0; order.num_features].into());
        let plain = tape.gather(projected, order.from.into(), self.width);
        let mut rows = tape.place(newlines, plain, order.to.into(), self.width);
        for thinned in order.thinned {
            let crop = tape.gather(projected, thinned.from.into(), self.width);
            let crop = tape.resample(crop, thinned.size, thinned.target, self.width);
            rows = tape.place(rows, crop, Rc::from(thinned.to), self.width);
        }
        Features { rows, deep: Vec::new() }
    }

    fn sizes(&self) -> VisionSizes {
        VisionSizes {
            tile_side: Some(self.tower.config.image_size),
            features_per_tile: self.side().pow(2),
            pixels_per_feature: self.tower.config.patch_size,
        }
    }
}

/// Which row of the projected tiles goes where in the sequence of features.
#[derive(Default)]
struct Order {
    num_features: usize,
    from: Vec<u32>,
    to: Vec<u32>,
    thinned: Vec<Thinned>,
}

/// A picture whose grid is resampled first.
struct Thinned {
    from: Vec<u32>,
    size: (usize, usize),
    target: (usize, usize),
    to: Vec<u32>,
}

impl Order {
    fn of(tiles: &[Arc<Tile>], side: usize, max_tiles: usize) -> Order {
        let mut order = Order::default();
        let per_tile = side * side;
        let mut index = 0;
        while let Some(tile) = tiles.get(index) {
            let first = index * per_tile;
            order.from.extend((first..first + per_tile).map(|row| row as u32));
            order.to.extend((order.num_features..order.num_features + per_tile).map(|row| row as u32));
            order.num_features += per_tile;
            index += 1;
            let Some(cuts) = &tile.cuts else {
                order.num_features += 1;
                continue;
            };
            let mosaic = Mosaic::of(cuts, side, max_tiles);
            let columns = cuts.columns as usize;
            let base = index * per_tile;
            // Row of the projected tiles that holds one place of the grid.
            let place = |y: usize, x: usize| {
                (base + ((y / side) * columns + x / side) * per_tile + (y % side) * side + x % side) as u32
            };
            let crop = (mosaic.top..mosaic.top + mosaic.height)
                .flat_map(|y| (mosaic.left..mosaic.left + mosaic.width).map(move |x| place(y, x)));
            let start = order.num_features;
            let (rows, width) = mosaic.shown();
            let lines = (0..rows).flat_map(|y| (0..width).map(move |x| (start + y * (width + 1) + x) as u32));
            match mosaic.resampled {
                None => {
                    order.from.extend(crop);
                    order.to.extend(lines);
                }
                Some(target) => order.thinned.push(Thinned {
                    from: crop.collect(),
                    size: (mosaic.height, mosaic.width),
                    target,
                    to: lines.collect(),
                }),
            }
            order.num_features += mosaic.num_features();
            index += (cuts.rows * cuts.columns) as usize;
        }
        order
    }
}
