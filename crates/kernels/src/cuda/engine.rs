//! What a device must be able to do, and nothing more: hold memory, move it, launch kernels, multiply matrices. All in
//! the order of the calls (one stream).
//! Two things can do it: an NVIDIA GPU (`driver.rs`), and the host running the same kernel sources slowly
//! (`emulated.rs`), which is how the kernels are tested where there is no GPU.
//! Cost: none by itself.

use std::ffi::c_void;

use super::error::GpuError;
use super::sources::Module;

/// Type of the numbers in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// `f32`.
    F32,
    /// `bf16`.
    Bf16,
    /// `u32`.
    U32,
    /// `f64`.
    F64,
}

impl Number {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Number::Bf16 => 2,
            Number::F32 | Number::U32 => 4,
            Number::F64 => 8,
        }
    }

    /// The ending of the names of kernels that work on such numbers.
    pub fn suffix(self) -> &'static str {
        match self {
            Number::F32 => "f32",
            Number::Bf16 => "bf16",
            Number::U32 => "u32",
            Number::F64 => "f64",
        }
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// An address on the device; 0 is null.
    Pointer(u64),
    /// A 64-bit count.
    U64(u64),
    /// A 32-bit count.
    U32(u32),
    /// A number.
    F32(f32),
}

impl Argument {
    /// Where its value lies.
    pub(super) fn address(&self) -> *const c_void {
        match self {
            Argument::Pointer(value) | Argument::U64(value) => std::ptr::from_ref(value).cast(),
            Argument::U32(value) => std::ptr::from_ref(value).cast(),
            Argument::F32(value) => std::ptr::from_ref(value).cast(),
        }
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The source that it is in.
    pub module: Module,
    /// Its name.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// What it gets.
    pub arguments: &'a [Argument],
}

/// One operand of a product, in rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// First element.
    pub pointer: u64,
    /// Whether it is stored the other way round than the product reads it.
    pub transposed: bool,
}

/// `out[m, n] = a[m, k]·b[k, n] (+ bias[n]) (+ plus[m, n])`, all in rows without gaps; operands are `number`, sums are f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// f32 or bf16.
    pub number: Number,
    /// `[m, k]`, or `[k, m]` if transposed.
    pub a: Operand,
    /// `[k, n]`, or `[n, k]` if transposed.
    pub b: Operand,
    /// Result.
    pub out: u64,
    /// f32 or bf16.
    pub out_number: Number,
    /// Of the type of the result, which it may be itself; 0 for none.
    pub plus: u64,
    /// Added to every row, f32; 0 for none.
    pub bias: u64,
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that can still be had.
    pub free: usize,
    /// Bytes in all.
    pub total: usize,
}

/// A device. Addresses are plain numbers; that they are in use and large enough is the promise of `device.rs`, the only
/// caller.
pub(super) trait Engine: Send + Sync {
    /// Name for people.
    fn name(&self) -> String;
    /// `bytes` of memory, aligned to 256 bytes; `None` if there is not so much.
    fn allocate(&self, bytes: usize) -> Result<Option<u64>, GpuError>;
    /// Whether memory comes from an arena of large pieces; if not, every buffer is allocated and freed by itself.
    fn reuses(&self) -> bool {
        true
    }
    /// Gives memory back to the system. Everything launched before is done first.
    fn free(&self, pointer: u64);
    /// Copies to the device.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), GpuError>;
    /// Copies from the device and waits until it is done.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError>;
    /// Copies on the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError>;
    /// Zeroes memory.
    fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError>;
    /// Runs a kernel.
    fn launch(&self, launch: &Launch) -> Result<(), GpuError>;
    /// Multiplies.
    fn multiply(&self, product: &Product) -> Result<(), GpuError>;
    /// From now on launches, products, copies and zeroing are recorded in the place of being done.
    fn begin_recording(&self) -> Result<(), GpuError>;
    /// Ends that, also when something could not be recorded: then it is an error, and everything is done again as it comes.
    fn end_recording(&self) -> Result<u64, GpuError>;
    /// Does what was recorded.
    fn replay(&self, recording: u64) -> Result<(), GpuError>;
    /// Frees a recording.
    fn forget(&self, recording: u64);
    /// Waits until everything is done.
    fn synchronize(&self) -> Result<(), GpuError>;
    /// Memory left.
    fn memory(&self) -> Result<MemoryInfo, GpuError>;
}
