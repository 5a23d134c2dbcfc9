//! Reads rows from a file: one JSON object a line, or a JSON array (LLaVA style).
//! Our own field names and those of the published data sets are understood; what is not understood is kept in `meta`.
//! Every complaint names file, line and field. Images are looked at (there, and an image by its header) but not
//! decoded. Cost: the text of the file in memory, one open per image.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foveate_tasks::{ImageData, Row};
use serde_json::{Map, Value};

use super::answer::{self, AnswerType};
use super::base64;
use super::config::OnBadRow;
use super::conversations::{EARLIER, SYSTEM, exchanges, split_reasoning};
use super::error::{DataError, Place, Problem};

/// How a file is read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The file.
    pub path: PathBuf,
    /// Folder that image paths start from.
    pub images: PathBuf,
    /// Type of plain answers, if it is not to be guessed.
    pub answer_type: Option<AnswerType>,
    /// What a bad row does.
    pub on_bad_row: OnBadRow,
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

    let mut collected = Collected { reading, rows: vec![], bad: vec![], ids: HashMap::new() };
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

impl Collected<'_> {
    fn add(&mut self, place: Place, number: usize, value: Result<Value, Problem>) -> Result<(), DataError> {
        match value.and_then(|value| rows_of(self.reading, value, number)).and_then(|rows| self.unique(rows, number)) {
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
fn rows_of(reading: &Reading, value: Value, number: usize) -> Result<Vec<Row>, Problem> {
    let Value::Object(mut fields) = value else {
        return Err(Problem::new("", "a row must be a JSON object", "write {\"question\": .., \"answer\": ..}"));
    };
    let base = base_row(reading, &mut fields, number)?;
    for field in ["conversations", "messages"] {
        if fields.contains_key(field) {
            return conversation_rows(reading, base, fields, field);
        }
    }
    let mut row = base;
    row.images = take_images(reading, &mut fields)?;
    row.question = required_text(&mut fields, "question")?;
    row.choices = text_list(&mut fields, "choices")?;
    row.rationale = split_thought(&optional_text(&mut fields, "rationale")?);
    row.facts = optional_text(&mut fields, "facts")?;
    let declared = declared_type(reading, &mut fields)?;
    let Some((name, value)) = take(&mut fields, "answer") else { return Err(missing(&fields, "answer")) };
    let declared = if name == "direct_answers" { Some(AnswerType::Member) } else { declared };
    row.answer = answer::typed(&untagged(value), declared, &row.choices)?;
    row.meta.extend(fields);
    Ok(vec![row])
}

/// Id, task, split, level and meta, which all kinds of rows may have.
fn base_row(reading: &Reading, fields: &mut Map<String, Value>, number: usize) -> Result<Row, Problem> {
    let stem = reading.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let id = match fields.remove("id") {
        None | Some(Value::Null) => format!("{stem}:{number}"),
        Some(Value::String(id)) if !id.is_empty() => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => {
            return Err(Problem::new("id", "it is neither text nor a number", "leave it out to use line numbers"));
        }
    };
    let task = Some(optional_text(fields, "task")?).filter(|task| !task.is_empty()).unwrap_or(stem);
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
    let found = exchanges(&fields, field, &attached)?;
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
        row.images = exchange.images.iter().map(|image| read_image(reading, image, field)).collect::<Result<_, _>>()?;
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
    let hint = match near {
        Some(key) => format!("there is a field `{key}`; did you mean `{name}`?"),
        None => "a row needs `question` and `answer`; see the data page for all fields".to_string(),
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

fn take_images(reading: &Reading, fields: &mut Map<String, Value>) -> Result<Vec<ImageData>, Problem> {
    match take(fields, "images") {
        None => Ok(vec![]),
        Some((name, Value::Array(images))) => {
            images.iter().enumerate().map(|(i, image)| read_image(reading, image, &format!("{name}[{i}]"))).collect()
        }
        Some((name, image)) => Ok(vec![read_image(reading, &image, name)?]),
    }
}

/// A path or a `data:` URL; the image must be there and begin like one.
fn read_image(reading: &Reading, image: &Value, field: &str) -> Result<ImageData, Problem> {
    let Value::String(text) = image else {
        return Err(Problem::new(field, "an image must be a path", "write \"images\": [\"pictures/a.png\"]"));
    };
    if let Some(rest) = text.strip_prefix("data:") {
        let bytes = rest
            .split_once("base64,")
            .and_then(|(_, code)| base64::decode(code))
            .ok_or_else(|| Problem::new(field, "the data URL is not base64", "write data:image/png;base64,..."))?;
        let known = image::guess_format(&bytes).is_ok();
        let hint = "PNG, JPEG and WebP can be read";
        return if known {
            Ok(ImageData::Encoded(Arc::from(bytes)))
        } else {
            Err(Problem::new(field, "the data URL holds no image", hint))
        };
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        let hint = "nothing is fetched while training; save the image beside the file and name its path";
        return Err(Problem::new(field, format!("`{text}` is not a local file"), hint));
    }
    let path = reading.images.join(text.strip_prefix("file://").unwrap_or(text));
    check_image(&path, field)?;
    Ok(ImageData::Path(path))
}

fn check_image(path: &Path, field: &str) -> Result<(), Problem> {
    let wrong = |problem: String, hint: &str| Problem::new(field, format!("image {}: {problem}", path.display()), hint);
    let paths = "image paths start from the folder of the data file (or from `images` of the source)";
    let reader = image::ImageReader::open(path).map_err(|error| wrong(error.to_string(), paths))?;
    let reader = reader.with_guessed_format().map_err(|error| wrong(error.to_string(), paths))?;
    let formats = "PNG, JPEG and WebP can be read; the file may be cut off or of another kind";
    match reader.into_dimensions() {
        Ok((0, _) | (_, 0)) => Err(wrong("it has no pixels".into(), formats)),
        Ok(_) => Ok(()),
        Err(error) => Err(wrong(error.to_string(), formats)),
    }
}
