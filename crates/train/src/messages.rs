//! Conversations from files: one JSON object a line, `{"messages": [{"role": .., "content": ..}]}`.
//! Content is a text or a list of `{"type": "text", "text": ..}` and `{"type": "image", "image": path}`; paths start at
//! the file's folder. Knows no model. Cost: the text is read into memory, pictures are not.

use std::path::{Path, PathBuf};

use foveate_tasks::row::ImageData;
use serde_json::Value;

use crate::prompt::{Conversation, Part, Role, Turn};

/// A line that is no conversation.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {problem}", file.display(), if *line > 0 { format!(":{line}") } else { String::new() })]
pub struct MessageError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong, with the field.
    pub problem: String,
}

impl MessageError {
    /// What the person can do about it.
    pub fn hint(&self) -> String {
        "each line is {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"image\": \"a.png\"}, \
         {\"type\": \"text\", \"text\": \"..\"}]}, {\"role\": \"assistant\", \"content\": \"..\"}]}; image paths are \
         relative to the file"
            .to_string()
    }
}

/// Reads every conversation of a file with its line number. Empty lines are passed over; an empty file is an error.
pub fn read(file: &Path) -> Result<Vec<(usize, Conversation)>, MessageError> {
    let wrong = |line: usize, problem: String| MessageError { file: file.to_path_buf(), line, problem };
    let text = std::fs::read_to_string(file).map_err(|error| wrong(0, error.to_string()))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut conversations = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line).map_err(|error| wrong(index + 1, error.to_string()))?;
        let conversation = conversation(&value, folder).map_err(|problem| wrong(index + 1, problem))?;
        conversations.push((index + 1, conversation));
    }
    if conversations.is_empty() {
        return Err(wrong(0, "there is no conversation in it".to_string()));
    }
    Ok(conversations)
}

/// One conversation; the error names the field.
fn conversation(value: &Value, folder: &Path) -> Result<Conversation, String> {
    let messages = value.get("messages").ok_or("field `messages` is missing")?;
    let messages = messages.as_array().ok_or("field `messages` is not a list")?;
    if messages.is_empty() {
        return Err("field `messages` is empty".to_string());
    }
    let mut turns = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let at = |field: &str| format!("field `messages[{index}].{field}`");
        let role = message.get("role").and_then(Value::as_str).ok_or_else(|| format!("{} is no text", at("role")))?;
        let role =
            Role::parse(role).ok_or_else(|| format!("{} is \"{role}\", not system, user or assistant", at("role")))?;
        let parts = match message.get("content") {
            Some(Value::String(text)) => vec![Part::Text(text.clone())],
            Some(Value::Array(parts)) => parts
                .iter()
                .enumerate()
                .map(|(place, part)| {
                    content_part(part, folder).map_err(|problem| format!("{}[{place}] {problem}", at("content")))
                })
                .collect::<Result<_, _>>()?,
            _ => return Err(format!("{} is neither a text nor a list of parts", at("content"))),
        };
        turns.push(Turn { role, parts });
    }
    Ok(Conversation { turns })
}

fn content_part(part: &Value, folder: &Path) -> Result<Part, String> {
    let text = |key: &str| part.get(key).and_then(Value::as_str);
    match text("type") {
        Some("text") => Ok(Part::Text(text("text").ok_or("has no text in `text`")?.to_string())),
        Some("image") => {
            let path = text("image").or(text("path")).ok_or("has no path in `image`")?;
            Ok(Part::Image(ImageData::Path(folder.join(path))))
        }
        Some(other) => Err(format!("has the type \"{other}\", not text or image")),
        None => Err("has no `type`".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.jsonl");
        std::fs::write(&file, text).unwrap();
        read(&file).unwrap_err().to_string()
    }

    #[test]
    fn lines_and_fields_at_fault_are_named() {
        let good = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
        assert!(problem(&format!("{good}\n{{")).contains("rows.jsonl:2:"));
        assert!(problem(r#"{"message":[]}"#).contains("`messages` is missing"));
        assert!(problem(r#"{"messages":[{"role":"tool","content":""}]}"#).contains("messages[0].role"));
        let part = r#"{"messages":[{"role":"user","content":[{"type":"image"}]}]}"#;
        assert!(problem(part).contains("messages[0].content`[0] has no path"), "{}", problem(part));
        assert!(problem("\n\n").contains("no conversation"));
    }

    #[test]
    fn pictures_are_found_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.jsonl");
        let line = r#"{"messages":[{"role":"user","content":[{"type":"image","image":"p/a.png"},{"type":"text","text":"?"}]}]}"#;
        std::fs::write(&file, line).unwrap();
        let (number, conversation) = read(&file).unwrap().remove(0);
        assert_eq!(number, 1);
        let expected = ImageData::Path(folder.path().join("p/a.png"));
        assert_eq!(conversation.images().collect::<Vec<_>>(), [&expected]);
    }
}
