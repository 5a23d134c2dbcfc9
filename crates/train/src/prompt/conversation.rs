//! Who said what: turns of text and pictures.
//! Plain data; knows nothing of templates. Cost: pictures are shared, never copied.

use foveate_tasks::row::ImageData;
use serde_json::{Value as Json, json};

/// Turns in the order in which they were said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub turns: Vec<Turn>,
}

/// What one side said.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Who.
    pub role: Role,
    /// Text and pictures in order.
    pub parts: Vec<Part>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// A piece of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A picture.
    Image(ImageData),
    /// Words.
    Text(String),
}

impl Role {
    /// As templates and data files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Role> {
        [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.name() == name)
    }
}

impl Part {
    /// The words, if it is not a picture.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Part::Text(text) => Some(text),
            Part::Image(_) => None,
        }
    }
}

impl Turn {
    /// A turn of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Turn {
        Turn { role, parts: vec![Part::Text(text.into())] }
    }
}

impl Conversation {
    /// The usual question: its pictures, then its words.
    pub fn question(images: &[ImageData], text: impl Into<String>) -> Conversation {
        let mut parts: Vec<Part> = images.iter().cloned().map(Part::Image).collect();
        parts.push(Part::Text(text.into()));
        Conversation { turns: vec![Turn { role: Role::User, parts }] }
    }

    /// The same conversation with one more turn of the model.
    pub fn answered(&self, answer: &str) -> Conversation {
        let mut turns = self.turns.clone();
        turns.push(Turn::text(Role::Assistant, answer));
        Conversation { turns }
    }

    /// Pictures in the order in which they appear.
    pub fn images(&self) -> impl Iterator<Item = &ImageData> {
        self.turns.iter().flat_map(|turn| &turn.parts).filter_map(|part| match part {
            Part::Image(image) => Some(image),
            Part::Text(_) => None,
        })
    }
}

/// The turns as templates read them: `content` as a list of parts, or as one text where a model only reads.
pub(super) fn messages(turns: &[Turn], with_parts: bool) -> Json {
    let part = |part: &Part| match part {
        Part::Image(_) => json!({"type": "image"}),
        Part::Text(text) => json!({"type": "text", "text": text}),
    };
    let content = |turn: &Turn| match with_parts {
        true => Json::Array(turn.parts.iter().map(part).collect()),
        false => Json::String(turn.parts.iter().filter_map(Part::as_text).collect()),
    };
    Json::Array(turns.iter().map(|turn| json!({"role": turn.role.name(), "content": content(turn)})).collect())
}
