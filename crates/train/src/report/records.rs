//! What a run writes down: one line a step, one line a sampled group.
//! Plain data with names that never change once published. Cost: a few hundred bytes a step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done over all stages, this one included.
    pub step: u64,
    /// Name of the stage.
    pub stage: String,
    /// Metrics by their published names. What could not be measured is absent.
    #[serde(flatten)]
    pub metrics: BTreeMap<String, f64>,
}

/// A line of `samples.jsonl`: one question with everything that was answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The step that used it.
    pub step: u64,
    /// Name of the stage.
    pub stage: String,
    /// The row's id.
    pub id: String,
    /// The row's difficulty level.
    pub level: u8,
    /// Pictures, relative to the run's folder.
    pub images: Vec<String>,
    /// What was asked.
    pub question: String,
    /// What is right.
    pub gold: String,
    /// What the selector decided: `explore`, `memorise`, `skip`.
    pub mode: String,
    /// The sampled answers.
    pub answers: Vec<AnswerRecord>,
    /// The memorised target, if the selector put one in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// One sampled answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerRecord {
    /// What the model wrote, end token left out.
    pub text: String,
    /// Total reward; absent if unknown.
    pub reward: Option<f32>,
    /// Reward by part; absent if unknown.
    pub parts: BTreeMap<String, Option<f32>>,
    /// Advantage it was given.
    pub advantage: f32,
    /// Whether the accuracy reward counts it as right.
    pub correct: bool,
    /// Number of tokens.
    pub num_tokens: usize,
    /// `stop` or `length`.
    pub finish: String,
}
