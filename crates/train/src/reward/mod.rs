//! Scores answers: verifiers, format checks and shaping terms, added up per completion.
//! Works on text and rows alone; knows nothing of tokens, models or advantages. Judges and plug-ins (`remote`) hand their
//! scores in. Cost: microseconds per completion, groups in parallel; nothing depends on the number of threads.

use crate::rollout;
use foveate_tasks::row::Row;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub mod accuracy;
pub mod audit;
pub mod boxes;
pub mod checker;
pub mod choice;
pub mod clean;
pub mod cosine;
pub mod expression;
pub mod extract;
pub mod format;
pub mod functions;
pub mod labels;
pub mod number;
pub mod refiner;
pub mod remote;
mod score;
pub mod spec;
pub mod terms;
pub mod text;
pub mod thinking;
pub mod watch;
pub mod yes_no;

pub use boxes::Frame;
pub use spec::{Gate, RewardSpec};

/// How a completion was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// An answer was found and read; right or wrong.
    Ok,
    /// No answer where one was expected.
    #[default]
    NoAnswer,
    /// Something stands there that is no answer of this type.
    Unparsable,
    /// Several answers at once.
    Ambiguous,
}

impl Status {
    /// Every status, in the order in which reports list them.
    pub const ALL: [Status; 4] = [Status::Ok, Status::NoAnswer, Status::Unparsable, Status::Ambiguous];

    /// Name in logs: `verifier/<name>_fraction`.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::NoAnswer => "no_answer",
            Status::Unparsable => "unparsable",
            Status::Ambiguous => "ambiguous",
        }
    }
}

/// What a verifier says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// 0 to 1 (below 0 only with the penalty weights of `functions`); 0 unless the status is `Ok`.
    pub score: f32,
    /// The answer as it was read.
    pub answer: Option<String>,
    /// Whether it could be read.
    pub status: Status,
}

impl Verdict {
    /// An answer that was read.
    pub fn ok(score: f32, answer: impl Into<String>) -> Self {
        Self { score, answer: Some(answer.into()), status: Status::Ok }
    }

    /// An answer that was not.
    pub fn fail(status: Status) -> Self {
        Self { score: 0.0, answer: None, status }
    }
}

/// A published system whose scoring is reproduced, quirks included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// DyME, arXiv 2506.23061.
    Dyme,
    /// Curr-ReFT, arXiv 2503.07065.
    CurrReft,
    /// Reason-RFT, arXiv 2503.20752.
    ReasonRft,
}

/// What happens to a completion with an unknown term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// It leaves baseline and loss. The safe choice: a failed judge teaches nothing.
    #[default]
    Leave,
    /// The term is left out of its sum, as other trainers do; totals are then not comparable within a group.
    IgnorePart,
}

/// Why rewards cannot be computed.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum RewardError {
    /// A row's own answer cannot be read by its verifier.
    #[error("row {row}: the {kind} answer {text:?} is unusable: {why}")]
    Gold {
        /// Id of the row.
        row: String,
        /// Type of its answer.
        kind: &'static str,
        /// The answer.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `format_box` on a question whose answer is something else.
    #[error("row {row}: `format_box` asks for a box, but the answer is of type {kind}")]
    FormatMismatch {
        /// Id of the row.
        row: String,
        /// Type of its answer.
        kind: &'static str,
    },
    /// A term refers to one that is not there.
    #[error("reward `{name}` needs {needs} reward in the list")]
    Gate {
        /// The term.
        name: String,
        /// What it needs.
        needs: &'static str,
    },
    /// The same term twice.
    #[error("reward `{name}` is listed twice")]
    Twice {
        /// The term.
        name: String,
    },
    /// An option out of range.
    #[error("`{option}` {why}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A term gave NaN or infinity.
    #[error("row {row}: reward `{name}` is {value}")]
    NonFinite {
        /// Id of the row.
        row: String,
        /// The term.
        name: String,
        /// What it gave.
        value: f32,
    },
}

impl RewardError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            RewardError::Gold { .. } => "correct the row's answer or its type, or skip the row",
            RewardError::FormatMismatch { .. } => "use `format_box` only in the stage that asks for boxes",
            RewardError::Gate { .. } => "add the missing reward, or remove the gate or the term",
            RewardError::Twice { .. } => "merge the two entries; weights add",
            RewardError::Option { .. } => "see the reference of rewards for the accepted range",
            RewardError::NonFinite { .. } => "a judge or plug-in must give a finite number, or none if it failed",
        }
    }
}

/// One sampled answer, as text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Completion<'a> {
    /// What the model wrote, end token excluded.
    pub text: &'a str,
    /// Loss tokens, end token included.
    pub num_tokens: usize,
    /// Whether the length limit cut it off.
    pub truncated: bool,
    /// Scores of the terms that come from outside, in their order; `None` if the helper failed.
    pub external: &'a [Option<f32>],
}

/// One question with its sampled answers.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The question.
    pub row: &'a Row,
    /// A refined rationale, if one was made.
    pub refined: Option<&'a str>,
    /// Sizes of the image that boxes refer to, if known.
    pub frame: Option<Frame>,
    /// The answers.
    pub completions: Vec<Completion<'a>>,
}

impl<'a> Group<'a> {
    /// A group as it was sampled, with nothing known beside it.
    pub fn of(group: &'a rollout::Group) -> Self {
        let completion = |rollout: &'a rollout::Rollout| Completion {
            text: &rollout.text,
            num_tokens: rollout.sampled.ids.len(),
            truncated: rollout.truncated(),
            external: &[],
        };
        Self {
            row: &group.prompt.row,
            refined: None,
            frame: Frame::of(&group.prompt.row, Some(&group.prompt.input)),
            completions: group.rollouts.iter().map(completion).collect(),
        }
    }
}

/// One scored answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// Value of each term after its gate, in the order of the specs; `None` if unknown.
    pub parts: Vec<Option<f32>>,
    /// Weighted sum; `None` if the answer leaves baseline and loss.
    pub total: Option<f32>,
    /// The `accuracy` term before any gate; `None` if there is no such term.
    pub accuracy: Option<f32>,
    /// What the verifier of `accuracy` read.
    pub verdict: Verdict,
}

/// A checked list of reward terms.
#[derive(Clone, Debug)]
pub struct Rewards {
    specs: Vec<RewardSpec>,
    unknown: Unknown,
    max_new_tokens: usize,
}

impl Rewards {
    /// Checks the terms. `max_new_tokens` is the length limit of `overlong` and `dylr`.
    pub fn new(specs: Vec<RewardSpec>, unknown: Unknown, max_new_tokens: usize) -> Result<Self, RewardError> {
        spec::check(&specs)?;
        Ok(Self { specs, unknown, max_new_tokens })
    }

    /// The terms.
    pub fn specs(&self) -> &[RewardSpec] {
        &self.specs
    }

    /// Names of the terms, for logs.
    pub fn names(&self) -> Vec<&str> {
        self.specs.iter().map(RewardSpec::name).collect()
    }

    /// Weights of the terms.
    pub fn weights(&self) -> Vec<f32> {
        self.specs.iter().map(RewardSpec::weight).collect()
    }

    /// Whether the terms can score this row's answers; call it once when data is loaded.
    pub fn check_row(&self, row: &Row, frame: Option<Frame>) -> Result<(), RewardError> {
        for spec in &self.specs {
            match spec {
                RewardSpec::Accuracy(accuracy) => {
                    accuracy::Gold::new(row, &accuracy.verify, accuracy.compat, frame)?;
                }
                RewardSpec::FormatBox(_) if row.answer.kind() != "box" => {
                    return Err(RewardError::FormatMismatch { row: row.id.clone(), kind: row.answer.kind() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Scores every answer of every group, groups in parallel. `step` is the optimiser step about to be made.
    pub fn score(&self, groups: &[Group<'_>], step: u64) -> Result<Vec<Vec<Scored>>, RewardError> {
        groups.par_iter().map(|group| score::group(self, group, step)).collect()
    }
}

#[cfg(test)]
mod tests {
    use foveate_tasks::row::Answer;
    use proptest::prelude::*;

    use super::*;

    /// A row that only has an answer.
    pub(super) fn row(answer: Answer) -> Row {
        Row {
            id: "r1".into(),
            images: vec![],
            question: "How many?".into(),
            answer,
            choices: vec![],
            rationale: "There are two red cars and three blue cars, so five.".into(),
            facts: "red cars: 2, blue cars: 3".into(),
            task: "counting".into(),
            split: "train".into(),
            level: 0,
            meta: serde_json::Map::new(),
        }
    }

    fn rewards(toml_text: &str) -> Rewards {
        #[derive(Deserialize)]
        struct Part {
            rewards: Vec<RewardSpec>,
        }
        let part: Part = toml::from_str(toml_text).expect("rewards");
        Rewards::new(part.rewards, Unknown::Leave, 64).expect("consistent")
    }

    fn score_texts(rewards: &Rewards, row: &Row, texts: &[&str]) -> Vec<Scored> {
        let completions = texts
            .iter()
            .map(|text| Completion { text, num_tokens: text.len() / 4 + 1, ..Default::default() })
            .collect();
        let group = Group { row, refined: None, frame: None, completions };
        rewards.score(&[group], 0).expect("scores").remove(0)
    }

    #[test]
    fn the_three_terms_of_dyme() {
        let rewards = rewards(
            "rewards = [ { kind = 'format_flag' }, { kind = 'thinking_f1' }, { kind = 'accuracy', extract = 'flag' } ]",
        );
        let row = row(Answer::Number("5".into()));
        let good = format!("{}\nAnswer: 5", row.rationale);
        let scored = score_texts(&rewards, &row, &[&good, "Answer: 5", "five", ""]);
        assert_eq!(scored[0].total, Some(3.0));
        assert_eq!((scored[1].total, scored[1].accuracy), (Some(1.0), Some(1.0)));
        assert_eq!(scored[3].total, Some(0.0));
        assert_eq!(scored[3].verdict.status, Status::NoAnswer);
        assert_eq!(scored[2].accuracy, Some(0.0));
    }

    #[test]
    fn gates_hold_back_what_is_not_earned() {
        let rewards = rewards(
            "rewards = [ { kind = 'format_flag' }, { kind = 'thinking_f1', gate = 'accuracy', weight = 0.5 },
               { kind = 'accuracy', gate = 'format' } ]",
        );
        let row = row(Answer::Number("5".into()));
        let copied = format!("{}\nAnswer: 7", row.rationale);
        let scored = score_texts(&rewards, &row, &[&copied, "Answer: 5"]);
        assert_eq!(scored[0].parts, [Some(1.0), Some(0.0), Some(0.0)]);
        assert_eq!(scored[1].parts, [Some(0.0), Some(0.0), Some(0.0)]);
        assert_eq!(scored[1].accuracy, Some(1.0), "the selector still learns that it was right");
    }

    #[test]
    fn unknown_is_never_zero() {
        let mut rewards =
            rewards("rewards = [ { kind = 'accuracy' }, { kind = 'process', name = 'mine', command = ['x'] } ]");
        let row = row(Answer::Number("5".into()));
        let text = "Answer: 5";
        let completions = [[Some(0.5)], [None], [Some(f32::NAN)]];
        let group = |range: std::ops::Range<usize>| Group {
            row: &row,
            refined: None,
            frame: None,
            completions: completions[range]
                .iter()
                .map(|external| Completion { text, num_tokens: 3, truncated: false, external })
                .collect(),
        };
        let scored = rewards.score(&[group(0..2)], 0).expect("scores").remove(0);
        assert_eq!((scored[0].total, scored[1].total), (Some(1.5), None));
        let error = rewards.score(&[group(0..3)], 0).expect_err("NaN");
        assert!(matches!(error, RewardError::NonFinite { .. }), "{error}");
        rewards.unknown = Unknown::IgnorePart;
        let scored = rewards.score(&[group(0..2)], 0).expect("scores").remove(0);
        assert_eq!(scored[1].total, Some(1.0));
    }

    #[test]
    fn group_terms_see_the_group() {
        let rewards = rewards(
            "rewards = [ { kind = 'accuracy' }, { kind = 'length', scale = 1.0, unit = 'tokens', start_step = 3 },
               { kind = 'overlong', buffer = 32 }, { kind = 'dylr' }, { kind = 'repetition', words = 1, wrong_only = true },
               { kind = 'steps' } ]",
        );
        let row = row(Answer::Number("5".into()));
        let completion = |text, num_tokens| Completion { text, num_tokens, ..Default::default() };
        let completions = vec![completion("Answer: 5", 10), completion("no no Answer: 5 5", 48)];
        let group = Group { row: &row, refined: None, frame: None, completions };
        let early = rewards.score(std::slice::from_ref(&group), 2).expect("scores").remove(0);
        assert_eq!(early[0].parts[1], Some(0.0));
        let late = rewards.score(&[group], 3).expect("scores").remove(0);
        assert_eq!(late[0].parts[1], Some(0.5));
        assert_eq!(late[1].parts[1], Some(-0.5));
        assert_eq!(late[1].parts[2], Some(-0.5));
        assert_eq!(late[0].parts[3], Some(0.0), "the only right answer has the target length");
        assert_eq!(late[0].parts[4], Some(0.0));
        assert!(late[1].parts[4].expect("known") < 0.0);
        assert_eq!(late[0].parts[5], Some(0.0));
    }

    #[test]
    fn what_can_be_read_may_be_worth_something() {
        let rewards =
            rewards("rewards = [ { kind = 'accuracy' }, { kind = 'parsable', weight = 0.2, wrong_only = true } ]");
        let row = row(Answer::Number("5".into()));
        let totals: Vec<Option<f32>> = score_texts(&rewards, &row, &["Answer: 5", "Answer: 7", "Answer: many", "5"])
            .iter()
            .map(|scored| scored.total)
            .collect();
        assert_eq!(totals, [Some(1.0), Some(0.2), Some(0.0), Some(0.0)]);
        let without = vec![RewardSpec::Parsable(spec::ParsableSpec::default())];
        assert!(matches!(Rewards::new(without, Unknown::Leave, 8), Err(RewardError::Gate { .. })));
    }

    #[test]
    fn a_box_format_needs_a_box() {
        let rewards = rewards("rewards = [ { kind = 'format_tags' }, { kind = 'format_box' } ]");
        let error = rewards.check_row(&row(Answer::YesNo(true)), None).expect_err("yes is no box");
        assert!(matches!(error, RewardError::FormatMismatch { .. }) && !error.hint().is_empty());
        rewards.check_row(&row(Answer::Box([0.0, 0.0, 1.0, 1.0])), None).expect("a box");
    }

    fn answers() -> Vec<Answer> {
        let call = foveate_tasks::row::Call { function: "f".into(), object: "1".into(), value: "red".into() };
        vec![
            Answer::Number("5".into()),
            Answer::Text("red car".into()),
            Answer::Member(vec!["a".into(), "b".into()]),
            Answer::Choice(vec!["A".into(), "C".into()]),
            Answer::YesNo(true),
            Answer::Labels(vec!["cat".into(), "dog".into()]),
            Answer::Box([1.0, 2.0, 3.0, 4.0]),
            Answer::Functions(vec![call]),
            Answer::Expression("\\frac{x}{2}".into()),
        ]
    }

    // Every verifier, every extraction, strict and published, every format and shaping term.
    fn everything(text: &str) {
        for answer in answers() {
            let row = row(answer.clone());
            for extract in ["flag", "tag", "boxed", "last_number", "whole"] {
                for compat in ["", ", compat = 'dyme'", ", compat = 'curr_reft'", ", compat = 'reason_rft'"] {
                    let rewards = rewards(&format!(
                        "rewards = [ {{ kind = 'accuracy', extract = '{extract}'{compat} }}, {{ kind = 'format_tags'{compat} }},
                           {{ kind = 'format_flag'{compat} }}, {{ kind = 'format_box'{compat} }},
                           {{ kind = 'thinking_f1', extract = '{extract}'{compat} }}, {{ kind = 'length' }}, {{ kind = 'steps' }},
                           {{ kind = 'overlong' }}, {{ kind = 'repetition', words = 2 }}, {{ kind = 'dylr' }} ]"
                    ));
                    for scored in score_texts(&rewards, &row, &[text, "Answer: 5"]) {
                        let accuracy = scored.accuracy.expect("always known");
                        assert!((0.0..=1.0).contains(&accuracy), "{accuracy} for {text:?}");
                        assert!(scored.verdict.status == Status::Ok || accuracy == 0.0);
                        assert!(scored.total.expect("known").is_finite());
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

        #[test]
        fn no_text_makes_a_verifier_panic(text in "\\PC{0,60}") {
            everything(&text);
        }

        #[test]
        fn no_answer_like_text_makes_a_verifier_panic(
            pieces in proptest::collection::vec(prop_oneof![
                Just("<think>"), Just("</think>"), Just("<answer>"), Just("</answer>"), Just("Answer:"), Just("answer: "),
                Just("\\boxed{"), Just("}"), Just("{"), Just("["), Just("]"), Just("("), Just(")"), Just(","), Just("."),
                Just("\\frac"), Just("\\sqrt"), Just("^"), Just("|"), Just("-"), Just("%"), Just("$"), Just("1"), Just("23"),
                Just("x"), Just("A"), Just("yes"), Just(" and "), Just("\n"), Just(" "), Just("é"), Just("½"), Just("²"),
                Just("'"), Just("\""), Just("e5"), Just("twenty "), Just("f(1,red)"), Just("±"), Just("="), Just("\u{200B}"),
            ], 0..24),
        ) {
            everything(&pieces.concat());
        }

        #[test]
        fn any_characters_at_all(text in proptest::collection::vec(any::<char>(), 0..40)) {
            everything(&text.into_iter().collect::<String>());
        }
    }

    #[test]
    fn a_megabyte_of_anything_is_scored() {
        let shape = rewards(
            "rewards = [ { kind = 'format_tags' }, { kind = 'format_flag' }, { kind = 'thinking_f1' },
               { kind = 'repetition' }, { kind = 'steps' } ]",
        );
        let accuracy = rewards("rewards = [ { kind = 'accuracy', extract = 'whole' } ]");
        // Anything worse than linear would take minutes here, and be noticed.
        for piece in ["<answer>", "\\boxed{", "((((", "answer:", "1,", "9^", "[1,", "word ", "é", "</think><answer>"] {
            let text = piece.repeat(1_000_000 / piece.len());
            score_texts(&shape, &row(Answer::YesNo(true)), &[&text]);
            for answer in answers() {
                assert_eq!(score_texts(&accuracy, &row(answer), &[&text])[0].accuracy, Some(0.0));
            }
        }
    }
}
