//! Cuts pictures into tiles as InternVL does, and spells out the placeholders that stand for them.
//! Knows sizes, order and markers; knows nothing of templates or tokens. Cost: two resizes per picture.
//!
//! The picture is stretched to the grid whose proportions are nearest to its own, cut row by row, and shrunk to one more
//! tile, the thumbnail, unless one tile is all. `preprocessor_config.json` says `crop_to_patches: false` in published
//! checkpoints, and transformers crops all the same: the processor's own default wins.

use std::path::Path;
use std::sync::Arc;

use foveate_tasks::row::Drawing;
use serde_json::Value as Json;

use super::error::PromptError;
use super::files;
use super::processor::{CLIP_DEVIATION, CLIP_MEAN, Normalizer, ProcessedImage, Settings};
use super::resize::{Filter, Rounding, resize};

/// More tiles than this for one picture are a mistake in the settings.
const MAX_TILES: usize = 256;
const DEFAULT_MAX_TILES: usize = 12;

/// Settings of the InternVL image processor.
#[derive(Clone, Debug, PartialEq)]
pub struct InternVlProcessor {
    /// Height and width of a tile; the tower takes squares, the settings name both.
    tile: u32,
    min_tiles: usize,
    max_tiles: usize,
    features_per_tile: usize,
    /// Tokens before, for and after the features.
    tokens: Tokens,
    filter: Filter,
    rounding: Rounding,
    normalizer: Normalizer,
}

/// What stands for a picture in the text.
#[derive(Clone, Debug, PartialEq)]
struct Tokens {
    start: String,
    feature: String,
    end: String,
    video: String,
}

impl Tokens {
    /// `tokenizer_config.json` names them, at its root or under `extra_special_tokens`.
    fn load(dir: &Path) -> Result<Tokens, PromptError> {
        let config = files::read_json_if_present(&dir.join("tokenizer_config.json"))?.unwrap_or(Json::Null);
        let named = |key: &str, default: &str| {
            let places = [config.get(key), config.pointer(&format!("/extra_special_tokens/{key}"))];
            let found = places.into_iter().flatten().find_map(|value| value.get("content").unwrap_or(value).as_str());
            found.filter(|token| !token.is_empty()).unwrap_or(default).to_string()
        };
        Ok(Tokens {
            start: named("start_image_token", "<img>"),
            feature: named("context_image_token", "<IMG_CONTEXT>"),
            end: named("end_image_token", "</img>"),
            video: named("video_token", "<video>"),
        })
    }
}

impl InternVlProcessor {
    /// From the image settings, `config.json` and the folder's tokenizer settings; `fast` where they name the processor
    /// that works in torch.
    pub fn new(dir: &Path, settings: &Settings, config: &Json, fast: bool) -> Result<InternVlProcessor, PromptError> {
        settings.square_resize_only()?;
        let tile = settings.square_side(384)?;
        let vision = |key: &str, default: u64| {
            let value = config.pointer(&format!("/vision_config/{key}"));
            // One number, or height and width.
            value.and_then(|value| value.as_u64().or_else(|| value.get(0)?.as_u64())).unwrap_or(default)
        };
        let (image_size, patch) = (vision("image_size", 448), vision("patch_size", 14).max(1));
        if image_size != u64::from(tile) {
            return Err(settings.problem(format!("tiles have {tile} pixels a side, the tower reads {image_size}")));
        }
        let ratio = config.get("downsample_ratio").and_then(Json::as_f64).unwrap_or(0.5);
        let factor = (1.0 / ratio.clamp(0.01, 1.0)) as u64;
        let features_per_tile = (image_size / patch / factor).pow(2) as usize;
        let stated = settings.processor_number("image_seq_length")?;
        if let Some(stated) = stated.filter(|&stated| stated != features_per_tile) {
            return Err(PromptError::PlaceholderMismatch { need: features_per_tile, have: stated });
        }
        let count = |key: &str, default: usize| match settings.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|count| (1..=MAX_TILES as u64).contains(count))
                .map(|count| count as usize)
                .ok_or_else(|| settings.problem(format!("{key} is {value}, not a number of tiles up to {MAX_TILES}"))),
        };
        Ok(InternVlProcessor {
            tile,
            min_tiles: count("min_patches", 1)?,
            max_tiles: count("max_patches", DEFAULT_MAX_TILES)?,
            features_per_tile,
            tokens: Tokens::load(dir)?,
            filter: settings.filter(Filter::Bicubic)?,
            rounding: if fast { Rounding::TorchUint8 } else { Rounding::Pillow },
            normalizer: settings.normalizer(CLIP_MEAN, CLIP_DEVIATION)?,
        })
    }

    /// Sets the most tiles of a picture; says what is wrong with it.
    pub fn set_max_tiles(&mut self, tiles: usize) -> Result<(), String> {
        if !(self.min_tiles..=MAX_TILES).contains(&tiles) {
            return Err(format!("max_tiles = {tiles} is not between {} and {MAX_TILES}", self.min_tiles));
        }
        self.max_tiles = tiles;
        Ok(())
    }

    /// Cuts, normalises and spells out one picture.
    pub fn process(&self, image: &Drawing) -> ProcessedImage {
        let tile = self.tile;
        let (rows, columns) = best_grid(image.height, image.width, tile, self.min_tiles, self.max_tiles);
        let stretched = resize(image, columns * tile, rows * tile, self.filter, self.rounding);
        let mut tiles = Vec::with_capacity((rows * columns + 1) as usize);
        for row in 0..rows {
            for column in 0..columns {
                tiles.push(Arc::new(self.normalizer.tile(&stretched, row * tile, column * tile, tile, tile)));
            }
        }
        if tiles.len() != 1 {
            let thumbnail = resize(image, tile, tile, self.filter, self.rounding);
            tiles.push(Arc::new(self.normalizer.tile(&thumbnail, 0, 0, tile, tile)));
        }
        let num_features = tiles.len() * self.features_per_tile;
        let Tokens { start, feature, end, .. } = &self.tokens;
        ProcessedImage { tiles, text: format!("{start}{}{end}", feature.repeat(num_features)), num_features }
    }

    /// What the template prints for one picture, and what one feature takes the place of.
    pub fn image_token(&self) -> &str {
        &self.tokens.feature
    }

    /// Whether only the processor writes this token.
    pub fn is_marker(&self, token: &str) -> bool {
        let Tokens { start, feature, end, video } = &self.tokens;
        [start, feature, end, video].contains(&&token.to_string())
    }
}

/// Rows and columns of the grid whose proportions are nearest; among equals the larger one, if the picture covers more
/// than half of it.
fn best_grid(height: u32, width: u32, tile: u32, min_tiles: usize, max_tiles: usize) -> (u32, u32) {
    let mut grids: Vec<(usize, usize)> = (1..=max_tiles)
        .flat_map(|columns| (1..=max_tiles).map(move |rows| (columns, rows)))
        .filter(|(columns, rows)| (min_tiles..=max_tiles).contains(&(columns * rows)))
        .collect();
    // Stable: among grids of one size the narrower comes first.
    grids.sort_by_key(|(columns, rows)| columns * rows);
    let proportion = f64::from(width) / f64::from(height);
    let area = u64::from(width) * u64::from(height);
    let tile_area = (u64::from(tile) * u64::from(tile)) as f64;
    let (mut best, mut least) = ((1, 1), f64::INFINITY);
    for (columns, rows) in grids {
        let distance = (proportion - columns as f64 / rows as f64).abs();
        if distance < least {
            (best, least) = ((columns, rows), distance);
        } else if distance == least && area as f64 > 0.5 * tile_area * (columns * rows) as f64 {
            best = (columns, rows);
        }
    }
    (best.1 as u32, best.0 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_equal_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiles/internvl.json");
        let golden: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 200);
        for case in cases {
            let number = |key: &str| case[key].as_u64().unwrap();
            let grid = best_grid(
                number("height") as u32,
                number("width") as u32,
                number("tile") as u32,
                number("min_tiles") as usize,
                number("max_tiles") as usize,
            );
            assert_eq!(grid, (number("rows") as u32, number("columns") as u32), "{case}");
        }
    }
}
