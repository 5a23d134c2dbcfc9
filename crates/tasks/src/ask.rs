//! A question about a scene, with its answer and the steps that lead there, and the three ways to tell those steps.
//! Worlds fill in `Asked`; the wording of rationales lives here, so that all worlds speak alike.
//! Cost: a few short strings.

use serde::{Deserialize, Serialize};

use crate::draws::Draws;
use crate::row::Answer;

/// How good the reference reasoning is. Better ones name goal, observation, reasoning and conclusion;
/// the lowest is a terse scrap that never contradicts the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// No rationale: the target is the answer line alone.
    None,
    /// One observation and the answer, at most 15 words.
    Low,
    /// Observations, then each step, at most 35 words.
    Medium,
    /// Goal, observation, reasoning and conclusion with explicit numbers, at most 50 words.
    High,
}

/// A question with everything that a row, a rationale and wrong options are made of.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Name of the kind of question, for instance `remove`.
    pub kind: &'static str,
    /// How many steps the answer takes, looking at the picture once being the first.
    pub steps: u8,
    /// The question itself.
    pub question: String,
    /// The right answer, computed from the scene.
    pub answer: Answer,
    /// What is to be found, as a verb phrase without capital or full stop.
    pub goal: String,
    /// Words before the observations in running text, for instance `I see`; may be empty.
    pub seen: &'static str,
    /// What the picture shows of use here, each a phrase.
    pub observations: Vec<String>,
    /// The steps, each a clause; the last one names the answer where the answer is a number or a text.
    pub reasoning: Vec<String>,
    /// Wrong answers of the same kind that a careless reader might give (texts only; numbers are made by `derive`).
    pub candidates: Vec<String>,
}

impl Asked {
    /// A question with nothing observed or reasoned yet.
    pub fn new(kind: &'static str, steps: u8, question: String, answer: Answer, goal: String) -> Self {
        Self {
            kind,
            steps,
            question,
            answer,
            goal,
            seen: "I see",
            observations: vec![],
            reasoning: vec![],
            candidates: vec![],
        }
    }

    /// For pictures drawn `factor` times as large: every box `[x1, y1, x2, y2]` in answer and texts follows.
    pub fn scaled(mut self, factor: f64) -> Self {
        if let Answer::Box(corners) = &mut self.answer {
            *corners = corners.map(|corner| (corner * factor).round());
        }
        let texts = [&mut self.observations, &mut self.reasoning, &mut self.candidates].into_iter().flatten();
        for text in texts.chain([&mut self.question, &mut self.goal]) {
            *text = scale_boxes(text, factor);
        }
        self
    }

    /// The reference reasoning.
    pub fn rationale(&self, quality: Quality, draws: &mut Draws) -> String {
        let answer = self.answer.text();
        match quality {
            Quality::None => String::new(),
            Quality::Low => {
                let scrap = self.observations.last().unwrap_or(&self.goal);
                if draws.percent(50) { format!("{scrap}, so {answer}.") } else { format!("{scrap}. {answer}.") }
            }
            Quality::Medium => {
                let space = if self.seen.is_empty() { "" } else { " " };
                let seen = format!("{}{space}{}", self.seen, listed(&self.observations));
                let sentences = std::iter::once(&seen).chain(&self.reasoning);
                sentences.map(|clause| sentence(clause)).collect::<Vec<_>>().join(" ")
            }
            Quality::High => format!(
                "Goal: {}. Observation: {}. Reasoning: {}. Conclusion: {answer}.",
                self.goal,
                self.observations.join(", "),
                self.reasoning.join(", ")
            ),
        }
    }
}

/// The text with the numbers of every `[x1, y1, x2, y2]` multiplied.
pub(crate) fn scale_boxes(text: &str, factor: f64) -> String {
    let mut scaled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let Some(length) = rest[open..].find(']') else { break };
        scaled += &rest[..open];
        let inside = &rest[open..=open + length];
        match read_box(inside) {
            Some(corners) => scaled += &Answer::Box(corners.map(|corner| (corner * factor).round())).text(),
            None => scaled += inside,
        }
        rest = &rest[open + length + 1..];
    }
    scaled + rest
}

/// The four numbers of `[x1, y1, x2, y2]`, if the text is that and nothing else.
pub(crate) fn read_box(text: &str) -> Option<[f64; 4]> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    let numbers: Option<Vec<f64>> = inside.split(',').map(|number| number.trim().parse().ok()).collect();
    numbers?.try_into().ok()
}

/// A whole number as an answer.
pub(crate) fn number(value: i64) -> Answer {
    Answer::Number(value.to_string())
}

/// One of several wordings.
pub(crate) fn worded(draws: &mut Draws, wordings: &[String]) -> String {
    wordings[draws.below(wordings.len())].clone()
}

/// `7 is higher than 4`, `2 is not more than 2`.
pub(crate) fn compared(x: i64, y: i64, word: &str, holds: bool) -> String {
    format!("{x} is {}{word} than {y}", if holds { "" } else { "not " })
}

/// `a`, `a and b`, `a, b and c`.
pub fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

/// The clause with a capital and a full stop.
pub fn sentence(clause: &str) -> String {
    let mut characters = clause.chars();
    let first = characters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(characters).chain(['.']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use foveate_kernels::rng::Purpose;

    #[test]
    fn boxes_in_texts_follow_the_size_of_the_picture() {
        let text = "red star [1, 2, 30, 40], blue [no box] [5, 6, 7, 8].";
        assert_eq!(scale_boxes(text, 2.0), "red star [2, 4, 60, 80], blue [no box] [10, 12, 14, 16].");
        assert_eq!(scale_boxes("open [1, 2", 2.0), "open [1, 2");
    }

    #[test]
    fn the_three_qualities_tell_the_same_story() {
        let asked = Asked {
            kind: "remove",
            steps: 2,
            question: "Remove all red objects. How many objects are left?".into(),
            answer: Answer::Number("5".into()),
            goal: "count the objects left".into(),
            seen: "I see",
            observations: vec!["7 objects".into(), "2 red objects".into()],
            reasoning: vec!["7 - 2 = 5".into()],
            candidates: vec![],
        };
        let mut draws = Draws::new(1, Purpose::Test, 0, 0);
        assert_eq!(asked.rationale(Quality::None, &mut draws), "");
        assert!(asked.rationale(Quality::Low, &mut draws).starts_with("2 red objects"));
        assert_eq!(asked.rationale(Quality::Medium, &mut draws), "I see 7 objects and 2 red objects. 7 - 2 = 5.");
        assert_eq!(
            asked.rationale(Quality::High, &mut draws),
            "Goal: count the objects left. Observation: 7 objects, 2 red objects. Reasoning: 7 - 2 = 5. Conclusion: 5."
        );
    }
}
