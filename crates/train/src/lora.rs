//! Low-rank adapters as a recipe asks for them.
//! Knows settings; the arithmetic and the files are the model's. Cost: none.

use foveate_model::{AdapterSpec, Trainable};
use serde::{Deserialize, Serialize};

/// `[lora]`: small matrices beside the frozen ones learn in their place (LoRA, Hu et al. 2021). Weights, gradients and
/// moments of what is frozen take no memory but the weights themselves, the reference of a KL term is the same model
/// with its adapters off, and checkpoints are PEFT adapters of a few megabytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Inner width of the adapters. 16 is a good start; 64 for long runs on much data. Memory and time grow with it.
    pub rank: usize,
    /// The adapters' output is scaled by `alpha / rank`. Twice the rank is usual; a larger value acts like a larger
    /// learning rate.
    pub alpha: f32,
    /// Scale by `alpha / sqrt(rank)` instead (rsLoRA, Kalajdzievski 2023): ranks of 64 and more learn too slowly
    /// otherwise.
    pub rank_stabilised: bool,
    /// Share of the adapters' inputs that is left out while learning. 0.05 helps supervised runs of several epochs; keep
    /// it at 0 in reinforcement, where it makes the trainer differ from the sampler.
    pub dropout: f32,
    /// Modules that get adapters, by the ends of their names: `["q_proj", "v_proj"]` is the least that works. Empty
    /// adapts every matrix inside the blocks, which learns best per parameter.
    pub targets: Vec<String>,
    /// Put adapters into the image tower. Worth it when what is to be seen is new to the model.
    pub vision: bool,
    /// Put adapters into the connector.
    pub connector: bool,
    /// Put adapters into the decoder.
    pub language: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            rank_stabilised: false,
            dropout: 0.0,
            targets: Vec::new(),
            vision: false,
            connector: false,
            language: true,
        }
    }
}

impl LoraConfig {
    /// Parts of the model that get adapters.
    pub fn parts(&self) -> Trainable {
        Trainable { vision: self.vision, connector: self.connector, language: self.language }
    }

    /// The same in the model's words.
    pub fn spec(&self) -> AdapterSpec {
        AdapterSpec {
            rank: self.rank,
            alpha: self.alpha,
            rank_stabilised: self.rank_stabilised,
            dropout: self.dropout,
            targets: self.targets.clone(),
            parts: self.parts(),
        }
    }

    /// Says what is out of range.
    pub fn problem(&self) -> Option<String> {
        if self.rank == 0 || self.rank > 4096 {
            Some(format!("lora.rank = {} must be between 1 and 4096", self.rank))
        } else if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            Some(format!("lora.alpha = {} must be above 0", self.alpha))
        } else if !(0.0..1.0).contains(&self.dropout) {
            Some(format!("lora.dropout = {} must be 0 or more and below 1", self.dropout))
        } else if self.parts() == Trainable::NONE {
            Some("lora adapts nothing: set one of lora.vision, lora.connector, lora.language".to_string())
        } else {
            None
        }
    }
}
