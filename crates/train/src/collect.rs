//! Good answers of the model's own become examples (Curr-ReFT's self-improvement, methods 3.5): several answers per
//! question, scored by rule or by a judge, the best one kept if it reaches the threshold, so many per source.
//! Knows rollouts and scorers; the rows it gives are those of any data file. Cost: decoding, and the judge's requests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use foveate_model::{ModelError, Policy};
use foveate_tasks::row::Row;
use serde::{Deserialize, Serialize};

use crate::ask::AskConfig;
use crate::data::{self, DataError, Dataset, Sources};
use crate::prompt::Prompter;
use crate::reward::extract;
use crate::reward::remote::judge::Judge;
use crate::reward::remote::{Asked, Failure, SetupError, Surroundings};
use crate::reward::spec::{AccuracySpec, JudgeSpec, check};
use crate::reward::{Group as RewardGroup, RewardError, RewardSpec, Rewards, Unknown};
use crate::rollout::{Group, RowError, SamplingConfig, render, sample};

/// What is asked, how answers are scored, and which are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectSpec {
    /// Questions to answer.
    pub data: Sources,
    /// Key of all randomness, and the seed of worlds that name none.
    #[serde(default)]
    pub seed: u64,
    /// How a question is put to the model.
    #[serde(default)]
    pub prompt: AskConfig,
    /// Answers per question. Eight find a right one where one in four or so is right; more cost in proportion.
    #[serde(default = "default_answers")]
    pub answers_per_question: u32,
    /// How answers are drawn.
    #[serde(default)]
    pub sampling: SamplingConfig,
    /// Verifies the final answer: the scorer where there is no judge, and the place where the reasoning ends.
    #[serde(default)]
    pub accuracy: AccuracySpec,
    /// A judge in place of the verifier: its mean mark is the score.
    #[serde(default)]
    pub judge: Option<JudgeSpec>,
    /// Least score of an answer that is kept, from 0 to 100.
    #[serde(default = "default_threshold")]
    pub threshold: f64,
    /// Most rows per source: per task, which for rows of a file that name none is the file's name. Sources that are not
    /// named are not bounded.
    #[serde(default)]
    pub quotas: BTreeMap<String, usize>,
    /// Questions decoded together.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Share of answers that a judge may leave without a score.
    #[serde(default = "default_unknown")]
    pub max_unknown: f64,
}

fn default_answers() -> u32 {
    8
}

fn default_threshold() -> f64 {
    85.0
}

fn default_batch() -> usize {
    16
}

fn default_unknown() -> f64 {
    0.2
}

/// Why nothing was collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A row cannot be asked.
    #[error(transparent)]
    Row(#[from] RowError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Answers cannot be scored.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// The judge cannot be used.
    #[error(transparent)]
    Judge(#[from] SetupError),
    /// The judge failed too often.
    #[error("the judge left {unknown} of {answers} answers without a score; the last failure: {}", failure.detail)]
    Unknown {
        /// Answers without a score.
        unknown: usize,
        /// All answers.
        answers: usize,
        /// The last failure.
        failure: Failure,
    },
}

impl CollectError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            CollectError::Settings(_) => Some("docs/methods/curr-reft.md explains the settings".to_string()),
            CollectError::Data(error) => error.hint(),
            CollectError::Row(error) => Some(error.source.hint().to_string()),
            CollectError::Model(error) => Some(error.hint()),
            CollectError::Reward(error) => Some(error.hint().to_string()),
            CollectError::Judge(error) => Some(error.hint.clone()),
            CollectError::Unknown { failure, .. } => {
                Some(format!("{}; answers that were scored are kept and cost nothing again", failure.kind.hint()))
            }
        }
    }
}

/// What was found, by task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Count {
    /// Questions asked.
    pub asked: usize,
    /// Questions with an answer at or above the threshold.
    pub good: usize,
    /// Rows kept: those, up to the quota.
    pub kept: usize,
}

/// The kept rows and how many there are of what.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Rows in the order of the questions. `meta.completion` is the answer as it was written, for
    /// `target.template = "completion"`; `rationale` is its reasoning.
    pub rows: Vec<Row>,
    /// Counts by task.
    pub counts: BTreeMap<String, Count>,
    /// Answers that the judge did not score.
    pub num_unknown: usize,
}

/// The best answer to a question.
struct Best {
    row: Row,
    text: String,
    score: f64,
}

impl CollectSpec {
    /// Refuses settings without meaning.
    pub fn check(&self) -> Result<(), CollectError> {
        let refuse = |message: &str| Err(CollectError::Settings(message.to_string()));
        if self.answers_per_question == 0 || self.answers_per_question > 1024 {
            return refuse("answers_per_question lies between 1 and 1024");
        }
        if !(0.0..=100.0).contains(&self.threshold) || !(0.0..=1.0).contains(&self.max_unknown) {
            return refuse("threshold lies between 0 and 100, max_unknown between 0 and 1");
        }
        if let Some(problem) = self.sampling.problem() {
            return Err(CollectError::Settings(problem));
        }
        if self.sampling.temperature == 0.0 && self.answers_per_question > 1 {
            return refuse("sampling.temperature is 0: all answers to a question would be equal");
        }
        check(&[RewardSpec::Accuracy(self.accuracy.clone())])?;
        if let Some(judge) = &self.judge {
            check(&[RewardSpec::Judge(judge.clone())])?;
        }
        Ok(())
    }
}

/// Asks, scores and keeps. Paths of sources start at `base`; the judge's replies are kept in `folder`. `progress` is
/// told how many questions are done, of how many.
pub fn collect(
    policy: &mut Policy,
    prompter: &Prompter,
    spec: &CollectSpec,
    base: &Path,
    folder: Option<PathBuf>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Collected, CollectError> {
    spec.check()?;
    let dataset = data::open(&spec.data, base, spec.seed)?;
    let around = Surroundings { base: base.to_path_buf(), folder };
    let judge = spec.judge.as_ref().map(|judge| Judge::new(judge, &around)).transpose()?;
    let max_len = spec.sampling.max_new_tokens as usize;
    let accuracy = RewardSpec::Accuracy(AccuracySpec { weight: 1.0, ..spec.accuracy.clone() });
    let verifier = Rewards::new(vec![accuracy], Unknown::Leave, max_len)?;
    let mut found = Found::default();
    while found.asked < dataset.len() {
        let groups = answer(policy, prompter, spec, &dataset, found.asked)?;
        found.asked += groups.len();
        let scores = match &judge {
            Some(judge) => marks(judge, &groups, &mut found),
            None => verdicts(&verifier, &groups)?,
        };
        for (group, scores) in groups.into_iter().zip(scores) {
            found.counts.entry(task(&group.prompt.row)).or_default().asked += 1;
            found.best.extend(best(group, &scores, spec.threshold));
        }
        if let Some(failure) = &found.failure
            && found.num_unknown as f64 > spec.max_unknown * found.num_answers.max(MIN_ANSWERS) as f64
        {
            let (unknown, answers) = (found.num_unknown, found.num_answers);
            return Err(CollectError::Unknown { unknown, answers, failure: failure.clone() });
        }
        progress(found.asked, dataset.len());
    }
    Ok(found.keep(spec))
}

/// Failures among fewer answers than this do not stop anything.
const MIN_ANSWERS: usize = 40;

#[derive(Default)]
struct Found {
    asked: usize,
    best: Vec<Best>,
    counts: BTreeMap<String, Count>,
    num_answers: usize,
    num_unknown: usize,
    failure: Option<Failure>,
}

impl Found {
    /// Up to the quota of each task: the best scores first, of equal ones those asked first.
    fn keep(mut self, spec: &CollectSpec) -> Collected {
        let mut places: Vec<usize> = (0..self.best.len()).collect();
        places.sort_by(|a, b| self.best[*b].score.total_cmp(&self.best[*a].score).then(a.cmp(b)));
        let mut kept = Vec::new();
        for place in places {
            let task = task(&self.best[place].row);
            let count = self.counts.entry(task.clone()).or_default();
            count.good += 1;
            if spec.quotas.get(&task).is_none_or(|quota| count.kept < *quota) {
                count.kept += 1;
                kept.push(place);
            }
        }
        kept.sort_unstable();
        let rows = kept.into_iter().map(|place| example(&self.best[place], &spec.accuracy)).collect();
        Collected { rows, counts: self.counts, num_unknown: self.num_unknown }
    }
}

fn task(row: &Row) -> String {
    if row.task.is_empty() { "other".to_string() } else { row.task.clone() }
}

fn answer(
    policy: &mut Policy,
    prompter: &Prompter,
    spec: &CollectSpec,
    dataset: &Dataset,
    first: usize,
) -> Result<Vec<Group>, CollectError> {
    let end = dataset.len().min(first + spec.batch.max(1));
    let rows = (first..end).map(|index| (index as u32, dataset.row(index))).collect();
    let prompts = render(prompter, &spec.prompt, rows, spec.sampling.max_new_tokens)?;
    Ok(sample(policy, prompter, prompts, &spec.sampling, spec.answers_per_question, spec.seed, 0, &mut |_| {})?)
}

/// Verifier times 100.
fn verdicts(verifier: &Rewards, groups: &[Group]) -> Result<Vec<Vec<Option<f64>>>, RewardError> {
    let asked: Vec<_> = groups.iter().map(RewardGroup::of).collect();
    let score = |scored: &crate::reward::Scored| scored.accuracy.map(|accuracy| 100.0 * f64::from(accuracy));
    Ok(verifier.score(&asked, 0)?.iter().map(|scored| scored.iter().map(score).collect()).collect())
}

fn marks(judge: &Judge, groups: &[Group], found: &mut Found) -> Vec<Vec<Option<f64>>> {
    let asked: Vec<Asked> = groups
        .iter()
        .map(|group| Asked {
            row: &group.prompt.row,
            texts: group.rollouts.iter().map(|rollout| rollout.text.as_str()).collect(),
        })
        .collect();
    let mut read = |score: Result<f32, Failure>| {
        found.num_answers += 1;
        match score {
            Ok(score) => Some(100.0 * f64::from(score)),
            Err(failure) => {
                found.num_unknown += 1;
                found.failure = Some(failure);
                None
            }
        }
    };
    judge.score(&asked).into_iter().map(|scores| scores.into_iter().map(&mut read).collect()).collect()
}

/// The best finished answer at or above the threshold; of equal ones the shorter, then the earlier.
fn best(group: Group, scores: &[Option<f64>], threshold: f64) -> Option<Best> {
    // Marks come as thirds and quarters of whole numbers: rounding must not drop what reaches the bound.
    let bound = threshold - 1e-4;
    let usable = group.rollouts.iter().zip(scores).filter(|(rollout, _)| !rollout.truncated());
    let best = usable
        .filter_map(|(rollout, score)| Some((rollout, score.filter(|score| *score >= bound)?)))
        .min_by(|a, b| b.1.total_cmp(&a.1).then(a.0.sampled.ids.len().cmp(&b.0.sampled.ids.len())))
        .map(|(rollout, score)| (rollout.text.clone(), score))?;
    Some(Best { row: group.prompt.row, text: best.0, score: best.1 })
}

/// The row that teaches the answer.
fn example(best: &Best, accuracy: &AccuracySpec) -> Row {
    let mut row = best.row.clone();
    row.rationale = extract::thinking(&best.text, accuracy.extract).to_string();
    row.meta.insert("completion".into(), best.text.clone().into());
    row.meta.insert("score".into(), best.score.into());
    row.meta.insert("source".into(), best.row.id.clone().into());
    row
}

#[cfg(test)]
mod tests {
    use foveate_model::{FinishReason, PromptInput, Sampled};
    use foveate_tasks::row::Answer;

    use super::*;
    use crate::rollout::{Prompt, Rollout};

    fn row(task: &str, id: usize) -> Row {
        Row {
            id: format!("r{id}"),
            images: vec![],
            question: "How many?".into(),
            answer: Answer::Number("5".into()),
            choices: vec![],
            rationale: "the old one".into(),
            facts: String::new(),
            task: task.into(),
            split: "train".into(),
            level: 1,
            meta: serde_json::Map::new(),
        }
    }

    fn group(row: Row, answers: &[(&str, usize, bool)]) -> Group {
        let rollouts = answers
            .iter()
            .map(|(text, tokens, cut)| Rollout {
                sampled: Sampled {
                    ids: vec![7; *tokens],
                    logprob: vec![0.0; *tokens],
                    entropy: vec![0.0; *tokens],
                    drawn_logprob: vec![0.0; *tokens],
                    finish: if *cut { FinishReason::Length } else { FinishReason::Stop },
                },
                text: text.to_string(),
            })
            .collect();
        Group { prompt: Prompt { index: 0, row, input: PromptInput::default(), given: String::new() }, rollouts }
    }

    #[test]
    fn the_best_finished_answer_is_kept_and_the_shorter_of_equals() {
        let answers = [("long\nAnswer: 5", 9, false), ("short\nAnswer: 5", 4, false), ("cut\nAnswer: 5", 2, true)];
        let pick = |scores: &[Option<f64>], threshold| {
            best(group(row("counting", 1), &answers), scores, threshold).map(|best| best.text)
        };
        assert_eq!(pick(&[Some(90.0), Some(90.0), Some(100.0)], 85.0).as_deref(), Some("short\nAnswer: 5"));
        assert_eq!(pick(&[Some(91.0), Some(90.0), None], 85.0).as_deref(), Some("long\nAnswer: 5"));
        assert_eq!(pick(&[Some(84.0), None, None], 85.0), None);
        assert!(pick(&[Some(f64::from(0.85f32) * 100.0), None, None], 85.0).is_some(), "85 reaches 85");
        let found = best(group(row("counting", 1), &answers), &[Some(91.0), None, None], 85.0).expect("one");
        let example = example(&found, &AccuracySpec::default());
        assert_eq!((example.rationale.as_str(), &example.meta["completion"]), ("long", &"long\nAnswer: 5".into()));
    }

    #[test]
    fn quotas_take_the_best_scores_in_the_order_of_the_questions() {
        let spec: CollectSpec =
            toml::from_str("data = { task = 'counting' }\nquotas = { a = 2 }").expect("the least that is needed");
        assert_eq!((spec.answers_per_question, spec.threshold), (8, 85.0));
        let mut found = Found::default();
        for (id, (task, score)) in [("a", 90.0), ("b", 88.0), ("a", 99.0), ("a", 95.0)].into_iter().enumerate() {
            found.best.push(Best { row: row(task, id), text: "Answer: 5".into(), score });
        }
        let collected = found.keep(&spec);
        let ids: Vec<&str> = collected.rows.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids, ["r1", "r2", "r3"]);
        assert_eq!((collected.counts["a"].good, collected.counts["a"].kept), (3, 2));
    }

    #[test]
    fn settings_without_meaning_are_refused() {
        for bad in [
            "answers_per_question = 0",
            "threshold = 101",
            "sampling = { temperature = 0 }",
            "sampling = { max_new_tokens = 0 }",
            "judge = { chat = { url = 'http://x', model = '' } }",
        ] {
            let spec: CollectSpec = toml::from_str(&format!("data = {{ task = 'counting' }}\n{bad}")).expect("syntax");
            let error = spec.check().expect_err(bad);
            assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error}");
        }
    }
}
