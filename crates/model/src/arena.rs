//! Buffers of activations, reused from step to step so that memory is touched once.
//! Knows sizes only. Cost: a search in a small ordered map.

use std::collections::BTreeMap;

use bytemuck::Pod;
use foveate_kernels::cuda::{DeviceBuffer, Number};
use foveate_kernels::element::bf16;
use foveate_kernels::memory::Values;

/// Values of one tensor, in f32 or as bf16 operand.
#[derive(Debug)]
pub enum Buffer {
    /// Full precision.
    F32(Values<f32>),
    /// Operand of the matrix unit.
    Bf16(Values<bf16>),
    /// On a GPU, in either type.
    Device(DeviceBuffer),
}

/// Element type of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `f32`.
    F32,
    /// `bf16`.
    Bf16,
}

impl Buffer {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Buffer::F32(values) => values.len(),
            Buffer::Bf16(values) => values.len(),
            Buffer::Device(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn kind(&self) -> Kind {
        match self {
            Buffer::F32(_) => Kind::F32,
            Buffer::Bf16(_) => Kind::Bf16,
            Buffer::Device(values) if values.number() == Number::Bf16 => Kind::Bf16,
            Buffer::Device(_) => Kind::F32,
        }
    }

    /// The values of an f32 buffer. Which tensors are f32 is fixed by the op that makes them.
    pub fn f32(&self) -> &[f32] {
        match self {
            Buffer::F32(values) => values,
            Buffer::Bf16(_) => panic!("an op received bf16 where its contract says f32"),
            Buffer::Device(_) => panic!("an op of the CPU received a buffer of a GPU"),
        }
    }

    /// The values of an f32 buffer, to be changed.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        match self {
            Buffer::F32(values) => values,
            Buffer::Bf16(_) => panic!("an op received bf16 where its contract says f32"),
            Buffer::Device(_) => panic!("an op of the CPU received a buffer of a GPU"),
        }
    }

    /// The buffer of a GPU.
    pub(crate) fn on_device(&self) -> &DeviceBuffer {
        match self {
            Buffer::Device(values) => values,
            _ => panic!("an op of a GPU received a buffer of the CPU"),
        }
    }

    /// The same, handed over.
    pub(crate) fn into_device(self) -> DeviceBuffer {
        match self {
            Buffer::Device(values) => values,
            _ => panic!("an op of a GPU received a buffer of the CPU"),
        }
    }
}

/// Returned buffers by capacity.
#[derive(Default)]
pub struct Arena {
    f32: BTreeMap<usize, Vec<Values<f32>>>,
    bf16: BTreeMap<usize, Vec<Values<bf16>>>,
    held_bytes: usize,
}

/// A kept buffer serves a request of at least half its capacity: small requests never pin large memory.
fn take<T: Pod>(kept: &mut BTreeMap<usize, Vec<Values<T>>>, held: &mut usize, len: usize) -> Values<T> {
    let found = kept.range(len..=len.saturating_mul(2)).next().map(|(capacity, _)| *capacity);
    let Some(capacity) = found else { return Values::zeroed(len) };
    let list = kept.get_mut(&capacity).expect("the key was just found");
    let mut buffer = list.pop().expect("empty lists are removed");
    if list.is_empty() {
        kept.remove(&capacity);
    }
    *held -= buffer.capacity() * size_of::<T>();
    // Old values may remain: every op overwrites its whole output.
    buffer.set_len(len);
    buffer
}

impl Arena {
    /// A buffer whose values are unspecified.
    pub fn take(&mut self, kind: Kind, len: usize) -> Buffer {
        match kind {
            Kind::F32 => Buffer::F32(self.take_f32(len)),
            Kind::Bf16 => Buffer::Bf16(take(&mut self.bf16, &mut self.held_bytes, len)),
        }
    }

    /// An f32 buffer whose values are unspecified.
    pub fn take_f32(&mut self, len: usize) -> Values<f32> {
        take(&mut self.f32, &mut self.held_bytes, len)
    }

    /// Hands a buffer back.
    pub fn give(&mut self, buffer: Buffer) {
        match buffer {
            Buffer::F32(values) => self.give_f32(values),
            // The device keeps its memory itself.
            Buffer::Device(values) => drop(values),
            Buffer::Bf16(values) => {
                if values.capacity() > 0 {
                    self.held_bytes += values.capacity() * size_of::<bf16>();
                    self.bf16.entry(values.capacity()).or_default().push(values);
                }
            }
        }
    }

    /// Hands an f32 buffer back.
    pub fn give_f32(&mut self, values: Values<f32>) {
        if values.capacity() > 0 {
            self.held_bytes += values.capacity() * size_of::<f32>();
            self.f32.entry(values.capacity()).or_default().push(values);
        }
    }

    /// Bytes kept for reuse.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Frees everything kept.
    pub fn release(&mut self) {
        *self = Arena::default();
    }
}
