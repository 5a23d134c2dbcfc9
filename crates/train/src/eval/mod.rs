//! Asks a model the questions of test suites and scores its answers.
//! Knows rows, prompts, the policy and the accuracy verifier; changes nothing.
//! Cost: decoding; a suite of 500 short answers takes a small model seconds.

use foveate_model::{FinishReason, ModelError, Policy};
use serde::{Deserialize, Serialize};

use crate::ask::AskConfig;
use crate::data::Dataset;
use crate::prompt::{Frame, Prompter};
use crate::reward::spec::AccuracySpec;
use crate::reward::{Completion, Group as RewardGroup, RewardError, RewardSpec, Rewards, Status, Unknown};
use crate::rollout::{RowError, SamplingConfig, render, sample};
use records::{LevelScore, Prediction, SuiteScore};

pub mod records;
pub mod statistics;

/// How models are evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Evaluate the model that the run starts from. Keep it on: without it no gain can be stated.
    pub before: bool,
    /// Evaluate the model that the run ends with.
    pub after: bool,
    /// Evaluate every so many steps too; 0 for never. Costs time, and is the way to choose a checkpoint honestly.
    pub every: u64,
    /// Questions decoded together. More is faster and takes memory for keys and values.
    pub batch: usize,
    /// How answers are drawn; temperature 0 is greedy, the headline number.
    pub sampling: SamplingConfig,
    /// How answers are verified.
    pub accuracy: AccuracySpec,
    /// A score above this counts as right.
    pub success: f32,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            before: true,
            after: true,
            every: 0,
            batch: 128,
            sampling: SamplingConfig::default().greedy(),
            accuracy: AccuracySpec::default(),
            success: 0.5,
        }
    }
}

/// Why a suite could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A row could not be asked.
    #[error(transparent)]
    Row(#[from] RowError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An answer could not be scored.
    #[error(transparent)]
    Reward(#[from] RewardError),
}

impl EvalError {
    /// What the person can do about it.
    pub fn hint(&self) -> String {
        match self {
            EvalError::Row(error) => error.source.hint().to_string(),
            EvalError::Model(error) => error.hint(),
            EvalError::Reward(error) => error.hint().to_string(),
        }
    }
}

/// Scores one suite and gives every answer. `progress` is told how many questions are answered.
pub fn score_suite(
    policy: &mut Policy,
    prompter: &Prompter,
    rows: &Dataset,
    ask: &AskConfig,
    config: &EvalConfig,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<(SuiteScore, Vec<Prediction>), EvalError> {
    let max_new_tokens = config.sampling.max_new_tokens as usize;
    let accuracy = RewardSpec::Accuracy(AccuracySpec { weight: 1.0, ..config.accuracy.clone() });
    let rewards = Rewards::new(vec![accuracy], Unknown::Leave, max_new_tokens)?;
    let mut predictions = Vec::with_capacity(rows.len());
    while predictions.len() < rows.len() {
        let first = predictions.len();
        let batch: Vec<_> =
            (first..rows.len().min(first + config.batch.max(1))).map(|index| (index as u32, rows.row(index))).collect();
        let prompts = render(prompter, ask, batch, config.sampling.max_new_tokens)?;
        let groups = sample(policy, prompter, prompts, &config.sampling, 1, seed, 0, &mut |_| {})?;
        let asked: Vec<RewardGroup> = groups
            .iter()
            .map(|group| RewardGroup {
                row: &group.prompt.row,
                refined: None,
                frame: Frame::of(&group.prompt.row, Some(&group.prompt.input)),
                completions: group
                    .rollouts
                    .iter()
                    .map(|rollout| Completion {
                        text: &rollout.text,
                        num_tokens: rollout.sampled.ids.len(),
                        truncated: rollout.truncated(),
                        external: &[],
                    })
                    .collect(),
            })
            .collect();
        let scored = rewards.score(&asked, 0)?;
        for (group, scored) in groups.iter().zip(scored) {
            let (rollout, scored) = (&group.rollouts[0], &scored[0]);
            let score = scored.accuracy.unwrap_or(0.0);
            predictions.push(Prediction {
                id: group.prompt.row.id.clone(),
                level: group.prompt.row.level,
                question: group.prompt.row.question.clone(),
                gold: group.prompt.row.answer.text(),
                text: rollout.text.clone(),
                extracted: scored.verdict.answer.clone(),
                score,
                correct: score > config.success,
                status: scored.verdict.status.name().to_string(),
                finish: finish_name(rollout.sampled.finish).to_string(),
                num_tokens: rollout.sampled.ids.len(),
            });
        }
        progress(predictions.len());
    }
    Ok((summarise(&predictions), predictions))
}

/// `stop` or `length`.
pub fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Counts, shares and intervals of a suite's answers.
pub fn summarise(predictions: &[Prediction]) -> SuiteScore {
    let num_rows = predictions.len();
    let num_correct = predictions.iter().filter(|p| p.correct).count();
    let share = |count: usize| count as f64 / num_rows.max(1) as f64;
    let interval = statistics::wilson(num_correct as u64, num_rows as u64);
    let mut score = SuiteScore {
        num_rows,
        num_correct,
        accuracy: share(num_correct),
        interval: [interval.low, interval.high],
        unreadable_fraction: share(predictions.iter().filter(|p| p.status != Status::Ok.name()).count()),
        truncated_fraction: share(predictions.iter().filter(|p| p.finish == "length").count()),
        mean_tokens: predictions.iter().map(|p| p.num_tokens).sum::<usize>() as f64 / num_rows.max(1) as f64,
        ..SuiteScore::default()
    };
    for prediction in predictions {
        let level: &mut LevelScore = score.levels.entry(prediction.level.to_string()).or_default();
        level.num_rows += 1;
        level.num_correct += usize::from(prediction.correct);
        level.accuracy = level.num_correct as f64 / level.num_rows as f64;
    }
    score
}
