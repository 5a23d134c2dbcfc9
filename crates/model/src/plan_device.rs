//! What a model will take on a GPU: weights, gradients, moments, activations, the head, keys and values; the arena is filled
//! by it before the first step.
//! Knows layouts and the tape's habits there; asks no device. Cost: declaring the tensors.

use std::path::Path;

use serde_json::Value;

use crate::adapters::AdapterSpec;
use crate::arena::Kind;
use crate::batch::Tile;
use crate::decode::PREFILL_TOKENS;
pub use crate::decode::STORE_BYTES;
use crate::error::ModelError;
use crate::families::Family;
use crate::plan::{Blocks, blocks, config_in, declare};
use crate::policy::{Policy, Precision};
use crate::policy_device::LOGIT_ROWS;
use crate::weights::{Linear, ParamInfo, Part, Trainable};

/// What products keep for themselves, and lists.
const FIXED: usize = 40 << 20;
/// Tokens of the vocabulary whose logits the head holds at once.
const HEAD_TOKENS: usize = 8192;

/// Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    /// The weights in f32, and in bf16 mode once more rounded.
    pub weights: usize,
    /// Gradients of what learns.
    pub gradients: usize,
    /// AdamW's two moments of what learns.
    pub moments: usize,
    /// What the tape keeps of one token and of one patch.
    pub activations: [usize; 2],
    /// What one block needs beside that while it runs, of one token and of one patch.
    pub working: [usize; 2],
    /// What the head needs for one trained token.
    pub head_per_token: usize,
    /// Logits of the tokens that are drawn at once.
    pub logits: usize,
    /// Keys and values of one token.
    pub cache_per_token: usize,
}

/// What a step asks of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tokens of one forward and backward pass.
    pub tokens: usize,
    /// Patches of its pictures.
    pub patches: usize,
    /// Tokens of it that are trained.
    pub trained: usize,
    /// Tokens whose keys and values are stored at once while sampling; 0 where nothing is sampled.
    pub stored: usize,
}

/// How a model learns, as far as memory goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Blocks are run again when going back.
    pub recompute: bool,
    /// Moments, and the step with them, are on the host.
    pub moments_on_host: bool,
}

impl DevicePlan {
    /// Reads `config.json` in `dir` and plans. `adapters` learn in the place of the weights, if there are any.
    pub fn new(
        dir: &Path,
        precision: Precision,
        trainable: Trainable,
        adapters: Option<&AdapterSpec>,
        manner: Manner,
    ) -> Result<Self, ModelError> {
        let (path, config) = config_in(dir)?;
        Self::of_config(&path, &config, precision, trainable, adapters, manner)
    }

    /// The same for the content of a `config.json`; `path` is for messages.
    pub fn of_config(
        path: &Path,
        config: &Value,
        precision: Precision,
        trainable: Trainable,
        adapters: Option<&AdapterSpec>,
        manner: Manner,
    ) -> Result<Self, ModelError> {
        let (layout, family, num_base) = declare(path, config, adapters)?;
        let learns = |index: usize, info: &ParamInfo| {
            trainable.includes(info.part) && !info.unread && (adapters.is_none() || index >= num_base)
        };
        Ok(of_layout(&family, layout.infos(), layout.linears(), on_device(precision), &learns, manner))
    }

    /// What stays there between steps of learning.
    pub fn kept(&self) -> usize {
        FIXED + self.weights + self.gradients + self.moments
    }

    /// To be asked: weights, keys and values, logits, one block of a pack of prompts.
    pub fn to_sample(&self, load: Load) -> usize {
        FIXED + self.weights + self.sampling(load)
    }

    fn sampling(&self, load: Load) -> usize {
        if load.stored == 0 {
            return 0;
        }
        let blocks = load.stored.min(PREFILL_TOKENS) * self.working[0];
        load.stored * self.cache_per_token + self.logits + blocks.max(load.patches * self.working[1])
    }

    /// The most that learning takes, and drawing the answers that are learned from.
    pub fn to_learn(&self, load: Load) -> usize {
        let activations = load.tokens * self.activations[0] + load.patches * self.activations[1];
        let running =
            [load.trained * self.head_per_token, load.tokens * self.working[0], load.patches * self.working[1]];
        let learning = activations + running.into_iter().max().unwrap_or(0);
        self.kept() + learning.max(self.sampling(load))
    }
}

impl Policy {
    /// The plan of this model as it is.
    pub fn device_plan(&self, manner: Manner) -> DevicePlan {
        let weights = self.weights();
        let learns = |index: usize, _: &ParamInfo| self.is_trainable(index);
        of_layout(self.family(), weights.infos(), weights.linears(), self.operand(), &learns, manner)
    }
}

impl Policy {
    /// Patches that pictures are cut into, as the tower counts its rows.
    pub fn num_patches<'t>(&self, tiles: impl IntoIterator<Item = &'t Tile>) -> usize {
        // The only tensors of a tower with so many axes are the convolutions that read patches.
        let mut towers = self.parameters().iter().filter(|info| info.part == Part::Vision && info.shape.len() >= 4);
        let side = towers.find_map(|info| info.shape.last()).copied().unwrap_or(1);
        tiles.into_iter().map(|tile| (tile.height as usize / side) * (tile.width as usize / side)).sum()
    }
}

/// The type of operands on a device: there, bf16 is always fast.
pub(crate) fn on_device(precision: Precision) -> Kind {
    match precision {
        Precision::F32 => Kind::F32,
        Precision::Bf16 | Precision::Auto => Kind::Bf16,
    }
}

fn of_layout(
    family: &Family,
    infos: &[ParamInfo],
    linears: &[Linear],
    operand: Kind,
    learns: &dyn Fn(usize, &ParamInfo) -> bool,
    manner: Manner,
) -> DevicePlan {
    let value = if operand == Kind::Bf16 { 2 } else { 4 };
    let config = &family.decoder.config;
    let all: usize = infos.iter().map(|info| info.len).sum();
    let mut learning = infos.iter().enumerate().filter(|(index, info)| learns(*index, info)).map(|(_, info)| info);
    let first = learning.next();
    let parts = first.into_iter().chain(learning.clone()).map(|info| info.part);
    let vision_learns = parts.clone().any(|part| part == Part::Vision);
    let anything_learns = first.is_some();
    // One piece from the first value that learns to the last, as `Gradients` has it.
    let active = first.map_or(0, |first| {
        let last = learning.last().unwrap_or(first);
        last.offset + last.len - first.offset
    });
    let [tower, _, decoder] = blocks(infos, linears, value);
    let stored = |blocks: &Blocks, learns: bool| match (learns, manner.recompute) {
        (false, _) => 0,
        // An eighth more: statistics of rows, normed heads, what lies between the blocks.
        (true, false) => blocks.stored * 9 / 8,
        (true, true) => blocks.recomputed() * 9 / 8,
    };
    // A block that runs without a record holds all its values; going back, the gradients of its widest product and of the
    // stream come on top of what is stored.
    let working = |blocks: &Blocks| blocks.one().max(2 * blocks.widest) + 2 * 4 * blocks.width;
    let rounded = if value == 2 { 2 * all } else { 0 };
    let wide = config.vocabulary.min(HEAD_TOKENS);
    DevicePlan {
        weights: 4 * all + rounded,
        gradients: 4 * active,
        moments: if manner.moments_on_host { 0 } else { 8 * active },
        activations: [stored(&decoder, anything_learns), stored(&tower, vision_learns)],
        working: [working(&decoder), working(&tower)],
        head_per_token: wide * (4 + value) + config.width * (4 + 2 * value),
        logits: 4 * LOGIT_ROWS * config.vocabulary,
        cache_per_token: 2 * config.num_layers * config.num_kv_heads * config.head_dim * value,
    }
}
