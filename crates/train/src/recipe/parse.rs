//! TOML text to typed settings, with messages for the person who typed it: file, line, column, nearest known key.
//! Knows TOML and serde's messages; knows no setting. Cost: none worth naming.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}{message}", place(file, *line, *column))]
pub struct RecipeError {
    /// The recipe.
    pub file: PathBuf,
    /// Line, from 1; 0 if the place is not known.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

fn place(file: &Path, line: usize, column: usize) -> String {
    if line == 0 { format!("{}: ", file.display()) } else { format!("{}:{line}:{column}: ", file.display()) }
}

impl RecipeError {
    /// An error about the recipe as a whole, or about a setting whose place is told in the message.
    pub fn new(file: &Path, message: impl Into<String>, hint: impl Into<Option<String>>) -> Self {
        Self { file: file.to_path_buf(), line: 0, column: 0, message: message.into(), hint: hint.into() }
    }
}

/// A single value, written as `value = ..`: for settings that stand on the command line.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrapped<T> {
    /// The value.
    pub value: T,
}

/// Reads `text`, the content of `file`, as a `T`, after replacing the values named in `sets` (`key.path=value`).
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str, sets: &[String]) -> Result<T, RecipeError> {
    let as_typed = toml::from_str::<T>(text).map_err(|error| explain(file, text, &error));
    if sets.is_empty() {
        return as_typed;
    }
    let mut table: toml::Table = toml::from_str(text).map_err(|error| explain(file, text, &error))?;
    for set in sets {
        apply(&mut table, set).map_err(|message| RecipeError {
            hint: Some("write --set stage.0.steps=50 or --set optim.lr=1e-4".to_string()),
            ..RecipeError::new(file, format!("--set {set}: {message}"), None)
        })?;
    }
    let text_with_sets = toml::to_string(&table).expect("a parsed table can be written again");
    toml::from_str::<T>(&text_with_sets).map_err(|error| {
        // If the file alone is wrong, its own message has the better position.
        as_typed.err().unwrap_or_else(|| {
            let told = explain(file, &text_with_sets, &error);
            RecipeError { line: 0, column: 0, message: format!("with --set: {}", told.message), ..told }
        })
    })
}

/// Replaces or adds one value: `a.b.2.c=value`, or `stage.NAME.c=value` for a list of named tables.
fn apply(table: &mut toml::Table, set: &str) -> Result<(), String> {
    let (path, text) = set.split_once('=').ok_or("there is no = in it")?;
    let text = text.trim();
    let value = toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        // A bare word is text: --set model=minnow.
        .unwrap_or_else(|| toml::Value::String(text.to_string()));
    let keys: Vec<&str> = path.trim().split('.').collect();
    let (last, parents) = keys.split_last().ok_or("there is no key in it")?;
    if keys.iter().any(|key| key.is_empty()) {
        return Err("a part of the key is empty".to_string());
    }
    let mut root = toml::Value::Table(std::mem::take(table));
    let outcome = (|| {
        let mut at = &mut root;
        for key in parents {
            at = step_into(at, key)?;
        }
        match at {
            toml::Value::Table(table) => {
                table.insert((*last).to_string(), value);
                Ok(())
            }
            toml::Value::Array(list) => {
                let index = last.parse::<usize>().ok().filter(|index| *index < list.len());
                let index = index.ok_or_else(|| format!("{last} is not among its {} entries", list.len()))?;
                list[index] = value;
                Ok(())
            }
            _ => Err(format!("{} holds a single value", parents.join("."))),
        }
    })();
    if let toml::Value::Table(back) = root {
        *table = back;
    }
    outcome
}

fn step_into<'a>(at: &'a mut toml::Value, key: &str) -> Result<&'a mut toml::Value, String> {
    match at {
        toml::Value::Table(table) => {
            Ok(table.entry(key.to_string()).or_insert_with(|| toml::Value::Table(toml::Table::new())))
        }
        toml::Value::Array(list) => {
            let named = |value: &toml::Value| value.get("name").and_then(toml::Value::as_str) == Some(key);
            let index = key.parse::<usize>().ok().filter(|index| *index < list.len());
            let index = index.or_else(|| list.iter().position(named));
            let count = list.len();
            index
                .map(|index| &mut list[index])
                .ok_or_else(|| format!("{key} is neither an index nor a name of its {count} entries"))
        }
        _ => Err(format!("what stands before {key} is a single value")),
    }
}

/// Position, nearest known key, and plain words for what the parser said.
fn explain(file: &Path, text: &str, error: &toml::de::Error) -> RecipeError {
    let message = error.message().to_string();
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let mut span = error.span().unwrap_or(0..0);
    let mut told = message.clone();
    let mut hint = None;
    if let Some(kind) = ["unknown field", "unknown variant"].into_iter().find(|kind| message.starts_with(kind)) {
        let (unknown, known) = names.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
        let what = if kind == "unknown field" { "key" } else { "value" };
        told = format!("unknown {what} `{unknown}`");
        hint = Some(match nearest(unknown, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? Known here: {}", known.join(", ")),
            None if known.is_empty() => format!("there are no {what}s here"),
            None => format!("known here: {}", known.join(", ")),
        });
        // Tagged tables lose the position of a key inside them; it is found again by its name.
        if what == "key" && text.get(span.clone()).is_some_and(|found| found.trim() != unknown) {
            span = find_key(text, span.clone(), unknown).unwrap_or(span);
        }
    }
    if hint.is_none() {
        hint = Some(match message.starts_with("invalid") || message.starts_with("missing") {
            true => {
                "every key is explained where it is declared; recipes/quickstart.toml shows the usual ones".to_string()
            }
            false => "recipes are TOML: text in quotes, tables in braces, lists in brackets".to_string(),
        });
    }
    let (line, column) = if error.span().is_some() { position(text, span.start) } else { (0, 0) };
    RecipeError { file: file.to_path_buf(), line, column, message: told, hint }
}

/// Where `key` is assigned inside `span`.
fn find_key(text: &str, span: std::ops::Range<usize>, key: &str) -> Option<std::ops::Range<usize>> {
    let part = text.get(span.clone())?;
    part.match_indices(key).find_map(|(index, _)| {
        let before = part[..index].chars().next_back();
        let after = part[index + key.len()..].trim_start().chars().next();
        let alone = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        (alone && after == Some('=')).then(|| span.start + index..span.start + index + key.len())
    })
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset.min(text.len()))];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

/// The known name that `unknown` most likely stands for.
pub fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (strsim::normalized_damerau_levenshtein(unknown, name), strsim::jaro_winkler(unknown, name), name))
        .filter(|(edits, winkler, _)| *edits >= 0.5 || *winkler >= 0.85)
        // Ties go to the name that is listed first.
        .fold(None, |best: Option<(f64, &str)>, (edits, winkler, name)| {
            let score = edits + winkler;
            if best.is_none_or(|(best, _)| score > best) { Some((score, name)) } else { best }
        })
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only parsing is tested")]
        name: String,
        optim: Option<Inner>,
        #[serde(default)]
        rewards: Vec<Tagged>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        lr: f32,
        #[expect(dead_code, reason = "only parsing is tested")]
        warmup: Option<u32>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, tag = "kind", rename_all = "snake_case")]
    enum Tagged {
        Accuracy { weight: Option<f32> },
        FormatFlag,
    }

    fn error(text: &str, sets: &[&str]) -> RecipeError {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        parse::<Outer>(Path::new("r.toml"), text, &sets).unwrap_err()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_known_one() {
        let told = error("name = \"x\"\n[optim]\nlr = 1e-4\nwarmpu = 3\n", &[]);
        assert_eq!((told.line, told.column), (4, 1));
        assert_eq!(told.to_string(), "r.toml:4:1: unknown key `warmpu`");
        assert!(told.hint.unwrap().starts_with("did you mean `warmup`?"));
    }

    #[test]
    fn an_unknown_key_inside_a_tagged_table_is_found() {
        let told = error(
            "name = \"x\"\nrewards = [ { kind = \"format_flag\" },\n  { kind = \"accuracy\", wieght = 1 } ]\n",
            &[],
        );
        assert_eq!((told.line, told.column), (3, 24), "{told}");
        assert!(told.hint.unwrap().contains("`weight`"));
        let told = error("name = \"x\"\nrewards = [ { kind = \"acuracy\" } ]\n", &[]);
        assert!(told.message.contains("unknown value `acuracy`"), "{told}");
        assert!(told.hint.unwrap().contains("did you mean `accuracy`?"));
    }

    #[test]
    fn a_wrong_type_and_broken_toml_have_a_place() {
        let told = error("name = \"x\"\n[optim]\nlr = \"fast\"\n", &[]);
        assert_eq!(told.line, 3);
        assert!(told.message.contains("expected f32") || told.message.contains("invalid type"), "{told}");
        assert_eq!(error("name = \"x\"\n[optim\n", &[]).line, 2);
    }

    #[test]
    fn sets_replace_and_add_values() {
        let text = "name = \"x\"\n[optim]\nlr = 1.0\n[[rewards]]\nkind = \"accuracy\"\n";
        let sets: Vec<String> = ["optim.lr=0.5", "rewards.0.weight=2"].map(String::from).to_vec();
        let outer: Outer = parse(Path::new("r.toml"), text, &sets).unwrap();
        assert_eq!(outer.optim.unwrap().lr, 0.5);
        assert!(matches!(outer.rewards[0], Tagged::Accuracy { weight: Some(_) }));
        assert!(error(text, &["optim.lrr=1"]).to_string().contains("with --set: unknown key `lrr`"));
        assert!(error(text, &["optim.lr"]).to_string().contains("no ="));
        assert!(error(text, &["rewards.7.weight=1"]).to_string().contains("7 is neither"));
        assert!(error(text, &["name.x=1"]).to_string().contains("single value"));
        let _ = Tagged::FormatFlag;
    }

    #[test]
    fn far_names_are_not_suggested() {
        assert_eq!(nearest("zzz", ["lr", "warmup"].into_iter()), None);
        assert_eq!(nearest("learning_rate", ["lr", "warmup"].into_iter()), None);
        assert_eq!(nearest("step", ["name", "steps", "stage"].into_iter()), Some("steps"));
    }
}
