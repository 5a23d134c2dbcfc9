//! What a run's folder says, read back: recipe, steps, sampled answers, scores.
//! Knows the files that a run writes; nothing of pages. A run that is still going or was killed is read too.
//! Cost: every line is parsed once and held.

use std::path::{Path, PathBuf};

use super::records::{SampleRecord, StepRecord};
use crate::checkpoint::durable::{FileError, read_file};
use crate::eval::records::{Evaluation, Scores};

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not what a run writes.
    #[error("{path}:{line}: {reason}", path = path.display())]
    Line {
        /// File.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The folder holds no run.
    #[error("{} is not a run's folder: it has no recipe.toml", .0.display())]
    NoRun(PathBuf),
}

impl PageError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PageError::File(error) => error.hint(),
            PageError::Line { .. } => Some("the file was changed after the run wrote it".to_string()),
            PageError::NoRun(_) => {
                Some("name the folder that `foveate train` printed, for example runs/quickstart".to_string())
            }
        }
    }
}

/// Everything that a run's folder says.
#[derive(Clone, Debug, Default)]
pub struct RunFiles {
    /// The resolved recipe.
    pub recipe: String,
    /// Steps in order.
    pub steps: Vec<StepRecord>,
    /// Sampled groups in order.
    pub samples: Vec<SampleRecord>,
    /// Scores.
    pub scores: Scores,
}

impl RunFiles {
    /// Reads a run's folder. A last line that is cut off, as a kill leaves it, is passed over.
    pub fn read(folder: &Path) -> Result<Self, PageError> {
        let recipe_path = folder.join("recipe.toml");
        if !recipe_path.is_file() {
            return Err(PageError::NoRun(folder.to_path_buf()));
        }
        let scores_path = folder.join("eval.json");
        let scores = if scores_path.is_file() {
            serde_json::from_slice(&read_file(&scores_path)?).map_err(|error| PageError::Line {
                path: scores_path,
                line: error.line(),
                reason: error.to_string(),
            })?
        } else {
            Scores::default()
        };
        Ok(Self {
            recipe: String::from_utf8_lossy(&read_file(&recipe_path)?).into_owned(),
            steps: read_lines(&folder.join("metrics.jsonl"))?,
            samples: read_lines(&folder.join("samples.jsonl"))?,
            scores,
        })
    }

    /// A metric over the steps that have it.
    pub fn line(&self, metric: &str) -> Vec<(f64, f64)> {
        self.steps.iter().filter_map(|step| Some((step.step as f64, *step.metrics.get(metric)?))).collect()
    }

    /// Mean of a metric over the first and over the last tenth of the steps that have it.
    pub fn first_and_last_tenth(&self, metric: &str) -> Option<(f64, f64)> {
        let points = self.line(metric);
        let tenth = points.len().div_ceil(10);
        let mean = |points: &[(f64, f64)]| points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64;
        (!points.is_empty()).then(|| (mean(&points[..tenth]), mean(&points[points.len() - tenth..])))
    }

    /// The first and the last evaluation, if there are two.
    pub fn before_and_after(&self) -> Option<(&Evaluation, &Evaluation)> {
        match &self.scores.evaluations[..] {
            [before, .., after] => Some((before, after)),
            _ => None,
        }
    }

    /// Tokens per second over the whole run and its wall time in seconds.
    pub fn speed(&self) -> Option<(f64, f64)> {
        let secs: f64 = self.line("time/step_secs").iter().map(|p| p.1).sum();
        let tokens: f64 = self
            .steps
            .iter()
            .filter_map(|step| Some(step.metrics.get("time/tokens_per_sec")? * step.metrics.get("time/step_secs")?))
            .sum();
        (secs > 0.0).then(|| (tokens / secs, secs))
    }
}

fn read_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>, PageError> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let bytes = read_file(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut records = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(_) if !line.ends_with('\n') => {}
            Err(error) => {
                return Err(PageError::Line { path: path.to_path_buf(), line: index + 1, reason: error.to_string() });
            }
        }
    }
    Ok(records)
}
