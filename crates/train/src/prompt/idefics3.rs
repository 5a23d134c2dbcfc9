//! Cuts pictures into tiles as SmolVLM and Idefics3 do, and spells out the placeholders that stand for them.
//! Knows sizes, order and markers; knows nothing of templates or tokens. Cost: two or three resizes per picture.
//!
//! With splitting: scale the long side to `size.longest_edge` (small pictures grow), then stretch to tile multiples,
//! cut row by row, and add the whole picture shrunk to one tile. That last tile is made from the second picture, not
//! from the original. Without splitting: the first scaling, then one square tile, two resizes in a row.

use std::sync::Arc;

use foveate_model::batch::Tile;
use foveate_tasks::row::Drawing;
use serde_json::Value as Json;

use super::error::PromptError;
use super::processor::{Normalizer, ProcessedImage, Settings};
use super::resize::{Filter, Rounding, resize};

/// No side grows beyond this, whatever the settings say.
const MAX_SIDE: u32 = 4096;

/// Settings of the SmolVLM / Idefics3 image processor.
#[derive(Clone, Debug, PartialEq)]
pub struct Idefics3Processor {
    /// What pictures are scaled to first; `None` keeps their size.
    scale_to: Option<ScaleTo>,
    /// Side of a tile.
    tile: u32,
    /// Whether pictures are cut.
    split: bool,
    filter: Filter,
    rounding: Rounding,
    normalizer: Normalizer,
    /// Placeholders per tile.
    features_per_tile: usize,
}

/// The first scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ScaleTo {
    LongestEdge(u32),
    Exactly { height: u32, width: u32 },
}

/// One picture, cut.
#[derive(Clone, Debug)]
pub struct Tiles {
    /// The cuts row by row, then the whole picture.
    pub tiles: Vec<Tile>,
    /// Rows of cuts; 0 if the picture was not cut.
    pub rows: u32,
    /// Columns of cuts.
    pub columns: u32,
}

impl Idefics3Processor {
    /// From the image settings and `config.json`.
    pub fn new(settings: &Settings, config: &Json) -> Result<Idefics3Processor, PromptError> {
        // Defaults are those of the Python class.
        let scale_to = match settings.flag("do_resize", true)? {
            true => Some(scale_to(settings)?),
            false => None,
        };
        let tile = match settings.get("max_image_size") {
            None => 364,
            Some(value) => value.get("longest_edge").and_then(side).ok_or_else(|| {
                settings.problem(format!("max_image_size is {value}, not {{\"longest_edge\": pixels}}"))
            })?,
        };
        let split = settings.flag("do_image_splitting", true)?;
        let features_per_tile = features_per_tile(settings, config, tile)?;
        Ok(Idefics3Processor {
            scale_to,
            tile,
            split,
            filter: settings.filter(Filter::Lanczos)?,
            rounding: Rounding::Pillow,
            normalizer: settings.normalizer([0.5; 3], [0.5; 3])?,
            features_per_tile,
        })
    }

    /// Turns cutting on or off, for recipes that trade detail for speed.
    pub fn set_split(&mut self, split: bool) {
        self.split = split;
    }

    /// Sets the length that the longer side of a picture is scaled to; says what is wrong with it.
    pub fn set_longest_edge(&mut self, pixels: u32) -> Result<(), String> {
        if !(1..=MAX_SIDE).contains(&pixels) {
            return Err(format!("longest_edge = {pixels} is not between 1 and {MAX_SIDE}"));
        }
        self.scale_to = Some(ScaleTo::LongestEdge(pixels));
        Ok(())
    }

    /// Image features that the model makes of one tile.
    pub fn features_per_tile(&self) -> usize {
        self.features_per_tile
    }

    /// Cuts one picture.
    pub fn tiles(&self, image: &Drawing) -> Tiles {
        let (height, width) = self.first_size(image.height, image.width);
        let scaled = self.resize(image, height, width);
        if !self.split {
            let whole = self.resize(&scaled, self.tile, self.tile);
            return Tiles {
                tiles: vec![self.normalizer.tile(&whole, 0, 0, self.tile, self.tile)],
                rows: 0,
                columns: 0,
            };
        }
        let (height, width) = tile_multiples(height, width, self.tile);
        let stretched = self.resize(&scaled, height, width);
        if height <= self.tile && width <= self.tile {
            return Tiles { tiles: vec![self.normalizer.tile(&stretched, 0, 0, height, width)], rows: 0, columns: 0 };
        }
        let (rows, columns) = (height / self.tile, width / self.tile);
        let mut tiles = Vec::with_capacity((rows * columns + 1) as usize);
        for row in 0..rows {
            for column in 0..columns {
                let (top, left) = (row * self.tile, column * self.tile);
                tiles.push(self.normalizer.tile(&stretched, top, left, self.tile, self.tile));
            }
        }
        let whole = self.resize(&stretched, self.tile, self.tile);
        tiles.push(self.normalizer.tile(&whole, 0, 0, self.tile, self.tile));
        Tiles { tiles, rows, columns }
    }

    /// Cuts, normalises and spells out one picture.
    pub fn process(&self, image: &Drawing) -> ProcessedImage {
        let cut = self.tiles(image);
        ProcessedImage {
            num_features: cut.tiles.len() * self.features_per_tile,
            text: self.placeholder_text(cut.rows, cut.columns),
            tiles: cut.tiles.into_iter().map(Arc::new).collect(),
        }
    }

    /// The text that stands for a picture. The tokenizer sees it as a whole: the newline that ends the last row and the
    /// one before the whole picture become one token.
    pub fn placeholder_text(&self, rows: u32, columns: u32) -> String {
        const FAKE: &str = "<fake_token_around_image>";
        let features = IMAGE_TOKEN.repeat(self.features_per_tile);
        let mut text = String::new();
        if rows > 0 {
            for row in 1..=rows {
                for column in 1..=columns {
                    text += &format!("{FAKE}<row_{row}_col_{column}>{features}");
                }
                text.push('\n');
            }
            text.push('\n');
        }
        text + &format!("{FAKE}<global-img>{features}{FAKE}")
    }

    fn first_size(&self, height: u32, width: u32) -> (u32, u32) {
        match self.scale_to {
            None => (height, width),
            Some(ScaleTo::Exactly { height, width }) => (height, width),
            Some(ScaleTo::LongestEdge(longest)) => {
                let (height, width) = scale_longest_edge(height, width, longest);
                scale_below(height, width, MAX_SIDE)
            }
        }
    }

    fn resize(&self, image: &Drawing, height: u32, width: u32) -> Drawing {
        resize(image, width, height, self.filter, self.rounding)
    }
}

/// The token that one image feature takes the place of; the template prints one per picture.
pub const IMAGE_TOKEN: &str = "<image>";

/// Tokens that only the processor writes.
pub fn is_marker(token: &str) -> bool {
    token == IMAGE_TOKEN
        || token == "<fake_token_around_image>"
        || token == "<global-img>"
        || (token.starts_with("<row_") && token.contains("_col_"))
}

fn side(value: &Json) -> Option<u32> {
    value.as_u64().filter(|&pixels| (1..=MAX_SIDE as u64 * 4).contains(&pixels)).map(|pixels| pixels as u32)
}

fn scale_to(settings: &Settings) -> Result<ScaleTo, PromptError> {
    let Some(size) = settings.get("size") else { return Ok(ScaleTo::LongestEdge(4 * 364)) };
    let pixels = |key: &str| size.get(key).and_then(side);
    match (pixels("longest_edge"), pixels("height"), pixels("width")) {
        (Some(longest), _, _) => Ok(ScaleTo::LongestEdge(longest)),
        (None, Some(height), Some(width)) => Ok(ScaleTo::Exactly { height, width }),
        _ => Err(settings.problem(format!("size is {size}, without longest_edge or height and width"))),
    }
}

/// Patches per tile after the pixel shuffle, checked against the `image_seq_len` that the processor states.
fn features_per_tile(settings: &Settings, config: &Json, tile: u32) -> Result<usize, PromptError> {
    let patch = config.pointer("/vision_config/patch_size").and_then(Json::as_u64).unwrap_or(32);
    let factor = config.get("scale_factor").and_then(Json::as_u64).unwrap_or(2);
    let patches = tile as u64 / patch.max(1);
    if factor == 0 || patches == 0 || !patches.is_multiple_of(factor) {
        return Err(settings.problem(format!(
            "tiles of {tile} pixels give {patches} patches of {patch} a side, which scale_factor {factor} does not divide"
        )));
    }
    let features = ((patches / factor) * (patches / factor)) as usize;
    match settings.image_seq_len {
        Some(stated) if stated != features => Err(PromptError::PlaceholderMismatch { need: features, have: stated }),
        _ => Ok(features),
    }
}

/// The long side becomes `longest`, the short one is truncated and then made even. Floats as Python computes them.
fn scale_longest_edge(height: u32, width: u32, longest: u32) -> (u32, u32) {
    let ratio = width as f64 / height as f64;
    let (mut h, mut w);
    if width >= height {
        w = longest;
        h = (w as f64 / ratio) as u32;
        h += h % 2;
    } else {
        h = longest;
        w = (h as f64 * ratio) as u32;
        w += w % 2;
    }
    (h, w) = (h.max(1), w.max(1));
    (h, w)
}

fn scale_below(height: u32, width: u32, limit: u32) -> (u32, u32) {
    let ratio = width as f64 / height as f64;
    let (mut h, mut w) = (height, width);
    if width >= height && width > limit {
        w = limit;
        h = (w as f64 / ratio) as u32;
    } else if height > width && height > limit {
        h = limit;
        w = (h as f64 * ratio) as u32;
    }
    (h.max(1), w.max(1))
}

/// The next multiples of the tile: the long side first, the other one from the old ratio.
fn tile_multiples(height: u32, width: u32, tile: u32) -> (u32, u32) {
    let ratio = width as f64 / height as f64;
    let up = |pixels: u32| pixels.div_ceil(tile).max(1) * tile;
    if width >= height {
        let width = up(width);
        (up((width as f64 / ratio) as u32), width)
    } else {
        let height = up(height);
        (height, up((height as f64 * ratio) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_python() {
        assert_eq!(scale_longest_edge(1, 200, 96), (1, 96));
        assert_eq!(scale_longest_edge(203, 301, 96), (64, 96));
        assert_eq!(scale_longest_edge(91, 37, 96), (96, 40));
        assert_eq!(scale_below(5000, 8192, 4096), (2500, 4096));
        assert_eq!(tile_multiples(64, 96, 32), (64, 96));
        assert_eq!(tile_multiples(1, 96, 32), (32, 96));
        assert_eq!(tile_multiples(40, 33, 32), (64, 64));
    }

    #[test]
    fn markers() {
        assert!(is_marker("<row_3_col_6>") && is_marker("<image>"));
        assert!(!is_marker("<end_of_utterance>") && !is_marker("<row>"));
    }
}
