//! Files that grow by whole records and can be cut back: metrics, samples, events.
//! Knows bytes only. Cost: one write per record; synced when a checkpoint is made.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::checkpoint::durable::FileError;

/// A growing file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
}

impl LogFile {
    /// Opens `path` and keeps its first `keep` bytes: what was written after the checkpoint that a run resumes from
    /// will be written again. A file shorter than that is an error, because records would be missing.
    pub fn open(path: &Path, keep: u64) -> Result<Self, FileError> {
        let open = || -> std::io::Result<(File, u64)> {
            let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
            let found = file.metadata()?.len();
            if found < keep {
                return Err(std::io::Error::other(format!("it has {found} bytes, the checkpoint knows {keep}")));
            }
            // A pipe or a device has no length to cut.
            if found != keep {
                file.set_len(keep)?;
            }
            file.seek(SeekFrom::Start(keep)).or_else(|error| if keep == 0 { Ok(0) } else { Err(error) })?;
            Ok((file, keep))
        };
        let (file, len) = open().map_err(FileError::new("open", path))?;
        Ok(Self { path: path.to_path_buf(), file, len })
    }

    /// Adds one record.
    pub fn append(&mut self, record: &[u8]) -> Result<(), FileError> {
        self.file.write_all(record).map_err(FileError::new("write", &self.path))?;
        self.len += record.len() as u64;
        Ok(())
    }

    /// Adds one JSON object as a line.
    pub fn append_json<T: serde::Serialize>(&mut self, value: &T) -> Result<(), FileError> {
        let mut line = serde_json::to_vec(value).expect("plain data always serialises");
        line.push(b'\n');
        self.append(&line)
    }

    /// Waits until everything is on the disk and gives the length.
    pub fn sync(&mut self) -> Result<u64, FileError> {
        self.file.sync_all().map_err(FileError::new("write", &self.path))?;
        Ok(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_after_the_checkpoint_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = LogFile::open(&path, 0).unwrap();
        log.append_json(&serde_json::json!({"step": 1})).unwrap();
        let kept = log.sync().unwrap();
        log.append_json(&serde_json::json!({"step": 2})).unwrap();
        log.append(b"{\"ste").unwrap();
        drop(log);
        let mut log = LogFile::open(&path, kept).unwrap();
        log.append_json(&serde_json::json!({"step": 2, "again": true})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2,\"again\":true}\n");
        let error = LogFile::open(&path, 1000).unwrap_err();
        assert!(error.to_string().contains("the checkpoint knows 1000"), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_a_clear_error() {
        let mut log = LogFile::open(Path::new("/dev/full"), 0).unwrap();
        let error = log.append(b"x").unwrap_err();
        assert!(error.to_string().contains("/dev/full") && error.hint().is_some(), "{error}");
    }
}
