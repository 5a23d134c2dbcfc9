//! The models of a run: the one it begins with and those that its stages start from.
//! Knows names, folders and `[lora]`; knows nothing of steps. Cost: reading weights.

use std::path::Path;

use foveate_model::{DeviceChoice, Policy};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::durable::{read_file, write_file};
use crate::data::Dataset;
use crate::error::TrainError;
use crate::fresh;
use crate::recipe::ModelRef;
use crate::run::{Run, Stage};
use crate::source::{self, ModelSource};

/// Folder of a new model's text files inside a run's folder.
const NEW_MODEL: &str = "new-model";

/// The folder with the text files of the run's model; those of a new model are made on first use.
pub fn model_home(run: &Run, folder: &Path) -> Result<ModelSource, TrainError> {
    match &run.model {
        ModelRef::Named(name) => Ok(source::find(&run.base, name)?.with_images(&run.images)),
        ModelRef::New { new } => {
            let home = folder.join(NEW_MODEL);
            // Written last, so its presence means that the folder is complete.
            if !home.join("complete").is_file() {
                let first = run.stage[0].open(&run.base, run.seed)?;
                fresh::write(&home, new, texts(&first, &run.stage[0]).into_iter())?;
                write_file(&home.join("complete"), b"")?;
            }
            let name = home.to_string_lossy().into_owned();
            Ok(ModelSource { name, folder: home, adapter: None, images: run.images.clone() })
        }
    }
}

/// Places of the data whose text a new tokenizer learns from.
const TOKENIZER_ROWS: usize = 4_000;

/// What a new tokenizer learns from: questions and targets, spaced as they will stand in a conversation. Rows are
/// taken at even distances, so that every source takes part.
fn texts(rows: &Dataset, stage: &Stage) -> Vec<String> {
    let count = rows.len().min(TOKENIZER_ROWS);
    let mut texts = Vec::with_capacity(2 * count);
    for place in 0..count {
        for row in rows.rows_at(place * rows.len() / count) {
            texts.push(format!("User:{}{}", foveate_tasks::derive::question_text(&row), stage.prompt.suffix));
            texts.push(format!("Assistant: {}", stage.target.text(&row, None)));
        }
    }
    texts
}

/// The model that the run starts from, with its adapters if those are to learn.
pub fn base_policy(run: &Run, home: &ModelSource) -> Result<Policy, TrainError> {
    match &run.model {
        ModelRef::Named(_) => {
            let policy = on_device(run, home.load(run.precision)?)?;
            Ok(match &run.lora {
                None => policy.merged()?,
                Some(_) if policy.adapters().is_some() => policy,
                Some(lora) => policy.with_adapters(&lora.spec(), run.seed)?,
            })
        }
        ModelRef::New { .. } => {
            let path = home.folder.join("config.json");
            let config = serde_json::from_slice(&read_file(&path)?)
                .map_err(|error| CheckpointError::Damaged { path, reason: error.to_string() })?;
            on_device(run, Policy::fresh(&config, run.seed, run.precision)?)
        }
    }
}

/// The model in a folder that a stage starts from; an adapter is merged into its model.
pub fn open_folder(run: &Run, folder: &Path) -> Result<Policy, TrainError> {
    let source = source::find(&run.base, &folder.to_string_lossy())?;
    on_device(run, source.load(run.precision)?.merged()?)
}

/// The model where the run computes.
fn on_device(run: &Run, mut policy: Policy) -> Result<Policy, TrainError> {
    policy.set_recompute(run.memory.recompute);
    let choice = run.device.parse::<DeviceChoice>().unwrap_or_default();
    Ok(policy.on(choice, run.precision)?)
}
