//! From a row to the conversation that is put to the model, and to the text that it should have written.
//! Knows rows and words; knows no tokens. Cost: a few strings.

use foveate_model::PromptInput;
use foveate_tasks::derive::question_text;
use foveate_tasks::row::{ImageData, Row};
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, Serializer};

use crate::data::conversations::{EARLIER, Earlier, SYSTEM};
use crate::prompt::image;
use crate::prompt::{Conversation, Coords, Frame, Part, Role, Turn};

/// How a row is put to the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AskConfig {
    /// A system turn above the question; empty for none but the row's own. Small models rarely need one.
    pub system: String,
    /// Text after each question, for instance `" Think step by step, then write Answer: and the answer."`. A model
    /// that was trained in its format needs none; a foreign checkpoint learns the format much faster with one.
    pub suffix: String,
    /// Most pixels of a picture; larger ones are shrunk before the model's own processor sees them, and boxes follow.
    /// Saves memory and time with models that take pictures of any size; 262144 and 410000 are published values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u32>,
}

impl AskConfig {
    /// The conversation up to the model's turn.
    pub fn conversation(&self, row: &Row) -> Conversation {
        let mut question = question_text(row);
        question.push_str(&self.suffix);
        let earlier = earlier(row);
        let shown: usize = earlier.iter().map(|turn| turn.images).sum();
        let images: Vec<ImageData> = match self.max_pixels {
            Some(cap) => row.images.iter().map(|picture| image::at_most(picture, cap)).collect(),
            None => row.images.clone(),
        };
        let (before, own) = images.split_at(shown.min(images.len()));
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
    /// The temperature that a target's log-probabilities refer to: 1, because nothing was sampled. `"same"` divides by
    /// the sampling temperature, as DyME's code does.
    #[serde(skip_serializing_if = "TargetTemperature::is_one")]
    pub temperature: TargetTemperature,
    /// What the numbers of a box mean. `rewards.accuracy.verify.box.coords` must say the same.
    #[serde(skip_serializing_if = "in_original_pixels")]
    pub coords: Coords,
}

fn in_original_pixels(coords: &Coords) -> bool {
    !coords.needs_frame()
}

/// The temperature that the log-probabilities of targets refer to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TargetTemperature {
    /// This number.
    At(f32),
    /// That of sampled answers.
    Same,
}

impl Default for TargetTemperature {
    fn default() -> Self {
        TargetTemperature::At(1.0)
    }
}

impl TargetTemperature {
    fn is_one(&self) -> bool {
        *self == TargetTemperature::At(1.0)
    }
}

impl Serialize for TargetTemperature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TargetTemperature::At(value) => serializer.serialize_f32(*value),
            TargetTemperature::Same => serializer.serialize_str("same"),
        }
    }
}

impl<'de> Deserialize<'de> for TargetTemperature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(f32),
            Word(String),
        }
        match Raw::deserialize(deserializer) {
            Ok(Raw::Number(value)) => Ok(TargetTemperature::At(value)),
            Ok(Raw::Word(word)) if word == "same" => Ok(TargetTemperature::Same),
            _ => Err(D::Error::custom("the temperature of targets is a number or \"same\"")),
        }
    }
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
    /// As `tags`, behind a summary of what is asked in `<summary>` and what the picture shows in `<caption>`: the row's
    /// `meta.summary` and `meta.caption`, or else its question and facts.
    Caption,
    /// The answer as it stands, without any mark.
    Bare,
    /// What `foveate sample` kept, word for word (`meta.completion`); rows without it as `cot`.
    Completion,
}

impl TargetConfig {
    /// Whether the target begins with the row's rationale.
    pub fn has_rationale(&self) -> bool {
        use TargetTemplate::{Caption, Completion, Cot, Tags};
        matches!(self.template, Cot | Tags | Caption | Completion)
    }

    /// The beginning of an answer whose reasoning is given up to here; nothing for none. White space at its end is the
    /// model's: words of a tokenizer begin with it.
    pub fn beginning(&self, rationale: &str) -> String {
        let part = rationale.trim();
        match self.template {
            _ if part.is_empty() => String::new(),
            TargetTemplate::Tags | TargetTemplate::Caption => format!("<think>{part}"),
            _ => part.to_string(),
        }
    }

    /// The text that the model should write. `input` is what it reads, where that is known: coordinates may depend on
    /// how the picture is shown.
    pub fn text(&self, row: &Row, input: Option<&PromptInput>) -> String {
        let frame = if self.coords.needs_frame() { Frame::of(row, input) } else { None };
        let (rationale, answer) = (row.rationale.trim(), self.coords.write(&row.answer, frame));
        match self.template {
            TargetTemplate::Cot if !rationale.is_empty() => format!("{rationale}\nAnswer: {answer}"),
            TargetTemplate::Completion => match row.meta.get("completion").and_then(|text| text.as_str()) {
                Some(text) => text.to_string(),
                None => Self { template: TargetTemplate::Cot, ..*self }.text(row, input),
            },
            TargetTemplate::Cot | TargetTemplate::Answer => format!("Answer: {answer}"),
            TargetTemplate::Tags => format!("<think>{rationale}</think><answer>{answer}</answer>"),
            TargetTemplate::Caption => {
                let own = |key: &str, otherwise: &str| match row.meta.get(key).and_then(|text| text.as_str()) {
                    Some(text) if !text.trim().is_empty() => text.trim().to_string(),
                    _ => otherwise.trim().to_string(),
                };
                let (summary, caption) = (own("summary", &row.question), own("caption", &row.facts));
                format!(
                    "<summary>{summary}</summary><caption>{caption}</caption><think>{rationale}</think>\
                     <answer>{answer}</answer>"
                )
            }
            TargetTemplate::Bare => answer,
        }
    }
}
