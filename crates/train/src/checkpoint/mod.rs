//! A run's state on disk: complete Hugging Face folders that also hold what exact resume needs.
//! Knows folders, names and checksums; what goes into a checkpoint is written by a closure of the caller.
//! Cost: one write and one checksum read of everything; a checkpoint appears in full or not at all.

pub mod crc32c;
pub mod durable;
pub mod hugging_face;
pub mod tensor_file;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use durable::FileError;

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error(transparent)]
    File(FileError),
    /// A file is there but not what was written.
    #[error("{path} is damaged: {reason}", path = path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The weights could not be written.
    #[error("cannot write the weights: {0}")]
    Weights(String),
}

impl CheckpointError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            CheckpointError::File(error) => error.hint(),
            CheckpointError::Damaged { .. } => {
                Some("remove that checkpoint folder; --resume then takes the one before it".to_string())
            }
            CheckpointError::Weights(_) => Some("the last checkpoint is intact; go on with --resume".to_string()),
        }
    }
}

/// When checkpoints are written and how many stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints. Resume repeats at most so many steps; one always comes at the end of each stage.
    /// A checkpoint costs about sixteen bytes per parameter of writing, so choose it to last minutes, not seconds.
    pub every: u64,
    /// How many of the newest checkpoints stay on disk; two survive a damaged disk block.
    pub keep_last: usize,
    /// Number format of `model.safetensors`: `auto` writes what the run computed in (bf16 or f32). Exact resume does
    /// not depend on it: the f32 master weights are kept beside it.
    pub dtype: WeightType,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 100, keep_last: 2, dtype: WeightType::Auto }
    }
}

/// Number format of saved weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// What the run computed in.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
    /// 16 bits, IEEE half.
    F16,
}

/// Size and checksum of one file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMark {
    /// Length in bytes.
    pub bytes: u64,
    /// CRC-32C of the content.
    pub crc32c: u32,
}

/// `state.json`: where the run stood, and what the folder must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// Checksum of the resolved recipe, so that no run is continued with another's settings.
    pub recipe: u32,
    /// Steps done over all stages.
    pub step: u64,
    /// Index of the stage that was running.
    pub stage: usize,
    /// Steps done in that stage.
    pub stage_step: u64,
    /// Optimiser steps done in that stage.
    pub optimizer_step: u64,
    /// Position in the stage's data: questions asked so far. The order follows from the seed.
    pub position: u64,
    /// What the stage carries from step to step beside weights and moments, in the loops' own words.
    pub controls: serde_json::Value,
    /// Length of every log file at this step; logs are cut back to it on resume.
    pub logs: BTreeMap<String, u64>,
    /// The instruction set that computed the weights: bits differ between paths, never within one.
    pub instruction_set: String,
    /// Everything else in the folder.
    pub files: BTreeMap<String, FileMark>,
}

/// Version of [`State`].
pub const FORMAT: u32 = 1;

/// The folder `checkpoints/` of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep_last: usize,
}

/// A checkpoint that can be trusted.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Its state.
    pub state: State,
}

impl Checkpoints {
    /// The checkpoints of the run in `run_folder`; nothing is touched yet.
    pub fn new(run_folder: &Path, keep_last: usize) -> Self {
        Self { folder: run_folder.join("checkpoints"), keep_last: keep_last.max(1) }
    }

    /// Writes the checkpoint of `state.step`: `fill` puts the files into a folder aside, then sizes and checksums are
    /// noted, everything is synced, and the folder gets its name. Older ones beyond `keep_last` go away last.
    pub fn save(
        &self,
        mut state: State,
        fill: impl FnOnce(&Path) -> Result<(), CheckpointError>,
    ) -> Result<PathBuf, CheckpointError> {
        let name = format!("step-{:06}", state.step);
        let aside = self.folder.join(format!(".writing-{name}"));
        let place = self.folder.join(&name);
        let outcome = (|| {
            if aside.exists() {
                fs::remove_dir_all(&aside).map_err(FileError::new("write", &aside))?;
            }
            durable::create_folder(&aside)?;
            fill(&aside)?;
            state.files = marks(&aside)?;
            let text = serde_json::to_string_pretty(&state).expect("plain data always serialises");
            durable::write_file(&aside.join("state.json"), text.as_bytes())?;
            durable::publish_folder(&aside, &place)?;
            Ok(place)
        })();
        if outcome.is_err() {
            // Gives the space back; what is already published stays.
            let _ = fs::remove_dir_all(&aside);
        } else {
            self.rotate(state.step);
        }
        outcome
    }

    /// The newest checkpoint whose files are all what `state.json` says, and what was wrong with newer ones.
    pub fn newest(&self) -> Result<(Option<Found>, Vec<CheckpointError>), CheckpointError> {
        let mut damaged = Vec::new();
        for (_, path) in self.steps().into_iter().rev() {
            match verify(&path) {
                Ok(state) => return Ok((Some(Found { path, state }), damaged)),
                Err(error) => damaged.push(error),
            }
        }
        Ok((None, damaged))
    }

    /// Folders that carry a checkpoint's name, oldest first. What was being written when the run died has another
    /// name and is not among them.
    fn steps(&self) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut steps: Vec<(u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
                Some((step, path))
            })
            .collect();
        steps.sort();
        steps
    }

    /// Removes the oldest checkpoints. One that cannot be removed is no reason to stop a run. Steps beyond `written`
    /// are left-overs of a later state that a resumed run has gone back from: they go first.
    fn rotate(&self, written: u64) {
        let (now, beyond): (Vec<_>, Vec<_>) = self.steps().into_iter().partition(|(step, _)| *step <= written);
        let surplus = now.len().saturating_sub(self.keep_last);
        for (_, path) in beyond.into_iter().chain(now.into_iter().take(surplus)) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Size and checksum of every file in a folder.
fn marks(folder: &Path) -> Result<BTreeMap<String, FileMark>, CheckpointError> {
    let mut marks = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(FileError::new("read", folder))? {
        let path = entry.map_err(FileError::new("read", folder))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        marks.insert(name, mark(&path)?);
    }
    Ok(marks)
}

fn mark(path: &Path) -> Result<FileMark, CheckpointError> {
    use std::io::Read;
    let mut file = fs::File::open(path).map_err(FileError::new("read", path))?;
    let mut crc = crc32c::Crc32c::default();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer).map_err(FileError::new("read", path))?;
        if count == 0 {
            return Ok(FileMark { bytes, crc32c: crc.value() });
        }
        crc.update(&buffer[..count]);
        bytes += count as u64;
    }
}

/// Reads `state.json` of a checkpoint and compares every file with it.
pub fn verify(folder: &Path) -> Result<State, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: folder.to_path_buf(), reason };
    let bytes = fs::read(folder.join("state.json")).map_err(|error| damaged(format!("state.json: {error}")))?;
    let state: State = serde_json::from_slice(&bytes).map_err(|error| damaged(format!("state.json: {error}")))?;
    if state.format != FORMAT {
        return Err(damaged(format!("its layout is version {}, this program writes {FORMAT}", state.format)));
    }
    for (name, expected) in &state.files {
        let path = folder.join(name);
        let found = mark(&path).map_err(|error| damaged(error.to_string()))?;
        if found != *expected {
            return Err(damaged(format!(
                "{name} has {} bytes and checksum {:08x}, state.json says {} and {:08x}",
                found.bytes, found.crc32c, expected.bytes, expected.crc32c
            )));
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> State {
        State {
            format: FORMAT,
            recipe: 1,
            step,
            stage: 0,
            stage_step: step,
            optimizer_step: step,
            position: 0,
            controls: serde_json::Value::Null,
            logs: BTreeMap::new(),
            instruction_set: "test".into(),
            files: BTreeMap::new(),
        }
    }

    fn save(checkpoints: &Checkpoints, step: u64) -> PathBuf {
        checkpoints
            .save(state(step), |folder| {
                durable::write_file(&folder.join("weights"), &[step as u8; 100])?;
                Ok(())
            })
            .unwrap()
    }

    #[test]
    fn the_newest_whole_checkpoint_is_found_and_old_ones_go() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(run.path(), 2);
        assert!(checkpoints.newest().unwrap().0.is_none());
        for step in [1, 2, 10] {
            save(&checkpoints, step);
        }
        assert_eq!(checkpoints.steps().iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 10]);
        let (found, damaged) = checkpoints.newest().unwrap();
        assert_eq!(found.unwrap().state.step, 10);
        assert!(damaged.is_empty());
    }

    #[test]
    fn a_half_written_file_is_noticed_and_the_checkpoint_before_is_taken() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(run.path(), 3);
        save(&checkpoints, 1);
        let two = save(&checkpoints, 2);
        fs::write(two.join("weights"), [2; 50]).unwrap();
        let three = save(&checkpoints, 3);
        let mut flipped = fs::read(three.join("weights")).unwrap();
        flipped[7] ^= 1;
        fs::write(three.join("weights"), flipped).unwrap();
        let (found, damaged) = checkpoints.newest().unwrap();
        assert_eq!(found.unwrap().state.step, 1);
        assert_eq!(damaged.len(), 2);
        assert!(damaged[1].to_string().contains("50 bytes"), "{}", damaged[1]);
    }

    #[test]
    fn a_save_that_fails_leaves_the_checkpoint_before_and_no_rubbish() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(run.path(), 2);
        save(&checkpoints, 1);
        let error = checkpoints
            .save(state(2), |folder| {
                durable::write_file(&folder.join("weights"), b"half")?;
                Err(CheckpointError::Weights("disk full".into()))
            })
            .unwrap_err();
        assert!(error.hint().unwrap().contains("intact"));
        assert_eq!(checkpoints.newest().unwrap().0.unwrap().state.step, 1);
        assert_eq!(fs::read_dir(run.path().join("checkpoints")).unwrap().count(), 1);
    }
}
