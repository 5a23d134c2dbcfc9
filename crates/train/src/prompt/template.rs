//! Renders chat templates as transformers does.
//! Knows Jinja and its Python habits; knows nothing of tokens or pictures. Cost: compiled once, microseconds a render.
//!
//! Patches over plain minijinja: block trimming on, Python's string and dict methods, a `tojson` that escapes nothing,
//! `raise_exception`, a frozen `strftime_now`, and `{% generation %}` as a block without effect.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json};

use super::error::PromptError;
use super::{files, python_text};

/// A compiled chat template together with the names it may use.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token` and its siblings, as templates print them.
    token_names: Map<String, Json>,
    source: String,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a template. `token_names` are visible to it as variables.
    pub fn new(source: &str, token_names: Map<String, Json>) -> Result<ChatTemplate, PromptError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(problem)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(python_text::method);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| strftime_frozen(&format));
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(problem)?;
        Ok(ChatTemplate { environment, token_names, source: source.to_string() })
    }

    /// The template of a checkpoint folder: `chat_template.jinja`, else `chat_template.json`, else the one inside
    /// `tokenizer_config.json`.
    pub fn load(dir: &Path, token_names: Map<String, Json>) -> Result<ChatTemplate, PromptError> {
        ChatTemplate::new(&find(dir)?, token_names)
    }

    /// The text of some messages (`[{"role": .., "content": [..]}]`).
    pub fn render(&self, messages: &Json, add_generation_prompt: bool) -> Result<String, PromptError> {
        let mut names = self.token_names.clone();
        names.insert("messages".into(), messages.clone());
        names.insert("add_generation_prompt".into(), add_generation_prompt.into());
        // Defined and empty, as transformers hands them over.
        names.extend(["tools", "documents"].map(|name| (name.to_string(), Json::Null)));
        let template = self.environment.get_template(NAME).expect("added when the template was compiled");
        template.render(Value::from(Serde(Json::Object(names)))).map_err(problem)
    }

    /// Whether the template spells this text out: such a token marks turns.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }
}

/// The engine's message with its causes, without the source listing.
fn problem(error: Error) -> PromptError {
    let mut problem = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        problem += &format!(": {inner}");
        cause = inner.source();
    }
    PromptError::Template { problem }
}

fn find(dir: &Path) -> Result<String, PromptError> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.exists() {
        return files::read_text(&jinja);
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = dir.join(name);
        let Some(config) = files::read_json_if_present(&path)? else { continue };
        match config.get("chat_template") {
            Some(Json::String(template)) => return Ok(template.clone()),
            // Several named templates: the one called "default" serves conversations.
            Some(Json::Array(list)) => {
                let named = |entry: &&Json| entry.get("name").and_then(Json::as_str) == Some("default");
                let entry = list.iter().find(named).and_then(|entry| entry.get("template")).and_then(Json::as_str);
                if let Some(template) = entry {
                    return Ok(template.to_string());
                }
            }
            _ => {}
        }
    }
    let problem =
        "no chat template: neither chat_template.jinja nor chat_template.json, none in tokenizer_config.json".into();
    Err(PromptError::File { path: dir.to_path_buf(), problem })
}

/// `{% generation %}` marks assistant tokens in Python and does not parse here. It becomes `{% if true %}`, which trims
/// the same whitespace around it.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let Some(close) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(close + 2);
        let inner = &tag[2..tag.len() - 2];
        let trim_start = if inner.starts_with(['-', '+']) { &inner[..1] } else { "" };
        let inner = &inner[trim_start.len()..];
        let trim_end = if inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
        match inner[..inner.len() - trim_end.len()].trim() {
            "generation" => out.push_str(&format!("{{%{trim_start} if true {trim_end}%}}")),
            "endgeneration" => out.push_str(&format!("{{%{trim_start} endif {trim_end}%}}")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `json.dumps` with `ensure_ascii=False`: Jinja's own filter escapes HTML characters.
fn to_json(value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let fail = |error: serde_json::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let indent: Option<usize> = kwargs.get("indent")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let mut json = serde_json::to_value(&value).map_err(fail)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(&json, &mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => serde::Serialize::serialize(&json, &mut serde_json::Serializer::with_formatter(&mut out, PythonSpaces)),
    }
    .map_err(fail)?;
    let mut text = String::from_utf8(out).expect("serde_json writes UTF-8");
    if ensure_ascii == Some(true) {
        text = escape_non_ascii(&text);
    }
    Ok(Value::from_safe_string(text))
}

fn escape_non_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut units = [0u16; 2];
    for letter in text.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            for unit in letter.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Python's separators: a space after every comma and colon.
struct PythonSpaces;

impl serde_json::ser::Formatter for PythonSpaces {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Templates may print today's date. It is part of the tokens, so it must not change from one day to the next: it is
/// always Friday, 26 July 2024 (the date that Llama's template falls back to), midnight.
fn strftime_frozen(format: &str) -> String {
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut kind = letters.next();
        // Without a leading zero, as the C library has it.
        let bare = kind == Some('-') && letters.clone().next().is_some_and(|kind| "dmHMSjy".contains(kind));
        if bare {
            kind = letters.next();
        }
        match kind {
            Some('m') if bare => out.push('7'),
            Some('H' | 'M' | 'S') if bare => out.push('0'),
            Some('d') => out.push_str("26"),
            Some('m') => out.push_str("07"),
            Some('b' | 'h') => out.push_str("Jul"),
            Some('B') => out.push_str("July"),
            Some('Y') => out.push_str("2024"),
            Some('y') => out.push_str("24"),
            Some('a') => out.push_str("Fri"),
            Some('A') => out.push_str("Friday"),
            Some('j') => out.push_str("208"),
            Some('H' | 'M' | 'S') => out.push_str("00"),
            Some('F') => out.push_str("2024-07-26"),
            Some('T') => out.push_str("00:00:00"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goldens_of_transformers() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/templates");
        let mut num_checked = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let golden: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            let mut names = Map::new();
            names.insert("bos_token".into(), golden["bos_token"].clone());
            let template = ChatTemplate::new(golden["template"].as_str().unwrap(), names).unwrap();
            for case in golden["cases"].as_array().unwrap() {
                let prompt = case["add_generation_prompt"].as_bool().unwrap();
                let place = format!("{} {} {prompt}", path.display(), case["name"]);
                match (template.render(&case["messages"], prompt), case["error"].as_str()) {
                    (Ok(got), None) => assert_eq!(got, case["text"].as_str().unwrap(), "{place}"),
                    (Err(error), Some(wanted)) => assert!(error.to_string().contains(wanted), "{place}: {error}"),
                    (got, wanted) => panic!("{place}: {got:?}, not {wanted:?}"),
                }
                num_checked += 1;
            }
        }
        assert_eq!(num_checked, 44);
    }

    #[test]
    fn a_template_may_refuse_a_conversation() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", Map::new()).unwrap();
        let error = template.render(&Json::Array(vec![]), false).unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
    }

    #[test]
    fn a_broken_template_is_an_error() {
        for source in ["{% if %}", "{{ x", "{% generation", "{% for a in b %}", "{% generation %}"] {
            assert!(ChatTemplate::new(source, Map::new()).is_err(), "{source}");
        }
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let cases = [
            ("{%- generation -%}x{%- endgeneration %}", "{%- if true -%}x{%- endif %}"),
            ("{%generation%}", "{% if true %}"),
            ("{% set generation = 1 %}", "{% set generation = 1 %}"),
        ];
        for (source, want) in cases {
            assert_eq!(without_generation_tags(source), want);
        }
    }

    #[test]
    fn the_date_is_frozen() {
        let template = ChatTemplate::new("{{ strftime_now('%-d %b %Y %-m/%m %-q %q%%') }}", Map::new()).unwrap();
        assert_eq!(template.render(&Json::Null, false).unwrap(), "26 Jul 2024 7/07 %-q %q%");
    }
}
