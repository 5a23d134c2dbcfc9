//! What a model will take, told from its configuration alone: parameters, weights, gradients, moments, activations,
//! keys and values. Nothing is allocated and no weights are read.
//! Knows layouts and the tape's habits. Cost: declaring the tensors.
//!
//! Activations: going backwards the tape keeps every input of a matrix product, the outputs that are not added to the
//! residual stream at once, and the stream itself after each addition.

use std::path::Path;

use serde_json::Value;

use crate::adapters::{AdapterSpec, declare_adapters, is_inside_block};
use crate::arena::Kind;
use crate::error::ModelError;
use crate::families::Family;
use crate::policy::{Precision, untie};
use crate::safetensors_io;
use crate::weights::{Layout, Part, Trainable};

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
    of_config(&path, &config, precision, trainable, adapters)
}

/// The same for the content of a `config.json`; `path` is for messages.
pub fn of_config(
    path: &Path,
    config: &Value,
    precision: Precision,
    trainable: Trainable,
    adapters: Option<&AdapterSpec>,
) -> Result<Plan, ModelError> {
    let value = if precision.operand() == Kind::Bf16 { 2 } else { 4 };
    let mut layout = Layout::default();
    let family = Family::declare(&mut layout, path, config)?;
    let decoder = &family.decoder.config;
    let cache_per_token = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * value;
    let num_base = layout.infos().len();
    if let Some(spec) = adapters {
        declare_adapters(&mut layout, family.decoder.head, spec)?;
    }
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
    let mut matrices = 0;
    let mut activations = [0; 3];
    let mut widths = [0; 3];
    for linear in layout.linears() {
        matrices += linear.n * linear.k;
        let info = &layout.infos()[linear.params[0].0];
        if !is_inside_block(info.name.trim_end_matches(".weight")) {
            continue;
        }
        let part = part_index(info.part);
        if widths[part] == 0 {
            // The first product of a block reads the normed stream: its width is the stream's.
            widths[part] = linear.k;
        }
        // What is added to the stream is kept in f32.
        let output = if linear.n == widths[part] { 4 } else { value };
        activations[part] += linear.k * value + linear.n * output;
    }
    let packed = if value == 2 { 2 * matrices } else { 0 };
    Ok(Plan {
        num_parameters,
        num_trained,
        weights: 4 * all,
        packed,
        packed_backward: packed,
        gradients: 4 * num_trained,
        moments: 8 * num_trained,
        activations_per_token: activations[2],
        activations_per_patch: activations[0],
        cache_per_token,
    })
}

fn part_index(part: Part) -> usize {
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

    /// To learn from batches of so many tokens and patches, without keys and values of sampling.
    pub fn to_learn(&self, num_tokens: usize, num_patches: usize) -> usize {
        let activations = num_tokens * self.activations_per_token + num_patches * self.activations_per_patch;
        self.to_ask() + self.packed_backward + self.gradients + self.moments + activations
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
