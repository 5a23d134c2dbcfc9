//! What a run writes down: one line a step, one line a sampled group, scores before and after.
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

/// `eval.json`: scores in the order in which they were taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// One entry per evaluation.
    pub evaluations: Vec<Evaluation>,
}

/// One evaluation of one model on all suites.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// `before`, `after`, or `step-NNNNNN`.
    pub name: String,
    /// Steps done before it.
    pub step: u64,
    /// Scores by suite.
    pub suites: BTreeMap<String, SuiteScore>,
}

/// Scores of one suite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SuiteScore {
    /// Number of questions.
    pub num_rows: usize,
    /// How many were answered right.
    pub num_correct: usize,
    /// Their share.
    pub accuracy: f64,
    /// 95 % Wilson interval of it.
    pub interval: [f64; 2],
    /// The same by difficulty level.
    pub levels: BTreeMap<String, LevelScore>,
    /// Share of answers that had no readable answer at all.
    pub unreadable_fraction: f64,
    /// Share of answers that ran into the length limit.
    pub truncated_fraction: f64,
    /// Mean tokens per answer.
    pub mean_tokens: f64,
}

/// Score at one difficulty level.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LevelScore {
    /// Number of questions.
    pub num_rows: usize,
    /// How many were answered right.
    pub num_correct: usize,
    /// Their share.
    pub accuracy: f64,
}

/// A line of a predictions file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The row's id.
    pub id: String,
    /// The row's difficulty level.
    pub level: u8,
    /// What was asked.
    pub question: String,
    /// What is right.
    pub gold: String,
    /// What the model wrote.
    pub text: String,
    /// What the verifier read as the answer, if anything.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub extracted: Option<String>,
    /// Score of the verifier.
    pub score: f32,
    /// Whether it counts as right.
    pub correct: bool,
    /// What the verifier said: `ok`, `no_answer`, ...
    pub status: String,
    /// `stop` or `length`.
    pub finish: String,
    /// Number of tokens.
    pub num_tokens: usize,
}
