//! What can go wrong with a model, worded for the person, with a hint.
//! Knows no terminal. Cost: none.

use std::path::PathBuf;

use crate::families::{SUPPORTED, nearest};

/// A problem with a checkpoint, a batch or the numbers.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A GPU cannot do what was asked.
    #[error("{0}")]
    Gpu(foveate_kernels::cuda::GpuError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The weights are there in a form that is not read.
    #[error("{} holds the weights, and no safetensors file", path.display())]
    Pickled {
        /// The file.
        path: PathBuf,
    },
    /// A configuration is not usable.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with which key.
        problem: String,
        /// What to change.
        hint: String,
    },
    /// The architecture is not one of ours.
    #[error("model_type \"{found}\" is not supported")]
    UnknownFamily {
        /// What config.json says.
        found: String,
    },
    /// A safetensors file is damaged or of an unsupported kind.
    #[error("{path}: {problem}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Tensors are missing, unexpected or mis-shaped.
    #[error("{path}: the weights do not fit the configuration: {problems}")]
    Mismatch {
        /// The folder.
        path: PathBuf,
        /// Names and shapes, a line each.
        problems: String,
    },
    /// The weights alone do not fit into memory.
    #[error("{path}: the weights take {:.2} GiB, {:.2} GiB of memory are free", gib(*needed), gib(*available))]
    TooLarge {
        /// The folder.
        path: PathBuf,
        /// Bytes of the weights and their copies.
        needed: usize,
        /// Bytes that are free.
        available: usize,
    },
    /// The tokenizer can write tokens that the model has no row for.
    #[error("{path}: the tokenizer has the id {id}, the model's embedding has {vocabulary} rows")]
    Tokenizer {
        /// The folder.
        path: PathBuf,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocabulary: usize,
    },
    /// A batch contradicts itself or the model.
    #[error("batch does not fit the model: {problem}")]
    Batch {
        /// What contradicts what.
        problem: String,
    },
    /// A number that should be finite is not.
    #[error("{what} is not finite")]
    NotFinite {
        /// Which quantity.
        what: String,
    },
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

impl ModelError {
    /// What the person can change.
    pub fn hint(&self) -> String {
        match self {
            ModelError::Gpu(error) => error.hint().into(),
            ModelError::File { .. } => "check that the path exists and can be read".into(),
            ModelError::Pickled { .. } => "only safetensors are read; in Python: from_pretrained(FOLDER) of the model's \
                                           class, then save_pretrained(OTHER_FOLDER)"
                .into(),
            ModelError::Config { hint, .. } => hint.clone(),
            ModelError::UnknownFamily { found } => {
                let near = nearest(found).map_or(String::new(), |name| format!("; the nearest is {name}"));
                format!("supported are {}{near}; the key is model_type in config.json", SUPPORTED.join(", "))
            }
            ModelError::Weights { .. } => {
                "the file may be cut short: copy it again; only safetensors with f32, f16 or bf16 tensors are read"
                    .into()
            }
            ModelError::Mismatch { .. } => "config.json and the safetensors files must come from one checkpoint".into(),
            ModelError::TooLarge { .. } => {
                "foveate plan shows what each part takes; take a smaller model, or a machine with more memory".into()
            }
            ModelError::Tokenizer { .. } => {
                "tokenizer.json and config.json must come from one checkpoint; if tokens were added, the embedding must be \
                 resized and saved with them"
                    .into()
            }
            ModelError::Batch { .. } => {
                "the prompt must hold exactly one placeholder for each image feature, and ids below the vocabulary"
                    .into()
            }
            ModelError::NotFinite { .. } => "lower optim.lr or optim.max_norm, or try precision = \"f32\"".into(),
        }
    }
}
