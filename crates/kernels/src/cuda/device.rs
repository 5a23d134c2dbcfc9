//! A device and its memory: an arena whose parts are reused in the order of the stream, launches, products.
//! Errors stick: after the first one nothing more is launched, and whoever asks next is told. So ops need no `Result` of
//! their own, as with CUDA itself.
//! Knows sizes; knows no ops. Cost: a search in a small map per buffer.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use super::buffer::{DeviceBuffer, Value, View};
use super::engine::{Argument, Engine, Launch, MemoryInfo, Number, Operand, Product};
use super::error::GpuError;
use super::recording::{Counts, Memory, Recording, Repeats};
use super::slabs::{GRAIN, Slabs};
use super::sources::Module;

/// A device; copies are the same one.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Box<dyn Engine>,
    pool: Mutex<Pool>,
    failed: Mutex<Option<GpuError>>,
    /// Bytes sent to the device and fetched from it.
    traffic: [AtomicU64; 2],
    /// Launches, recordings, repetitions.
    counts: [AtomicU64; 3],
    repeats: AtomicU8,
    /// While launches are recorded: by whom. Held while anything is asked of the engine, so that no launch of another
    /// thread comes into a recording.
    recording: Mutex<Option<Recorder>>,
    /// Told when a recording has ended.
    recorded: Condvar,
}

/// Whose launches are recorded, and where buffers come from meanwhile.
struct Recorder {
    thread: ThreadId,
    memory: Arc<Memory>,
}

/// Nobody else records while this lives; it holds the own recording, if there is one.
type Turn<'d> = MutexGuard<'d, Option<Recorder>>;

/// Requests up to this size share slabs of their own: lists and statistics that live long must not lie amid what large
/// buffers come and go in.
const SMALL: usize = 1 << 20;
/// Sizes of new slabs for small and for large requests.
const SLABS: [usize; 2] = [8 << 20, 64 << 20];

/// The arena: what the device has given, and what of it is used.
#[derive(Default)]
struct Pool {
    /// For small and for large requests.
    slabs: [Slabs; 2],
    used_bytes: usize,
    most_bytes: usize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        for start in pool.slabs.iter_mut().flat_map(Slabs::remove_unused) {
            self.engine.free(start);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    pub(super) fn new(engine: Box<dyn Engine>) -> Device {
        let shared = Shared {
            engine,
            pool: Mutex::default(),
            failed: Mutex::default(),
            traffic: Default::default(),
            counts: Default::default(),
            repeats: AtomicU8::new(Repeats::asked() as u8),
            recording: Mutex::default(),
            recorded: Condvar::new(),
        };
        Device { shared: Arc::new(shared) }
    }

    /// Name for people.
    pub fn name(&self) -> String {
        self.shared.engine.name()
    }

    /// The first error since the last question, if there was one. Waits for everything that was launched.
    pub fn check(&self) -> Result<(), GpuError> {
        let Some(turn) = self.may("waiting for the device") else { return Ok(()) };
        let outcome = self.shared.engine.synchronize();
        drop(turn);
        self.note(outcome);
        locked(&self.shared.failed).take().map_or(Ok(()), Err)
    }

    /// The first error since the last question, without waiting.
    pub fn check_launched(&self) -> Result<(), GpuError> {
        locked(&self.shared.failed).take().map_or(Ok(()), Err)
    }

    fn note(&self, outcome: Result<(), GpuError>) {
        if let Err(error) = outcome {
            locked(&self.shared.failed).get_or_insert(error);
        }
    }

    fn has_failed(&self) -> bool {
        locked(&self.shared.failed).is_some()
    }

    /// `len` numbers whose values are unspecified.
    pub fn take(&self, number: Number, len: usize) -> DeviceBuffer {
        let bytes = len * number.bytes();
        let bytes = if self.shared.engine.reuses() {
            bytes.max(1).next_multiple_of(GRAIN)
        } else {
            bytes.max(1).next_multiple_of(16)
        };
        let scratch = self.turn().as_ref().map(|recorder| recorder.memory.clone());
        let pointer = match &scratch {
            Some(memory) => memory.take(bytes),
            None => self.take_bytes(bytes),
        };
        DeviceBuffer { device: self.clone(), pointer, bytes, len, number, scratch }
    }

    /// Whether the memory of buffers that were given back is used again.
    pub(super) fn reuses(&self) -> bool {
        self.shared.engine.reuses()
    }

    pub(super) fn take_bytes(&self, bytes: usize) -> u64 {
        let mut pool = locked(&self.shared.pool);
        let found = if self.shared.engine.reuses() {
            let size = usize::from(bytes > SMALL);
            match pool.slabs[size].take(bytes) {
                Some(start) => Ok(Some(start)),
                None => self
                    .slab(&mut pool, size, bytes)
                    .map(|grown| if grown { pool.slabs[size].take(bytes) } else { None }),
            }
        } else {
            self.shared.engine.allocate(bytes)
        };
        match found {
            Ok(Some(start)) => {
                pool.used_bytes += bytes;
                pool.most_bytes = pool.most_bytes.max(pool.used_bytes);
                start
            }
            Ok(None) => {
                self.note(Err(self.out_of_memory(&pool, bytes)));
                0
            }
            Err(error) => {
                self.note(Err(error));
                0
            }
        }
    }

    /// One more slab with room for `bytes`; false if the device has none.
    fn slab(&self, pool: &mut Pool, size: usize, bytes: usize) -> Result<bool, GpuError> {
        let engine = &self.shared.engine;
        for wanted in [bytes.max(SLABS[size]).next_multiple_of(2 << 20), bytes] {
            for round in 0..2 {
                if let Some(start) = engine.allocate(wanted)? {
                    pool.slabs[size].add(start, wanted);
                    return Ok(true);
                }
                let unused: Vec<u64> = pool.slabs.iter_mut().flat_map(Slabs::remove_unused).collect();
                if round == 1 || unused.is_empty() {
                    break;
                }
                // Slabs of other sizes that nobody uses: give them back and ask again.
                unused.into_iter().for_each(|start| engine.free(start));
            }
        }
        Ok(false)
    }

    /// Makes the arena at least so large, in one piece if it is new: what is needed later is there then, or the error says
    /// now that it is not.
    pub fn reserve(&self, bytes: usize) -> Result<(), GpuError> {
        if !self.shared.engine.reuses() {
            let MemoryInfo { free, .. } = self.shared.engine.memory()?;
            let pool = locked(&self.shared.pool);
            let enough = bytes <= free + pool.used_bytes;
            return if enough { Ok(()) } else { Err(self.out_of_memory(&pool, bytes)) };
        }
        let mut pool = locked(&self.shared.pool);
        let missing = bytes.saturating_sub(pool.bytes()).next_multiple_of(2 << 20);
        if missing == 0 || self.slab(&mut pool, 1, missing)? {
            return Ok(());
        }
        Err(self.out_of_memory(&pool, missing))
    }

    fn out_of_memory(&self, pool: &Pool, asked: usize) -> GpuError {
        let none = MemoryInfo { free: 0, total: 0 };
        let MemoryInfo { free, total } = self.shared.engine.memory().unwrap_or(none);
        GpuError::OutOfMemory {
            asked,
            free,
            total,
            used: pool.used_bytes,
            held: pool.bytes().saturating_sub(pool.used_bytes),
        }
    }

    pub(super) fn zero(&self, at: u64, bytes: usize) {
        if !self.has_failed() {
            let _turn = self.turn();
            self.count(0);
            self.note(self.shared.engine.zero(at, bytes));
        }
    }

    pub(super) fn copy(&self, from: u64, to: u64, bytes: usize) {
        if !self.has_failed() {
            let _turn = self.turn();
            self.count(0);
            self.note(self.shared.engine.copy(from, to, bytes));
        }
    }

    pub(super) fn send(&self, to: u64, bytes: &[u8]) {
        if let Some(_turn) = self.may("sending to the device")
            && !self.has_failed()
        {
            self.shared.traffic[0].fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.note(self.shared.engine.upload(to, bytes));
        }
    }

    pub(super) fn fetch(&self, from: u64, bytes: &mut [u8]) {
        if let Some(_turn) = self.may("fetching from the device")
            && !self.has_failed()
        {
            self.shared.traffic[1].fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.note(self.shared.engine.download(from, bytes));
        }
    }

    pub(super) fn give(&self, pointer: u64, bytes: usize) {
        if pointer == 0 {
            return;
        }
        let mut pool = locked(&self.shared.pool);
        pool.used_bytes -= bytes;
        if self.shared.engine.reuses() {
            pool.slabs[usize::from(bytes > SMALL)].give(pointer, bytes);
        } else {
            self.shared.engine.free(pointer);
        }
    }

    /// `len` zeros.
    pub fn zeroed(&self, number: Number, len: usize) -> DeviceBuffer {
        let buffer = self.take(number, len);
        buffer.all().zero();
        buffer
    }

    /// The values on the device.
    pub fn upload<T: Value>(&self, values: &[T]) -> DeviceBuffer {
        let buffer = self.take(T::NUMBER, values.len());
        buffer.all().write(values);
        buffer
    }

    /// Bytes in use, bytes kept for reuse, and the most that were ever in use.
    pub fn memory_used(&self) -> [usize; 3] {
        let pool = locked(&self.shared.pool);
        [pool.used_bytes, pool.bytes().saturating_sub(pool.used_bytes), pool.most_bytes]
    }

    /// Bytes that were sent to the device and fetched from it so far.
    pub fn traffic(&self) -> [u64; 2] {
        self.shared.traffic.each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// Memory of the device.
    pub fn memory(&self) -> Result<MemoryInfo, GpuError> {
        self.shared.engine.memory()
    }

    /// Launches a kernel, unless something has failed before.
    pub fn launch(
        &self,
        module: Module,
        kernel: &str,
        grid: [usize; 2],
        block: u32,
        shared: usize,
        arguments: &[Argument],
    ) {
        if grid.contains(&0) || self.has_failed() {
            return;
        }
        if grid[0] > i32::MAX as usize || grid[1] > 65_535 {
            self.note(Err(GpuError::Unsupported { what: format!("{kernel} over {} x {} blocks", grid[0], grid[1]) }));
            return;
        }
        let grid = [grid[0] as u32, grid[1] as u32];
        let launch = Launch { module, kernel, grid, block, shared: shared as u32, arguments };
        let _turn = self.turn();
        self.count(0);
        self.note(self.shared.engine.launch(&launch));
    }

    /// `out[m, n] = a[m, k]·b[k, n] (+ bias) (+ plus)`; `plus` may be `out` itself. See [`Product`].
    pub fn multiply(
        &self,
        [m, n, k]: [usize; 3],
        (a, a_transposed): (View, bool),
        (b, b_transposed): (View, bool),
        bias: Option<View>,
        plus: Option<View>,
        out: View,
    ) {
        assert!(a.len == m * k && b.len == k * n && out.len == m * n, "multiply: lengths do not fit {m}x{n}x{k}");
        assert!(a.number == b.number, "multiply: operands of two types");
        if m == 0 || n == 0 || self.has_failed() {
            return;
        }
        if let Some(bias) = bias {
            assert!(bias.len == n && bias.number == Number::F32, "multiply: the bias is f32, one a column");
        }
        if let Some(plus) = plus {
            assert!(plus.len == out.len && plus.number == out.number, "multiply: what is added is like the result");
        }
        let product = Product {
            m,
            n,
            k,
            number: a.number,
            a: Operand { pointer: a.pointer, transposed: a_transposed },
            b: Operand { pointer: b.pointer, transposed: b_transposed },
            out: out.pointer,
            out_number: out.number,
            plus: plus.map_or(0, |plus| plus.pointer),
            bias: bias.map_or(0, |bias| bias.pointer),
        };
        let _turn = self.turn();
        self.count(0);
        self.note(self.shared.engine.multiply(&product));
    }

    /// How work that comes again and again is launched.
    pub fn repeats(&self) -> Repeats {
        Repeats::of(self.shared.repeats.load(Ordering::Relaxed))
    }

    /// Changes that, for whoever asks from now on.
    pub fn set_repeats(&self, repeats: Repeats) {
        self.shared.repeats.store(repeats as u8, Ordering::Relaxed);
    }

    /// What was asked of the device so far.
    pub fn counts(&self) -> Counts {
        let [launches, recordings, replays] = self.shared.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Counts { launches, recordings, replays }
    }

    fn count(&self, which: usize) {
        self.shared.counts[which].fetch_add(1, Ordering::Relaxed);
    }

    /// Waits while another thread records; what this one asks for until the turn is dropped is its own.
    fn turn(&self) -> Turn<'_> {
        let me = std::thread::current().id();
        let others = |open: &mut Option<Recorder>| open.as_ref().is_some_and(|recorder| recorder.thread != me);
        let waited = self.shared.recorded.wait_while(locked(&self.shared.recording), others);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn for a thing that no recording can hold. If this thread records, that is the recording's error.
    fn may(&self, what: &str) -> Option<Turn<'_>> {
        let turn = self.turn();
        if turn.is_none() {
            return Some(turn);
        }
        self.note(Err(GpuError::Unsupported { what: format!("{what} while launches are recorded") }));
        None
    }

    /// Launches of this thread are recorded from now on, and its buffers come from `memory`.
    pub(super) fn begin_recording(&self, memory: Arc<Memory>) -> Result<(), GpuError> {
        let mut turn = self.turn();
        if let Some(error) = locked(&self.shared.failed).clone() {
            return Err(error);
        }
        self.shared.engine.begin_recording()?;
        *turn = Some(Recorder { thread: std::thread::current().id(), memory });
        Ok(())
    }

    /// Ends the recording; the first error since it began is its own.
    pub(super) fn end_recording(&self) -> Result<u64, GpuError> {
        let mut turn = self.turn();
        let recorder = turn.take();
        let ended = self.shared.engine.end_recording();
        drop(turn);
        self.shared.recorded.notify_all();
        drop(recorder);
        match (locked(&self.shared.failed).take(), ended) {
            (None, Ok(handle)) => {
                self.count(1);
                Ok(handle)
            }
            (Some(error), Ok(handle)) => {
                self.forget(handle);
                Err(error)
            }
            (noted, Err(error)) => Err(noted.unwrap_or(error)),
        }
    }

    /// Frees a recording.
    pub(super) fn forget(&self, handle: u64) {
        self.shared.engine.forget(handle);
    }

    /// Does once more what was recorded, unless something has failed before.
    pub fn replay(&self, recording: &Recording) {
        if let Some(_turn) = self.may("a repetition")
            && !self.has_failed()
        {
            self.count(2);
            self.note(self.shared.engine.replay(recording.handle));
        }
    }
}

impl Pool {
    /// Bytes of all slabs.
    fn bytes(&self) -> usize {
        self.slabs.iter().map(Slabs::bytes).sum()
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Device({})", self.name())
    }
}
