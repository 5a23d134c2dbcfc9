//! One matrix product with everything that belongs to it: bias, residual, low-rank adapters, both element types.
//! Knows weights and buffers; knows no architecture. Cost: one product forward, two backward.

use foveate_kernels::cpu::matmul::{self, Output};
use foveate_kernels::cpu::{elementwise, sums};
use foveate_kernels::element::{Element, bf16};
use foveate_kernels::rng::Stream;
use rayon::prelude::*;

use crate::arena::{Arena, Buffer, Kind};
use crate::gradients::Gradients;
use crate::tape::{bf16_of, same_type, typed};
use crate::weights::{LinearId, Weights};

/// `out = base + x·Wᵀ + b`; the base (a residual stream) is f32, and so is `out` then. Where adapters are, `kept`
/// receives their inner values for the backward pass.
pub fn forward(
    weights: &Weights,
    id: LinearId,
    x: &Buffer,
    base: Option<&[f32]>,
    out: &mut Buffer,
    arena: &mut Arena,
    kept: &mut Vec<Buffer>,
) {
    product(weights, id, x, base, out);
    let width = weights.linear(id).n;
    for adapter in weights.adapters(id) {
        let num_rows = x.len() / weights.linear(id).k;
        let mut inner = arena.take(x.kind(), num_rows * adapter.rank);
        match weights.dropout_of(adapter.a) {
            None => product(weights, adapter.a, x, None, &mut inner),
            Some((rate, stream)) => {
                let thinned = thinned(x, rate, &stream, arena);
                product(weights, adapter.a, &thinned, None, &mut inner);
                arena.give(thinned);
            }
        }
        let mut outer = Buffer::F32(arena.take_f32(num_rows * adapter.n));
        product(weights, adapter.b, &inner, None, &mut outer);
        typed!(&mut *out, out => {
            sums::add_columns(out, width, adapter.column, outer.f32(), adapter.n, adapter.scale)
        });
        arena.give(outer);
        kept.push(inner);
    }
}

fn product(weights: &Weights, id: LinearId, x: &Buffer, base: Option<&[f32]>, out: &mut Buffer) {
    let linear = weights.linear(id);
    let (n, k) = (linear.n, linear.k);
    let num_rows = x.len() / k;
    let bias = weights.bias(id);
    match x {
        Buffer::F32(x) => {
            if let Some(base) = base {
                elementwise::convert(base, out.f32_mut());
            }
            matmul::matmul_f32_nt(x, num_rows, weights.matrix(id), n, k, bias, base.is_some(), out.f32_mut());
        }
        Buffer::Bf16(x) => {
            let output = match (out, base) {
                (Buffer::F32(out), Some(base)) => Output::F32Onto { base, out },
                (Buffer::F32(out), None) => Output::F32(out),
                (Buffer::Bf16(out), None) => Output::Bf16(out),
                (Buffer::Bf16(_), Some(_)) => panic!("a residual stream is f32"),
                (Buffer::Device(_), _) => panic!("an op of the CPU received a buffer of a GPU"),
            };
            matmul::matmul_bf16(x, num_rows, weights.packed_forward(id), bias, output);
        }
        Buffer::Device(_) => panic!("an op of the CPU received a buffer of a GPU"),
    }
}

/// Gradients of weight, bias, adapters and (if asked) input. `kept` is what the forward pass kept.
pub fn backward(
    weights: &Weights,
    id: LinearId,
    x: &Buffer,
    d_out: &Buffer,
    operand: Kind,
    needs_x: bool,
    kept: Vec<Buffer>,
    arena: &mut Arena,
    gradients: &mut Gradients,
) -> Option<Buffer> {
    let width = weights.linear(id).n;
    // The residual stream's gradient is f32; the matrix unit wants bf16.
    let rounded = (operand == Kind::Bf16 && d_out.kind() == Kind::F32).then(|| {
        let mut rounded = arena.take(Kind::Bf16, d_out.len());
        if let Buffer::Bf16(values) = &mut rounded {
            elementwise::convert::<f32, bf16>(d_out.f32(), values);
        }
        rounded
    });
    let d_operand = rounded.as_ref().unwrap_or(d_out);
    let mut d_x = product_backward(weights, id, x, d_operand, needs_x, arena, gradients);

    for (adapter, inner) in weights.adapters(id).iter().zip(kept) {
        let num_rows = x.len() / weights.linear(id).k;
        let mut d_outer = arena.take(operand, num_rows * adapter.n);
        same_type!((d_operand, d_out), (&mut d_outer, d_outer) => {
            sums::take_columns(d_out, width, adapter.column, d_outer, adapter.n, adapter.scale)
        });
        let d_inner = product_backward(weights, adapter.b, &inner, &d_outer, true, arena, gradients)
            .expect("the inner gradient was asked for");
        let more = match weights.dropout_of(adapter.a) {
            None => product_backward(weights, adapter.a, x, &d_inner, needs_x, arena, gradients),
            Some((rate, stream)) => {
                let thinned = thinned(x, rate, &stream, arena);
                let mut more = product_backward(weights, adapter.a, &thinned, &d_inner, needs_x, arena, gradients);
                if let Some(more) = &mut more {
                    typed!(more, values => thin(values, rate, &stream));
                }
                arena.give(thinned);
                more
            }
        };
        if let (Some(d_x), Some(more)) = (&mut d_x, &more) {
            same_type!((d_x, d_x), (more, more) => sums::add_elements(d_x, more));
        }
        for buffer in [Some(inner), Some(d_outer), Some(d_inner), more].into_iter().flatten() {
            arena.give(buffer);
        }
    }
    if let Some(rounded) = rounded {
        arena.give(rounded);
    }
    d_x
}

/// A copy of `x` with some values left out.
fn thinned(x: &Buffer, rate: f32, stream: &Stream, arena: &mut Arena) -> Buffer {
    let mut out = arena.take(x.kind(), x.len());
    same_type!((x, x), (&mut out, out) => {
        out.copy_from_slice(x);
        thin(out, rate, stream);
    });
    out
}

/// Inverted dropout: a value is left out with probability `rate`, the others grow so that the mean stays. Its own
/// backward: the gradient passes through the same gaps with the same factor.
fn thin<T: Element>(values: &mut [T], rate: f32, stream: &Stream) {
    /// Values of one task; a multiple of four, since one draw decides for four.
    const TASK: usize = 1 << 14;
    let scale = 1.0 / (1.0 - rate);
    // Compared as integers: a draw below the bound leaves its value out.
    let bound = (f64::from(rate) * 4_294_967_296.0) as u64;
    values.par_chunks_mut(TASK).enumerate().for_each(|(task, values)| {
        for (place, four) in values.chunks_mut(4).enumerate() {
            let words = stream.words((task * TASK / 4 + place) as u32);
            for (value, word) in four.iter_mut().zip(words) {
                *value = T::from_f32(if u64::from(word) < bound { 0.0 } else { value.to_f32() * scale });
            }
        }
    });
}

fn product_backward(
    weights: &Weights,
    id: LinearId,
    x: &Buffer,
    d_out: &Buffer,
    needs_x: bool,
    arena: &mut Arena,
    gradients: &mut Gradients,
) -> Option<Buffer> {
    let linear = weights.linear(id);
    let (n, k) = (linear.n, linear.k);
    let num_rows = x.len() / k;
    if weights.linear_is_trainable(id) {
        let (d_weight, fresh) = gradients.part_or_fresh(linear.offset..linear.offset + n * k);
        match d_out {
            Buffer::F32(dy) => matmul::matmul_f32_weight_gradient(dy, x.f32(), num_rows, n, k, fresh, d_weight),
            Buffer::Bf16(dy) => matmul::matmul_bf16_weight_gradient(dy, bf16_of(x), num_rows, n, k, fresh, d_weight),
            Buffer::Device(_) => panic!("an op of the CPU received a buffer of a GPU"),
        }
        if let Some(offset) = linear.bias {
            let d_bias = gradients.part(offset..offset + n);
            typed!(d_out, dy => matmul::bias_gradient(dy, num_rows, n, d_bias));
        }
    }
    needs_x.then(|| {
        let mut d_x = arena.take(x.kind(), x.len());
        match (d_out, &mut d_x) {
            (Buffer::F32(dy), Buffer::F32(d_x)) => {
                matmul::matmul_f32_nn(dy, num_rows, weights.matrix(id), n, k, false, d_x);
            }
            (Buffer::Bf16(dy), Buffer::Bf16(d_x)) => {
                matmul::matmul_bf16(dy, num_rows, weights.packed_backward(id), None, Output::Bf16(d_x));
            }
            _ => panic!("operands of one op must have one element type"),
        }
        d_x
    })
}
