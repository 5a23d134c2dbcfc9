//! Conversations to questions and answers: LLaVA / ShareGPT `conversations` and OpenAI-style `messages`.
//! Each exchange (one turn asked, one answered) becomes a row of its own; the turns before it come along, with their
//! images, so that the row asks what was asked there.
//! Cost: none worth naming.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::Problem;

/// One turn asked and answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// The text asked, image marks removed.
    pub question: String,
    /// The text answered.
    pub answer: String,
    /// Image references up to this turn, still unread.
    pub images: Vec<Value>,
    /// The turns before it, in order; their images come first in `images`.
    pub earlier: Vec<Earlier>,
    /// The system prompt, empty if there is none.
    pub system: String,
}

/// A turn before the question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Earlier {
    /// Whether the model said it.
    pub answered: bool,
    /// The words, image marks removed.
    pub text: String,
    /// Images that it brought.
    #[serde(default)]
    pub images: usize,
}

/// Where a row keeps its system prompt, in `meta`.
pub const SYSTEM: &str = "system";
/// Where a row keeps the turns before its question, in `meta`.
pub const EARLIER: &str = "earlier";

/// The mark that stands for an image in LLaVA and ShareGPT texts.
const MARK: &str = "<image>";

/// Reads the exchanges of a row that has the field `field` (`conversations` or `messages`). `attached` are the images
/// named beside the conversation.
pub fn exchanges(row: &Map<String, Value>, field: &str, attached: &[Value]) -> Result<Vec<Exchange>, Problem> {
    let Some(Value::Array(turns)) = row.get(field) else {
        return Err(Problem::new(
            field,
            "it is not a list of turns",
            "write a list of {\"role\", \"content\"} objects",
        ));
    };
    let mut images: Vec<Value> = attached.to_vec();
    let (mut system, mut asked) = (String::new(), None::<Earlier>);
    let (mut marks, mut shown) = (0, 0);
    // Images named beside the conversation are marked where they belong, or belong to its first question.
    let marked = turns.iter().any(has_mark);
    let mut unplaced = if marked { 0 } else { attached.len() };
    let (mut earlier, mut found) = (Vec::new(), Vec::new());
    for (i, turn) in turns.iter().enumerate() {
        let place = || format!("{field}[{i}]");
        let role = ["role", "from"].iter().find_map(|key| turn.get(key)).and_then(Value::as_str);
        let (Some(role), Some(content)) = (role, content_of(turn)) else {
            return Err(Problem::new(place(), "role or content is missing", "each turn needs both, as strings"));
        };
        let (text, more) = content_parts(content, &place)?;
        let brought = if marked { text.matches(MARK).count() } else { more.len() };
        images.extend(more);
        marks += text.matches(MARK).count();
        let text = unmarked(&text);
        match role {
            "system" => system = text,
            "user" | "human" => {
                // Two user turns in a row are one question in two pieces.
                let new = brought + std::mem::take(&mut unplaced);
                shown += new;
                let turn = asked.get_or_insert_default();
                turn.images += new;
                turn.text = if turn.text.is_empty() { text } else { format!("{}\n{text}", turn.text) };
            }
            "assistant" | "gpt" | "model" => {
                let Some(question) = asked.take() else {
                    return Err(Problem::new(place(), "it answers nothing", "the turn before must be the user's"));
                };
                found.push(Exchange {
                    question: question.text.clone(),
                    answer: text.clone(),
                    // How many of them are seen by now; which ones is known at the end.
                    images: vec![Value::Null; shown],
                    earlier: earlier.clone(),
                    system: system.clone(),
                });
                earlier.push(question);
                earlier.push(Earlier { answered: true, text, images: 0 });
            }
            other => {
                let hint = "roles are system, user (human) and assistant (gpt)";
                return Err(Problem::new(place(), format!("the role `{other}` is unknown"), hint));
            }
        }
    }
    if found.is_empty() {
        return Err(Problem::new(field, "there is no answered question in it", "add the assistant's turn"));
    }
    if marks > 0 && marks != images.len() {
        let problem = format!("{marks} `{MARK}` marks, but {} images", images.len());
        return Err(Problem::new(field, problem, "each image is marked once, or none is"));
    }
    for exchange in &mut found {
        let seen = exchange.images.len().min(images.len());
        exchange.images = images[..seen].to_vec();
    }
    Ok(found)
}

fn content_of(turn: &Value) -> Option<&Value> {
    ["content", "value"].iter().find_map(|key| turn.get(key))
}

/// Whether a turn says where an image belongs that is named elsewhere. What cannot be read is told of later.
fn has_mark(turn: &Value) -> bool {
    let parts = content_of(turn).map(|content| content_parts(content, &String::new));
    matches!(parts, Some(Ok((text, _))) if text.contains(MARK))
}

/// Text and images of a turn's content: a string, or a list of parts.
fn content_parts(content: &Value, place: &dyn Fn() -> String) -> Result<(String, Vec<Value>), Problem> {
    let parts = match content {
        Value::String(text) => return Ok((text.clone(), vec![])),
        Value::Array(parts) => parts,
        _ => return Err(Problem::new(place(), "its content is neither text nor a list of parts", "see the data page")),
    };
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for part in parts {
        match part.get("type").and_then(Value::as_str) {
            Some("text") if part.get("text").is_some_and(Value::is_string) => {
                texts.push(part["text"].as_str().unwrap_or_default());
            }
            // Columns of a table are there for every part, and null where they do not belong.
            Some("image") => {
                match ["image", "path", "url"].iter().find_map(|key| part.get(key).filter(|at| !at.is_null())) {
                    Some(image) => images.push(image.clone()),
                    // The picture stands beside the conversation, and this is its place.
                    None => texts.push(MARK),
                }
            }
            Some("image_url") => {
                let url = part.get("image_url").map(|url| url.get("url").unwrap_or(url)).cloned();
                images.push(url.unwrap_or(Value::Null));
            }
            _ => {
                let hint = "parts are {\"type\": \"text\", \"text\": ..} and {\"type\": \"image\", \"image\": path}";
                return Err(Problem::new(place(), format!("a part of its content is of no known kind: {part}"), hint));
            }
        }
    }
    Ok((texts.join("\n"), images))
}

fn unmarked(text: &str) -> String {
    let lines = text.replace(&format!("{MARK}\n"), "").replace(&format!("\n{MARK}"), "").replace(MARK, "");
    lines.trim().to_string()
}

/// Rationale and answer of a written-out completion: think and answer tags, or a last line `Answer: X`, or all of it.
pub fn split_reasoning(text: &str) -> (String, String) {
    let text = text.trim();
    if let (Some(from), Some(to)) = (text.rfind("<answer>"), text.rfind("</answer>"))
        && from < to
    {
        let thought = text[..from].replace("<think>", "").replace("</think>", "");
        return (thought.trim().to_string(), text[from + "<answer>".len()..to].trim().to_string());
    }
    let (before, last) = text.rsplit_once('\n').unwrap_or(("", text));
    match last.trim().split_once(':') {
        Some((flag, answer)) if flag.trim().eq_ignore_ascii_case("answer") => {
            (before.trim().to_string(), answer.trim().to_string())
        }
        _ => (String::new(), text.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(row: Value, field: &str, attached: &[Value]) -> Result<Vec<Exchange>, Problem> {
        exchanges(row.as_object().unwrap(), field, attached)
    }

    #[test]
    fn llava_turns_become_one_row_each() {
        let row = json!({"conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Its color?"}, {"from": "gpt", "value": "Black."}]});
        let found = read(row, "conversations", &[json!("a.jpg")]).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].question.as_str(), found[1].answer.as_str()), ("What is it?", "Black."));
        assert!(found.iter().all(|exchange| exchange.images == [json!("a.jpg")]));
        assert_eq!(found[0].earlier, []);
        let asked = Earlier { answered: false, text: "What is it?".into(), images: 1 };
        let answered = Earlier { answered: true, text: "A cat.".into(), images: 0 };
        assert_eq!(found[1].earlier, [asked, answered]);
    }

    #[test]
    fn images_are_seen_from_their_turn_on() {
        let row = json!({"conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "And this? <image>"}, {"from": "gpt", "value": "A dog."}]});
        let found = read(row, "conversations", &[json!("a.jpg"), json!("b.jpg")]).unwrap();
        assert_eq!((found[0].images.len(), found[1].images.len()), (1, 2));
        assert_eq!(found[1].earlier[0].images, 1);
        let row = json!({"messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "One?"}]},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": [{"type": "image", "image": "b.png"}, {"type": "text", "text": "Two?"}]},
            {"role": "assistant", "content": "2"}]});
        let found = read(row, "messages", &[]).unwrap();
        assert_eq!((found[0].images.len(), found[1].images.len(), found[1].earlier[0].images), (1, 2, 1));
    }

    #[test]
    fn message_parts_are_text_and_images() {
        let row = json!({"messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [
                {"type": "image", "image": "a.png"}, {"type": "text", "text": "Count."},
                {"type": "image_url", "image_url": {"url": "b.png"}}]},
            {"role": "assistant", "content": [{"type": "text", "text": "3"}]}]});
        let found = read(row, "messages", &[]).unwrap();
        let expected = Exchange {
            question: "Count.".into(),
            answer: "3".into(),
            images: vec![json!("a.png"), json!("b.png")],
            earlier: vec![],
            system: "Be short.".into(),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_part_without_a_picture_is_the_place_of_one_beside_the_conversation() {
        let row = json!({"messages": [
            {"role": "user", "content": [{"type": "image", "text": null}, {"type": "text", "text": "One?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
            {"role": "user", "content": [{"type": "text", "text": "Two?"}, {"type": "image"}]},
            {"role": "assistant", "content": "2"}]});
        let found = read(row.clone(), "messages", &[json!("a.png"), json!("b.png")]).unwrap();
        assert_eq!((found[0].images.len(), found[1].images.len()), (1, 2));
        assert_eq!((found[0].question.as_str(), found[1].question.as_str()), ("One?", "Two?"));
        assert!(read(row, "messages", &[json!("a.png")]).is_err());
    }

    #[test]
    fn broken_conversations_are_refused_by_place() {
        let cases = [
            (json!({"messages": "hi"}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "user"}]}), "messages[0]"),
            (json!({"messages": [{"role": "assistant", "content": "a"}]}), "messages[0]"),
            (json!({"messages": [{"role": "tool", "content": "a"}]}), "messages[0]"),
            (json!({"messages": [{"role": "user", "content": [{"type": "video"}]}]}), "messages[0]"),
            (
                json!({"messages": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}]}),
                "messages",
            ),
        ];
        for (row, field) in cases {
            let problem = read(row.clone(), "messages", &[]).unwrap_err();
            assert_eq!(problem.field, field, "{row}");
        }
    }

    #[test]
    fn reasoning_is_told_from_the_answer() {
        let pairs = [
            ("<think>2 and 3</think>\n<answer> 5 </answer>", ("2 and 3", "5")),
            ("2 + 3 = 5.\nAnswer: 5", ("2 + 3 = 5.", "5")),
            ("Answer: 5", ("", "5")),
            ("A long reply: with a colon", ("", "A long reply: with a colon")),
            ("</answer> 5 <answer>", ("", "</answer> 5 <answer>")),
        ];
        for (text, (rationale, answer)) in pairs {
            assert_eq!(split_reasoning(text), (rationale.to_string(), answer.to_string()));
        }
    }
}
