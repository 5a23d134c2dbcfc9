//! Rows to disk: one JSON object a line and PNG files beside it, in the form that `files` reads.
//! A data set appears in full or not at all: everything is written aside, synced, then renamed.
//! Cost: one PNG per drawn picture (about 1 ms), in parallel.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use foveate_tasks::{Drawing, ImageData, Row};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::dataset::Dataset;
use super::error::DataError;

/// Name of the file of rows in a folder made by [`make`].
pub const ROWS: &str = "rows.jsonl";
/// Name of the folder of pictures beside it.
const IMAGES: &str = "images";
/// Rows drawn at a time; bounds memory.
const CHUNK: usize = 256;

/// Writes a data set into the new folder `folder`: `rows.jsonl` and `images/`.
pub fn make(dataset: &Dataset, folder: &Path) -> Result<(), DataError> {
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
        write_all(dataset.len(), |i| dataset.row(i), &aside.join(ROWS), IMAGES, true)?;
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
    write_all(rows.len(), |i| rows[i].clone(), file, &format!("{stem}-images"), false)
}

fn write_all(
    count: usize,
    row: impl Fn(usize) -> Row + Sync,
    file: &Path,
    images: &str,
    copy_files: bool,
) -> Result<(), DataError> {
    let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = folder.join(format!(".{}.partial", file.file_name().unwrap_or_default().to_string_lossy()));
    let mut out = File::create(&aside).map_err(DataError::file("write", &aside))?;
    let written = (|| {
        for start in (0..count).step_by(CHUNK) {
            let lines: Vec<String> = (start..count.min(start + CHUNK))
                .into_par_iter()
                .map(|i| {
                    let row = row(i);
                    let names = row
                        .images
                        .iter()
                        .enumerate()
                        .map(|(j, image)| place_image(image, folder, images, &stem_of(i, j, &row), copy_files));
                    Ok(line(&row, &names.collect::<Result<Vec<_>, DataError>>()?))
                })
                .collect::<Result<_, DataError>>()?;
            out.write_all(lines.concat().as_bytes()).map_err(DataError::file("write", file))?;
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
fn place_image(
    image: &ImageData,
    folder: &Path,
    images: &str,
    stem: &str,
    copy_files: bool,
) -> Result<String, DataError> {
    let (bytes, extension) = match image {
        ImageData::Path(path) if !copy_files => {
            let absolute = std::path::absolute(path).map_err(DataError::file("find", path))?;
            let home = std::path::absolute(folder).map_err(DataError::file("find", folder))?;
            let name = absolute.strip_prefix(&home).map(Path::to_path_buf).unwrap_or(absolute);
            return Ok(slashes(&name));
        }
        ImageData::Path(path) => {
            let bytes = fs::read(path).map_err(DataError::file("read", path))?;
            let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
            (bytes, extension.unwrap_or_else(|| "png".into()))
        }
        ImageData::Encoded(bytes) => {
            let kind = image::guess_format(bytes).ok().and_then(|format| format.extensions_str().first().copied());
            (bytes.to_vec(), kind.unwrap_or("png").to_string())
        }
        ImageData::Drawn(drawing) => (png(drawing), "png".to_string()),
    };
    let name = PathBuf::from(images).join(format!("{stem}.{extension}"));
    let path = folder.join(&name);
    let parent = folder.join(images);
    fs::create_dir_all(&parent).map_err(DataError::file("create the folder", &parent))?;
    let write = || -> io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(&bytes)?;
        file.sync_data()
    };
    write().map_err(DataError::file("write", &path))?;
    Ok(slashes(&name))
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
