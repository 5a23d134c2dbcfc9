//! Chat completions in OpenAI's words: a request's JSON to a conversation and settings, answers and errors to JSON.
//! What would be ignored silently elsewhere is refused by name here, since an answer that disregards what was asked is
//! worse than none. Knows JSON and turns; knows no sockets and no tokens. Cost: one pass over the text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use foveate_tasks::row::ImageData;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::data::base64;
use crate::prompt::{Conversation, Part, Role, Turn};
use crate::rollout::SamplingConfig;

/// A refusal, as the client sees it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// OpenAI's class of error.
    pub kind: &'static str,
    /// What is wrong and what to do.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A word that programs look for.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// A request that cannot be answered as it stands.
    pub fn invalid(message: impl Into<String>, param: impl Into<Option<String>>) -> Self {
        let (message, param) = (message.into(), param.into());
        Self { status: 400, kind: "invalid_request_error", message, param, code: None }
    }

    /// The server's own trouble.
    pub fn server(status: u16, message: impl Into<String>) -> Self {
        Self { status, kind: "server_error", message: message.into(), param: None, code: None }
    }

    /// The body that is sent.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

/// What a server allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest answer that may be asked for, and its length if none is named.
    pub max_new_tokens: u32,
    /// Answers of one request.
    pub max_answers: u32,
    /// Pictures may be read from this folder and below, if there is one.
    pub images_from: Option<PathBuf>,
}

/// A request, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The model that is asked, as the client calls it.
    pub model: String,
    /// What has been said.
    pub conversation: Conversation,
    /// How answers are drawn.
    pub sampling: SamplingConfig,
    /// How many answers.
    pub num_answers: u32,
    /// Key of their randomness, if the client chose one.
    pub seed: Option<u64>,
    /// Texts that end an answer and are left out of it.
    pub stop: Vec<String>,
    /// Whether pieces are sent as they come.
    pub stream: bool,
    /// Whether the last piece counts tokens.
    pub include_usage: bool,
    /// Whether log-probabilities of the tokens are sent.
    pub logprobs: bool,
}

/// Fields that mean nothing here and harm nothing: bookkeeping, caching, accounts.
const HARMLESS: [&str; 9] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
    "parallel_tool_calls",
    "prompt_cache_retention",
    "verbosity",
];

/// Longest list of texts that end an answer, as in the original.
const MAX_STOPS: usize = 4;

/// Reads a request.
pub fn parse(body: &[u8], limits: &Limits) -> Result<ChatRequest, ApiError> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the body is no JSON: {error}"), None))?;
    let Value::Object(mut fields) = value else {
        return Err(ApiError::invalid("the body is no JSON object", None));
    };
    fields.retain(|name, value| !value.is_null() && !HARMLESS.contains(&name.as_str()));
    let mut fields = Fields(fields);
    let model = fields.text("model")?.ok_or_else(|| missing("model"))?;
    let messages = fields.take("messages").ok_or_else(|| missing("messages"))?;
    let conversation = conversation(&messages, limits)?;
    let usual = SamplingConfig::default();
    let newer = fields.whole("max_completion_tokens", 1, u64::from(u32::MAX))?;
    let older = fields.whole("max_tokens", 1, u64::from(u32::MAX))?;
    let asked = newer.or(older).unwrap_or(u64::from(limits.max_new_tokens));
    if asked > u64::from(limits.max_new_tokens) {
        let message = format!("{asked} new tokens are asked for, this server allows {}", limits.max_new_tokens);
        return Err(ApiError::invalid(message, "max_tokens".to_string()));
    }
    let sampling = SamplingConfig {
        temperature: fields.number("temperature", 0.0, 2.0)?.map_or(usual.temperature, |t| t as f32),
        max_new_tokens: asked as u32,
        top_p: fields.number("top_p", 0.0, 1.0)?.map_or(usual.top_p, |p| p as f32),
        top_k: fields.whole("top_k", 0, 1 << 20)?.map_or(usual.top_k, |k| k as u32),
        min_p: fields.number("min_p", 0.0, 1.0)?.map_or(usual.min_p, |p| p as f32),
        ..usual
    };
    if let Some(problem) = sampling.problem() {
        return Err(ApiError::invalid(problem.replace("sampling.", ""), None));
    }
    let request = ChatRequest {
        model,
        conversation,
        sampling,
        num_answers: fields.whole("n", 1, u64::from(limits.max_answers))?.unwrap_or(1) as u32,
        seed: fields.integer("seed")?,
        stop: fields.stops()?,
        stream: fields.flag("stream")?.unwrap_or(false),
        include_usage: fields.include_usage()?,
        logprobs: fields.flag("logprobs")?.unwrap_or(false),
    };
    fields.refuse_the_rest()?;
    Ok(request)
}

fn missing(name: &str) -> ApiError {
    ApiError::invalid(format!("the field `{name}` is missing"), name.to_string())
}

/// What is left of a request's fields.
struct Fields(Map<String, Value>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, &other, "a text")),
        }
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(name, &other, "true or false")),
        }
    }

    fn number(&mut self, name: &str, low: f64, high: f64) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(wrong(name, &value, &format!("a number from {low} to {high}"))),
        }
    }

    fn whole(&mut self, name: &str, low: u64, high: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(wrong(name, &value, &format!("a whole number from {low} to {high}"))),
        }
    }

    /// Any whole number; negative seeds are seeds too.
    fn integer(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().or_else(|| value.as_i64().map(|number| number as u64));
        number.map(Some).ok_or_else(|| wrong(name, &value, "a whole number"))
    }

    fn stops(&mut self) -> Result<Vec<String>, ApiError> {
        let texts = match self.take("stop") {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(list)) if list.len() <= MAX_STOPS => list
                .iter()
                .map(|text| text.as_str().map(str::to_string).ok_or_else(|| wrong("stop", text, "a text")))
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(wrong("stop", &other, &format!("a text or up to {MAX_STOPS} texts"))),
        };
        match texts.iter().any(String::is_empty) {
            true => Err(ApiError::invalid("`stop` holds an empty text", "stop".to_string())),
            false => Ok(texts),
        }
    }

    fn include_usage(&mut self) -> Result<bool, ApiError> {
        let options = match self.take("stream_options") {
            None => return Ok(false),
            Some(Value::Object(options)) => options,
            Some(other) => return Err(wrong("stream_options", &other, "an object")),
        };
        let mut options = Fields(options);
        options.take("include_obfuscation");
        let include = options.flag("include_usage")?.unwrap_or(false);
        options.refuse_the_rest()?;
        Ok(include)
    }

    /// Fields that ask for nothing may stay; what would change the answer and cannot be done is refused.
    fn refuse_the_rest(mut self) -> Result<(), ApiError> {
        let empty = |value: &Value| match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::Bool(flag) => !flag,
            _ => false,
        };
        let text_only = |value: &Value| {
            *value == json!({"type": "text"}) || *value == json!(["text"]) || *value == "none" || *value == "auto"
        };
        let known = ["response_format", "modalities", "tool_choice"];
        self.0.retain(|name, value| !(empty(value) || (known.contains(&name.as_str()) && text_only(value))));
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::invalid(
                format!("`{name}` is not supported by this server; leave it out"),
                name.to_string(),
            )),
        }
    }
}

fn wrong(name: &str, value: &Value, wanted: &str) -> ApiError {
    let mut told = value.to_string();
    if told.len() > 60 {
        told = told.chars().take(60).collect::<String>() + "..";
    }
    ApiError::invalid(format!("`{name}` is {told}, not {wanted}"), name.to_string())
}

/// Most turns of a conversation: more are a mistake, and each costs a template's pass.
const MAX_TURNS: usize = 1024;

fn conversation(messages: &Value, limits: &Limits) -> Result<Conversation, ApiError> {
    let list = messages.as_array().filter(|list| !list.is_empty() && list.len() <= MAX_TURNS);
    let list = list.ok_or_else(|| wrong("messages", messages, &format!("a list of 1 to {MAX_TURNS} messages")))?;
    let mut turns = Vec::with_capacity(list.len());
    for (index, message) in list.iter().enumerate() {
        let at = |field: &str| format!("messages[{index}].{field}");
        let told = message.get("role").and_then(Value::as_str).unwrap_or("");
        let name = if told == "developer" { "system" } else { told };
        let role = Role::parse(name).ok_or_else(|| {
            let message = format!("the role {told:?} is not system, developer, user or assistant");
            ApiError::invalid(message, at("role"))
        })?;
        if let Some(calls) = message.get("tool_calls").filter(|calls| calls.as_array().is_none_or(|c| !c.is_empty()))
            && !calls.is_null()
        {
            return Err(ApiError::invalid("tool calls are not supported by this server", at("tool_calls")));
        }
        let parts = match message.get("content") {
            Some(Value::String(text)) => vec![Part::Text(text.clone())],
            Some(Value::Array(parts)) => parts
                .iter()
                .enumerate()
                .map(|(place, part)| content_part(part, limits, &format!("{}[{place}]", at("content"))))
                .collect::<Result<_, _>>()?,
            _ => return Err(ApiError::invalid("the content is neither a text nor a list of parts", at("content"))),
        };
        turns.push(Turn { role, parts });
    }
    if turns.last().is_some_and(|turn| turn.role == Role::Assistant) {
        let message = "the last message is the assistant's: there is nothing to answer";
        return Err(ApiError::invalid(message, "messages".to_string()));
    }
    Ok(Conversation { turns })
}

fn content_part(part: &Value, limits: &Limits, at: &str) -> Result<Part, ApiError> {
    let wrong = |message: String| ApiError::invalid(message, at.to_string());
    match part.get("type").and_then(Value::as_str) {
        Some("text") => {
            let text = part.get("text").and_then(Value::as_str);
            Ok(Part::Text(text.ok_or_else(|| wrong("a text part has no `text`".into()))?.to_string()))
        }
        Some("image_url") => {
            let url = match part.get("image_url") {
                Some(Value::String(url)) => Some(url.as_str()),
                Some(object) => object.get("url").and_then(Value::as_str),
                None => None,
            };
            let url = url.ok_or_else(|| wrong("an image part has no `image_url.url`".into()))?;
            picture(url, limits.images_from.as_deref()).map(Part::Image).map_err(wrong)
        }
        other => {
            let told = other.unwrap_or("nothing");
            Err(wrong(format!("a part has the type {told:?}, not text or image_url")))
        }
    }
}

/// A picture from a `data:` URL, or from a file below the allowed folder.
fn picture(url: &str, allowed: Option<&Path>) -> Result<ImageData, String> {
    if let Some(rest) = url.strip_prefix("data:") {
        let (kind, data) = rest.split_once(',').ok_or("the data URL has no comma")?;
        if !kind.ends_with(";base64") {
            return Err("the data URL is not marked ;base64".into());
        }
        let bytes = base64::decode(data).ok_or("the data URL holds no valid base64")?;
        return Ok(ImageData::Encoded(Arc::from(bytes)));
    }
    if url.starts_with("http://") || url.starts_with("https://") {
        return Err("this server fetches nothing: send the picture as data:image/png;base64,..".into());
    }
    let allowed = allowed
        .and_then(|folder| folder.canonicalize().ok())
        .ok_or_else(|| "pictures from files are not allowed here; send data:image/png;base64,..".to_string())?;
    // One answer for every file that may not be read, whether it exists or not.
    let refused = || "there is no such picture in the folder that this server reads; paths start there".to_string();
    let path = Path::new(url.strip_prefix("file://").unwrap_or(url));
    // Resolved before it is compared: neither `..` nor a link leads out of the folder.
    let whole = allowed.join(path).canonicalize().map_err(|_| refused())?;
    if whole.starts_with(&allowed) && whole.is_file() { Ok(ImageData::Path(whole)) } else { Err(refused()) }
}

/// One token of an answer with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token in words.
    pub token: String,
    /// Natural log-probability at the sampling temperature.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// Always empty: only the token that was drawn is told.
    pub top_logprobs: [u8; 0],
}

/// What all answers to one request share.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Names the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
}

/// A finished answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// What the model said.
    pub text: String,
    /// Why it ended: `stop` or `length`.
    pub finish: &'static str,
    /// Log-probabilities, if they were asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
}

/// Counts of tokens as clients read them.
pub fn usage(prompt: usize, answers: usize) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers})
}

impl Envelope {
    /// The whole answer at once.
    pub fn completion(&self, choices: &[Choice], usage: Value) -> Value {
        let choices: Vec<Value> = choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                json!({
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": null},
                    "logprobs": choice.logprobs.as_ref().map(|content| json!({"content": content})),
                    "finish_reason": choice.finish,
                })
            })
            .collect();
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": choices, "usage": usage,
        })
    }

    /// One piece of a streamed answer.
    pub fn chunk(&self, index: usize, delta: Value, finish: Option<&str>, logprobs: Option<&[TokenLogprob]>) -> Value {
        let choice = json!({
            "index": index, "delta": delta, "finish_reason": finish,
            "logprobs": logprobs.map(|content| json!({"content": content})),
        });
        self.pieces(json!([choice]), Value::Null)
    }

    /// The piece that counts tokens, behind all others.
    pub fn last_chunk(&self, usage: Value) -> Value {
        self.pieces(json!([]), usage)
    }

    fn pieces(&self, choices: Value, usage: Value) -> Value {
        json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices, "usage": usage,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { max_new_tokens: 100, max_answers: 4, images_from: None }
    }

    fn read(text: &str) -> Result<ChatRequest, ApiError> {
        parse(text.as_bytes(), &limits())
    }

    fn hello(more: &str) -> String {
        format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "hi"}}]{more}}}"#)
    }

    #[test]
    fn the_usual_request_is_understood() {
        let text = r#", "temperature": 0, "max_tokens": 7, "n": 2, "seed": -3, "stop": ["\n", "END"], "stream": true,
            "stream_options": {"include_usage": true}, "logprobs": true, "user": "x", "top_p": null,
            "frequency_penalty": 0, "tools": [], "response_format": {"type": "text"}"#;
        let request = read(&hello(text)).unwrap();
        assert_eq!(request.conversation.turns, [Turn::text(Role::User, "hi")]);
        assert_eq!((request.sampling.temperature, request.sampling.max_new_tokens), (0.0, 7));
        assert_eq!((request.num_answers, request.stop.len(), request.seed), (2, 2, Some(-3i64 as u64)));
        assert!(request.stream && request.include_usage && request.logprobs);
        let plain = read(&hello("")).unwrap();
        assert_eq!((plain.sampling.max_new_tokens, plain.sampling.temperature), (100, 1.0));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_field() {
        for (text, param) in [
            (hello(r#", "tools": [{"type": "function"}]"#), Some("tools")),
            (hello(r#", "presence_penalty": 0.5"#), Some("presence_penalty")),
            (hello(r#", "response_format": {"type": "json_object"}"#), Some("response_format")),
            (hello(r#", "temprature": 1"#), Some("temprature")),
            (hello(r#", "temperature": 3"#), Some("temperature")),
            (hello(r#", "max_tokens": 101"#), Some("max_tokens")),
            (hello(r#", "max_tokens": 0"#), Some("max_tokens")),
            (hello(r#", "n": 5"#), Some("n")),
            (hello(r#", "stop": ["a", "b", "c", "d", "e"]"#), Some("stop")),
            (hello(r#", "stop": """#), Some("stop")),
            (hello(r#", "stream": "yes""#), Some("stream")),
            (r#"{"model": "m", "messages": []}"#.to_string(), Some("messages")),
            (r#"{"messages": [{"role": "user", "content": "hi"}]}"#.to_string(), Some("model")),
            (
                r#"{"model": "m", "messages": [{"role": "tool", "content": "hi"}]}"#.to_string(),
                Some("messages[0].role"),
            ),
            (r#"{"model": "m", "messages": [{"role": "assistant", "content": "hi"}]}"#.to_string(), Some("messages")),
            ("[]".to_string(), None),
            ("{".to_string(), None),
        ] {
            let error = read(&text).unwrap_err();
            assert_eq!((error.status, error.kind), (400, "invalid_request_error"), "{text}");
            assert_eq!(error.param.as_deref(), param, "{text}: {error}");
            assert_eq!(error.body()["error"]["message"], error.message);
        }
    }

    #[test]
    fn pictures_come_as_base64_or_from_the_allowed_folder_alone() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(inside.join("a.png"), b"x").unwrap();
        std::fs::write(folder.path().join("b.png"), b"y").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path().join("b.png"), inside.join("link.png")).unwrap();
        let encoded = picture("data:image/png;base64,Zm9v", None).unwrap();
        assert_eq!(encoded, ImageData::Encoded(Arc::from(&b"foo"[..])));
        let whole = format!("file://{}", inside.join("a.png").display());
        let path = ImageData::Path(inside.join("a.png").canonicalize().unwrap());
        assert_eq!(picture(&whole, Some(&inside)).unwrap(), path);
        assert_eq!(picture("a.png", Some(&inside)).unwrap(), path);
        for url in ["../b.png", "link.png", "none.png", "/etc/hostname", ""] {
            let refused = picture(url, Some(&inside)).unwrap_err();
            assert!(refused.contains("no such picture"), "{url}: {refused}");
        }
        assert!(picture(&whole, None).unwrap_err().contains("not allowed"));
        assert!(picture("https://x/y.png", Some(&inside)).unwrap_err().contains("fetches nothing"));
        assert!(picture("data:image/png,raw", None).is_err());
        assert!(picture("data:image/png;base64,%%%", None).is_err());
    }
}
