//! Rows from built-in worlds and from files, in an order that can be resumed from one number.
//! Knows rows, files and the worlds; knows nothing of prompts, models or rewards.
//! The path of a row: `config` says which, `files` or a world makes them, `dataset` picks and derives, `questions`
//! orders. `write` puts rows on disk, `audit` says what is in them.
//! Cost: files are read once into memory (text and image paths only); worlds draw a row when it is asked for.

pub mod config;

pub mod error;

pub mod answer;

pub mod files;

pub mod parquet;

pub mod hub_files;

pub mod pictures;

pub mod conversations;

pub mod base64;

pub mod dataset;

pub mod questions;

pub mod write;

pub mod near;

pub mod audit;

pub use audit::{Audit, Overlap, audit, may_overlap, overlap};
pub use config::{Amount, DataConfig, DataSource, OnBadRow, RowFilter, Sources, Take};
pub use dataset::{Dataset, Skipped, open};
pub use error::{DataError, Place};
pub use foveate_tasks::{Answer, Call, Drawing, Format, ImageData, Quality, Row, Split, World};
pub use questions::{Order, Question, Questions};
pub use write::{Form, convert, make, write_rows};
