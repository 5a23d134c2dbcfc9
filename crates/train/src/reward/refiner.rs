//! Reference targets written from facts, reasoning and answer, and the template they follow (DyME, methods 2.6), here or
//! by a language model. Asked for once per failed group and no more. Cost: one string per failed group, or one request.

use foveate_tasks::row::Row;
use serde::{Deserialize, Serialize};

use super::remote::chat::ChatSpec;
use super::remote::writer::Writer;
use super::remote::{Failure, SetupError, Surroundings};

/// Slots: `{question}`, `{facts}`, `{rationale}`, `{answer}`. A line whose slots are all empty is left out.
pub const DEFAULT_TEMPLATE: &str =
    "Goal: {question}\nObservation: {facts}\nReasoning: {rationale}\nConclusion: the answer is {answer}.";

/// What a language model is told about the form, unless the recipe says something else.
pub const DEFAULT_FORM: &str = "Goal: what is asked\nObservation: what the picture shows that matters\nReasoning: the steps \
                                from there\nConclusion: what follows";

/// How the targets of failed questions are written anew. Off unless the recipe has the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefinerSpec {
    /// The language model that writes; without it the template is filled in from the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writer: Option<ChatSpec>,
    /// The template. Filled in from the row it has slots: `{question}`, `{facts}`, `{rationale}`, `{answer}`; a
    /// language model reads it as a description of the form. Short templates suit small models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Asks the writer once per row what the picture shows, as a list read out of facts or rationale, and rewrites from
    /// the list. The checker's `elements` and this share their lists.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub elements: bool,
    /// Whether answers whose reasoning the checker graded `high` may bring a better template. Needs a writer.
    pub learn_template: bool,
}

impl RefinerSpec {
    /// The template at the start of a stage.
    pub fn first_template(&self) -> String {
        let default = if self.writer.is_some() { DEFAULT_FORM } else { DEFAULT_TEMPLATE };
        self.template.clone().unwrap_or_else(|| default.to_string())
    }
}

/// A refiner ready to work.
#[derive(Debug)]
pub struct Refiner {
    writer: Option<Writer>,
}

impl Refiner {
    /// Nothing is written yet.
    pub fn new(spec: &RefinerSpec, around: &Surroundings) -> Result<Self, SetupError> {
        Ok(Self { writer: spec.writer.as_ref().map(|chat| Writer::new(chat, spec.elements, around)).transpose()? })
    }

    /// New reasoning for each row; a failure of the language model leaves that row to its old reasoning.
    pub fn rationales(&self, rows: &[&Row], template: &str) -> Vec<Result<String, Failure>> {
        match &self.writer {
            Some(writer) => writer.rewrite(rows, template),
            None => rows.iter().map(|row| Ok(refine(row, template))).collect(),
        }
    }

    /// The language model, if there is one.
    pub fn writer(&self) -> Option<&Writer> {
        self.writer.as_ref()
    }

    /// Offers the reasoning of a good answer to the store; it is asked for its form, and the form is compared with what
    /// is stored. Says whether the store changed.
    pub fn learn(&self, store: &mut TemplateStore, thought: &str) -> Result<bool, Failure> {
        let Some(writer) = &self.writer else { return Ok(false) };
        let Some(candidate) = writer.propose(thought)? else { return Ok(false) };
        store.proposed += 1;
        let (version, stored) = store.read();
        if candidate == stored || !writer.is_better(stored, &candidate)? {
            return Ok(false);
        }
        Ok(store.replace(version, candidate))
    }
}

/// How a target is written: reasoning, a line break, `Answer: ` and the answer; without reasoning the answer alone.
pub fn flag_target(reasoning: &str, answer: &str) -> String {
    match reasoning.trim() {
        "" => format!("Answer: {answer}"),
        reasoning => format!("{reasoning}\nAnswer: {answer}"),
    }
}

/// The same with tags, each on its own line.
pub fn tag_target(reasoning: &str, answer: &str) -> String {
    match reasoning.trim() {
        "" => format!("<answer>\n{answer}\n</answer>"),
        reasoning => format!("<think>\n{reasoning}\n</think>\n<answer>\n{answer}\n</answer>"),
    }
}

/// Fills a template from a row. Empty if the row has neither facts nor reasoning: then there is nothing to refine.
pub fn refine(row: &Row, template: &str) -> String {
    if row.facts.trim().is_empty() && row.rationale.trim().is_empty() {
        return String::new();
    }
    let answer = row.answer.text();
    let slots = [
        ("{question}", row.question.trim()),
        ("{facts}", row.facts.trim()),
        ("{rationale}", row.rationale.trim()),
        ("{answer}", answer.as_str()),
    ];
    let mut lines = Vec::new();
    for line in template.lines() {
        let used: Vec<_> = slots.iter().filter(|(slot, _)| line.contains(slot)).collect();
        if !used.is_empty() && used.iter().all(|(_, text)| text.is_empty()) {
            continue;
        }
        lines.push(fill(line, &slots));
    }
    lines.join("\n")
}

// Slots inside a filled-in text are text: the line is read once, from left to right.
fn fill(line: &str, slots: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = line;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        rest = &rest[open..];
        match slots.iter().find(|(slot, _)| rest.starts_with(slot)) {
            Some((slot, text)) => {
                filled.push_str(text);
                rest = &rest[slot.len()..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

/// The best template so far, replaced only by a caller that compared against the version still in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TemplateStore {
    version: u64,
    text: String,
    /// Templates proposed, those included that were not found better.
    pub proposed: u64,
    /// Templates accepted.
    pub accepted: u64,
    /// Proposals that came too late.
    pub lost_races: u64,
}

impl TemplateStore {
    /// A store that holds a first template.
    pub fn new(text: String) -> Self {
        Self { version: 0, text, proposed: 0, accepted: 0, lost_races: 0 }
    }

    /// The template with its version. Compare a candidate with it without holding any lock.
    pub fn read(&self) -> (u64, &str) {
        (self.version, &self.text)
    }

    /// Replaces the template if it is still the version that the candidate was compared with.
    pub fn replace(&mut self, compared_version: u64, candidate: String) -> bool {
        if compared_version != self.version {
            self.lost_races += 1;
            return false;
        }
        self.version += 1;
        self.accepted += 1;
        self.text = candidate;
        true
    }
}

#[cfg(test)]
mod tests {
    use foveate_tasks::row::Answer;

    use super::super::tests::row;
    use super::*;

    #[test]
    fn targets_are_written_from_what_is_there() {
        let mut row = row(Answer::Number("5".into()));
        let refined = refine(&row, DEFAULT_TEMPLATE);
        assert!(refined.starts_with("Goal: How many?\nObservation: red cars: 2"), "{refined}");
        assert!(refined.ends_with("the answer is 5."), "{refined}");
        row.facts = "  ".into();
        assert!(refine(&row, DEFAULT_TEMPLATE).starts_with("Goal: How many?\nReasoning: There are two"));
        row.rationale = "{answer} {unknown} {".into();
        assert!(refine(&row, "{rationale}").contains("{answer} {unknown} {"));
        row.rationale.clear();
        assert_eq!(refine(&row, DEFAULT_TEMPLATE), "");
        assert_eq!(flag_target("", "5"), "Answer: 5");
        assert_eq!(flag_target("two and three", "5"), "two and three\nAnswer: 5");
        assert_eq!(tag_target("t", "5"), "<think>\nt\n</think>\n<answer>\n5\n</answer>");
    }

    #[test]
    fn a_late_template_is_dropped() {
        let mut store = TemplateStore::new("first".into());
        let (version, _) = store.read();
        assert!(store.replace(version, "a".into()));
        assert!(!store.replace(version, "b".into()));
        assert_eq!((store.read(), store.proposed, store.accepted, store.lost_races), ((1, "a"), 0, 1, 1));
    }
}
