//! From what a row says a picture is to the picture: a path, a `data:` URL, or bytes of the file itself.
//! A picture must be there and begin like one; it is decoded when it is used. Cost: one open per path.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Seek};
use std::path::Path;
use std::sync::Arc;

use foveate_tasks::ImageData;
use image::{ImageReader, Limits};
use serde_json::Value;

use super::base64;
use super::error::Problem;
use super::parquet::ATTACHED;

/// Most bytes that reading the head of a file may take: what is packed in it (a colour profile) unpacks to anything.
const MAX_HEAD_BYTES: u64 = 1 << 24;

/// A reader of a picture that knows its kind by its content and keeps within bounds while it reads the head.
pub fn reader<R: BufRead + Seek>(source: R) -> io::Result<ImageReader<R>> {
    let mut reader = ImageReader::new(source);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_HEAD_BYTES);
    reader.limits(limits);
    reader.with_guessed_format()
}

/// The same for a file.
pub fn open(path: &Path) -> io::Result<ImageReader<BufReader<File>>> {
    reader(BufReader::new(File::open(path)?))
}

/// Where a row's pictures are.
pub struct Pictures<'a> {
    /// Folder that paths start from.
    pub folder: &'a Path,
    /// Bytes that came with the row.
    pub attached: &'a [Arc<[u8]>],
}

impl Pictures<'_> {
    /// One picture or a list of them; `field` is for messages.
    pub fn all(&self, value: &Value, field: &str) -> Result<Vec<ImageData>, Problem> {
        match value {
            Value::Array(images) => {
                images.iter().enumerate().map(|(i, image)| self.one(image, &format!("{field}[{i}]"))).collect()
            }
            image => Ok(vec![self.one(image, field)?]),
        }
    }

    /// A path, a `data:` URL, bytes, or the pair of bytes and path in which the `datasets` library keeps pictures.
    pub fn one(&self, image: &Value, field: &str) -> Result<ImageData, Problem> {
        match image {
            Value::String(text) => self.named(text, field),
            Value::Object(parts) => {
                let bytes = parts.get(ATTACHED).or_else(|| parts.get("bytes")?.get(ATTACHED)).and_then(Value::as_u64);
                if let Some(bytes) = bytes.and_then(|place| self.attached.get(usize::try_from(place).ok()?)) {
                    reader(Cursor::new(&bytes[..]))
                        .map_err(|error| error.to_string())
                        .and_then(check)
                        .map_err(|problem| Problem::new(field, format!("the picture: {problem}"), FORMATS))?;
                    return Ok(ImageData::Encoded(bytes.clone()));
                }
                match parts.get("path") {
                    Some(Value::String(path)) => self.named(path, field),
                    _ => Err(Problem::new(
                        field,
                        "it holds neither bytes nor a path",
                        "leave pictures out that are empty",
                    )),
                }
            }
            _ => Err(Problem::new(field, "an image must be a path", "write \"images\": [\"pictures/a.png\"]")),
        }
    }

    fn named(&self, text: &str, field: &str) -> Result<ImageData, Problem> {
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
        let path = self.folder.join(text.strip_prefix("file://").unwrap_or(text));
        let wrong =
            |problem: String, hint: &str| Problem::new(field, format!("image {}: {problem}", path.display()), hint);
        let paths = "image paths start from the folder of the data file (or from `images` of the source)";
        let reader = open(&path).map_err(|error| wrong(error.to_string(), paths))?;
        check(reader).map_err(|problem| wrong(problem, FORMATS))?;
        Ok(ImageData::Path(path))
    }
}

const FORMATS: &str = "PNG, JPEG and WebP can be read; the file may be cut off or of another kind";

/// Looks at a picture's header.
fn check<R: BufRead + Seek>(reader: ImageReader<R>) -> Result<(), String> {
    match reader.into_dimensions() {
        Ok((0, _) | (_, 0)) => Err("it has no pixels".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
