//! Limits on what a model sees of a picture, for recipes and commands: the settings of a checkpoint's own processor, put
//! in their place. A model that is saved carries them, so that it is asked as it was taught.
//! Knows processors and the names of their settings. Cost: none.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::error::PromptError;
use super::files;
use super::processor::ImageProcessor;

/// More means finer detail, and cost in proportion. What is left out stays as the checkpoint has it; what a family does
/// not know is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageLimits {
    /// Qwen-VL: smaller pictures are enlarged to so many pixels. One image token stands for 28 x 28 (Qwen3-VL: 32 x 32).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<u64>,
    /// Qwen-VL: larger pictures are shrunk to so many pixels. 200704 are 256 image tokens of 28 x 28.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// SmolVLM, Idefics3: length in pixels that the longer side of a picture is scaled to before it is cut into tiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_edge: Option<u32>,
    /// SmolVLM, Idefics3: whether pictures are cut into tiles at all; `false` is cheap and sees the whole picture only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<bool>,
    /// InternVL: most tiles of a picture, the whole not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tiles: Option<usize>,
}

const QWEN: &str = "Qwen-VL models know min_pixels and max_pixels";
const SMOLVLM: &str = "SmolVLM and Idefics3 know longest_edge and split";
const INTERNVL: &str = "InternVL knows max_tiles";

impl ImageLimits {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn given(&self) -> [(&'static str, bool); 5] {
        [
            ("min_pixels", self.min_pixels.is_some()),
            ("max_pixels", self.max_pixels.is_some()),
            ("longest_edge", self.longest_edge.is_some()),
            ("split", self.split.is_some()),
            ("max_tiles", self.max_tiles.is_some()),
        ]
    }

    /// Puts the limits into a processor.
    pub fn apply(&self, processor: &mut ImageProcessor) -> Result<(), PromptError> {
        let (known, hint): (&[&str], &'static str) = match processor {
            ImageProcessor::Qwen(_) => (&["min_pixels", "max_pixels"], QWEN),
            ImageProcessor::Idefics3(_) => (&["longest_edge", "split"], SMOLVLM),
            ImageProcessor::InternVl(_) => (&["max_tiles"], INTERNVL),
            ImageProcessor::LlavaOnevision(_) => {
                (&[], "leave it out: the grids of LLaVA-OneVision are a part of the model's configuration")
            }
            ImageProcessor::TextOnly => (&[], "leave it out: the model reads text only"),
        };
        if let Some((name, _)) = self.given().iter().find(|(name, given)| *given && !known.contains(name)) {
            return Err(PromptError::Limits { problem: format!("this model's processor has no {name}"), hint });
        }
        let wrong = |problem: String| PromptError::Limits { problem, hint };
        match processor {
            ImageProcessor::Qwen(qwen) => qwen.limit(self.min_pixels, self.max_pixels).map_err(wrong),
            ImageProcessor::Idefics3(idefics3) => {
                if let Some(pixels) = self.longest_edge {
                    idefics3.set_longest_edge(pixels).map_err(wrong)?;
                }
                if let Some(split) = self.split {
                    idefics3.set_split(split);
                }
                Ok(())
            }
            ImageProcessor::InternVl(internvl) => {
                self.max_tiles.map_or(Ok(()), |tiles| internvl.set_max_tiles(tiles).map_err(wrong))
            }
            ImageProcessor::LlavaOnevision(_) | ImageProcessor::TextOnly => Ok(()),
        }
    }

    /// Writes the limits into the image settings of a saved model, under the names that `transformers` reads.
    pub fn save(&self, dir: &Path) -> Result<Option<(&'static str, Vec<u8>)>, PromptError> {
        if self.is_empty() {
            return Ok(None);
        }
        let shared = files::read_json_if_present(&dir.join("processor_config.json"))?;
        let inside = shared.filter(|config| config.get("image_processor").is_some_and(Json::is_object));
        let (name, mut config) = match inside {
            Some(config) => ("processor_config.json", config),
            None => ("preprocessor_config.json", files::read_json(&dir.join("preprocessor_config.json"))?),
        };
        let root = if name == "processor_config.json" { &mut config["image_processor"] } else { &mut config };
        for (key, edge, pixels) in
            [("min_pixels", "shortest_edge", self.min_pixels), ("max_pixels", "longest_edge", self.max_pixels)]
        {
            let Some(pixels) = pixels else { continue };
            root[key] = json!(pixels);
            // Most files keep the same numbers in `size` as well, under one name or the other.
            for name in [key, edge] {
                if let Some(stated) = root.get_mut("size").and_then(|size| size.get_mut(name)) {
                    *stated = json!(pixels);
                }
            }
        }
        if let Some(pixels) = self.longest_edge {
            root["size"] = json!({ "longest_edge": pixels });
        }
        if let Some(split) = self.split {
            root["do_image_splitting"] = json!(split);
        }
        if let Some(tiles) = self.max_tiles {
            root["max_patches"] = json!(tiles);
        }
        Ok(Some((name, serde_json::to_vec_pretty(&config).expect("JSON that was read can be written"))))
    }
}
