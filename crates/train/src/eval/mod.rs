//! Asks a model the questions of test suites and scores its answers.
//! Knows rows, prompts, the policy and the accuracy verifier; changes nothing.
//! Cost: decoding; a suite of 500 short answers takes a small model seconds.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use foveate_model::{FinishReason, ModelError, Policy};
use foveate_tasks::row::{Answer, ImageData, Row};
use serde::{Deserialize, Serialize};

use crate::ask::AskConfig;
use crate::data::Dataset;
use crate::prompt::Prompter;
use crate::reward::functions;
use crate::reward::spec::AccuracySpec;
use crate::reward::{Group as RewardGroup, RewardError, RewardSpec, Rewards, Status, Unknown};
use crate::rollout::{RowError, SamplingConfig, render, sample};
use records::{LevelScore, Prediction, SampledScore, SuiteScore};

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
    /// Several drawn answers per question as well, for pass@k. The greedy score stays the headline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<SampledEval>,
}

/// Several drawn answers per question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampledEval {
    /// Answers per question. At least the largest k: nothing is extrapolated.
    pub answers: u32,
    /// Divides the logits; that of training says what training samples from.
    pub temperature: f32,
    /// The k of pass@k.
    pub pass_at: Vec<u32>,
}

impl Default for SampledEval {
    fn default() -> Self {
        Self { answers: 8, temperature: 1.0, pass_at: vec![1, 8] }
    }
}

impl EvalConfig {
    /// Says what cannot be used.
    pub fn problem(&self) -> Option<String> {
        let sampled = self.sampled.iter().find_map(|sampled| {
            if !(sampled.temperature > 0.0 && sampled.temperature.is_finite()) {
                Some("sampled.temperature must be above 0".to_string())
            } else if sampled.pass_at.iter().any(|k| *k == 0 || *k > sampled.answers) {
                let answers = sampled.answers;
                Some(format!("sampled.pass_at asks for more than its {answers} answers, or for 0"))
            } else {
                None
            }
        });
        self.sampling.problem().or(sampled)
    }
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
            sampled: None,
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

/// A suite's score with the answers behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answered {
    /// The score.
    pub score: SuiteScore,
    /// One answer per question.
    pub predictions: Vec<Prediction>,
    /// Further answers that were drawn, question by question.
    pub sampled: Vec<Prediction>,
}

/// Scores one suite and gives every answer. `progress` is told how many questions are answered, of the greedy and of the
/// drawn answers each.
pub fn score_suite(
    policy: &mut Policy,
    prompter: &Prompter,
    rows: &Dataset,
    ask: &AskConfig,
    config: &EvalConfig,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Answered, EvalError> {
    let predictions = answers(policy, prompter, rows, ask, config, &config.sampling, 1, seed, progress)?;
    let mut score = summarise(&predictions);
    score.task = usual_task(rows);
    let mut sampled = Vec::new();
    if let Some(spec) = &config.sampled {
        let sampling = SamplingConfig { temperature: spec.temperature, ..config.sampling.clone() };
        sampled = answers(policy, prompter, rows, ask, config, &sampling, spec.answers, seed, progress)?;
        score.sampled = Some(summarise_sampled(&sampled, spec));
    }
    Ok(Answered { score, predictions, sampled })
}

/// The task that most of the first questions belong to.
fn usual_task(rows: &Dataset) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for index in 0..rows.len().min(200) {
        *counts.entry(rows.text_row(index).task).or_insert(0) += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(String::new(), |(task, _)| task)
}

/// Pass@k with its intervals.
fn summarise_sampled(predictions: &[Prediction], spec: &SampledEval) -> SampledScore {
    let questions: Vec<u64> = predictions
        .chunks(spec.answers as usize)
        .map(|answers| answers.iter().filter(|answer| answer.correct).count() as u64)
        .collect();
    let pictures: Option<Vec<u64>> =
        predictions.chunks(spec.answers as usize).map(|answers| answers.first()?.picture).collect();
    let estimate = |k: u32| {
        let of = |correct: &u64| statistics::pass_at_k(u64::from(spec.answers), *correct, u64::from(k));
        let values: Vec<f64> = questions.iter().filter_map(of).collect();
        (k, statistics::bootstrap(&values, pictures.as_deref(), 0))
    };
    let pass_at = spec.pass_at.iter().map(|k| estimate(*k)).collect();
    SampledScore { answers: spec.answers, temperature: spec.temperature, pass_at }
}

/// `num_answers` scored answers to every question, question by question.
fn answers(
    policy: &mut Policy,
    prompter: &Prompter,
    rows: &Dataset,
    ask: &AskConfig,
    config: &EvalConfig,
    sampling: &SamplingConfig,
    num_answers: u32,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Prediction>, EvalError> {
    let max_new_tokens = sampling.max_new_tokens as usize;
    let accuracy = RewardSpec::Accuracy(AccuracySpec { weight: 1.0, ..config.accuracy.clone() });
    let rewards = Rewards::new(vec![accuracy], Unknown::Leave, max_new_tokens)?;
    let mut predictions = Vec::with_capacity(rows.len() * num_answers as usize);
    let together = (config.batch / num_answers.max(1) as usize).max(1);
    let mut pictures = Pictures::default();
    let mut first = 0;
    while first < rows.len() {
        let last = rows.len().min(first + together);
        let batch: Vec<_> = (first..last).map(|index| (index as u32, rows.row(index))).collect();
        first = last;
        let prompts = render(prompter, ask, batch, sampling.max_new_tokens)?;
        let groups = sample(policy, prompter, prompts, sampling, num_answers, seed, 0, &mut |_| {})?;
        let asked: Vec<_> = groups.iter().map(RewardGroup::of).collect();
        let scored = rewards.score(&asked, 0)?;
        for (group, scored) in groups.iter().zip(scored) {
            let picture = pictures.number(&group.prompt.row);
            for (number, (rollout, scored)) in group.rollouts.iter().zip(&scored).enumerate() {
                let score = scored.accuracy.unwrap_or(0.0);
                predictions.push(Prediction {
                    id: group.prompt.row.id.clone(),
                    answer: (num_answers > 1).then_some(number as u32),
                    level: group.prompt.row.level,
                    question: group.prompt.row.question.clone(),
                    gold: group.prompt.row.answer.text(),
                    text: rollout.text.clone(),
                    extracted: scored.verdict.answer.clone(),
                    score,
                    correct: score > config.success,
                    exact: match &group.prompt.row.answer {
                        Answer::Functions(gold) => {
                            Some(functions::exact(scored.verdict.answer.as_deref().unwrap_or(""), gold))
                        }
                        _ => None,
                    },
                    picture: Some(picture),
                    status: scored.verdict.status.name().to_string(),
                    finish: finish_name(rollout.sampled.finish).to_string(),
                    num_tokens: rollout.sampled.ids.len(),
                });
            }
        }
        progress(first);
    }
    if !pictures.shared {
        predictions.iter_mut().for_each(|prediction| prediction.picture = None);
    }
    Ok(predictions)
}

/// Tells questions about the same pictures from others. Drawings of worlds are one question's own.
#[derive(Default)]
struct Pictures {
    numbers: HashMap<Vec<u64>, u64>,
    num_rows: u64,
    shared: bool,
}

impl Pictures {
    fn number(&mut self, row: &Row) -> u64 {
        self.num_rows += 1;
        let own = self.num_rows;
        let key = |image: &ImageData| {
            let mut hasher = DefaultHasher::new();
            match image {
                ImageData::Path(path) => path.hash(&mut hasher),
                ImageData::Encoded(bytes) => bytes.hash(&mut hasher),
                ImageData::Drawn(_) => own.hash(&mut hasher),
            }
            hasher.finish()
        };
        let mut keys: Vec<u64> = row.images.iter().map(key).collect();
        if keys.is_empty() {
            keys.push(own);
        }
        let number = *self.numbers.entry(keys).or_insert(own);
        self.shared |= number != own;
        number
    }
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
    if predictions.iter().any(|prediction| prediction.score != 0.0 && prediction.score != 1.0) {
        let scores: Vec<f64> = predictions.iter().map(|prediction| f64::from(prediction.score)).collect();
        score.graded = Some(statistics::bootstrap(&scores, records::clusters(predictions).as_deref(), 0));
    }
    let exact: Vec<bool> = predictions.iter().filter_map(|prediction| prediction.exact).collect();
    if !exact.is_empty() {
        let right = exact.iter().filter(|exact| **exact).count();
        score.exact_programs = Some(statistics::wilson(right as u64, exact.len() as u64));
    }
    for prediction in predictions {
        let level: &mut LevelScore = score.levels.entry(prediction.level.to_string()).or_default();
        level.num_rows += 1;
        level.num_correct += usize::from(prediction.correct);
        level.accuracy = level.num_correct as f64 / level.num_rows as f64;
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_about_one_picture_share_a_number() {
        let mut row = Row {
            id: "q".into(),
            images: vec![],
            question: "What?".into(),
            answer: Answer::Text("a cat".into()),
            choices: vec![],
            rationale: String::new(),
            facts: String::new(),
            task: "vqa".into(),
            split: "train".into(),
            level: 1,
            meta: serde_json::Map::new(),
        };
        let mut pictures = Pictures::default();
        assert_eq!((pictures.number(&row), pictures.number(&row)), (1, 2), "without pictures nothing is shared");
        assert!(!pictures.shared);
        row.images = vec![ImageData::Path("a.png".into())];
        let first = pictures.number(&row);
        row.images = vec![ImageData::Path("b.png".into())];
        assert_ne!(pictures.number(&row), first);
        row.images = vec![ImageData::Path("a.png".into())];
        assert!(pictures.number(&row) == first && pictures.shared);
    }

    #[test]
    fn programs_are_counted_and_shared_pictures_widen_intervals() {
        let prediction = |index: u64, exact: bool| Prediction {
            score: if exact { 1.0 } else { 0.6 },
            correct: true,
            exact: Some(exact),
            picture: Some(index / 5),
            status: "ok".into(),
            ..Prediction::default()
        };
        let many: Vec<Prediction> = (0..40).map(|index| prediction(index, index % 10 < 5)).collect();
        let score = summarise(&many);
        assert_eq!((score.accuracy, score.exact_programs.expect("programs").mean), (1.0, 0.5));
        let alone: Vec<Prediction> =
            many.iter().map(|p| Prediction { picture: None, exact: None, ..p.clone() }).collect();
        let alone = summarise(&alone);
        assert!(alone.exact_programs.is_none());
        let width = |score: &SuiteScore| score.graded.as_ref().map(|graded| graded.high - graded.low).expect("graded");
        assert!(width(&score) > 1.5 * width(&alone));
    }
}
