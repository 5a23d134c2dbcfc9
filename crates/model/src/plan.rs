//! What a model will take, told from its configuration alone: parameters, weights, gradients, moments, activations,
//! keys and values. Nothing is allocated and no weights are read.
//! Knows layouts and the tape's habits. Cost: declaring the tensors.
//!
//! Activations: going backwards the tape keeps every input of a matrix product, the outputs that are not added to the
//! residual stream at once, and the stream itself after each addition.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use foveate_kernels::cpu::head;
use serde_json::Value;

use crate::adapters::{AdapterSpec, block_of, declare_adapters};
use crate::arena::Kind;
use crate::error::ModelError;
use crate::families::Family;
use crate::policy::{Precision, untie};
use crate::safetensors_io;
use crate::weights::{Layout, Linear, ParamInfo, Part, Trainable};

/// Sizes in bytes, unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Parameters of the image tower, the connector and the decoder.
    pub num_parameters: [usize; 3],
    /// Parameters that learn.
    pub num_trained: usize,
    /// The weights in f32.
    pub weights: usize,
    /// bf16 copies of the matrices for forward passes.
    pub packed: usize,
    /// bf16 copies of the matrices for backward passes.
    pub packed_backward: usize,
    /// Gradients of what learns.
    pub gradients: usize,
    /// AdamW's two moments of what learns.
    pub moments: usize,
    /// What the tape keeps of one token in the decoder.
    pub activations_per_token: usize,
    /// What it keeps of one row of the image tower (a patch).
    pub activations_per_patch: usize,
    /// The same two where blocks are run again when going back: their inputs, and one block.
    pub recomputed: [usize; 2],
    /// Probabilities of the vocabulary that the head keeps of one trained token.
    pub masses_per_token: usize,
    /// What it keeps of all of them at most.
    pub most_masses: usize,
    /// Keys and values of one token.
    pub cache_per_token: usize,
}

/// Reads `config.json` in `dir` and plans. `adapters` learn in the place of the weights, if there are any.
pub fn plan(
    dir: &Path,
    precision: Precision,
    trainable: Trainable,
    adapters: Option<&AdapterSpec>,
) -> Result<Plan, ModelError> {
    let (path, config) = config_in(dir)?;
    of_config(&path, &config, precision, trainable, adapters)
}

/// The configuration in a folder, as loading takes it.
pub(crate) fn config_in(dir: &Path) -> Result<(PathBuf, Value), ModelError> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
    let mut config: Value = serde_json::from_str(&text).map_err(|error| ModelError::Config {
        path: path.clone(),
        problem: error.to_string(),
        hint: "config.json must be a JSON object".into(),
    })?;
    // As loading does; a folder without weights is planned by its configuration alone.
    if safetensors_io::has_own_head(dir).unwrap_or(false) {
        untie(&mut config);
    }
    Ok((path, config))
}

/// Declares a model and what learns beside it; the third is the number of its own parameters.
pub(crate) fn declare(
    path: &Path,
    config: &Value,
    adapters: Option<&AdapterSpec>,
) -> Result<(Layout, Family, usize), ModelError> {
    let mut layout = Layout::default();
    let family = Family::declare(&mut layout, path, config)?;
    let num_base = layout.infos().len();
    if let Some(spec) = adapters {
        declare_adapters(&mut layout, family.decoder.head, spec)?;
    }
    Ok((layout, family, num_base))
}

/// [`plan`] for the content of a `config.json`; `path` is for messages.
pub fn of_config(
    path: &Path,
    config: &Value,
    precision: Precision,
    trainable: Trainable,
    adapters: Option<&AdapterSpec>,
) -> Result<Plan, ModelError> {
    let value = if precision.operand() == Kind::Bf16 { 2 } else { 4 };
    let (layout, family, num_base) = declare(path, config, adapters)?;
    let decoder = &family.decoder.config;
    let cache_per_token = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * value;
    let mut num_parameters = [0; 3];
    let mut num_trained = 0;
    for (index, info) in layout.infos().iter().enumerate() {
        if index < num_base {
            num_parameters[part_index(info.part)] += info.len;
        }
        if trainable.includes(info.part) && (adapters.is_none() || index >= num_base) {
            num_trained += info.len;
        }
    }
    let all: usize = layout.infos().iter().map(|info| info.len).sum();
    let matrices: usize = layout.linears().iter().map(|linear| linear.n * linear.k).sum();
    let blocks = blocks(layout.infos(), layout.linears(), value);
    let packed = if value == 2 { 2 * matrices } else { 0 };
    Ok(Plan {
        num_parameters,
        num_trained,
        weights: 4 * all,
        packed,
        packed_backward: packed,
        gradients: 4 * num_trained,
        moments: 8 * num_trained,
        activations_per_token: blocks[2].stored,
        activations_per_patch: blocks[0].stored,
        recomputed: [blocks[2].recomputed(), blocks[0].recomputed()],
        masses_per_token: value * decoder.vocabulary,
        most_masses: value * head::MOST_VALUES,
        cache_per_token,
    })
}

/// What the tape keeps of one row in the blocks of a part.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    names: BTreeSet<String>,
    /// Width of the residual stream.
    pub width: usize,
    /// All that is kept in all blocks.
    pub stored: usize,
    /// Input and output of the widest product.
    pub widest: usize,
}

impl Blocks {
    /// What is kept in one block.
    pub fn one(&self) -> usize {
        self.stored / self.names.len().max(1)
    }

    /// What is kept where blocks are run again: their inputs in f32, and one block.
    pub fn recomputed(&self) -> usize {
        self.names.len() * self.width * 4 + self.one()
    }
}

/// The blocks of the image tower, the connector and the decoder; operands have `value` bytes.
pub(crate) fn blocks(infos: &[ParamInfo], linears: &[Linear], value: usize) -> [Blocks; 3] {
    let mut all = [(); 3].map(|()| Blocks::default());
    for linear in linears {
        let info = &infos[linear.params[0].0];
        let Some(name) = block_of(info.name.trim_end_matches(".weight")) else { continue };
        let part = &mut all[part_index(info.part)];
        if part.width == 0 {
            // The first product of a block reads the normed stream: its width is the stream's.
            part.width = linear.k;
        }
        // What is added to the stream is kept in f32.
        let output = if linear.n == part.width { 4 } else { value };
        part.stored += linear.k * value + linear.n * output;
        part.widest = part.widest.max(linear.k * value + linear.n * output);
        part.names.insert(name.to_string());
    }
    all
}

pub(crate) fn part_index(part: Part) -> usize {
    match part {
        Part::Vision => 0,
        Part::Connector => 1,
        Part::Language => 2,
    }
}

impl Plan {
    /// To be asked something: weights and their copies, without keys and values.
    pub fn to_ask(&self) -> usize {
        self.weights + self.packed
    }

    /// What the tape keeps of one token and of one patch.
    pub fn activations(&self, recompute: bool) -> [usize; 2] {
        if recompute { self.recomputed } else { [self.activations_per_token, self.activations_per_patch] }
    }

    /// What the head keeps where all of so many tokens are trained.
    pub fn masses(&self, num_tokens: usize) -> usize {
        (num_tokens * self.masses_per_token).min(self.most_masses)
    }

    /// To learn from batches of so many tokens, all of them trained, and patches, without keys and values of sampling.
    pub fn to_learn(&self, num_tokens: usize, num_patches: usize, recompute: bool) -> usize {
        let [token, patch] = self.activations(recompute);
        let activations = num_tokens * token + num_patches * patch;
        self.to_ask() + self.packed_backward + self.gradients + self.moments + activations + self.masses(num_tokens)
    }
}

/// Memory that the system can still give, where it tells: what is free, or what the group of processes may still take.
pub fn available_memory() -> Option<usize> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<usize>().ok()?.checked_mul(1024)?;
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, used)| most.saturating_sub(used));
    Some(group.map_or(free, |group| group.min(free)))
}

/// Refuses a model whose weights alone are more than the memory that is left.
pub fn check_fits(dir: &Path, precision: Precision) -> Result<(), ModelError> {
    let Some(available) = available_memory() else { return Ok(()) };
    let plan = plan(dir, precision, Trainable::NONE, None)?;
    if plan.to_ask() <= available {
        return Ok(());
    }
    Err(ModelError::TooLarge { path: dir.to_path_buf(), needed: plan.to_ask(), available })
}
