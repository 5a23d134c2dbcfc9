//! Cuts pictures into tiles as LLaVA-OneVision does, and counts the features that stand for them.
//! Knows sizes and order; knows nothing of templates or tokens. Cost: two resizes per picture.
//!
//! One picture in the conversation: it is fitted into the best of the grids in `image_grid_pinpoints`, centred on black
//! (level 0, before normalising), cut row by row, and the whole picture, squeezed into one tile, comes first. Two or
//! more pictures in the whole conversation are not cut: each is padded to a square of the mean colour and shrunk.

use std::sync::Arc;

use foveate_model::batch::{Cuts, Tile};
use foveate_model::families::llava_onevision::max_tiles;
use foveate_model::families::mosaic::Mosaic;
use foveate_tasks::row::Drawing;
use serde_json::Value as Json;

use super::error::PromptError;
use super::image::MAX_PIXELS;
use super::processor::{CLIP_DEVIATION, CLIP_MEAN, Normalizer, ProcessedImage, Settings};
use super::resize::{Filter, Rounding, resize};

/// The token that one image feature takes the place of; the template prints one per picture.
pub const IMAGE_TOKEN: &str = "<image>";

/// No grid is larger than this on a side, whatever the settings say.
const MAX_SIDE: u32 = 1 << 14;
/// Side of a tile where the settings say nothing.
const DEFAULT_TILE: u32 = 384;
/// Tiles on a side of the largest default grid.
const DEFAULT_TILES: u32 = 6;

/// Settings of the LLaVA-OneVision image processor.
#[derive(Clone, Debug, PartialEq)]
pub struct LlavaOnevisionProcessor {
    /// Side of a tile.
    tile: u32,
    /// Height and width of each grid, in pixels.
    grids: Vec<(u32, u32)>,
    /// Features along one side of a tile.
    side: usize,
    /// Tiles' worth of features above which they are thinned out.
    max_tiles: usize,
    /// Levels around pictures that are padded to a square.
    background: [u8; 3],
    filter: Filter,
    rounding: Rounding,
    normalizer: Normalizer,
}

impl LlavaOnevisionProcessor {
    /// From the image settings and `config.json`; `fast` where they name the processor that works in torch.
    pub fn new(settings: &Settings, config: &Json, fast: bool) -> Result<LlavaOnevisionProcessor, PromptError> {
        settings.square_resize_only()?;
        let tile = settings.square_side(DEFAULT_TILE)?;
        let vision = |key: &str, default: u64| {
            config.pointer(&format!("/vision_config/{key}")).and_then(Json::as_u64).unwrap_or(default)
        };
        let (image_size, patch) = (vision("image_size", 224), vision("patch_size", 16).max(1));
        if image_size != u64::from(tile) {
            return Err(settings.problem(format!("tiles have {tile} pixels a side, the tower reads {image_size}")));
        }
        let side = (image_size / patch) as usize;
        let stated = settings.processor_number("num_image_tokens")?;
        if let Some(stated) = stated.filter(|&stated| stated != side * side) {
            return Err(PromptError::PlaceholderMismatch { need: side * side, have: stated });
        }
        let strategy = settings.processor_value("vision_feature_select_strategy").and_then(Json::as_str);
        if strategy.is_some_and(|strategy| strategy != "full") {
            let problem = format!("vision_feature_select_strategy is {strategy:?}; SigLIP's is \"full\"");
            return Err(settings.problem(problem));
        }
        let ratio = settings.processor_value("vision_aspect_ratio").or(config.get("vision_aspect_ratio"));
        let ratio = ratio.and_then(Json::as_str).unwrap_or("anyres_max_9");
        let max_tiles = max_tiles(ratio)
            .ok_or_else(|| settings.problem(format!("vision_aspect_ratio is {ratio:?}, not anyres_max_N")))?;
        let mean = settings.channels("image_mean", CLIP_MEAN)?;
        Ok(LlavaOnevisionProcessor {
            tile,
            grids: grids(settings, config, tile)?,
            side,
            max_tiles,
            background: mean.map(|mean| (mean * 255.0) as u8),
            filter: settings.filter(Filter::Bicubic)?,
            rounding: if fast { Rounding::TorchUint8 } else { Rounding::Pillow },
            normalizer: settings.normalizer(CLIP_MEAN, CLIP_DEVIATION)?,
        })
    }

    /// Cuts, normalises and counts the pictures of one conversation.
    pub fn process(&self, images: &[Arc<Drawing>]) -> Result<Vec<ProcessedImage>, PromptError> {
        match images {
            [only] => Ok(vec![self.cut(only)]),
            several => several.iter().map(|image| self.padded(image)).collect(),
        }
    }

    fn cut(&self, image: &Drawing) -> ProcessedImage {
        let tile = self.tile;
        let (height, width) = self.best_grid(image.height, image.width);
        let (inner_height, inner_width) = fitted(image.height, image.width, height, width);
        let inner = self.resize(image, inner_height, inner_width);
        let canvas = on_canvas(&inner, height, width, [0; 3]);
        let cuts = Cuts {
            rows: height / tile,
            columns: width / tile,
            picture_height: image.height,
            picture_width: image.width,
        };
        let whole = self.whole(&self.resize(image, tile, tile));
        let mut tiles = vec![Arc::new(Tile { cuts: Some(cuts), ..whole })];
        for row in 0..cuts.rows {
            for column in 0..cuts.columns {
                tiles.push(Arc::new(self.normalizer.tile(&canvas, row * tile, column * tile, tile, tile)));
            }
        }
        let num_features = self.side * self.side + Mosaic::of(&cuts, self.side, self.max_tiles).num_features();
        ProcessedImage { tiles, text: IMAGE_TOKEN.repeat(num_features), num_features }
    }

    fn padded(&self, image: &Drawing) -> Result<ProcessedImage, PromptError> {
        let longest = image.height.max(image.width);
        if u64::from(longest).pow(2) > MAX_PIXELS {
            let name = format!("of {} x {} pixels, padded to a square,", image.width, image.height);
            return Err(PromptError::ImageTooLarge { name, width: longest, height: longest, limit: MAX_PIXELS });
        }
        let square = on_canvas(image, longest, longest, self.background);
        let tile = self.whole(&self.resize(&square, self.tile, self.tile));
        let num_features = self.side * self.side + 1;
        Ok(ProcessedImage { tiles: vec![Arc::new(tile)], text: IMAGE_TOKEN.repeat(num_features), num_features })
    }

    fn whole(&self, image: &Drawing) -> Tile {
        self.normalizer.tile(image, 0, 0, self.tile, self.tile)
    }

    /// The grid that keeps most of the picture's pixels and wastes least of its own; the first of equals.
    fn best_grid(&self, height: u32, width: u32) -> (u32, u32) {
        let mut best = self.grids[0];
        let (mut most, mut least_wasted) = (0u64, u64::MAX);
        for &(grid_height, grid_width) in &self.grids {
            let scale = (f64::from(grid_width) / f64::from(width)).min(f64::from(grid_height) / f64::from(height));
            let fits = (f64::from(width) * scale) as u64 * (f64::from(height) * scale) as u64;
            let effective = fits.min(u64::from(width) * u64::from(height));
            let wasted = u64::from(grid_height) * u64::from(grid_width) - effective;
            if effective > most || (effective == most && wasted < least_wasted) {
                (most, least_wasted) = (effective, wasted);
                best = (grid_height, grid_width);
            }
        }
        best
    }

    fn resize(&self, image: &Drawing, height: u32, width: u32) -> Drawing {
        resize(image, width, height, self.filter, self.rounding)
    }
}

/// Tokens that only the processor writes.
pub fn is_marker(token: &str) -> bool {
    token == IMAGE_TOKEN || token == "<video>"
}

/// The grids of the processor, checked against those that `config.json` gives to the model.
fn grids(settings: &Settings, config: &Json, tile: u32) -> Result<Vec<(u32, u32)>, PromptError> {
    let own = settings.get("image_grid_pinpoints");
    let models = config.get("image_grid_pinpoints").filter(|value| !value.is_null());
    if let (Some(own), Some(models)) = (own, models)
        && own != models
    {
        return Err(settings.problem("image_grid_pinpoints differ from those in config.json".into()));
    }
    let Some(list) = own.or(models) else {
        let sides = || (1..=DEFAULT_TILES).map(|count| count * DEFAULT_TILE);
        let all: Vec<_> = sides().flat_map(|height| sides().map(move |width| (height, width))).collect();
        return match tile == DEFAULT_TILE {
            true => Ok(all),
            false => Err(settings.problem("image_grid_pinpoints are missing".into())),
        };
    };
    let pixels = |value: &Json| {
        value.as_u64().filter(|&pixels| (1..=u64::from(MAX_SIDE)).contains(&pixels)).map(|pixels| pixels as u32)
    };
    let grid = |value: &Json| match value.as_array().map(Vec::as_slice) {
        Some([height, width]) => Some((pixels(height)?, pixels(width)?)),
        _ => None,
    };
    let grids: Option<Vec<_>> = list.as_array().and_then(|list| list.iter().map(grid).collect());
    let grids = grids.filter(|grids| !grids.is_empty() && grids.len() <= 4096);
    let fits = |&(height, width): &(u32, u32)| height.is_multiple_of(tile) && width.is_multiple_of(tile);
    grids.filter(|grids| grids.iter().all(fits)).ok_or_else(|| {
        settings.problem(format!(
            "image_grid_pinpoints are not a list of heights and widths that are multiples of {tile} up to {MAX_SIDE}"
        ))
    })
}

/// The largest size inside a grid that keeps the picture's proportions, rounded up.
fn fitted(height: u32, width: u32, grid_height: u32, grid_width: u32) -> (u32, u32) {
    let by_width = f64::from(grid_width) / f64::from(width);
    let by_height = f64::from(grid_height) / f64::from(height);
    if by_width < by_height {
        (((f64::from(height) * by_width).ceil() as u32).clamp(1, grid_height), grid_width)
    } else {
        (grid_height, ((f64::from(width) * by_height).ceil() as u32).clamp(1, grid_width))
    }
}

/// The picture in the middle of a larger one, up and left where the room is odd.
fn on_canvas(image: &Drawing, height: u32, width: u32, background: [u8; 3]) -> Drawing {
    let (top, left) = ((height - image.height) / 2, (width - image.width) / 2);
    let mut rgb = background.repeat(height as usize * width as usize);
    for (row, line) in image.rgb.chunks_exact(image.width as usize * 3).enumerate() {
        let start = ((top as usize + row) * width as usize + left as usize) * 3;
        rgb[start..start + line.len()].copy_from_slice(line);
    }
    Drawing { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(tile: u32, side: usize, max_tiles: usize, grids: Vec<(u32, u32)>) -> LlavaOnevisionProcessor {
        LlavaOnevisionProcessor {
            tile,
            grids,
            side,
            max_tiles,
            background: [0; 3],
            filter: Filter::Bicubic,
            rounding: Rounding::Pillow,
            normalizer: Normalizer::new(None, [0.0; 3], [1.0; 3]),
        }
    }

    /// Grids and fitted sizes as transformers chooses them among the published 36.
    #[test]
    fn grids_equal_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiles/llava_onevision.json");
        let golden: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let number = |key: &str| case[key].as_u64().unwrap() as u32;
            let tile = number("tile");
            let sides = || (1..=6).map(|count| count * tile);
            let grids = sides().flat_map(|height| sides().map(move |width| (height, width))).collect();
            let processor = processor(tile, number("side") as usize, number("max_tiles") as usize, grids);
            let (height, width) = processor.best_grid(number("height"), number("width"));
            assert_eq!((height / tile, width / tile), (number("rows"), number("columns")), "{case}");
            let inner = fitted(number("height"), number("width"), height, width);
            assert_eq!([inner.0, inner.1], [number("fitted_height"), number("fitted_width")], "{case}");
        }
    }
}
