//! Models that travel inside the program.
//! Knows files only. Cost: one copy into a folder when a model is opened by path.

use std::path::PathBuf;

use crate::checkpoint::crc32c::Crc32c;
use crate::checkpoint::durable::{FileError, create_folder, write_file};

/// Files by name.
pub type Files = &'static [(&'static str, &'static [u8])];

include!(concat!(env!("OUT_DIR"), "/builtin_models.rs"));

/// The files of the built-in model `name`.
pub fn find(name: &str) -> Option<Files> {
    MODELS.iter().find(|(known, _)| *known == name).map(|(_, files)| *files)
}

/// Names of the built-in models.
pub fn names() -> Vec<&'static str> {
    MODELS.iter().map(|(name, _)| *name).collect()
}

/// Puts a built-in model's files into a folder for temporary files and gives that folder. Its name holds a checksum of
/// the files, and what lies there is compared before it is trusted.
pub fn unpack(name: &str) -> Result<Option<PathBuf>, FileError> {
    let Some(files) = find(name) else { return Ok(None) };
    let mut crc = Crc32c::default();
    for (file, bytes) in files {
        crc.update(file.as_bytes());
        crc.update(bytes);
    }
    let folder = std::env::temp_dir().join(format!("foveate-{name}-{:08x}", crc.value()));
    create_folder(&folder)?;
    for (file, bytes) in files {
        let path = folder.join(file);
        if std::fs::read(&path).ok().as_deref() != Some(*bytes) {
            write_file(&path, bytes)?;
        }
    }
    Ok(Some(folder))
}
