//! The ops on a device, one file per kind as in `cpu`: the same contracts, views in the place of slices.
//! Each function decides the shape of a launch and nothing else. Lists that the host knows anyway (token ids, segments,
//! rows) are taken as slices and sent along.
//! Cost: microseconds of the host per launch.

pub mod activation;
pub mod attention;
pub mod elementwise;
pub mod head;
pub mod norm;
pub mod optimiser;
pub mod rows;

use super::buffer::View;
use super::device::Device;
use super::engine::{Argument, Number};
use super::sources::Module;

/// Threads of a block where one thread has one element.
const FLAT: u32 = 256;

/// Runs a kernel with one thread for each of `count` elements.
fn flat(device: &Device, module: Module, kernel: &str, count: usize, arguments: &[Argument]) {
    device.launch(module, kernel, [count.div_ceil(FLAT as usize), 1], FLAT, 0, arguments);
}

/// `name_f32` or `name_bf16`.
fn typed(name: &str, number: Number) -> String {
    assert!(matches!(number, Number::F32 | Number::Bf16), "{name} works on f32 and bf16");
    format!("{name}_{}", number.suffix())
}

/// The same type for all.
fn same_number(what: &str, views: &[View]) -> Number {
    let number = views[0].number();
    assert!(views.iter().all(|view| view.number() == number), "{what}: operands of one op must have one element type");
    number
}

fn is_f32(what: &str, views: &[View]) {
    assert!(views.iter().all(|view| view.number() == Number::F32), "{what}: f32 is the contract");
}

fn u32_of(value: usize) -> Argument {
    Argument::U32(u32::try_from(value).expect("sizes of tensors' axes fit 32 bits"))
}

fn u64_of(value: usize) -> Argument {
    Argument::U64(value as u64)
}

/// A null pointer.
const NULL: Argument = Argument::Pointer(0);
