//! A device and its memory: buffers that are reused in the order of the stream, typed views of them, launches.
//! Errors stick: after the first one nothing more is launched, and whoever asks next is told. So ops need no `Result` of
//! their own, as with CUDA itself.
//! Knows sizes; knows no ops. Cost: a search in a small map per buffer.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use super::engine::{Argument, Engine, Launch, MemoryInfo, Number, Operand, Product};
use super::error::GpuError;
use super::sources::Module;
use crate::element::{Element, bf16};

/// A device; copies are the same one.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Box<dyn Engine>,
    pool: Mutex<Pool>,
    failed: Mutex<Option<GpuError>>,
}

/// Memory that was given back, by size.
#[derive(Default)]
struct Pool {
    kept: BTreeMap<usize, Vec<u64>>,
    held_bytes: usize,
    used_bytes: usize,
    most_bytes: usize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        let pool = self.pool.get_mut().unwrap_or_else(PoisonError::into_inner);
        for pointer in std::mem::take(&mut pool.kept).into_values().flatten() {
            self.engine.free(pointer);
        }
    }
}

/// Rust types of numbers on a device.
pub trait Value: Pod {
    /// Which.
    const NUMBER: Number;
}

impl Value for f32 {
    const NUMBER: Number = Number::F32;
}
impl Value for bf16 {
    const NUMBER: Number = Number::Bf16;
}
impl Value for u32 {
    const NUMBER: Number = Number::U32;
}
impl Value for f64 {
    const NUMBER: Number = Number::F64;
}

/// The number of an element type.
pub fn number_of<E: Element>() -> Number {
    if E::NAME == "bf16" { Number::Bf16 } else { Number::F32 }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    pub(super) fn new(engine: Box<dyn Engine>) -> Device {
        let shared = Shared { engine, pool: Mutex::default(), failed: Mutex::default() };
        Device { shared: Arc::new(shared) }
    }

    /// Name for people.
    pub fn name(&self) -> String {
        self.shared.engine.name()
    }

    /// The first error since the last question, if there was one. Waits for everything that was launched.
    pub fn check(&self) -> Result<(), GpuError> {
        let outcome = self.shared.engine.synchronize();
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
        let bytes = self.shared.engine.size_class(len * number.bytes());
        DeviceBuffer { device: self.clone(), pointer: self.take_bytes(bytes), bytes, len, number }
    }

    fn take_bytes(&self, bytes: usize) -> u64 {
        let mut pool = locked(&self.shared.pool);
        if let Some(list) = pool.kept.get_mut(&bytes) {
            let pointer = list.pop().expect("empty lists are removed");
            if list.is_empty() {
                pool.kept.remove(&bytes);
            }
            pool.held_bytes -= bytes;
            pool.grow(bytes);
            return pointer;
        }
        let mut outcome = self.shared.engine.allocate(bytes);
        if matches!(outcome, Ok(None)) && pool.held_bytes > 0 {
            // What is kept for reuse has other sizes: give it back and ask again.
            for pointer in std::mem::take(&mut pool.kept).into_values().flatten() {
                self.shared.engine.free(pointer);
            }
            pool.held_bytes = 0;
            outcome = self.shared.engine.allocate(bytes);
        }
        let held = pool.held_bytes;
        match outcome {
            Ok(Some(pointer)) => {
                pool.grow(bytes);
                pointer
            }
            Ok(None) => {
                let MemoryInfo { free, total } =
                    self.shared.engine.memory().unwrap_or(MemoryInfo { free: 0, total: 0 });
                self.note(Err(GpuError::OutOfMemory { asked: bytes, free, total, held }));
                0
            }
            Err(error) => {
                self.note(Err(error));
                0
            }
        }
    }

    fn give(&self, pointer: u64, bytes: usize) {
        if pointer == 0 {
            return;
        }
        let mut pool = locked(&self.shared.pool);
        pool.used_bytes -= bytes;
        if !self.shared.engine.reuses() {
            self.shared.engine.free(pointer);
            return;
        }
        pool.held_bytes += bytes;
        pool.kept.entry(bytes).or_default().push(pointer);
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
        [pool.used_bytes, pool.held_bytes, pool.most_bytes]
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
        self.note(self.shared.engine.launch(&launch));
    }

    /// `out[m, n] (+)= a[m, k]·b[k, n] (+ bias)`; see [`Product`].
    pub fn multiply(
        &self,
        [m, n, k]: [usize; 3],
        (a, a_transposed): (View, bool),
        (b, b_transposed): (View, bool),
        bias: Option<View>,
        add: bool,
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
        let product = Product {
            m,
            n,
            k,
            number: a.number,
            a: Operand { pointer: a.pointer, transposed: a_transposed },
            b: Operand { pointer: b.pointer, transposed: b_transposed },
            out: out.pointer,
            out_number: out.number,
            add,
            bias: bias.map_or(0, |bias| bias.pointer),
        };
        self.note(self.shared.engine.multiply(&product));
    }
}

impl Pool {
    fn grow(&mut self, bytes: usize) {
        self.used_bytes += bytes;
        self.most_bytes = self.most_bytes.max(self.used_bytes);
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Device({})", self.name())
    }
}

/// Numbers on a device; the memory is reused when it is dropped. What was launched before keeps its meaning, since
/// everything runs in order.
pub struct DeviceBuffer {
    device: Device,
    pointer: u64,
    bytes: usize,
    len: usize,
    number: Number,
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "DeviceBuffer({} {})", self.len, self.number.suffix())
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.device.give(self.pointer, self.bytes);
    }
}

impl DeviceBuffer {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Their type.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All of it.
    pub fn all(&self) -> View<'_> {
        View { device: &self.device, pointer: self.pointer, len: self.len, number: self.number, buffer: PhantomData }
    }

    /// Part of it.
    pub fn part(&self, range: std::ops::Range<usize>) -> View<'_> {
        self.all().part(range)
    }

    /// The values on the host. Waits for everything before.
    pub fn download<T: Value>(&self) -> Vec<T> {
        self.all().download()
    }
}

/// Part of a buffer. Ops write through it: memory of a device is no memory of Rust's, and all access is in order.
#[derive(Clone, Copy)]
pub struct View<'a> {
    device: &'a Device,
    pointer: u64,
    len: usize,
    number: Number,
    buffer: PhantomData<&'a DeviceBuffer>,
}

impl<'a> View<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Their type.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Where it is.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Part of it.
    pub fn part(&self, range: std::ops::Range<usize>) -> View<'a> {
        assert!(range.start <= range.end && range.end <= self.len, "a view outside its buffer");
        View { pointer: self.pointer + (range.start * self.number.bytes()) as u64, len: range.len(), ..*self }
    }

    /// The address, as an argument.
    pub fn argument(&self) -> Argument {
        Argument::Pointer(self.pointer)
    }

    /// The address of element `at`.
    pub fn argument_at(&self, at: usize) -> Argument {
        assert!(at <= self.len, "an address outside its buffer");
        Argument::Pointer(self.pointer + (at * self.number.bytes()) as u64)
    }

    /// Zeroes it.
    pub fn zero(&self) {
        if self.len > 0 && !self.device.has_failed() {
            self.device.note(self.device.shared.engine.zero(self.pointer, self.len * self.number.bytes()));
        }
    }

    /// Overwrites it from the host.
    pub fn write<T: Value>(&self, values: &[T]) {
        assert!(values.len() == self.len && T::NUMBER == self.number, "a write of other values than the buffer has");
        if self.len > 0 && !self.device.has_failed() {
            self.device.note(self.device.shared.engine.upload(self.pointer, bytemuck::cast_slice(values)));
        }
    }

    /// Overwrites it from another view of the same type and length.
    pub fn copy_from(&self, from: View) {
        assert!(from.len == self.len && from.number == self.number, "a copy between unequal views");
        if self.len > 0 && !self.device.has_failed() {
            let bytes = self.len * self.number.bytes();
            self.device.note(self.device.shared.engine.copy(from.pointer, self.pointer, bytes));
        }
    }

    /// Copies it into a slice. Waits for everything before; leaves the slice as it is after an error.
    pub fn read<T: Value>(&self, values: &mut [T]) {
        assert!(values.len() == self.len && T::NUMBER == self.number, "a read of other values than the buffer has");
        if self.len > 0 && !self.device.has_failed() {
            self.device.note(self.device.shared.engine.download(self.pointer, bytemuck::cast_slice_mut(values)));
        }
    }

    /// The values on the host; zeros after an error.
    pub fn download<T: Value>(&self) -> Vec<T> {
        let mut values = vec![T::zeroed(); self.len];
        self.read(&mut values);
        values
    }
}
