//! Conversions, sums of tensors, columns, biases, dropout.
//! Cost: one pass over memory each.

use super::{flat, is_f32, same_number, typed, u32_of, u64_of};
use crate::cuda::buffer::View;
use crate::cuda::engine::{Argument, Number};
use crate::cuda::sources::Module;
use crate::rng::Stream;

const MODULE: Module = Module::Elementwise;

/// `b = a`, rounded to the type of `b`.
pub fn convert(a: View, b: View) {
    assert_eq!(a.len(), b.len(), "convert: lengths differ");
    let arguments = [a.argument(), b.argument(), u64_of(a.len())];
    match (a.number(), b.number()) {
        (Number::F32, Number::Bf16) => flat(a.device(), MODULE, "convert_f32_bf16", a.len(), &arguments),
        (Number::Bf16, Number::F32) => flat(a.device(), MODULE, "convert_bf16_f32", a.len(), &arguments),
        _ => b.copy_from(a),
    }
}

/// `x += y`, element by element, in the tensors' own type.
pub fn add(x: View, y: View) {
    assert_eq!(x.len(), y.len(), "add: both tensors have the same values");
    let kernel = typed("add", same_number("add", &[x, y]));
    flat(x.device(), MODULE, &kernel, x.len(), &[x.argument(), y.argument(), u64_of(x.len())]);
}

/// `x[:, column..column + n] += scale * y`, where rows of `x` are `width` long and rows of `y` are `n` long.
pub fn add_columns(x: View, width: usize, column: usize, y: View, n: usize, scale: f32) {
    is_f32("add_columns", &[y]);
    let rows = x.len() / width;
    assert!(y.len() == rows * n && column + n <= width, "add_columns: columns outside the rows");
    let scale = Argument::F32(scale);
    let arguments = [x.argument(), u64_of(rows), u32_of(width), u32_of(column), y.argument(), u32_of(n), scale];
    flat(x.device(), MODULE, &typed("add_columns", x.number()), rows * n, &arguments);
}

/// `y = scale * x[:, column..column + n]`.
pub fn take_columns(x: View, width: usize, column: usize, y: View, n: usize, scale: f32) {
    let rows = x.len() / width;
    assert!(y.len() == rows * n && column + n <= width, "take_columns: columns outside the rows");
    let scale = Argument::F32(scale);
    let arguments = [x.argument(), u64_of(rows), u32_of(width), u32_of(column), y.argument(), u32_of(n), scale];
    let kernel = typed("take_columns", same_number("take_columns", &[x, y]));
    flat(x.device(), MODULE, &kernel, rows * n, &arguments);
}

/// Inverted dropout, in place: the draws and gaps of the CPU.
pub fn thin(x: View, rate: f32, stream: &Stream) {
    let scale = 1.0 / (1.0 - rate);
    let bound = (f64::from(rate) * 4_294_967_296.0) as u64;
    let ([key0, key1], [c0, c1, c2]) = stream.parts();
    let mut arguments = vec![x.argument(), u64_of(x.len()), Argument::U64(bound), Argument::F32(scale)];
    arguments.extend([key0, key1, c0, c1, c2].map(Argument::U32));
    flat(x.device(), MODULE, &typed("thin", x.number()), x.len().div_ceil(4), &arguments);
}
