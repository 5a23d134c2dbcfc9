//! Reads rows from a file: one JSON object a line, a JSON array (LLaVA style), or Parquet files of a hub data set.
//! Our own field names and those of the published data sets are understood; what is not understood is kept in `meta`.
//! Every complaint names file, line and field. Images are looked at (there, and an image by its header) but not
//! decoded. Cost: the text of the file in memory, one open per image; of Parquet files, the pictures as they are.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use foveate_tasks::Row;
use serde_json::{Map, Value};

use super::answer::{self, AnswerType};
use super::config::OnBadRow;
use super::conversations::{EARLIER, SYSTEM, exchanges, split_reasoning};
use super::error::{DataError, Place, Problem};
use super::parquet::{self, Record, Unreadable};
use super::pictures::Pictures;

/// How a file is read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The file, or the folder of Parquet files.
    pub path: PathBuf,
    /// What its rows are called where they have no id or task of their own.
    pub name: String,
    /// Folder that image paths start from.
    pub images: PathBuf,
    /// Type of plain answers, if it is not to be guessed.
    pub answer_type: Option<AnswerType>,
    /// What a bad row does.
    pub on_bad_row: OnBadRow,
    /// Our name of a field, and the name it has in this file.
    pub fields: BTreeMap<String, String>,
}

/// Our name of each field, then the names it has elsewhere.
const NAMES: [(&str, &[&str]); 6] = [
    ("question", &["problem", "query"]),
    ("answer", &["solution", "direct_answers"]),
    ("rationale", &["hint", "cot"]),
    ("facts", &["visual_fact", "visual_facts"]),
    ("images", &["image"]),
    ("choices", &["options"]),
];

/// The rows of the file, and why the others were left out (only with `OnBadRow::Skip`).
pub fn read(reading: &Reading) -> Result<(Vec<Row>, Vec<DataError>), DataError> {
    let path = &reading.path;
    let bytes = fs::read(path).map_err(DataError::file("read", path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let hint = "save the file as UTF-8; images belong into files of their own";
        Problem::new("", "the text is not UTF-8", hint).at(Place::Line(path.clone(), line))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);

    let mut collected = Collected::new(reading);
    if text.trim_start().starts_with('[') {
        let entries: Vec<Value> = serde_json::from_str(text).map_err(|error| {
            let place = Place::Line(path.clone(), error.line());
            Problem::new("", not_json(&error), "the file must be one JSON array of rows").at(place)
        })?;
        for (i, entry) in entries.into_iter().enumerate() {
            collected.add(Place::Entry(path.clone(), i + 1), i + 1, Ok(entry))?;
        }
    } else {
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let value = serde_json::from_str(line).map_err(|error| {
                Problem::new("", not_json(&error), "each line holds one whole row, without line breaks inside")
            });
            collected.add(Place::Line(path.clone(), i + 1), i + 1, value)?;
        }
    }
    Ok((collected.rows, collected.bad))
}

/// The rows of Parquet files, each with the split that its name tells, if it does.
pub fn read_parquet(
    reading: &Reading,
    files: &[(PathBuf, Option<String>)],
) -> Result<(Vec<Row>, Vec<DataError>), DataError> {
    let mut collected = Collected::new(reading);
    let mut total = 0;
    for (path, split) in files {
        let add = |number: usize, record: Record| -> Result<(), Stop> {
            total += 1;
            let place = Place::Row(path.clone(), number + 1);
            let known = collected.rows.len();
            collected.add_with(place, total, Ok(Value::Object(record.fields)), &record.attached).map_err(Stop::Row)?;
            let new = collected.rows[known..].iter_mut().filter(|row| row.split.is_empty());
            new.for_each(|row| row.split = split.clone().unwrap_or_default());
            Ok(())
        };
        parquet::read(path, add).map_err(|stop| match stop {
            Stop::Row(error) => error,
            Stop::File(Unreadable { problem, hint }) => DataError::Unreadable { path: path.clone(), problem, hint },
        })?;
    }
    Ok((collected.rows, collected.bad))
}

/// Why a Parquet file is not read to its end.
enum Stop {
    Row(DataError),
    File(Unreadable),
}

impl From<Unreadable> for Stop {
    fn from(error: Unreadable) -> Self {
        Stop::File(error)
    }
}

fn not_json(error: &serde_json::Error) -> String {
    format!("not JSON (column {}): {error}", error.column())
}

struct Collected<'a> {
    reading: &'a Reading,
    rows: Vec<Row>,
    bad: Vec<DataError>,
    /// Only looked up, never walked through.
    ids: HashMap<String, usize>,
}

impl<'a> Collected<'a> {
    fn new(reading: &'a Reading) -> Self {
        Self { reading, rows: vec![], bad: vec![], ids: HashMap::new() }
    }

    fn add(&mut self, place: Place, number: usize, value: Result<Value, Problem>) -> Result<(), DataError> {
        self.add_with(place, number, value, &[])
    }

    /// `attached` are the bytes that the row points to.
    fn add_with(
        &mut self,
        place: Place,
        number: usize,
        value: Result<Value, Problem>,
        attached: &[Arc<[u8]>],
    ) -> Result<(), DataError> {
        let pictures = Pictures { folder: &self.reading.images, attached };
        let rows = value.and_then(|value| rows_of(self.reading, &pictures, value, number));
        match rows.and_then(|rows| self.unique(rows, number)) {
            Ok(rows) => self.rows.extend(rows),
            Err(problem) if self.reading.on_bad_row == OnBadRow::Skip => self.bad.push(problem.at(place)),
            Err(problem) => return Err(problem.at(place)),
        }
        Ok(())
    }

    fn unique(&mut self, rows: Vec<Row>, number: usize) -> Result<Vec<Row>, Problem> {
        for row in &rows {
            if let Some(before) = self.ids.insert(row.id.clone(), number) {
                let problem = format!("`{}` is the id of row {before} already", row.id);
                return Err(Problem::new("id", problem, "ids must differ; leave them out to use line numbers"));
            }
        }
        Ok(rows)
    }
}

/// One object of the file: one row, or one per exchange of a conversation.
fn rows_of(reading: &Reading, pictures: &Pictures<'_>, value: Value, number: usize) -> Result<Vec<Row>, Problem> {
    let Value::Object(mut fields) = value else {
        return Err(Problem::new("", "a row must be a JSON object", "write {\"question\": .., \"answer\": ..}"));
    };
    for (ours, theirs) in &reading.fields {
        let Some(value) = fields.shift_remove(theirs) else {
            let there = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Problem::new(theirs, "it is missing", format!("the row has the fields {there}")));
        };
        fields.insert(ours.clone(), value);
    }
    let base = base_row(reading, &mut fields, number)?;
    for field in ["conversations", "messages"] {
        if fields.contains_key(field) {
            return conversation_rows(reading, pictures, base, fields, field);
        }
    }
    let mut row = base;
    row.images = match take(&mut fields, "images") {
        None => vec![],
        Some((name, value)) => pictures.all(&value, name)?,
    };
    row.question = required_text(&mut fields, "question")?;
    row.choices = text_list(&mut fields, "choices")?;
    row.rationale = split_thought(&optional_text(&mut fields, "rationale")?);
    row.facts = optional_text(&mut fields, "facts")?;
    let declared = declared_type(reading, &mut fields)?;
    let Some((name, value)) = take(&mut fields, "answer") else { return Err(missing(&fields, "answer")) };
    let declared = if name == "direct_answers" { Some(AnswerType::Member) } else { declared };
    row.answer = answer::typed(&untagged(value), declared, &row.choices)?;
    row.meta.extend(fields.into_iter().filter(|(_, value)| !parquet::is_attached(value)));
    Ok(vec![row])
}

/// Id, task, split, level and meta, which all kinds of rows may have.
fn base_row(reading: &Reading, fields: &mut Map<String, Value>, number: usize) -> Result<Row, Problem> {
    let name = &reading.name;
    let id = match fields.remove("id") {
        None | Some(Value::Null) => format!("{name}:{number}"),
        Some(Value::String(id)) if !id.is_empty() => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => {
            return Err(Problem::new("id", "it is neither text nor a number", "leave it out to use line numbers"));
        }
    };
    let task = Some(optional_text(fields, "task")?).filter(|task| !task.is_empty()).unwrap_or_else(|| name.clone());
    let split = optional_text(fields, "split")?;
    let level = match fields.remove("level") {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_u64().and_then(|level| u8::try_from(level).ok()).ok_or_else(|| {
            Problem::new("level", "it is no whole number from 0 to 255", "leave it out if there are no levels")
        })?,
    };
    let meta = match fields.remove("meta") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(meta)) => meta,
        Some(_) => return Err(Problem::new("meta", "it is no object", "write {\"name\": value}")),
    };
    let answer = foveate_tasks::Answer::Text(String::new());
    let empty = String::new();
    Ok(Row {
        id,
        images: vec![],
        question: empty.clone(),
        answer,
        choices: vec![],
        rationale: empty.clone(),
        facts: empty,
        task,
        split,
        level,
        meta,
    })
}

fn conversation_rows(
    reading: &Reading,
    pictures: &Pictures<'_>,
    base: Row,
    mut fields: Map<String, Value>,
    field: &str,
) -> Result<Vec<Row>, Problem> {
    let attached = match take(&mut fields, "images") {
        None | Some((_, Value::Null)) => vec![],
        Some((_, Value::Array(images))) => images,
        Some((_, image)) => vec![image],
    };
    let declared = declared_type(reading, &mut fields)?;
    let mut found = exchanges(&fields, field, &attached)?;
    fields.shift_remove(field);
    // LLaMA-Factory names the system prompt beside the turns.
    let beside = optional_text(&mut fields, SYSTEM)?;
    found
        .iter_mut()
        .filter(|exchange| exchange.system.is_empty())
        .for_each(|exchange| exchange.system.clone_from(&beside));
    let mut base = base;
    base.meta.extend(fields.into_iter().filter(|(_, value)| !parquet::is_attached(value)));
    let several = found.len() > 1;
    let row = |(i, exchange): (usize, super::conversations::Exchange)| {
        let mut row = base.clone();
        if several {
            row.id = format!("{}#{}", base.id, i + 1);
        }
        let (rationale, text) = split_reasoning(&exchange.answer);
        if exchange.question.is_empty() {
            return Err(Problem::new(field, "a question is empty", "the user's turn needs text besides its images"));
        }
        row.question = exchange.question;
        row.rationale = rationale;
        row.answer = answer::typed(&Value::String(text), declared, &[])?;
        row.images = exchange.images.iter().map(|image| pictures.one(image, field)).collect::<Result<_, _>>()?;
        if !exchange.system.is_empty() {
            row.meta.insert(SYSTEM.into(), exchange.system.into());
        }
        if !exchange.earlier.is_empty() {
            let earlier = serde_json::to_value(exchange.earlier).expect("plain data always serialises");
            row.meta.insert(EARLIER.into(), earlier);
        }
        Ok(row)
    };
    found.into_iter().enumerate().map(row).collect()
}

/// The value of a field under any of its names.
fn take(fields: &mut Map<String, Value>, name: &'static str) -> Option<(&'static str, Value)> {
    let others = NAMES.iter().find(|(ours, _)| *ours == name).map_or(&[][..], |(_, others)| others);
    std::iter::once(&name).chain(others).find_map(|name| {
        let value = fields.shift_remove(*name)?;
        (!value.is_null()).then_some((*name, value))
    })
}

fn missing(fields: &Map<String, Value>, name: &str) -> Problem {
    let near = fields.keys().filter(|key| strsim::damerau_levenshtein(key, name) <= 2).min();
    let there = || fields.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let hint = match near {
        Some(key) => format!("there is a field `{key}`; did you mean `{name}`?"),
        None if fields.is_empty() => {
            "a row needs `question` and `answer`; see the data page for all fields".to_string()
        }
        None => {
            let other = there();
            format!("the row also has {other}; say which one is meant: fields = {{ {name} = \"its name\" }}")
        }
    };
    Problem::new(name, "it is missing", hint)
}

fn required_text(fields: &mut Map<String, Value>, name: &'static str) -> Result<String, Problem> {
    match take(fields, name) {
        None => Err(missing(fields, name)),
        Some((_, Value::String(text))) if !text.trim().is_empty() => Ok(text),
        Some((_, Value::String(_))) => Err(Problem::new(name, "it is empty", "write the text")),
        Some((found, _)) => Err(Problem::new(found, "it is not text", "put it in quotes")),
    }
}

fn optional_text(fields: &mut Map<String, Value>, name: &'static str) -> Result<String, Problem> {
    match take(fields, name) {
        None => Ok(String::new()),
        Some((_, Value::String(text))) => Ok(text),
        Some((found, _)) => Err(Problem::new(found, "it is not text", "put it in quotes, or leave the field out")),
    }
}

fn text_list(fields: &mut Map<String, Value>, name: &'static str) -> Result<Vec<String>, Problem> {
    let Some((found, value)) = take(fields, name) else { return Ok(vec![]) };
    let wrong = || Problem::new(found, "it is not a list of texts", "write [\"first\", \"second\"]");
    let Value::Array(items) = value else { return Err(wrong()) };
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(wrong()),
        })
        .collect()
}

fn declared_type(reading: &Reading, fields: &mut Map<String, Value>) -> Result<Option<AnswerType>, Problem> {
    let text = optional_text(fields, "answer_type")?;
    if text.is_empty() {
        return Ok(reading.answer_type);
    }
    let hint = "types are number, text, member, choice, yes_no, labels, box, functions, expression";
    AnswerType::named(&text)
        .map(Some)
        .ok_or_else(|| Problem::new("answer_type", format!("`{text}` is no answer type"), hint))
}

/// `<answer> 3 </answer>` as some published files write it, without the tags.
fn untagged(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains("<answer>") => Value::String(split_reasoning(&text).1),
        other => other,
    }
}

/// A rationale without think tags and without the answer that some files repeat behind it.
fn split_thought(text: &str) -> String {
    if text.contains("<think>") || text.contains("<answer>") {
        let (thought, rest) = split_reasoning(text);
        let kept = if thought.is_empty() { rest } else { thought };
        kept.replace("<think>", "").replace("</think>", "").trim().to_string()
    } else {
        text.trim().to_string()
    }
}
