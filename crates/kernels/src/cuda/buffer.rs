//! Numbers on a device: buffers that give their memory back when they are dropped, and typed views of them.
//! Knows lengths and types; knows no ops. Cost: none beside the copies that are asked for.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;

use super::device::Device;
use super::engine::{Argument, Number};
use super::recording::Memory;
use crate::element::{Element, bf16};

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

/// Numbers on a device; the memory is reused when it is dropped. What was launched before keeps its meaning, since
/// everything runs in order.
pub struct DeviceBuffer {
    pub(super) device: Device,
    pub(super) pointer: u64,
    pub(super) bytes: usize,
    pub(super) len: usize,
    pub(super) number: Number,
    /// Where it comes from, if it was taken for a recording.
    pub(super) scratch: Option<Arc<Memory>>,
}

impl std::fmt::Debug for DeviceBuffer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "DeviceBuffer({} {})", self.len, self.number.suffix())
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        match &self.scratch {
            Some(memory) => memory.give(self.pointer, self.bytes),
            None => self.device.give(self.pointer, self.bytes),
        }
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
    pub(super) pointer: u64,
    pub(super) len: usize,
    pub(super) number: Number,
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

    /// The address, to tell whether memory is still the same.
    pub fn address(&self) -> u64 {
        self.pointer
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
        if self.len > 0 {
            self.device.zero(self.pointer, self.len * self.number.bytes());
        }
    }

    /// Overwrites it from the host.
    pub fn write<T: Value>(&self, values: &[T]) {
        assert!(values.len() == self.len && T::NUMBER == self.number, "a write of other values than the buffer has");
        if self.len > 0 {
            self.device.send(self.pointer, bytemuck::cast_slice(values));
        }
    }

    /// Overwrites it from another view of the same type and length.
    pub fn copy_from(&self, from: View) {
        assert!(from.len == self.len && from.number == self.number, "a copy between unequal views");
        if self.len > 0 {
            self.device.copy(from.pointer, self.pointer, self.len * self.number.bytes());
        }
    }

    /// Copies it into a slice. Waits for everything before; leaves the slice as it is after an error.
    pub fn read<T: Value>(&self, values: &mut [T]) {
        assert!(values.len() == self.len && T::NUMBER == self.number, "a read of other values than the buffer has");
        if self.len > 0 {
            self.device.fetch(self.pointer, bytemuck::cast_slice_mut(values));
        }
    }

    /// The values on the host; zeros after an error.
    pub fn download<T: Value>(&self) -> Vec<T> {
        let mut values = vec![T::zeroed(); self.len];
        self.read(&mut values);
        values
    }
}
