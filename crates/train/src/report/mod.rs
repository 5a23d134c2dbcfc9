//! What a run writes down and what it shows: metrics, samples, events, the page.
//! Reads everything, feeds nothing back. Cost: a few hundred bytes a step.

pub mod chart;
pub mod events;
pub mod files;
pub mod log;
pub mod page;
pub mod records;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use foveate_tasks::row::{Drawing, ImageData};
use serde::{Deserialize, Serialize};

use crate::checkpoint::crc32c::crc32c;
use crate::checkpoint::durable::{FileError, create_folder, write_file};
use events::Events;
use log::LogFile;
use records::{SampleRecord, StepRecord};

/// What is written down beside the metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportConfig {
    /// Groups of each step that go into `samples.jsonl` with their pictures. Two are enough to watch a run; all of
    /// them (a large number) allow a study of the answers and take a few megabytes per hundred steps.
    pub samples_per_step: usize,
}

impl Default for ReportConfig {
    fn default() -> Self {
        Self { samples_per_step: 2 }
    }
}

/// The growing files of a run.
#[derive(Debug)]
pub struct Logs {
    folder: PathBuf,
    metrics: LogFile,
    samples: LogFile,
    events: Events,
}

const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.jsonl";

impl Logs {
    /// Opens the logs of a run and cuts them back to the lengths that a checkpoint knows; none for a new run.
    pub fn open(folder: &Path, lengths: &BTreeMap<String, u64>) -> Result<Self, FileError> {
        let keep = |name: &str| lengths.get(name).copied().unwrap_or(0);
        Ok(Self {
            folder: folder.to_path_buf(),
            metrics: LogFile::open(&folder.join(METRICS), keep(METRICS))?,
            samples: LogFile::open(&folder.join(SAMPLES), keep(SAMPLES))?,
            events: Events::open(folder, keep(events::FILE_NAME))?,
        })
    }

    /// Writes down a step. `wall_time` is in seconds since 1970.
    pub fn step(&mut self, record: &StepRecord, wall_time: f64) -> Result<(), FileError> {
        self.metrics.append_json(record)?;
        let values = record.metrics.iter().map(|(name, value)| (name.as_str(), *value));
        self.events.scalars(record.step, wall_time, values)
    }

    /// Writes down a group; its pictures are stored once each, under a name made from their content.
    pub fn sample(&mut self, mut record: SampleRecord, images: &[ImageData]) -> Result<(), FileError> {
        for image in images {
            // A picture that cannot be encoded was already refused when it was shown to the model.
            let Some(png) = png(image) else { continue };
            let name = format!("images/{:08x}-{}.png", crc32c(&png), png.len());
            let path = self.folder.join(&name);
            if !path.is_file() {
                create_folder(&self.folder.join("images"))?;
                write_file(&path, &png)?;
            }
            record.images.push(name);
        }
        self.samples.append_json(&record)
    }

    /// Waits for the disk and gives the lengths, to be kept in a checkpoint.
    pub fn sync(&mut self) -> Result<BTreeMap<String, u64>, FileError> {
        Ok(BTreeMap::from([
            (METRICS.to_string(), self.metrics.sync()?),
            (SAMPLES.to_string(), self.samples.sync()?),
            (events::FILE_NAME.to_string(), self.events.sync()?),
        ]))
    }
}

/// Pictures wider or higher than this are shrunk before they go into the log.
const LOGGED_SIDE: u32 = 384;

/// The picture as a PNG file small enough for a page.
fn png(image: &ImageData) -> Option<Vec<u8>> {
    let decoded = match image {
        ImageData::Drawn(drawing) => {
            let Drawing { width, height, rgb } = &**drawing;
            image::DynamicImage::from(image::RgbImage::from_raw(*width, *height, rgb.clone())?)
        }
        ImageData::Path(path) => image::load_from_memory(&std::fs::read(path).ok()?).ok()?,
        ImageData::Encoded(bytes) => image::load_from_memory(bytes).ok()?,
    };
    let large = decoded.width() > LOGGED_SIDE || decoded.height() > LOGGED_SIDE;
    let decoded = if large { decoded.thumbnail(LOGGED_SIDE, LOGGED_SIDE) } else { decoded };
    let mut png = std::io::Cursor::new(Vec::new());
    decoded.to_rgb8().write_to(&mut png, image::ImageFormat::Png).ok()?;
    Some(png.into_inner())
}
