//! What policies that look at nothing would earn (methods 6, audit): the cheapest way to find a reward that pays for
//! cheating. Any trivial policy well above a random answerer needs a look.
//! Cost: a dozen verifications per row.

use std::collections::BTreeMap;

use foveate_kernels::rng::{Purpose, Stream};
use foveate_tasks::row::{Answer, Row};

use super::extract::Extract;
use super::refiner::{flag_target, tag_target};
use super::{Completion, Frame, Group, RewardError, RewardSpec, Rewards};

/// What one policy earns.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyScore {
    /// Name of the policy.
    pub policy: &'static str,
    /// Mean accuracy.
    pub accuracy: f64,
    /// Mean total reward.
    pub total: f64,
    /// Whether it is above one and a half times the random answerer's accuracy.
    pub suspicious: bool,
}

type Policy = (&'static str, fn(&Context<'_>, usize) -> Option<String>);

/// What policies may know: the dataset's answers, not the image.
struct Context<'a> {
    rows: &'a [Row],
    /// Distinct answers per answer type, most frequent first.
    answers: BTreeMap<&'static str, Vec<String>>,
    seed: u64,
}

const POLICIES: [Policy; 9] = [
    ("empty", |_, _| None),
    ("yes", |_, _| Some("yes".into())),
    ("no", |_, _| Some("no".into())),
    ("first_option", |_, _| Some("A".into())),
    ("all_options", |context, row| {
        let count = context.rows[row].choices.len().clamp(2, 26);
        Some((0..count).map(|i| char::from(b'A' + i as u8).to_string()).collect::<Vec<_>>().join(", "))
    }),
    ("most_frequent", |context, row| context.of(row).first().cloned()),
    ("whole_image", |_, _| Some("[0, 0, 1000, 1000]".into())),
    ("all_labels", |context, row| Some(context.of(row).join(", "))),
    ("random", |context, row| context.random(row)),
];

impl Context<'_> {
    fn of(&self, row: usize) -> &[String] {
        self.answers.get(self.rows[row].answer.kind()).map_or(&[], Vec::as_slice)
    }

    // One of the row's own options, else one of the dataset's distinct answers of the same type.
    fn random(&self, row: usize) -> Option<String> {
        let stream = Stream::new(self.seed, Purpose::Test, 0, row as u32, 0);
        let choices = self.rows[row].choices.len();
        if matches!(self.rows[row].answer, Answer::Choice(_)) && choices > 0 {
            return Some(char::from(b'A' + stream.below(0, choices.min(26) as u32) as u8).to_string());
        }
        let answers = self.of(row);
        (!answers.is_empty()).then(|| answers[stream.below(0, answers.len() as u32) as usize].clone())
    }
}

/// Scores every trivial policy on these rows. Each answers in the right format, with `reasoning` of its row copied or
/// a neutral phrase in its place.
pub fn audit(rows: &[Row], rewards: &Rewards, seed: u64) -> Result<Vec<PolicyScore>, RewardError> {
    let extract = rewards.specs().iter().find_map(|spec| match spec {
        RewardSpec::Accuracy(accuracy) => Some(accuracy.extract),
        _ => None,
    });
    let context = Context { rows, answers: frequent_answers(rows), seed };
    let mut scores = Vec::new();
    for (policy, answer) in POLICIES {
        let text = |row: usize| answer(&context, row).map_or(String::new(), |a| write(extract, "Let me see.", &a));
        scores.push(score(rows, rewards, policy, &text)?);
    }
    let copy = |row: usize| {
        let answer = context.random(row).unwrap_or_default();
        write(extract, &rows[row].rationale, &answer)
    };
    scores.push(score(rows, rewards, "copied_rationale", &copy)?);
    let random = scores.iter().find(|s| s.policy == "random").map_or(0.0, |s| s.accuracy);
    for score in &mut scores {
        score.suspicious = score.accuracy > 1.5 * random && score.accuracy > 0.01;
    }
    Ok(scores)
}

fn write(extract: Option<Extract>, reasoning: &str, answer: &str) -> String {
    match extract.unwrap_or_default() {
        Extract::Tag => tag_target(reasoning, answer),
        Extract::Boxed => format!("{reasoning} \\boxed{{{answer}}}"),
        Extract::Whole => answer.to_string(),
        Extract::Flag | Extract::LastNumber => flag_target(reasoning, answer),
    }
}

fn frequent_answers(rows: &[Row]) -> BTreeMap<&'static str, Vec<String>> {
    let mut counts: BTreeMap<(&'static str, String), usize> = BTreeMap::new();
    for row in rows {
        *counts.entry((row.answer.kind(), row.answer.text())).or_insert(0) += 1;
    }
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut answers: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for ((kind, text), _) in sorted {
        answers.entry(kind).or_default().push(text);
    }
    answers
}

fn score(
    rows: &[Row],
    rewards: &Rewards,
    policy: &'static str,
    text: &dyn Fn(usize) -> String,
) -> Result<PolicyScore, RewardError> {
    let texts: Vec<String> = (0..rows.len()).map(text).collect();
    let groups: Vec<Group<'_>> = rows
        .iter()
        .zip(&texts)
        .map(|(row, text)| Group {
            row,
            refined: None,
            frame: Frame::of(row, None),
            completions: vec![Completion { text, num_tokens: text.len() / 4 + 1, ..Default::default() }],
        })
        .collect();
    let scored = rewards.score(&groups, 0)?;
    let mean = |value: &dyn Fn(&super::Scored) -> Option<f32>| {
        let known: Vec<f64> = scored.iter().flatten().filter_map(value).map(f64::from).collect();
        known.iter().sum::<f64>() / known.len().max(1) as f64
    };
    Ok(PolicyScore { policy, accuracy: mean(&|s| s.accuracy), total: mean(&|s| s.total), suspicious: false })
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::super::{Rewards, Unknown, spec};
    use super::*;

    #[test]
    fn cheats_are_found() {
        let mut rows: Vec<Row> = (0..20).map(|i| row(Answer::Number((i % 10).to_string()))).collect();
        rows.extend((0..40).map(|_| row(Answer::Number("7".into()))));
        let accuracy = RewardSpec::Accuracy(spec::AccuracySpec::default());
        let thinking = RewardSpec::ThinkingF1(spec::ThinkingSpec::default());
        let rewards = Rewards::new(vec![accuracy, thinking], Unknown::Leave, 64).expect("rewards");
        let scores = audit(&rows, &rewards, 1).expect("scores");
        let of = |policy: &str| scores.iter().find(|s| s.policy == policy).expect(policy);
        assert_eq!(of("empty").accuracy, 0.0);
        assert!((of("most_frequent").accuracy - 0.7).abs() < 1e-9 && of("most_frequent").suspicious);
        assert!(!of("random").suspicious && of("random").accuracy < 0.3);
        assert!(of("copied_rationale").total > 1.0);
        assert_eq!(scores, audit(&rows, &rewards, 1).expect("again"));
    }
}
