//! Rows to disk: one JSON object a line and PNG files beside it, in the form that `files` reads.
//! A data set appears in full or not at all: everything is written aside, synced, then renamed.
//! Cost: one PNG per drawn picture (about 1 ms), in parallel.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use foveate_tasks::{Drawing, ImageData, Row};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::conversations::{EARLIER, Earlier, SYSTEM};
use super::dataset::Dataset;
use super::error::DataError;

/// Name of the file of rows in a folder made by [`make`].
pub const ROWS: &str = "rows.jsonl";
/// Name of the folder of pictures beside it.
const IMAGES: &str = "images";
/// Rows drawn at a time; bounds memory.
const CHUNK: usize = 256;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Our own fields, one object a line: nothing is lost.
    Rows,
    /// `{"messages": [..]}`, one object a line.
    Messages,
    /// LLaVA's `conversations`, one JSON array.
    Llava,
}

impl Form {
    /// Name of the file in a folder made by [`convert`].
    pub fn file(self) -> &'static str {
        if self == Form::Llava { "rows.json" } else { ROWS }
    }
}

/// Writes a data set into the new folder `folder`: `rows.jsonl` and `images/`.
pub fn make(dataset: &Dataset, folder: &Path) -> Result<(), DataError> {
    convert(dataset, folder, Form::Rows)
}

/// The same in the form that other programs read.
pub fn convert(dataset: &Dataset, folder: &Path, form: Form) -> Result<(), DataError> {
    let taken = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file();
    if taken {
        return Err(DataError::Source {
            problem: format!("{} already holds something", folder.display()),
            hint: "choose a new folder; nothing is ever overwritten".into(),
        });
    }
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(DataError::file("create the folder", parent))?;
    // A fixed name: what a killed run left behind is found and replaced.
    let aside = parent.join(format!(".{name}.partial"));
    let written = (|| {
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(DataError::file("remove", &aside))?;
        }
        fs::create_dir_all(&aside).map_err(DataError::file("create the folder", &aside))?;
        let shown_first = shown_first(dataset);
        let place = Place { images: IMAGES, copy: Some(&shown_first) };
        write_all(dataset.len(), |i| dataset.row(i), &aside.join(form.file()), &place, form)?;
        if folder.is_dir() {
            fs::remove_dir(folder).map_err(DataError::file("replace", folder))?;
        }
        fs::rename(&aside, folder).map_err(DataError::file("create the folder", folder))
    })();
    if written.is_err() {
        // Best effort: the name begins with a dot and is never read.
        let _ = fs::remove_dir_all(&aside);
    }
    written
}

/// Writes rows into `file`. Pictures that are files already are named by their path; the others are written into a
/// folder beside it, called after the file. The file is replaced in one step, after all pictures.
pub fn write_rows(rows: &[Row], file: &Path) -> Result<(), DataError> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let place = Place { images: &format!("{stem}-images"), copy: None };
    write_all(rows.len(), |i| rows[i].clone(), file, &place, Form::Rows)
}

/// Where pictures go.
struct Place<'a> {
    /// The folder, beside the file of rows.
    images: &'a str,
    /// Pictures that are files already are copied too, once each: here is what each is called. Otherwise their paths
    /// are named.
    copy: Option<&'a HashMap<Kept, String>>,
}

/// What makes two pictures the same one without looking into them.
#[derive(PartialEq, Eq, Hash)]
enum Kept {
    File(PathBuf),
    /// The place of shared bytes in memory.
    Bytes(usize),
}

impl Kept {
    fn of(image: &ImageData) -> Option<Kept> {
        match image {
            ImageData::Path(path) => Some(Kept::File(path.clone())),
            ImageData::Encoded(bytes) => Some(Kept::Bytes(bytes.as_ptr() as usize)),
            ImageData::Drawn(_) => None,
        }
    }
}

/// The name of every picture that is there already, after the row that shows it first: the exchanges of a conversation
/// share theirs.
fn shown_first(dataset: &Dataset) -> HashMap<Kept, String> {
    let mut names = HashMap::new();
    for i in 0..dataset.len() {
        let row = dataset.text_row(i);
        for (j, image) in row.images.iter().enumerate() {
            if let Some(kept) = Kept::of(image) {
                names.entry(kept).or_insert_with(|| stem_of(i, j, &row));
            }
        }
    }
    names
}

fn write_all(
    count: usize,
    row: impl Fn(usize) -> Row + Sync,
    file: &Path,
    place: &Place<'_>,
    form: Form,
) -> Result<(), DataError> {
    let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = folder.join(format!(".{}.partial", file.file_name().unwrap_or_default().to_string_lossy()));
    let mut out = File::create(&aside).map_err(DataError::file("write", &aside))?;
    let written = (|| {
        if form == Form::Llava {
            out.write_all(b"[").map_err(DataError::file("write", file))?;
        }
        for start in (0..count).step_by(CHUNK) {
            let lines: Vec<String> = (start..count.min(start + CHUNK))
                .into_par_iter()
                .map(|i| {
                    let row = row(i);
                    let names = row
                        .images
                        .iter()
                        .enumerate()
                        .map(|(j, image)| place_image(image, folder, place, &stem_of(i, j, &row)));
                    let names = names.collect::<Result<Vec<_>, DataError>>()?;
                    let separator = if i > 0 { ",\n" } else { "" };
                    Ok(match form {
                        Form::Rows => line(&row, &names),
                        Form::Messages => format!("{}\n", messages(&row, &names)),
                        Form::Llava => format!("{separator}{}", conversations(&row, &names)),
                    })
                })
                .collect::<Result<_, DataError>>()?;
            out.write_all(lines.concat().as_bytes()).map_err(DataError::file("write", file))?;
        }
        if form == Form::Llava {
            out.write_all(b"]\n").map_err(DataError::file("write", file))?;
        }
        out.sync_all().map_err(DataError::file("write", file))?;
        fs::rename(&aside, file).map_err(DataError::file("write", file))
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

/// `000042`, or `000042-1` for the second of several pictures.
fn stem_of(row: usize, image: usize, of: &Row) -> String {
    if of.images.len() > 1 { format!("{row:06}-{image}") } else { format!("{row:06}") }
}

/// Puts a picture where the row can name it; gives the name, relative to `folder`.
fn place_image(image: &ImageData, folder: &Path, place: &Place<'_>, stem: &str) -> Result<String, DataError> {
    if let (ImageData::Path(path), None) = (image, place.copy) {
        let absolute = std::path::absolute(path).map_err(DataError::file("find", path))?;
        let home = std::path::absolute(folder).map_err(DataError::file("find", folder))?;
        let name = absolute.strip_prefix(&home).map(Path::to_path_buf).unwrap_or(absolute);
        return Ok(slashes(&name));
    }
    let extension = match image {
        ImageData::Path(path) => path.extension().map(|extension| extension.to_string_lossy().to_lowercase()),
        ImageData::Encoded(bytes) => image::guess_format(bytes)
            .ok()
            .and_then(|format| format.extensions_str().first().map(|extension| extension.to_string())),
        ImageData::Drawn(_) => None,
    };
    let first = Kept::of(image).and_then(|kept| place.copy?.get(&kept)).map_or(stem, String::as_str);
    let parent = folder.join(place.images);
    let file_name = format!("{first}.{}", extension.as_deref().unwrap_or("png"));
    let name = slashes(&Path::new(place.images).join(&file_name));
    if first != stem {
        // The row that shows it first writes it.
        return Ok(name);
    }
    let path = parent.join(file_name);
    let bytes = match image {
        ImageData::Path(path) => Cow::from(fs::read(path).map_err(DataError::file("read", path))?),
        ImageData::Encoded(bytes) => Cow::from(&bytes[..]),
        ImageData::Drawn(drawing) => Cow::from(png(drawing)),
    };
    fs::create_dir_all(&parent).map_err(DataError::file("create the folder", &parent))?;
    let write = || -> io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        file.sync_data()
    };
    write().map_err(DataError::file("write", &path))?;
    Ok(name)
}

/// Names in files are written with `/` on every system.
fn slashes(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/").replace("//", "/")
}

/// A drawing as PNG.
pub fn png(drawing: &Drawing) -> Vec<u8> {
    let mut bytes = io::Cursor::new(Vec::new());
    image::write_buffer_with_format(
        &mut bytes,
        &drawing.rgb,
        drawing.width,
        drawing.height,
        image::ColorType::Rgb8,
        image::ImageFormat::Png,
    )
    .expect("three bytes per pixel in memory always make a PNG");
    bytes.into_inner()
}

/// A row's turns: who speaks, what they say, and how many images come with it.
fn turns(row: &Row) -> Vec<Earlier> {
    let kept = row.meta.get(EARLIER).cloned().unwrap_or_default();
    let mut turns: Vec<Earlier> = serde_json::from_value(kept).unwrap_or_default();
    let shown: usize = turns.iter().map(|turn| turn.images).sum();
    let question = foveate_tasks::derive::question_text(row);
    turns.push(Earlier { answered: false, text: question, images: row.images.len().saturating_sub(shown) });
    let answer = row.answer.text();
    // Read back, the last line is told from the reasoning above it.
    let text = match row.rationale.trim() {
        "" => answer,
        rationale => format!("{rationale}\nAnswer: {answer}"),
    };
    turns.push(Earlier { answered: true, text, images: 0 });
    turns
}

/// A row in OpenAI's words.
fn messages(row: &Row, images: &[String]) -> Value {
    let mut images = images.iter();
    let mut messages = Vec::new();
    if let Some(system) = row.meta.get(SYSTEM) {
        messages.push(json!({"role": "system", "content": system}));
    }
    for turn in turns(row) {
        let mut parts: Vec<Value> =
            images.by_ref().take(turn.images).map(|image| json!({"type": "image", "image": image})).collect();
        let role = if turn.answered { "assistant" } else { "user" };
        messages.push(if parts.is_empty() {
            json!({"role": role, "content": turn.text})
        } else {
            parts.push(json!({"type": "text", "text": turn.text}));
            json!({"role": role, "content": parts})
        });
    }
    json!({"id": row.id, "messages": messages})
}

/// A row in LLaVA's words.
fn conversations(row: &Row, images: &[String]) -> Value {
    let mut said = Vec::new();
    if let Some(system) = row.meta.get(SYSTEM) {
        said.push(json!({"from": "system", "value": system}));
    }
    for turn in turns(row) {
        let from = if turn.answered { "gpt" } else { "human" };
        said.push(json!({"from": from, "value": format!("{}{}", "<image>\n".repeat(turn.images), turn.text)}));
    }
    let mut fields = Map::new();
    fields.insert("id".into(), row.id.clone().into());
    match images {
        [] => {}
        [image] => drop(fields.insert("image".into(), image.clone().into())),
        several => drop(fields.insert("image".into(), several.into())),
    }
    fields.insert("conversations".into(), said.into());
    Value::Object(fields)
}

/// One line of a rows file. Empty fields are left out.
fn line(row: &Row, images: &[String]) -> String {
    let mut fields = Map::new();
    fields.insert("id".into(), row.id.clone().into());
    if !images.is_empty() {
        fields.insert("images".into(), images.into());
    }
    fields.insert("question".into(), row.question.clone().into());
    fields.insert("answer".into(), json!(row.answer));
    if !row.choices.is_empty() {
        fields.insert("choices".into(), json!(row.choices));
    }
    for (name, text) in
        [("rationale", &row.rationale), ("facts", &row.facts), ("task", &row.task), ("split", &row.split)]
    {
        if !text.is_empty() {
            fields.insert(name.into(), text.clone().into());
        }
    }
    if row.level > 0 {
        fields.insert("level".into(), row.level.into());
    }
    if !row.meta.is_empty() {
        fields.insert("meta".into(), Value::Object(row.meta.clone()));
    }
    format!("{}\n", Value::Object(fields))
}
