//! A file seen as bytes, without reading it first: the one place where file mapping happens.
//! Knows nothing of formats. The map is read-only and private to this process.
//! Cost: pages are read when touched; nothing is copied.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// What can go wrong while mapping a file.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The file could not be opened.
    #[error("cannot open {}: {source}\nhint: check that the file exists and may be read", path.display())]
    Open {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The path names a directory, a pipe or another thing that has no bytes to map.
    #[error("{} is not a regular file\nhint: name the file itself, not the folder that holds it", path.display())]
    NotAFile {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The system refused the mapping.
    #[error("cannot map {} into memory: {source}\nhint: copy the file to a local disk and try again", path.display())]
    Map {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
}

/// The bytes of a file, mapped read-only. Dereferences to `[u8]`.
///
/// The file must not be shortened or overwritten in place while it is mapped: Foveate itself only ever replaces files
/// by renaming, which leaves an existing map intact.
#[derive(Debug)]
pub struct FileMap {
    // None for an empty file: some systems refuse to map zero bytes.
    map: Option<memmap2::Mmap>,
}

impl FileMap {
    /// Maps the whole of `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, MapError> {
        let path = path.as_ref();
        let open_error = |source| MapError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(MapError::NotAFile { path: path.to_owned() });
        }
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only and private. A concurrent writer could change the bytes underneath; that is
        // excluded by the contract stated on the type.
        let map =
            unsafe { memmap2::Mmap::map(&file) }.map_err(|source| MapError::Map { path: path.to_owned(), source })?;
        Ok(Self { map: Some(map) })
    }
}

impl Deref for FileMap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_files_and_names_what_it_cannot_map() {
        let folder = std::env::temp_dir().join(format!("foveate-map-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
        let (full, empty) = (folder.join("full"), folder.join("empty"));
        std::fs::write(&full, b"seven!!").expect("a temporary file can be written");
        std::fs::write(&empty, b"").expect("a temporary file can be written");
        assert_eq!(&*FileMap::open(&full).expect("maps"), b"seven!!");
        assert!(FileMap::open(&empty).expect("maps").is_empty());
        assert!(matches!(FileMap::open(&folder), Err(MapError::NotAFile { .. })));
        assert!(matches!(FileMap::open(folder.join("absent")), Err(MapError::Open { .. })));
        std::fs::remove_dir_all(&folder).expect("the temporary folder can be removed");
    }
}
