//! What a recipe may do to need less memory, at the price of time.
//! Knows settings; what they change is the session's and the model's. Cost: none.

use serde::{Deserialize, Serialize};

/// `[memory]`: nothing is spared by default. A stopped run may be resumed with other settings than it was begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// Keep only the inputs of blocks while learning, and run the blocks again when going back. Activations shrink to a
    /// fraction, a step takes about a third longer. The first thing to try when `foveate plan` says that activations are
    /// what does not fit; bits do not change.
    pub recompute: bool,
    /// Where AdamW's moments are when the model is on a GPU: `device`, or `host`, which saves 8 bytes a parameter there and
    /// sends all gradients up and all weights down once a step.
    pub optimiser: Waits,
    /// Where the frozen model of a KL term waits while it is not asked: `device`, or `host`, which saves 4 to 6 bytes a
    /// parameter there and sends it down once for every batch that asks it. With `[lora]` there is no such model.
    pub reference: Waits,
    /// On a GPU: take the memory that `foveate plan` counts before the first step, so that too little of it is an error
    /// there and not hours later. Off if the plan asks for more than the run needs.
    pub reserve: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { recompute: false, optimiser: Waits::Device, reference: Waits::Device, reserve: true }
    }
}

impl MemoryConfig {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where something lies that is not always needed. On the CPU both are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Waits {
    /// Beside the model.
    #[default]
    Device,
    /// In the memory of the host.
    Host,
}
