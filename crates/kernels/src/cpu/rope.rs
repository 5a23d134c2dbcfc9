//! Rotary position embedding in one or several axes, in place, rotate-half convention (Llama, Qwen, SmolLM).
//! Knows angles only; where positions and frequencies come from is the model's business.
//! Cost: the table costs one sine and cosine per row and half-dimension, once per batch; the rotation is one pass.

// T rows, half = number of rotated pairs per head

use crate::cpu::ask::{ahead, ask_ahead};
use crate::cpu::shared::SharedMut;
use crate::cpu::vector::{Vector, WIDTH, load, store, vectorised};
use crate::element::Element;
use crate::parallel::{for_chunks, share};

const ROWS: usize = 64;

/// Cosines and sines of every row, `[T, half]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeTable {
    /// Cosines, row after row.
    pub cos: Vec<f32>,
    /// Sines, row after row.
    pub sin: Vec<f32>,
    /// Rotated pairs per head; `2 * half` may be less than the head when only its first part is rotated.
    pub half: usize,
}

impl RopeTable {
    /// Cosines and sines of one row.
    pub(super) fn row(&self, row: usize) -> (&[f32], &[f32]) {
        (&self.cos[row * self.half..][..self.half], &self.sin[row * self.half..][..self.half])
    }

    /// Ordinary positions: pair `i` turns by `position * inv_freq[i]`.
    pub fn one_axis(positions: &[u32], head_dim: usize, inv_freq: &[f32]) -> Self {
        Self::axes(&[positions], &vec![0; inv_freq.len()], head_dim, inv_freq)
    }

    /// Several axes (time, height, width): pair `i` turns by `positions[section_of[i]][row] * inv_freq[i]`.
    pub fn axes(positions: &[&[u32]], section_of: &[u8], head_dim: usize, inv_freq: &[f32]) -> Self {
        let half = inv_freq.len();
        assert!(2 * half <= head_dim, "RopeTable: {half} frequencies do not fit a head of {head_dim}");
        assert_eq!(section_of.len(), half, "RopeTable: one section per frequency");
        assert!(
            section_of.iter().all(|&axis| (axis as usize) < positions.len()),
            "RopeTable: section without positions"
        );
        let rows = positions.first().map_or(0, |column| column.len());
        assert!(positions.iter().all(|column| column.len() == rows), "RopeTable: position columns of different length");
        let mut table = Self { cos: vec![0.0; rows * half], sin: vec![0.0; rows * half], half };
        let (cos, sin) = (SharedMut::new(&mut table.cos), SharedMut::new(&mut table.sin));
        for_chunks(rows, ROWS, |range| {
            for row in range {
                // SAFETY: each row belongs to one chunk.
                let (cos, sin) = unsafe { (cos.slice(row * half, half), sin.slice(row * half, half)) };
                for i in 0..half {
                    // The angle is rounded to f32 as in transformers; its sine and cosine are then exact to f32.
                    let angle = positions[section_of[i] as usize][row] as f32 * inv_freq[i];
                    let (s, c) = f64::from(angle).sin_cos();
                    (sin[i], cos[i]) = (s as f32, c as f32);
                }
            }
        });
        table
    }
}

/// Rotates heads `first_head .. first_head + num_heads` of each row of `x` `[T, row_width]` in place. `inverse` turns
/// back, which is also the backward pass.
pub fn rope<E: Element>(
    x: &mut [E],
    row_width: usize,
    first_head: usize,
    num_heads: usize,
    head_dim: usize,
    table: &RopeTable,
    inverse: bool,
) {
    let half = table.half;
    assert!(row_width > 0 && x.len().is_multiple_of(row_width), "rope: rows of {row_width} do not fill the tensor");
    let rows = x.len() / row_width;
    assert_eq!(table.cos.len(), rows * half, "rope: the table has another number of rows");
    assert!((first_head + num_heads) * head_dim <= row_width && 2 * half <= head_dim, "rope: heads outside the row");
    let shared = SharedMut::new(x);
    for_chunks(rows, share(rows, ROWS), |range| {
        let (start, len) = (range.start, range.len());
        // SAFETY: chunks of rows are disjoint.
        let x = unsafe { shared.slice(start * row_width, len * row_width) };
        let (cos, sin) = (&table.cos[start * half..][..len * half], &table.sin[start * half..][..len * half]);
        rope_chunk(x, row_width, first_head * head_dim, num_heads, head_dim, cos, sin, half, inverse);
    });
}

vectorised! {
    fn rope_chunk<V, E: Element>(
        x: &mut [E], row_width: usize, offset: usize, num_heads: usize, head_dim: usize, cos: &[f32], sin: &[f32],
        half: usize, inverse: bool,
    ) {
        if half == 0 {
            return;
        }
        let later = ahead::<E>(row_width);
        for ((row, cos), sin) in x.chunks_exact_mut(row_width).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half)) {
            for head in row[offset..][..num_heads * head_dim].chunks_exact_mut(head_dim) {
                ask_ahead(head, later, head_dim);
                turn::<V, E>(head, cos, sin, inverse);
            }
        }
    }
}

/// Rotates one head of one row.
#[inline(always)]
pub(super) fn turn<V: Vector, E: Element>(head: &mut [E], cos: &[f32], sin: &[f32], inverse: bool) {
    let sign = V::splat(if inverse { -1.0 } else { 1.0 });
    let half = cos.len();
    let (first, second) = head[..2 * half].split_at_mut(half);
    let whole = half / WIDTH * WIDTH;
    let pairs = first[..whole].chunks_exact_mut(WIDTH).zip(second[..whole].chunks_exact_mut(WIDTH));
    let turns = cos.chunks_exact(WIDTH).zip(sin.chunks_exact(WIDTH));
    for ((first, second), (cos, sin)) in pairs.zip(turns) {
        turn_at::<V, E>(0, first, second, cos, sin, sign);
    }
    if whole < half {
        turn_at::<V, E>(whole, first, second, cos, sin, sign);
    }
}

#[inline(always)]
fn turn_at<V: Vector, E: Element>(at: usize, first: &mut [E], second: &mut [E], cos: &[f32], sin: &[f32], sign: V) {
    let (x, y): (V, V) = (load(first, at), load(second, at));
    let (c, s): (V, V) = (load(cos, at), load::<V, f32>(sin, at).mul(sign));
    store(x.mul(c).sub(y.mul(s)), first, at);
    store(y.mul(c).add(x.mul(s)), second, at);
}

vectorised! {
    /// [`turn`] for callers that are compiled for any machine.
    pub(super) fn turn_row<V, E: Element>(head: &mut [E], cos: &[f32], sin: &[f32], inverse: bool) {
        turn::<V, E>(head, cos, sin, inverse);
    }
}
