//! Adapters into the models underneath, and several models into one: `sum of weight * parameter`, no training.
//! Knows folders and parameters. Cost: one model in memory, a second one while it is added.

use std::path::{Path, PathBuf};

use foveate_model::{ModelError, Policy, Precision, SaveType};

use crate::checkpoint::durable::{create_folder, publish_folder};
use crate::checkpoint::{CheckpointError, hugging_face};
use crate::source::{self, ModelSource, SourceError};

/// Why models cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A model cannot be found.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The outcome cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What was asked for makes no sense.
    #[error("{problem}")]
    Asked {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
}

impl MergeError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            MergeError::Source(error) => error.hint(),
            MergeError::Model(error) => Some(error.hint()),
            MergeError::Checkpoint(error) => error.hint(),
            MergeError::Asked { hint, .. } => Some(hint.clone()),
        }
    }
}

fn asked(problem: impl Into<String>, hint: &str) -> MergeError {
    MergeError::Asked { problem: problem.into(), hint: hint.to_string() }
}

/// Writes the weighted sum of `names` (adapters merged first) as a new Hugging Face folder. No weights means equal ones.
/// The files around the weights are those of the first model; `dtype` is its number format unless given.
pub fn merge(names: &[String], weights: &[f32], out: &Path, dtype: Option<SaveType>) -> Result<PathBuf, MergeError> {
    let equal = vec![1.0 / names.len().max(1) as f32; names.len()];
    let weights = if weights.is_empty() { &equal[..] } else { weights };
    if weights.len() != names.len() {
        let problem = format!("{} weights for {} models", weights.len(), names.len());
        return Err(asked(problem, "give one weight for each model, for instance --weights 0.3,0.7"));
    }
    let sum: f32 = weights.iter().sum();
    if !(sum - 1.0).abs().is_finite() || (sum - 1.0).abs() > 1e-4 {
        return Err(asked(format!("the weights add up to {sum}"), "they must add up to 1"));
    }
    if out.exists() {
        return Err(asked(format!("{} exists", out.display()), "name a new folder"));
    }
    let (first, others) = names.split_first().ok_or_else(|| asked("no model is named", "name at least one"))?;
    let home = source::find(Path::new(""), first)?;
    if others.is_empty() && home.adapter.is_none() {
        let hint = "name an adapter's folder, or several models; foveate model inspect shows one";
        return Err(asked(format!("{first} is a whole model: there is nothing to merge"), hint));
    }
    let mut policy = home.load(Precision::F32)?.merged()?;
    if !others.is_empty() {
        policy.master_mut().iter_mut().for_each(|value| *value *= weights[0]);
    }
    for (name, weight) in others.iter().zip(&weights[1..]) {
        let other = source::find(Path::new(""), name)?.load(Precision::F32)?.merged()?;
        add(&mut policy, &other, *weight, name)?;
    }
    let dtype = dtype.unwrap_or_else(|| stored_type(&home, &policy));
    let aside = out.with_file_name(format!(".merging-{}", out.file_name().unwrap_or_default().to_string_lossy()));
    let written = (|| {
        create_folder(&aside).map_err(CheckpointError::File)?;
        policy.save_weights(&aside, dtype)?;
        hugging_face::copy_side_files(&home.folder, &aside, torch_name(dtype))?;
        publish_folder(&aside, out).map_err(CheckpointError::File)?;
        Ok(out.to_path_buf())
    })();
    if written.is_err() {
        // Gives the space back; nothing was published.
        let _ = std::fs::remove_dir_all(&aside);
    }
    written
}

fn add(policy: &mut Policy, other: &Policy, weight: f32, name: &str) -> Result<(), MergeError> {
    let differs =
        policy.parameters().iter().zip(other.parameters()).find(|(a, b)| (&a.name, &a.shape) != (&b.name, &b.shape));
    if differs.is_some() || policy.parameters().len() != other.parameters().len() {
        let problem = match differs {
            Some((a, b)) => {
                format!("{name} has {} {:?} where the first model has {} {:?}", b.name, b.shape, a.name, a.shape)
            }
            None => format!("{name} has another number of tensors than the first model"),
        };
        return Err(asked(problem, "only models of one architecture can be merged"));
    }
    policy.master_mut().iter_mut().zip(other.master()).for_each(|(sum, value)| *sum += weight * value);
    Ok(())
}

/// The number format that `config.json` states.
fn stored_type(home: &ModelSource, policy: &Policy) -> SaveType {
    let config = policy.config();
    let parts = [Some(config), config.get("text_config")];
    let stated = parts.into_iter().flatten().find_map(|part| part.get("dtype").or(part.get("torch_dtype"))?.as_str());
    match stated {
        Some("bfloat16") => SaveType::Bf16,
        Some("float16") => SaveType::F16,
        Some(_) => SaveType::F32,
        None => {
            tracing::debug!("{} states no number format", home.name);
            SaveType::F32
        }
    }
}

/// PyTorch's word for a number format.
pub fn torch_name(dtype: SaveType) -> &'static str {
    match dtype {
        SaveType::F32 => "float32",
        SaveType::Bf16 => "bfloat16",
        SaveType::F16 => "float16",
    }
}
