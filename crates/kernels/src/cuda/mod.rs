//! The operations on an NVIDIA GPU: kernels in CUDA C (`source/`), compiled when they are first needed, and matrix products
//! of cuBLASLt. Everything is opened at run time; building needs no CUDA, and a machine without a GPU gets an error with
//! a hint, never a panic.
//! `docs/gpu.md` says what has run on a GPU so far and what has only run on the host, emulated.
//! Cost: see each file.

mod buffer;
pub mod compile;
mod device;
pub mod driver;
#[cfg(unix)]
mod emulated;
mod engine;
mod error;
mod graph;
pub mod libraries;
pub mod ops;
mod products;
mod recording;
mod slabs;
mod sources;

pub use buffer::{DeviceBuffer, Value, View, number_of};
pub use device::Device;
pub use engine::{MemoryInfo, Number};
pub use error::GpuError;
pub use recording::{Counts, Recording, Repeats, Scratch};
pub use sources::{Module, TILE_HEADS};
