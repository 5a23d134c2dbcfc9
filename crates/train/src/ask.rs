//! From a row to the conversation that is put to the model, and to the text that it should have written.
//! Knows rows and words; knows no tokens. Cost: a few strings.

use foveate_tasks::derive::question_text;
use foveate_tasks::row::Row;
use serde::{Deserialize, Serialize};

use crate::data::conversations::{EARLIER, Earlier, SYSTEM};
use crate::prompt::{Conversation, Part, Role, Turn};

/// How a row is put to the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskConfig {
    /// A system turn above the question; empty for none but the row's own. Small models rarely need one.
    pub system: String,
    /// Text after each question, for instance `" Think step by step, then write Answer: and the answer."`. A model
    /// that was trained in its format needs none; a foreign checkpoint learns the format much faster with one.
    pub suffix: String,
}

impl AskConfig {
    /// The conversation up to the model's turn.
    pub fn conversation(&self, row: &Row) -> Conversation {
        let mut question = question_text(row);
        question.push_str(&self.suffix);
        let earlier = earlier(row);
        let shown: usize = earlier.iter().map(|turn| turn.images).sum();
        let (before, own) = row.images.split_at(shown.min(row.images.len()));
        let mut turns = Vec::with_capacity(earlier.len() + 2);
        let system = match self.system.as_str() {
            "" => row.meta.get(SYSTEM).and_then(|system| system.as_str()).unwrap_or(""),
            system => system,
        };
        if !system.is_empty() {
            turns.push(Turn::text(Role::System, system));
        }
        let mut before = before.iter();
        for turn in earlier {
            let mut parts: Vec<Part> = before.by_ref().take(turn.images).cloned().map(Part::Image).collect();
            parts.push(Part::Text(turn.text));
            turns.push(Turn { role: if turn.answered { Role::Assistant } else { Role::User }, parts });
        }
        turns.extend(Conversation::question(own, question).turns);
        Conversation { turns }
    }
}

/// The turns before a row's question; rows that were written by hand have none.
fn earlier(row: &Row) -> Vec<Earlier> {
    let kept = row.meta.get(EARLIER).cloned().unwrap_or_default();
    serde_json::from_value(kept).unwrap_or_default()
}

/// What a supervised or memorised answer looks like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// Which parts of the row it is made of.
    pub template: TargetTemplate,
}

/// Form of a supervised or memorised answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetTemplate {
    /// The rationale, a new line, `Answer: ` and the answer; rows without a rationale give the answer line alone.
    #[default]
    Cot,
    /// `Answer: ` and the answer, whatever the row's rationale.
    Answer,
    /// The rationale in `<think>` tags, the answer in `<answer>` tags.
    Tags,
    /// The answer as it stands, without any mark.
    Bare,
}

impl TargetConfig {
    /// The text that the model should write.
    pub fn text(&self, row: &Row) -> String {
        let (rationale, answer) = (row.rationale.trim(), row.answer.text());
        match self.template {
            TargetTemplate::Cot if !rationale.is_empty() => format!("{rationale}\nAnswer: {answer}"),
            TargetTemplate::Cot | TargetTemplate::Answer => format!("Answer: {answer}"),
            TargetTemplate::Tags => format!("<think>{rationale}</think><answer>{answer}</answer>"),
            TargetTemplate::Bare => answer,
        }
    }
}
