//! What the forward pass leaves for the backward pass, so that logits need not be computed again.
//! Knows rows and chunks of the vocabulary. What is kept has the bits that computing again would give: who keeps and who
//! does not get the same gradients.
//! Cost: one value of the operands' type per row and token of the vocabulary, written past the caches, for at most
//! [`MOST_VALUES`].

use super::CHUNK;
use super::softmax::ChunkMasses;
use crate::cpu::past_caches::copy_past_caches;
use crate::cpu::shared::SharedMut;
use crate::element::{Element, bf16, same_type};
use std::ops::Range;

/// Masses that are kept at most: 256 MiB in bf16. Further rows are computed again.
pub const MOST_VALUES: usize = 128 << 20;
/// Values of a cache line in bf16: rows start on one.
const LINE: usize = 32;

/// e^(z − m) of the first rows, with z the scaled logits and m the largest of its chunk, and all these m.
#[derive(Debug)]
pub struct Masses<'a> {
    /// `[rows, V]`, rows [`Masses::lens`] apart.
    values: MassValues<'a>,
    /// `[rows, chunks]`.
    maxima: &'a mut [f32],
    stride: usize,
    chunks: usize,
}

/// Masses in the type of the products' operands.
#[derive(Debug)]
pub enum MassValues<'a> {
    /// Beside f32 weights.
    F32(&'a mut [f32]),
    /// Beside bf16 weights.
    Bf16(&'a mut [bf16]),
}

impl MassValues<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

impl<'a> Masses<'a> {
    /// Rows of `r` that are kept for a vocabulary of `v`.
    pub fn num_rows(r: usize, v: usize) -> usize {
        r.min(MOST_VALUES / v.next_multiple_of(LINE).max(1))
    }

    /// Masses and maxima of so many rows.
    pub fn lens(rows: usize, v: usize) -> (usize, usize) {
        (rows * v.next_multiple_of(LINE), rows * v.div_ceil(CHUNK))
    }

    /// Room for as many rows as fit. Both slices have the lengths that [`Masses::lens`] says.
    pub fn new(v: usize, values: MassValues<'a>, maxima: &'a mut [f32]) -> Self {
        let (stride, chunks) = Self::lens(1, v);
        assert!(values.len() / stride.max(1) == maxima.len() / chunks.max(1), "as many rows of masses as of maxima");
        Self { values, maxima, stride, chunks }
    }

    /// Rows that are kept.
    pub(super) fn rows(&self) -> usize {
        self.maxima.len() / self.chunks.max(1)
    }

    /// The places of all rows and chunks in the type `O`, for tasks that fill different ones.
    pub(super) fn places<O: Element>(&mut self) -> Places<'_, O> {
        let rows = self.rows();
        let values: &mut [O] = match &mut self.values {
            MassValues::F32(values) if O::NAME == f32::NAME => bytemuck::cast_slice_mut(values),
            MassValues::Bf16(values) if O::NAME == bf16::NAME => bytemuck::cast_slice_mut(values),
            _ => panic!("masses have the type of the products' operands"),
        };
        let (values, maxima) = (SharedMut::new(values), SharedMut::new(self.maxima));
        Places { values, maxima, stride: self.stride, chunks: self.chunks, rows }
    }

    /// Masses of some tokens of one chunk, and its largest scaled logit.
    pub(super) fn of<O: Element>(&self, row: usize, chunk: usize, tokens: Range<usize>) -> (&[O], f32) {
        let values = match &self.values {
            MassValues::F32(values) => same_type(values),
            MassValues::Bf16(values) => same_type(values),
        };
        let values: &[O] = values.expect("masses have the type of the products' operands");
        let start = row * self.stride;
        (&values[start + tokens.start..start + tokens.end], self.maxima[row * self.chunks + chunk])
    }
}

/// See [`Masses::places`].
pub(super) struct Places<'a, O> {
    values: SharedMut<'a, O>,
    maxima: SharedMut<'a, f32>,
    stride: usize,
    chunks: usize,
    rows: usize,
}

impl<O: Element> Places<'_, O> {
    /// Whether this row is kept.
    pub(super) fn take(&self, row: usize) -> bool {
        row < self.rows
    }

    /// Keeps one chunk of one row. `finish_stores` comes before others read it.
    ///
    /// # Safety
    /// No other thread uses this chunk of this row.
    pub(super) unsafe fn keep(&self, row: usize, chunk: usize, num_tokens: usize, masses: &ChunkMasses<O>, max: f32) {
        let len = num_tokens.next_multiple_of(LINE);
        // SAFETY: a row has room for whole lines, and its chunks do not share any.
        unsafe {
            copy_past_caches(&masses.0[..len], self.values.slice(row * self.stride + chunk * CHUNK, len));
            self.maxima.slice(row * self.chunks + chunk, 1)[0] = max;
        }
    }
}
