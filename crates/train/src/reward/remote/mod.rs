//! Rewards that come from outside: a plug-in process, an HTTP endpoint, a language model as judge.
//! Knows rows and texts; a helper that fails gives *unknown*, never a zero, and is counted.
//! Cost: that of the helpers; groups are asked in parallel where a helper allows it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use foveate_tasks::row::{ImageData, Row};
use serde_json::{Value, json};

pub mod cache;
pub mod chat;
pub mod elements;
pub mod http;
pub mod judge;
pub mod process;
pub mod writer;

use super::spec::RewardSpec;
use chat::Chat;

/// What went wrong with a helper. Names are those of the metrics `helper/<name>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// No reply in time.
    Timeout,
    /// The plug-in ended, or could not be started again.
    Died,
    /// A reply that is not what was agreed.
    Garbage,
    /// The endpoint answered with an error.
    Refused,
    /// The endpoint could not be reached.
    Unreachable,
    /// The budget of calls is spent.
    Budget,
    /// The helper itself said that it could not score the answer.
    Declined,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [FailureKind; 7] = [
        FailureKind::Timeout,
        FailureKind::Died,
        FailureKind::Garbage,
        FailureKind::Refused,
        FailureKind::Unreachable,
        FailureKind::Budget,
        FailureKind::Declined,
    ];

    /// Name in logs.
    pub fn name(self) -> &'static str {
        match self {
            FailureKind::Timeout => "timeout",
            FailureKind::Died => "died",
            FailureKind::Garbage => "garbage",
            FailureKind::Refused => "refused",
            FailureKind::Unreachable => "unreachable",
            FailureKind::Budget => "budget",
            FailureKind::Declined => "declined",
        }
    }

    /// What the person can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            FailureKind::Timeout => "raise timeout_secs, or make the helper faster",
            FailureKind::Died => {
                "run the plug-in's command by hand and feed it a line; its stderr is in the run's folder"
            }
            FailureKind::Garbage => {
                "replies and nothing else go to standard output; see docs/rewards.md for their form"
            }
            FailureKind::Refused => "look at the endpoint's log; check url, model and key",
            FailureKind::Unreachable => "start the server, and check the url",
            FailureKind::Budget => "raise max_calls, or use a rule in place of the judge",
            FailureKind::Declined => "the helper gave null for these answers; look at what it could not score",
        }
    }
}

/// One failure with its words.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// What was seen.
    pub detail: String,
}

impl Failure {
    /// A failure.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        if detail.chars().count() > 200 {
            detail = detail.chars().take(200).chain("…".chars()).collect();
        }
        Self { kind, detail }
    }
}

/// A helper that could not even be set up.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("reward `{name}`: {problem}")]
pub struct SetupError {
    /// The reward.
    pub name: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

/// A question with the answers that are to be scored.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The question.
    pub row: &'a Row,
    /// The answers.
    pub texts: Vec<&'a str>,
}

/// Score per answer of one question, or why there is none.
pub type Scores = Vec<Result<f32, Failure>>;

/// The same failure for every answer of a question.
pub fn all_failed(asked: &Asked<'_>, failure: &Failure) -> Scores {
    asked.texts.iter().map(|_| Err(failure.clone())).collect()
}

/// What helpers may need to know about the run.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The recipe's folder: commands start there.
    pub base: PathBuf,
    /// The run's folder: caches and what plug-ins print to stderr.
    pub folder: Option<PathBuf>,
}

enum Helper {
    Process(process::Process),
    Http(http::Endpoint),
    Judge(judge::Judge),
    Checker(Box<judge::Checker>),
}

/// The helpers of a stage, in the order of its outside terms.
pub struct Outside {
    helpers: Vec<(String, Helper)>,
}

/// What the helpers said about the groups of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// By group, completion and outside term.
    pub scores: Vec<Vec<Vec<Option<f32>>>>,
    /// Answers without a score, by what went wrong.
    pub failures: BTreeMap<FailureKind, usize>,
    /// The last failure in words, with the name of its reward.
    pub last: Option<(String, Failure)>,
}

impl Outside {
    /// Sets the helpers of these terms up; processes start here, so that a wrong command is found before a step.
    pub fn new(specs: &[RewardSpec], around: &Surroundings) -> Result<Self, SetupError> {
        let mut helpers = Vec::new();
        for spec in specs {
            let helper = match spec {
                RewardSpec::Process(s) => Helper::Process(process::Process::start(s, around)?),
                RewardSpec::Http(s) => Helper::Http(http::Endpoint::new(s)?),
                RewardSpec::Judge(s) => Helper::Judge(judge::Judge::new(s, around)?),
                RewardSpec::Checker(s) => match &s.judge {
                    Some(_) => Helper::Checker(Box::new(judge::Checker::new(s, around)?)),
                    None => continue,
                },
                _ => continue,
            };
            helpers.push((spec.name().to_string(), helper));
        }
        Ok(Self { helpers })
    }

    /// Whether there is nobody to ask.
    pub fn is_empty(&self) -> bool {
        self.helpers.is_empty()
    }

    /// Calls that each judge has made so far, by the name of its reward.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.helpers.iter().filter_map(|(name, helper)| Some((name.clone(), helper.chat()?.calls()))).collect()
    }

    /// Goes on counting calls from here, after a resume.
    pub fn set_calls(&mut self, calls: &BTreeMap<String, u64>) {
        for (name, helper) in &mut self.helpers {
            if let (Some(chat), Some(calls)) = (helper.chat(), calls.get(name)) {
                chat.set_calls(*calls);
            }
        }
    }

    /// Lists of what pictures show that could not be had so far.
    pub fn num_failed_elements(&self) -> u64 {
        let elements = self.helpers.iter().filter_map(|(_, helper)| match helper {
            Helper::Checker(checker) => checker.elements(),
            _ => None,
        });
        elements.map(elements::Elements::num_failed).sum()
    }

    /// Asks every helper about every group.
    pub fn score(&mut self, groups: &[Asked<'_>]) -> Said {
        let scores = groups.iter().map(|group| vec![Vec::new(); group.texts.len()]).collect();
        let mut said = Said { scores, ..Said::default() };
        for (name, helper) in &mut self.helpers {
            let scores: Vec<Scores> = match helper {
                Helper::Process(process) => groups.iter().map(|group| process.score(group)).collect(),
                Helper::Http(endpoint) => endpoint.score(groups),
                Helper::Judge(judge) => judge.score(groups),
                Helper::Checker(checker) => checker.score(groups),
            };
            for (place, (scores, group)) in said.scores.iter_mut().zip(scores.into_iter().zip(groups)) {
                debug_assert_eq!(scores.len(), group.texts.len());
                for (place, score) in place.iter_mut().zip(scores) {
                    place.push(score.as_ref().ok().copied());
                    if let Err(failure) = score {
                        *said.failures.entry(failure.kind).or_default() += 1;
                        said.last = Some((name.clone(), failure));
                    }
                }
            }
        }
        said
    }
}

impl Helper {
    fn chat(&self) -> Option<&Chat> {
        match self {
            Helper::Judge(judge) => Some(judge.chat()),
            Helper::Checker(checker) => Some(checker.chat()),
            Helper::Process(_) | Helper::Http(_) => None,
        }
    }
}

/// A question and its answers as plug-ins and endpoints read them.
pub fn request(asked: &Asked<'_>) -> Value {
    let row = asked.row;
    let images: Vec<String> = row
        .images
        .iter()
        .filter_map(|image| match image {
            ImageData::Path(path) => Some(path.display().to_string()),
            ImageData::Encoded(_) | ImageData::Drawn(_) => None,
        })
        .collect();
    json!({
        "row": row.id,
        "question": foveate_tasks::derive::question_text(row),
        "images": images,
        "answer": row.answer.text(),
        "answer_type": row.answer.kind(),
        "choices": row.choices,
        "rationale": row.rationale,
        "facts": row.facts,
        "task": row.task,
        "level": row.level,
        "meta": row.meta,
        "completions": asked.texts,
    })
}

/// Reads `{"scores": [...]}`: one finite number or null per answer.
pub fn read_scores(reply: &Value, asked: &Asked<'_>) -> Scores {
    let wrong = |what: String| all_failed(asked, &Failure::new(FailureKind::Garbage, what));
    let Some(scores) = reply.get("scores").and_then(Value::as_array) else {
        return match reply.get("error").and_then(Value::as_str) {
            Some(error) => all_failed(asked, &Failure::new(FailureKind::Declined, error)),
            None => wrong(format!("no list `scores` in {reply}")),
        };
    };
    if scores.len() != asked.texts.len() {
        return wrong(format!("{} scores for {} answers", scores.len(), asked.texts.len()));
    }
    scores
        .iter()
        .map(|score| match score {
            Value::Null => Err(Failure::new(FailureKind::Declined, "null in place of a score")),
            score => match score.as_f64().map(|score| score as f32).filter(|score| score.is_finite()) {
                Some(score) => Ok(score),
                None => Err(Failure::new(FailureKind::Garbage, format!("{score} is not a finite number"))),
            },
        })
        .collect()
}

/// `folder/name`, if there is a folder.
fn inside(around: &Surroundings, name: &str) -> Option<PathBuf> {
    around.folder.as_deref().map(|folder: &Path| folder.join(name))
}

#[cfg(test)]
mod tests {
    use foveate_tasks::row::Answer;

    use super::super::tests::row;
    use super::*;

    #[test]
    fn only_one_finite_number_per_answer_is_a_score() {
        let row = row(Answer::Number("5".into()));
        let asked = Asked { row: &row, texts: vec!["Answer: 5", "five"] };
        let kinds = |text: &str| -> Vec<Option<FailureKind>> {
            let reply: Value = serde_json::from_str(text).expect("JSON");
            read_scores(&reply, &asked).into_iter().map(|score| score.err().map(|f| f.kind)).collect()
        };
        assert_eq!(kinds(r#"{"scores": [1, 0.5]}"#), [None, None]);
        assert_eq!(kinds(r#"{"scores": [null, 1e300]}"#), [Some(FailureKind::Declined), Some(FailureKind::Garbage)]);
        for garbage in [r#"{"scores": [1]}"#, r#"{"score": 1}"#, "[1, 2]", r#"{"scores": "high"}"#] {
            assert_eq!(kinds(garbage), [Some(FailureKind::Garbage); 2], "{garbage}");
        }
        assert_eq!(kinds(r#"{"error": "no image"}"#), [Some(FailureKind::Declined); 2]);
        assert_eq!(kinds(r#"{"scores": ["high", 1]}"#), [Some(FailureKind::Garbage), None]);
        let request = request(&asked);
        assert_eq!(request["completions"][1], "five");
        assert_eq!((&request["answer"], &request["answer_type"]), (&json!("5"), &json!("number")));
        let long = Failure::new(FailureKind::Garbage, "x".repeat(999));
        assert_eq!(long.detail.chars().count(), 201);
        assert!(FailureKind::ALL.iter().all(|kind| !kind.hint().is_empty() && !kind.name().is_empty()));
    }
}
