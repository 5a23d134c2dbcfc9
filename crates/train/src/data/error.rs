//! What can be wrong with data, told with file, line and field, and with a hint.
//! Knows no formats. Cost: none.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use foveate_tasks::WorldError;

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line of a JSONL file, from 1.
    Line(PathBuf, usize),
    /// Entry of a JSON array, from 1.
    Entry(PathBuf, usize),
    /// Row of a Parquet file, from 1.
    Row(PathBuf, usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(file, line) => write!(f, "{}:{line}", file.display()),
            Place::Entry(file, entry) => write!(f, "{}, entry {entry}", file.display()),
            Place::Row(file, row) => write!(f, "{}, row {row}", file.display()),
        }
    }
}

/// Why a row cannot be used, before its place is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field at fault; empty if it is the row as a whole.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

impl Problem {
    /// A problem of one field.
    pub fn new(field: impl Into<String>, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), hint: hint.into() }
    }

    /// The same problem at its place.
    pub fn at(self, place: Place) -> DataError {
        DataError::Row { place, field: self.field, problem: self.problem, hint: self.hint }
    }
}

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A row of a file.
    #[error("{place}: {}{problem}", field_prefix(field))]
    Row {
        /// Where it stands.
        place: Place,
        /// The field at fault; empty if it is the row as a whole.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A file that is damaged, or of a kind that cannot be read.
    #[error("{path}: {problem}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A file operation that the system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Settings of a source that do not fit together.
    #[error("{problem}")]
    Source {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// Nothing is left to learn from.
    #[error("{what} has no usable rows")]
    Empty {
        /// The source.
        what: String,
        /// Why, if it is known.
        hint: String,
    },
    /// A world that cannot do what is asked.
    #[error(transparent)]
    World(#[from] WorldError),
}

fn field_prefix(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("field `{field}`: ") }
}

impl DataError {
    /// For `map_err`: wraps what the system said about `path`.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError + use<> {
        let path = path.to_path_buf();
        move |source| DataError::File { action, path, source }
    }

    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            DataError::Row { hint, .. }
            | DataError::Unreadable { hint, .. }
            | DataError::Source { hint, .. }
            | DataError::Empty { hint, .. } => Some(hint.clone()).filter(|hint| !hint.is_empty()),
            DataError::World(error) => Some(error.hint().to_string()),
            DataError::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => {
                    Some("check the spelling; paths in a recipe are relative to the recipe's folder".into())
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("no room is left there; nothing was half-written, free some space and try again".into())
                }
                io::ErrorKind::PermissionDenied => Some("check the permissions, or choose another folder".into()),
                _ => None,
            },
        }
    }
}
