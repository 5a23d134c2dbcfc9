//! Scores as they are written down: `eval.json` and the predictions.
//! Plain data with names that never change once published. Cost: a few hundred bytes a question.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::statistics::{self, Estimate};

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

impl Evaluation {
    /// The unweighted mean over tasks, each the unweighted mean over its suites; nothing for a single suite.
    pub fn macro_average(&self) -> Option<f64> {
        let mut tasks: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (name, suite) in &self.suites {
            let task = if suite.task.is_empty() { name } else { &suite.task };
            tasks.entry(task).or_default().push(suite.accuracy);
        }
        let tasks: Vec<Vec<f64>> = tasks.into_values().collect();
        statistics::macro_average(&tasks).filter(|_| self.suites.len() > 1)
    }
}

impl Evaluation {
    /// How much is lost where the distribution shifts: each suite `..id` minus its `..ood`, by their common name.
    pub fn gaps(&self) -> Vec<(String, Estimate)> {
        let estimate = |suite: &SuiteScore| statistics::wilson(suite.num_correct as u64, suite.num_rows as u64);
        let gap = |(name, shifted): (&String, &SuiteScore)| {
            let common = name.strip_suffix("ood")?;
            let own = self.suites.get(&format!("{common}id"))?;
            let named = format!("{common}id − {name}");
            Some((named, statistics::difference(&estimate(own), &estimate(shifted))))
        };
        self.suites.iter().filter_map(gap).collect()
    }
}

/// Scores of one suite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SuiteScore {
    /// The task that most of its questions belong to.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub task: String,
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
    /// Mean of the verifier's scores with a bootstrap interval over questions, where some are neither 0 nor 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub graded: Option<Estimate>,
    /// Share of answers that are exactly the right program, with its Wilson interval, where answers are function calls:
    /// `accuracy` counts scores above one half, which a program with a wrong call may have.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exact_programs: Option<Estimate>,
    /// What several drawn answers per question reached, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sampled: Option<SampledScore>,
}

/// What several drawn answers per question reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampledScore {
    /// Answers per question.
    pub answers: u32,
    /// Temperature of the draws.
    pub temperature: f32,
    /// Chance that at least one of k answers is right, unbiased, by k; intervals are bootstraps over questions.
    pub pass_at: BTreeMap<u32, Estimate>,
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
    /// Which of several drawn answers it is, from 0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub answer: Option<u32>,
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
    /// Whether it is exactly the right program, in any order, where the answer is function calls.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exact: Option<bool>,
    /// Number of the question's pictures in the suite, where several questions share some: one piece of evidence for
    /// bootstraps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub picture: Option<u64>,
    /// What the verifier said: `ok`, `no_answer`, ...
    pub status: String,
    /// `stop` or `length`.
    pub finish: String,
    /// Number of tokens.
    pub num_tokens: usize,
}

/// What a bootstrap draws: the pictures, where questions share some.
pub fn clusters(predictions: &[Prediction]) -> Option<Vec<u64>> {
    predictions.iter().map(|prediction| prediction.picture).collect()
}
