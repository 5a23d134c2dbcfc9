//! TensorBoard's event files: scalars only.
//! Knows the record frame (length, masked CRC-32C, data, masked CRC-32C) and two protobuf messages by heart.
//! Cost: about forty bytes per scalar.

use std::path::Path;

use super::log::LogFile;
use crate::checkpoint::crc32c::masked;
use crate::checkpoint::durable::FileError;

/// Name of the file in a run's folder. TensorBoard looks for `tfevents` in it; the rest is free, and a name that does
/// not change lets a resumed run go on in the same file.
pub const FILE_NAME: &str = "events.out.tfevents.0.foveate";

/// Writes scalars for TensorBoard.
#[derive(Debug)]
pub struct Events {
    log: LogFile,
}

impl Events {
    /// Opens the file in `folder`, keeping its first `keep` bytes; a new file gets its version record.
    pub fn open(folder: &Path, keep: u64) -> Result<Self, FileError> {
        let mut log = LogFile::open(&folder.join(FILE_NAME), keep)?;
        if keep == 0 {
            // Event { wall_time: 1 = 0.0, file_version: 3 = "brain.Event:2" }
            let mut event = Vec::new();
            double(&mut event, 1, 0.0);
            bytes(&mut event, 3, b"brain.Event:2");
            log.append(&frame(&event))?;
        }
        Ok(Self { log })
    }

    /// Adds the scalars of one step. `wall_time` is in seconds since 1970 and only positions points on the time axis.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        wall_time: f64,
        values: impl Iterator<Item = (&'a str, f64)>,
    ) -> Result<(), FileError> {
        // Summary { value: 1 = [Value { tag: 1, simple_value: 2 }] }
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = Vec::new();
            bytes(&mut scalar, 1, tag.as_bytes());
            float(&mut scalar, 2, value as f32);
            bytes(&mut summary, 1, &scalar);
        }
        // Event { wall_time: 1, step: 2, summary: 5 }
        let mut event = Vec::new();
        double(&mut event, 1, wall_time);
        key(&mut event, 2, 0);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.log.append(&frame(&event))
    }

    /// Waits for the disk and gives the length.
    pub fn sync(&mut self) -> Result<u64, FileError> {
        self.log.sync()
    }
}

/// One record: length, its checksum, data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked(data).to_le_bytes());
    record
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Field number and wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn float(out: &mut Vec<u8>, field: u64, value: f32) {
    key(out, field, 5);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made once with a bit-by-bit CRC-32C in Python and the published record layout; read back by TensorBoard's own
    /// loader as step 300, tag `reward/mean`, value 0.5.
    const GOLDEN: &str = "1800000000000000a37f4b220900000000000000001a0d627261696e2e4576656e743a32eedf28a32200000000000000\
        78113dfd09000000000000f83f10ac022a140a120a0b7265776172642f6d65616e150000003f9e08dc68";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn records_match_the_golden_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::open(folder.path(), 0).unwrap();
        events.scalars(300, 1.5, [("reward/mean", 0.5)].into_iter()).unwrap();
        events.sync().unwrap();
        assert_eq!(hex(&std::fs::read(folder.path().join(FILE_NAME)).unwrap()), GOLDEN);
    }
}
