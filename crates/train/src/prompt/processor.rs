//! Image processors, one file per family, and what they share: reading settings and normalising.
//! Knows preprocessor_config.json and processor_config.json; knows nothing of templates. Cost: one table lookup a value.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use foveate_model::batch::Tile;
use foveate_tasks::row::Drawing;
use serde_json::Value as Json;

use super::error::PromptError;
use super::files;
use super::idefics3::{self, Idefics3Processor};
use super::internvl::InternVlProcessor;
use super::llava_onevision::{self, LlavaOnevisionProcessor};
use super::qwen::{self, QwenProcessor};
use super::resize::Filter;

/// What turns pictures into tiles and placeholders. A family adds a file and a variant.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageProcessor {
    /// Models that only read: no pictures.
    TextOnly,
    /// SmolVLM, SmolVLM2, Idefics3.
    Idefics3(Idefics3Processor),
    /// Qwen2-VL, Qwen2.5-VL, Qwen3-VL.
    Qwen(QwenProcessor),
    /// LLaVA-OneVision.
    LlavaOnevision(LlavaOnevisionProcessor),
    /// InternVL in the Hugging Face layout.
    InternVl(InternVlProcessor),
}

/// One picture as the model and the prompt see it.
#[derive(Clone, Debug)]
pub struct ProcessedImage {
    /// What the vision tower reads.
    pub tiles: Vec<Arc<Tile>>,
    /// What takes the place of the template's placeholder.
    pub text: String,
    /// Image features, hence image tokens in `text`.
    pub num_features: usize,
}

impl ImageProcessor {
    /// The processor of a checkpoint folder. `config` is its `config.json`.
    pub fn load(dir: &Path, config: &Json) -> Result<ImageProcessor, PromptError> {
        if config.get("vision_config").is_none() {
            return Ok(ImageProcessor::TextOnly);
        }
        let settings = Settings::load(dir)?;
        let stated = settings.get("image_processor_type").and_then(Json::as_str).unwrap_or_default();
        let kind = stated.trim_end_matches("Fast").trim_end_matches("Pil");
        let model_type = config.get("model_type").and_then(Json::as_str).unwrap_or_default();
        match (kind, model_type) {
            ("Idefics3ImageProcessor" | "SmolVLMImageProcessor", _) | ("", "idefics3" | "smolvlm") => {
                Ok(ImageProcessor::Idefics3(Idefics3Processor::new(&settings, config)?))
            }
            ("Qwen2VLImageProcessor", _) | ("", "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl") => {
                Ok(ImageProcessor::Qwen(QwenProcessor::new(&settings, config, stated.ends_with("Fast"))?))
            }
            ("LlavaOnevisionImageProcessor", _) | ("", "llava_onevision") => {
                Ok(ImageProcessor::LlavaOnevision(LlavaOnevisionProcessor::new(&settings, config, stated.ends_with("Fast"))?))
            }
            ("GotOcr2ImageProcessor", "internvl") | ("", "internvl") => {
                Ok(ImageProcessor::InternVl(InternVlProcessor::new(dir, &settings, config, stated.ends_with("Fast"))?))
            }
            _ => Err(settings.problem(format!(
                "image processor {kind:?} of model type {model_type:?} is unknown; known are those of SmolVLM, Idefics3, \
                 LLaVA-OneVision, InternVL and Qwen2-VL"
            ))),
        }
    }

    /// Cuts, normalises and spells out the pictures of one conversation; some families look at how many there are.
    pub fn process(&self, images: &[Arc<Drawing>]) -> Result<Vec<ProcessedImage>, PromptError> {
        match self {
            ImageProcessor::TextOnly if images.is_empty() => Ok(Vec::new()),
            ImageProcessor::TextOnly => Err(PromptError::NoImages),
            ImageProcessor::Idefics3(processor) => Ok(images.iter().map(|image| processor.process(image)).collect()),
            ImageProcessor::Qwen(processor) => images.iter().map(|image| processor.process(image)).collect(),
            ImageProcessor::LlavaOnevision(processor) => processor.process(images),
            ImageProcessor::InternVl(processor) => Ok(images.iter().map(|image| processor.process(image)).collect()),
        }
    }

    /// What the template prints for one picture; `None` for models that see none.
    pub fn template_token(&self) -> Option<&str> {
        match self {
            ImageProcessor::TextOnly => None,
            ImageProcessor::Idefics3(_) => Some(idefics3::IMAGE_TOKEN),
            ImageProcessor::Qwen(_) => Some(qwen::IMAGE_TOKEN),
            ImageProcessor::LlavaOnevision(_) => Some(llava_onevision::IMAGE_TOKEN),
            ImageProcessor::InternVl(processor) => Some(processor.image_token()),
        }
    }

    /// Whether this token only ever comes from the processor.
    pub fn is_marker(&self, token: &str) -> bool {
        match self {
            ImageProcessor::TextOnly => false,
            ImageProcessor::Idefics3(_) => idefics3::is_marker(token),
            ImageProcessor::Qwen(_) => qwen::is_marker(token),
            ImageProcessor::LlavaOnevision(_) => llava_onevision::is_marker(token),
            ImageProcessor::InternVl(processor) => processor.is_marker(token),
        }
    }
}

/// Mean and deviation of the pictures CLIP was trained on, per channel: the defaults of several Python classes.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// See [`CLIP_MEAN`].
pub const CLIP_DEVIATION: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Raw settings of an image processor, wherever the checkpoint keeps them.
#[derive(Debug)]
pub struct Settings {
    values: Json,
    path: PathBuf,
    /// What `processor_config.json` says of everything but pictures' pixels.
    processor: Json,
    /// Placeholders per tile as `processor_config.json` states them.
    pub image_seq_len: Option<usize>,
}

impl Settings {
    /// transformers 5 keeps the image settings inside `processor_config.json`, older versions in a file of their own.
    pub fn load(dir: &Path) -> Result<Settings, PromptError> {
        let own = dir.join("preprocessor_config.json");
        let shared = dir.join("processor_config.json");
        let processor = files::read_json_if_present(&shared)?;
        let stated = processor.as_ref().and_then(|config| config.get("image_seq_len"));
        let image_seq_len = match stated {
            None | Some(Json::Null) => None,
            Some(value) => Some(value.as_u64().ok_or_else(|| PromptError::Settings {
                path: shared.clone(),
                problem: format!("image_seq_len is {value}, not a number of tokens"),
            })? as usize),
        };
        let mut processor = processor.unwrap_or(Json::Null);
        let inner = processor.get_mut("image_processor").map(Json::take);
        if let Some(values) = inner.filter(Json::is_object) {
            return Ok(Settings { values, path: shared, processor, image_seq_len });
        }
        Ok(Settings { values: files::read_json(&own)?, path: own, processor, image_seq_len })
    }

    /// A setting, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A setting of the processor as a whole, unless it is absent or null.
    pub fn processor_value(&self, key: &str) -> Option<&Json> {
        self.processor.get(key).filter(|value| !value.is_null())
    }

    /// A count that the processor as a whole states.
    pub fn processor_number(&self, key: &str) -> Result<Option<usize>, PromptError> {
        let Some(value) = self.processor_value(key) else { return Ok(None) };
        let number = value.as_u64().filter(|&number| number < 1 << 24).map(|number| number as usize);
        number.map(Some).ok_or_else(|| PromptError::Settings {
            path: self.path.with_file_name("processor_config.json"),
            problem: format!("{key} is {value}, not a number of tokens"),
        })
    }

    /// The side of square tiles, from `size`: height and width, or the shortest edge.
    pub fn square_side(&self, default: u32) -> Result<u32, PromptError> {
        let Some(size) = self.get("size") else { return Ok(default) };
        let pixels = |key: &str| {
            let side = size.get(key).and_then(Json::as_u64).filter(|side| (1..=1 << 12).contains(side));
            side.map(|side| side as u32)
        };
        match (pixels("height"), pixels("width"), pixels("shortest_edge")) {
            (Some(height), Some(width), _) if height == width => Ok(height),
            (None, None, Some(edge)) => Ok(edge),
            _ => Err(self.problem(format!("size is {size}, not an equal height and width up to 4096"))),
        }
    }

    /// Refuses settings under which tiles would not all have one size.
    pub fn square_resize_only(&self) -> Result<(), PromptError> {
        if !self.flag("do_resize", true)? || self.flag("do_center_crop", false)? {
            return Err(self.problem("do_resize must be on and do_center_crop off".into()));
        }
        Ok(())
    }

    /// A yes-or-no setting.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, PromptError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.problem(format!("{key} is {value}, neither true nor false")))
            }
        }
    }

    /// The resampling filter, by Pillow's number.
    pub fn filter(&self, default: Filter) -> Result<Filter, PromptError> {
        match self.get("resample").map(|value| (value.as_u64(), value)) {
            None => Ok(default),
            Some((Some(1), _)) => Ok(Filter::Lanczos),
            Some((Some(2), _)) => Ok(Filter::Bilinear),
            Some((Some(3), _)) => Ok(Filter::Bicubic),
            Some((_, value)) => {
                Err(self.problem(format!("resample is {value}; known are 1 (Lanczos), 2 (bilinear), 3 (bicubic)")))
            }
        }
    }

    /// Rescaling and normalising, as one table. `mean` and `deviation` are those of the Python class.
    pub fn normalizer(&self, mean: [f64; 3], deviation: [f64; 3]) -> Result<Normalizer, PromptError> {
        let factor = match self.get("rescale_factor") {
            _ if !self.flag("do_rescale", true)? => None,
            None => Some(1.0 / 255.0),
            Some(value) => Some(self.number("rescale_factor", value)?),
        };
        let (mean, deviation) = match self.flag("do_normalize", true)? {
            true => (self.channels("image_mean", mean)?, self.channels("image_std", deviation)?),
            false => ([0.0; 3], [1.0; 3]),
        };
        if deviation.contains(&0.0) {
            return Err(self.problem("image_std holds a zero".into()));
        }
        Ok(Normalizer::new(factor, mean, deviation))
    }

    /// An error about one of these settings.
    pub fn problem(&self, problem: String) -> PromptError {
        PromptError::Settings { path: self.path.clone(), problem }
    }

    fn number(&self, key: &str, value: &Json) -> Result<f64, PromptError> {
        let number = value.as_f64().filter(|number| number.is_finite());
        number.ok_or_else(|| self.problem(format!("{key} is {value}, not a number")))
    }

    /// One number per colour.
    pub fn channels(&self, key: &str, default: [f64; 3]) -> Result<[f64; 3], PromptError> {
        match self.get(key) {
            None => Ok(default),
            Some(Json::Array(list)) if list.len() == 3 => {
                let mut values = [0.0; 3];
                for (value, json) in values.iter_mut().zip(list) {
                    *value = self.number(key, json)?;
                }
                Ok(values)
            }
            Some(Json::Array(list)) => {
                Err(self.problem(format!("{key} has {} values, pictures have 3 channels", list.len())))
            }
            Some(value) => Ok([self.number(key, value)?; 3]),
        }
    }
}

/// The model's value of each 8-bit level, per channel.
#[derive(Clone, PartialEq)]
pub struct Normalizer {
    table: Box<[[f32; 256]; 3]>,
}

impl std::fmt::Debug for Normalizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let range = self.table.each_ref().map(|channel| (channel[0], channel[255]));
        write!(f, "Normalizer({range:?})")
    }
}

impl Normalizer {
    /// Rounds where Python rounds: to f32 after rescaling, and after each of minus and divide.
    pub fn new(factor: Option<f64>, mean: [f64; 3], deviation: [f64; 3]) -> Normalizer {
        let mut table = Box::new([[0.0f32; 256]; 3]);
        for (channel, values) in table.iter_mut().enumerate() {
            for (level, value) in values.iter_mut().enumerate() {
                let rescaled = factor.map_or(level as f64, |factor| level as f64 * factor) as f32;
                *value = (rescaled - mean[channel] as f32) / deviation[channel] as f32;
            }
        }
        Normalizer { table }
    }

    /// A rectangle of a picture as a tile, channel by channel.
    pub fn tile(&self, image: &Drawing, top: u32, left: u32, height: u32, width: u32) -> Tile {
        let mut pixels = Vec::with_capacity(3 * (height * width) as usize);
        for (channel, table) in self.table.iter().enumerate() {
            for row in top..top + height {
                let start = (row as usize * image.width as usize + left as usize) * 3;
                let line = &image.rgb[start..][..width as usize * 3];
                pixels.extend(line.chunks_exact(3).map(|pixel| table[pixel[channel] as usize]));
            }
        }
        Tile::new(height, width, pixels)
    }
}
