//! Files that are there in full or not at all: write aside, sync, rename.
//! Knows paths and bytes only. Cost: one sync per file, which waits for the disk.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file operation that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = path.display())]
pub struct FileError {
    /// What was tried, as a verb: "write", "read", "create".
    pub action: &'static str,
    /// Where.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: wraps what the system said about `path`.
    pub fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
        let path = path.to_path_buf();
        move |source| FileError { action, path, source }
    }

    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Some(
                "no room is left there; free some space and go on with --resume, the last checkpoint is intact"
                    .to_string(),
            ),
            io::ErrorKind::PermissionDenied => Some("check the permissions, or choose another folder".to_string()),
            io::ErrorKind::NotFound => {
                Some("check the spelling; relative paths start at the working folder".to_string())
            }
            _ => None,
        }
    }
}

/// Replaces the file at `path` by what `fill` writes; if anything fails, the old file stays as it was. A link stays a link,
/// and what is no file (`/dev/stdout`, a pipe) is written to, not replaced.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), FileError> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let through = || {
            let mut writer = BufWriter::new(fs::OpenOptions::new().write(true).open(path)?);
            fill(&mut writer)?;
            writer.flush()
        };
        return through().map_err(FileError::new("write", path));
    }
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let aside = aside(&place);
    let outcome = (|| {
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(&aside)?);
        fill(&mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        fs::rename(&aside, &place)
    })();
    match outcome {
        Ok(()) => {
            sync_folder(place.parent().unwrap_or(Path::new(".")));
            Ok(())
        }
        Err(error) => {
            // Best effort: the name begins with a dot and is never read.
            let _ = fs::remove_file(&aside);
            Err(FileError::new("write", path)(error))
        }
    }
}

/// Replaces the file at `path` by `bytes`.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_with(path, |writer| writer.write_all(bytes))
}

/// Makes a folder and all folders above it.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::new("create the folder", path))
}

/// Reads a whole file.
pub fn read_file(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::new("read", path))
}

/// Syncs every file of `aside` and gives the folder its final name. An older folder of that name goes away first.
pub fn publish_folder(aside: &Path, place: &Path) -> Result<(), FileError> {
    let write = || FileError::new("write", place);
    for entry in fs::read_dir(aside).map_err(write())? {
        let path = entry.map_err(write())?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(FileError::new("write", &path))?;
    }
    sync_folder(aside);
    if place.exists() {
        fs::remove_dir_all(place).map_err(write())?;
    }
    fs::rename(aside, place).map_err(write())?;
    sync_folder(place.parent().unwrap_or(Path::new(".")));
    Ok(())
}

/// Makes the names in a folder durable. Some file systems refuse to sync folders; the data is safe all the same.
fn sync_folder(path: &Path) {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if let Ok(folder) = File::open(path) {
        let _ = folder.sync_all();
    }
}

/// The name beside `path` under which it is written first.
fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".writing-{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.json");
        write_file(&path, b"old").unwrap();
        let error = write_with(&path, |writer| {
            writer.write_all(b"new, but")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("eval.json"), "{error}");
        assert!(error.hint().unwrap().contains("--resume"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_device_is_an_error_with_a_hint() {
        let error = write_file(Path::new("/dev/full"), b"x").unwrap_err();
        assert!(error.hint().unwrap().contains("room"));
        assert!(!fs::metadata("/dev/full").unwrap().is_file());
    }

    #[test]
    #[cfg(unix)]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write_file(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_file(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn publishing_replaces_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (aside, place) = (folder.path().join(".a"), folder.path().join("b"));
        for content in ["one", "two"] {
            fs::create_dir(&aside).unwrap();
            fs::write(aside.join("file"), content).unwrap();
            publish_folder(&aside, &place).unwrap();
            assert_eq!(fs::read_to_string(place.join("file")).unwrap(), content);
        }
        assert!(!aside.exists());
    }
}
