//! Launches that are recorded once and then repeated: a graph on a GPU, a list on the host that emulates one. A repetition
//! runs the same kernels with the same arguments, addresses included; what changes must lie in memory that they read.
//! So buffers that are taken while recording come from memory of their own, which nobody else is given before the
//! recording is gone.
//! Knows memory and the engine; knows no ops. One thread records; what others ask of the device waits until it has ended.
//! Cost: recording costs what launching costs and some microseconds a launch; a repetition is one call.

use std::sync::{Arc, Mutex, PoisonError};

use super::device::Device;
use super::error::GpuError;
use super::slabs::Slabs;

/// How work that comes again and again with other numbers, such as a step of decoding, is launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Repeats {
    /// Every time anew: lists and buffers as they come.
    Afresh,
    /// Kernel by kernel, from lists at fixed addresses.
    Fixed,
    /// Recorded once, then repeated.
    #[default]
    Recorded,
}

impl Repeats {
    /// What the environment asks for: `FOVEATE_GRAPHS=0` launches everything afresh.
    pub(super) fn asked() -> Repeats {
        match std::env::var("FOVEATE_GRAPHS") {
            Ok(value) if value == "0" => Repeats::Afresh,
            _ => Repeats::Recorded,
        }
    }

    pub(super) fn of(number: u8) -> Repeats {
        [Repeats::Afresh, Repeats::Fixed, Repeats::Recorded][usize::from(number)]
    }
}

/// What a device was asked to do so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels, products and copies that were launched one by one, those that were recorded included.
    pub launches: u64,
    /// Recordings that were made.
    pub recordings: u64,
    /// Repetitions of recordings.
    pub replays: u64,
}

/// Pieces of at least so many bytes are taken from the arena.
const PIECE: usize = 4 << 20;

/// Memory for buffers of recorded launches; several recordings may share it if none of them leaves anything there that
/// another must not overwrite.
#[derive(Clone)]
pub struct Scratch {
    memory: Arc<Memory>,
}

/// The memory behind a [`Scratch`].
pub(super) struct Memory {
    device: Device,
    pieces: Mutex<Pieces>,
}

#[derive(Default)]
struct Pieces {
    free: Slabs,
    taken: Vec<(u64, usize)>,
}

impl Memory {
    pub(super) fn take(&self, bytes: usize) -> u64 {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.device.reuses() {
            // Every buffer by itself; it stays until all of them go.
            let start = self.device.take_bytes(bytes);
            pieces.taken.push((start, bytes));
            return start;
        }
        if let Some(start) = pieces.free.take(bytes) {
            return start;
        }
        let size = bytes.max(PIECE);
        let start = self.device.take_bytes(size);
        if start == 0 {
            return 0;
        }
        pieces.taken.push((start, size));
        pieces.free.add(start, size);
        pieces.free.take(bytes).unwrap_or(0)
    }

    pub(super) fn give(&self, start: u64, bytes: usize) {
        if start != 0 && self.device.reuses() {
            self.pieces.lock().unwrap_or_else(PoisonError::into_inner).free.give(start, bytes);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let pieces = self.pieces.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (start, bytes) in pieces.taken.drain(..) {
            self.device.give(start, bytes);
        }
    }
}

/// Launches that can be repeated by [`Device::replay`]. Their memory lives as long; buffers that they were handed from
/// elsewhere must live as long too, which is the caller's to keep.
pub struct Recording {
    device: Device,
    pub(super) handle: u64,
    _memory: Arc<Memory>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.device.forget(self.handle);
    }
}

/// A recording that is not ended yet. Dropped (by a panic), it is thrown away.
struct Open<'d> {
    device: &'d Device,
    ended: bool,
}

impl Open<'_> {
    fn end(mut self) -> Result<u64, GpuError> {
        self.ended = true;
        self.device.end_recording()
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Ok(handle) = self.device.end_recording()
        {
            self.device.forget(handle);
        }
    }
}

impl Device {
    /// Memory for recordings, empty as yet.
    pub fn scratch(&self) -> Scratch {
        Scratch { memory: Arc::new(Memory { device: self.clone(), pieces: Mutex::default() }) }
    }

    /// Records what `run` launches in the place of running it. It may neither send nor fetch anything, nor wait, least of
    /// all for another thread that uses the device. An error, of a launch or of the recording, is returned and leaves the
    /// device as it was.
    pub fn record<R>(&self, scratch: &Scratch, run: impl FnOnce() -> R) -> Result<(Recording, R), GpuError> {
        self.begin_recording(scratch.memory.clone())?;
        let open = Open { device: self, ended: false };
        let out = run();
        let handle = open.end()?;
        Ok((Recording { device: self.clone(), handle, _memory: scratch.memory.clone() }, out))
    }
}
