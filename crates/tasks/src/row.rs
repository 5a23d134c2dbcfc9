//! One question with its images and its typed answer: what worlds make and what data files hold.
//! Knows no models, prompts or rewards. Cost: images are shared, never copied.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A picture, wherever it is kept. Decoding happens in the room `prompt`.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageData {
    /// A file to be read when the row is used.
    Path(PathBuf),
    /// An encoded file (PNG, JPEG, WebP) already in memory, as parquet columns hold it.
    Encoded(Arc<[u8]>),
    /// Drawn pixels, three bytes (red, green, blue) each, row by row.
    Drawn(Arc<Drawing>),
}

/// Drawn pixels.
#[derive(Clone, PartialEq, Eq)]
pub struct Drawing {
    /// Pixels in a row.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub rgb: Vec<u8>,
}

impl std::fmt::Debug for Drawing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Drawing({}x{})", self.width, self.height)
    }
}

/// A call of the transformation world: `name(object, value)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Function, for instance `change_color`.
    pub function: String,
    /// Object id, kept as written.
    pub object: String,
    /// Value, for instance `red`.
    pub value: String,
}

/// The right answer, with the type that picks its verifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "snake_case")]
pub enum Answer {
    /// A number, kept as written (`"12"`, `"3.5"`, `"40%"`).
    Number(String),
    /// Free text, compared after normalising.
    Text(String),
    /// Any of several accepted texts.
    Member(Vec<String>),
    /// Option letters, one or several (`["A", "C"]`).
    Choice(Vec<String>),
    /// Yes or no.
    YesNo(bool),
    /// A set of labels.
    Labels(Vec<String>),
    /// A box `[x1, y1, x2, y2]` in pixels of the original image.
    Box([f64; 4]),
    /// A sequence of function calls.
    Functions(Vec<Call>),
    /// A mathematical expression in LaTeX or plain notation.
    Expression(String),
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Unique within its dataset; randomness is keyed by the row's index, messages name the id.
    pub id: String,
    /// Pictures in the order in which the question refers to them.
    pub images: Vec<ImageData>,
    /// What is asked.
    pub question: String,
    /// What is right.
    pub answer: Answer,
    /// Option texts of a multiple-choice question, first one is `A`.
    pub choices: Vec<String>,
    /// Reference reasoning (hint, chain of thought); empty if there is none.
    pub rationale: String,
    /// What is visible in the images, for checker and refiner; empty if unknown.
    pub facts: String,
    /// Task or world name.
    pub task: String,
    /// Split name (`train`, `id`, `ood`).
    pub split: String,
    /// Difficulty level, 0 if the source has none.
    pub level: u8,
    /// Everything else that came with the row.
    pub meta: serde_json::Map<String, serde_json::Value>,
}

impl Answer {
    /// The answer as a model should write it.
    pub fn text(&self) -> String {
        match self {
            Answer::Number(text) | Answer::Text(text) | Answer::Expression(text) => text.clone(),
            Answer::Member(texts) => texts.first().cloned().unwrap_or_default(),
            Answer::Choice(letters) => letters.join(", "),
            Answer::YesNo(yes) => if *yes { "yes" } else { "no" }.to_string(),
            Answer::Labels(labels) => labels.join(", "),
            Answer::Box([x1, y1, x2, y2]) => format!("[{x1}, {y1}, {x2}, {y2}]"),
            Answer::Functions(calls) => calls
                .iter()
                .map(|call| format!("{}({}, {})", call.function, call.object, call.value))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// Name of the type, as written in data files.
    pub fn kind(&self) -> &'static str {
        match self {
            Answer::Number(_) => "number",
            Answer::Text(_) => "text",
            Answer::Member(_) => "member",
            Answer::Choice(_) => "choice",
            Answer::YesNo(_) => "yes_no",
            Answer::Labels(_) => "labels",
            Answer::Box(_) => "box",
            Answer::Functions(_) => "functions",
            Answer::Expression(_) => "expression",
        }
    }
}
