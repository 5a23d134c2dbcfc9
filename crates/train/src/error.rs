//! What can stop a run, from any room, with what the person can do about it.
//! Knows every room's errors; decides nothing. Cost: none.

use std::path::PathBuf;

use foveate_model::ModelError;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::durable::FileError;
use crate::data::DataError;
use crate::eval::EvalError;
use crate::fresh::FreshError;
use crate::optim::OptimError;
use crate::prompt::PromptError;
use crate::recipe::parse::RecipeError;
use crate::report::files::PageError;
use crate::reward::RewardError;
use crate::reward::remote::SetupError;
use crate::rollout::RowError;
use crate::source::SourceError;
use crate::update::UpdateError;

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A row cannot be asked.
    #[error(transparent)]
    Row(#[from] RowError),
    /// The model's text and image settings cannot be used.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model cannot be found.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A new model cannot be set up.
    #[error(transparent)]
    Fresh(#[from] FreshError),
    /// Answers cannot be scored.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// Scored answers cannot be turned into a batch.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The optimiser's settings cannot be used.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// A suite cannot be scored.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file cannot be written or read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The page cannot be written.
    #[error(transparent)]
    Page(#[from] PageError),
    /// A plug-in or judge cannot be used.
    #[error(transparent)]
    Helper(#[from] SetupError),
    /// Test rows are trained on.
    #[error("{count} rows of the test suite \"{suite}\" are in the data of stage \"{stage}\", for example {row}{}", looks(*by_looks))]
    Overlap {
        /// The suite.
        suite: String,
        /// The stage.
        stage: String,
        /// How many.
        count: usize,
        /// How many of them by pictures that look the same.
        by_looks: usize,
        /// Id of the first one.
        row: String,
    },
    /// A judge or plug-in fails too often.
    #[error("{} of the rewards of the last steps are unknown{}", percent(*share), told(last))]
    Unknown {
        /// Share of answers without a reward.
        share: f64,
        /// The last failure: name of the reward, what was seen.
        last: String,
        /// What to do about that failure.
        hint: &'static str,
    },
    /// The language model that writes targets anew fails too often.
    #[error("{} of the targets of the last steps could not be written anew; the last failure: {last}", percent(*share))]
    Refiner {
        /// Share of targets that kept their own reasoning.
        share: f64,
        /// The last failure.
        last: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The folder already holds a run.
    #[error("{} already holds a run", .0.display())]
    Occupied(PathBuf),
    /// There is nothing to resume.
    #[error("{} holds no run to resume", .0.display())]
    NothingToResume(PathBuf),
    /// The folder's run was another one.
    #[error("the recipe is not the one that {} was started with: {difference}", folder.display())]
    RecipeChanged {
        /// The run's folder.
        folder: PathBuf,
        /// The first setting that differs.
        difference: String,
    },
    /// The adapters of the checkpoint belong to other weights than those that were loaded.
    #[error("the checkpoint's adapters were learned beside other weights than {} holds now", .0.display())]
    OtherBase(PathBuf),
    /// A folder that a stage starts from, or is compared with, holds a model of other tensors.
    #[error("the model in {} has other tensors than the run's", .0.display())]
    OtherModel(PathBuf),
    /// The checkpoint was computed on another kind of machine.
    #[error("the checkpoint was computed with {was}, this machine computes with {is}")]
    OtherMachine {
        /// Instruction set of the checkpoint.
        was: String,
        /// Instruction set here.
        is: String,
    },
    /// NaN or infinity would have reached the weights.
    #[error("step {step}: {what} is not finite; the weights were not touched")]
    NonFinite {
        /// The step.
        step: u64,
        /// Which quantity.
        what: String,
        /// Where the batch was written.
        dump: PathBuf,
    },
}

impl TrainError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            TrainError::Recipe(error) => error.hint.clone(),
            TrainError::Data(error) => error.hint(),
            TrainError::Row(error) => Some(error.source.hint().to_string()),
            TrainError::Prompt(error) => Some(error.hint().to_string()),
            TrainError::Model(error) => Some(error.hint()),
            TrainError::Source(error) => error.hint(),
            TrainError::Fresh(error) => error.hint(),
            TrainError::Reward(error) => Some(error.hint().to_string()),
            TrainError::Update(error) => Some(error.hint().to_string()),
            TrainError::Optim(error) => Some(error.hint().to_string()),
            TrainError::Eval(error) => Some(error.hint()),
            TrainError::Checkpoint(error) => error.hint(),
            TrainError::File(error) => error.hint(),
            TrainError::Page(error) => error.hint(),
            TrainError::Helper(error) => Some(error.hint.clone()),
            TrainError::Overlap { .. } => Some(
                "take other rows (skip, take, another file), or set data.allow_overlap = true if that is meant"
                    .to_string(),
            ),
            TrainError::Unknown { hint, .. } | TrainError::Refiner { hint, .. } => {
                Some(format!("{hint}; then go on with --resume, or allow more with max_unknown.share"))
            }
            TrainError::Occupied(_) => {
                Some("go on with --resume, choose another folder with --out, or remove that folder".to_string())
            }
            TrainError::NothingToResume(_) => Some("leave --resume out to start it".to_string()),
            TrainError::RecipeChanged { .. } => Some(
                "resume with the recipe and --set values it was started with, or start anew with --out".to_string(),
            ),
            TrainError::OtherBase(_) => {
                Some("put the model's folder back as it was, or start anew with --out".to_string())
            }
            TrainError::OtherModel(_) => Some("name a checkpoint of the same architecture".to_string()),
            TrainError::OtherMachine { was, .. } => Some(format!(
                "bits differ between instruction sets; resume on such a machine, or set FOVEATE_ISA and \
                 FOVEATE_MATMUL to {was}"
            )),
            TrainError::NonFinite { dump, .. } => Some(format!(
                "the last checkpoint is good; lower optim.lr or optim.max_norm and look at {}",
                dump.display()
            )),
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

fn told(last: &str) -> String {
    if last.is_empty() { String::new() } else { format!("; the last failure: {last}") }
}

fn looks(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" ({count} by pictures that look the same)") }
}
