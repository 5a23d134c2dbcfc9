//! Sizes pictures as Qwen2-VL, Qwen2.5-VL and Qwen3-VL do: each keeps its shape, within bounds on its pixels.
//! Knows sizes and markers; cutting into patches is the model's business. Cost: one resize per picture.
//!
//! Sides are rounded to multiples of a feature (`patch_size * merge_size` pixels), half to even as in Python; a picture
//! above or below the bounds is scaled by one factor and rounded down or up. `size.shortest_edge` and `longest_edge`
//! are numbers of pixels here, `min_pixels` and `max_pixels` older names that win over them.

use std::sync::Arc;

use foveate_tasks::row::Drawing;
use serde_json::Value as Json;

use super::error::PromptError;
use super::processor::{CLIP_DEVIATION, CLIP_MEAN, Normalizer, ProcessedImage, Settings};
use super::resize::{Filter, Rounding, resize};

/// The token that one image feature takes the place of; the template prints one per picture, between markers.
pub const IMAGE_TOKEN: &str = "<|image_pad|>";

/// Longer pictures are refused, in Python too.
const MAX_RATIO: f64 = 200.0;

/// Settings of the Qwen2-VL image processor, which Qwen2.5-VL and Qwen3-VL use as well.
#[derive(Clone, Debug, PartialEq)]
pub struct QwenProcessor {
    /// Side of a feature in pixels.
    side: u32,
    /// Fewest and most pixels of a picture; `None` where pictures are left as they are.
    pixels: Option<(u64, u64)>,
    filter: Filter,
    rounding: Rounding,
    normalizer: Normalizer,
}

impl QwenProcessor {
    /// From the image settings; `fast` where they name the processor that works in torch.
    pub fn new(settings: &Settings, config: &Json, fast: bool) -> Result<QwenProcessor, PromptError> {
        let size = settings.get("size");
        let stated = |name: &str, edge: &str, default: u64| {
            let inner = |key: &str| size.and_then(|size| size.get(key));
            match settings.get(name).or_else(|| inner(edge)).or_else(|| inner(name)) {
                None => Ok(default),
                Some(value) => value
                    .as_u64()
                    .filter(|pixels| (1..1 << 32).contains(pixels))
                    .ok_or_else(|| settings.problem(format!("{name} is {value}, not a number of pixels"))),
            }
        };
        let number = |key: &str, default: u32| match settings.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|side| (1..=256).contains(side))
                .map(|side| side as u32)
                .ok_or_else(|| settings.problem(format!("{key} is {value}, not a number between 1 and 256"))),
        };
        let side = number("patch_size", 14)? * number("merge_size", 2)?;
        let of_model = |key: &str, default: u64| {
            config.pointer(&format!("/vision_config/{key}")).and_then(Json::as_u64).unwrap_or(default)
        };
        let tower = of_model("patch_size", 14) * of_model("spatial_merge_size", 2);
        if u64::from(side) != tower {
            return Err(settings.problem(format!("a feature is {side} pixels wide here, {tower} in config.json")));
        }
        let (least, most) =
            (stated("min_pixels", "shortest_edge", 56 * 56)?, stated("max_pixels", "longest_edge", 28 * 28 * 1280)?);
        if least > most {
            return Err(settings.problem(format!("min_pixels {least} is more than max_pixels {most}")));
        }
        Ok(QwenProcessor {
            side,
            pixels: settings.flag("do_resize", true)?.then_some((least, most)),
            filter: settings.filter(Filter::Bicubic)?,
            rounding: if fast { Rounding::TorchUint8 } else { Rounding::Pillow },
            normalizer: settings.normalizer(CLIP_MEAN, CLIP_DEVIATION)?,
        })
    }

    /// Sets the bounds that are given; says what is wrong with them.
    pub fn limit(&mut self, min: Option<u64>, max: Option<u64>) -> Result<(), String> {
        let Some((least, most)) = self.pixels else {
            return Err("min_pixels and max_pixels have no effect where do_resize is off".into());
        };
        let (least, most) = (min.unwrap_or(least), max.unwrap_or(most));
        let feature = u64::from(self.side) * u64::from(self.side);
        if least > most || most < feature || most >= 1 << 32 || least == 0 {
            return Err(format!(
                "min_pixels = {least} and max_pixels = {most} do not fit together, or leave no room for one image token \
                 ({feature} pixels)"
            ));
        }
        self.pixels = Some((least, most));
        Ok(())
    }

    /// Sizes, normalises and spells out one picture.
    pub fn process(&self, image: &Drawing) -> Result<ProcessedImage, PromptError> {
        let (height, width) = self.size(image.height, image.width)?;
        let sized = resize(image, width, height, self.filter, self.rounding);
        let num_features = (height / self.side) as usize * (width / self.side) as usize;
        Ok(ProcessedImage {
            tiles: vec![Arc::new(self.normalizer.tile(&sized, 0, 0, height, width))],
            text: IMAGE_TOKEN.repeat(num_features),
            num_features,
        })
    }

    /// Height and width that a picture is brought to.
    fn size(&self, height: u32, width: u32) -> Result<(u32, u32), PromptError> {
        let Some((least, most)) = self.pixels else {
            return match height.is_multiple_of(self.side) && width.is_multiple_of(self.side) {
                true => Ok((height, width)),
                false => Err(PromptError::PictureShape { width, height, side: self.side }),
            };
        };
        if f64::from(height.max(width)) / f64::from(height.min(width)) > MAX_RATIO {
            return Err(PromptError::PictureShape { width, height, side: self.side });
        }
        Ok(bounded_size(height, width, self.side, least, most))
    }
}

fn bounded_size(height: u32, width: u32, side: u32, least: u64, most: u64) -> (u32, u32) {
    let (h, w, factor) = (f64::from(height), f64::from(width), f64::from(side));
    let nearest = |pixels: f64| (pixels / factor).round_ties_even() as u32 * side;
    let (rounded_h, rounded_w) = (nearest(h), nearest(w));
    let pixels = u64::from(rounded_h) * u64::from(rounded_w);
    if pixels > most {
        let scale = (h * w / most as f64).sqrt();
        let down = |pixels: f64| ((pixels / scale / factor).floor() as u32 * side).max(side);
        (down(h), down(w))
    } else if pixels < least {
        let scale = (least as f64 / (h * w)).sqrt();
        let up = |pixels: f64| (pixels * scale / factor).ceil() as u32 * side;
        (up(h), up(w))
    } else {
        (rounded_h, rounded_w)
    }
}

/// Tokens that only the template and the processor write.
pub fn is_marker(token: &str) -> bool {
    [IMAGE_TOKEN, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|video_pad|>"].contains(&token)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Worked out by the rule above with Python's round, floor and ceil.
    #[test]
    fn sizes_follow_python() {
        let size = |height, width| bounded_size(height, width, 28, 56 * 56, 28 * 28 * 1280);
        assert_eq!(size(224, 224), (224, 224));
        // 2.5 features round to 2, 3.5 to 4.
        assert_eq!(size(70, 98), (56, 112));
        assert_eq!(size(1, 1), (56, 56));
        assert_eq!(size(1, 200), (28, 812));
        assert_eq!(size(3000, 4000), (840, 1148));
    }
}
