//! Brings operands into the order in which the matrix unit reads them.
//! A (rows): blocks of 32 rows, in each of them per 32 k two tiles of 16 rows; a line of a tile is 32 k of one row.
//! B (columns): panels of 32 columns, in each of them per 32 k two tiles of 16 columns; a line of a tile is one pair of
//! k, with the pair's two values side by side for each of the 16 columns.
//! What a matrix lacks up to a full tile is zero. Rounding to bf16 happens here, to nearest, ties to even.
//! Cost: one pass over the source at about memory speed, parallel; see `shuffle.rs` for the transposing loops.

use super::shuffle;
use crate::cpu::ask::{ahead, ask_ahead, ask_for};
use crate::cpu::past_caches::{LARGE, copy_past_caches, finish_stores};
use crate::cpu::shared::SharedMut;
use crate::element::{Element, bf16, same_type};
use crate::isa::multiversion;
use crate::parallel;
use std::ops::Range;

/// Rows and columns of a tile, in elements of C.
pub(crate) const TILE: usize = 16;
/// Rows of a block of A and columns of a panel of B: two tiles side by side.
pub(crate) const PANEL: usize = 32;
/// k covered by one tile of A or B.
pub(crate) const STEP: usize = 32;
/// bf16 values of a tile.
pub(crate) const TILE_LEN: usize = TILE * STEP;
/// bf16 values of the two tiles of a step.
pub(crate) const PAIR_LEN: usize = 2 * TILE_LEN;

/// Elements that a task of plain copying moves: about 10 microseconds.
const TASK_LEN: usize = 128 << 10;
/// Panels whose strips a task reads together: 512 columns, so that rows are read in long pieces.
const GROUP: usize = 16;
/// Steps of a task that reads strips.
const GROUP_STEPS: usize = 8;

/// bf16 values of packed columns, `k` rows by `n` columns.
pub(crate) fn panels_len(k: usize, n: usize) -> usize {
    k.div_ceil(STEP) * STEP * n.div_ceil(PANEL) * PANEL
}

/// bf16 values of packed rows, `m` rows by `k`.
pub(crate) fn rows_len(m: usize, k: usize) -> usize {
    panels_len(k, m)
}

/// A from row-major `x[m, k]`.
pub(crate) fn rows_from_rows(x: &[bf16], k: usize, m: usize, out: &mut [bf16]) {
    let block_len = rows_len(PANEL, k);
    let blocks_per_task = (TASK_LEN / block_len.max(1)).max(1);
    parallel::for_rows(&mut out[..rows_len(m, k)], block_len, blocks_per_task, |first, blocks| {
        for (index, block) in blocks.chunks_exact_mut(block_len).enumerate() {
            let row = (first + index) * PANEL;
            block_from_rows(x, k, row..(row + PANEL).min(m), 0, k, block);
        }
    });
}

multiversion! {
    /// One block of A from up to 32 rows: `width` values of k from `first` on, the rest of the block zero.
    fn block_from_rows(x: &[bf16], stride: usize, rows: Range<usize>, first: usize, width: usize, block: &mut [bf16]) {
        let steps = block.len() / PAIR_LEN;
        let (lines, _) = block.as_chunks_mut::<STEP>();
        // The same values of a later row.
        let later = ahead::<bf16>(width) / width.max(1) * stride;
        // Row by row, so that memory is read in its order.
        for r in 0..PANEL {
            let source = if r < rows.len() { &x[(rows.start + r) * stride + first..][..width] } else { &[][..] };
            for step in 0..steps {
                let line = &mut lines[step * PANEL + r];
                let part = source.get(step * STEP..).unwrap_or(&[]);
                ask_ahead(part, later, STEP);
                if let Some(full) = part.first_chunk::<STEP>() {
                    *line = *full;
                } else {
                    line[..part.len()].copy_from_slice(part);
                    line[part.len()..].fill(bf16::ZERO);
                }
            }
        }
    }
}

/// Calls `f` for every group of panels and steps of a packed operand with its `steps` steps and `panels` panels.
fn for_groups(panels: usize, steps: usize, f: impl Fn(Range<usize>, Range<usize>) + Sync) {
    let across = panels.div_ceil(GROUP);
    parallel::for_chunks(across * steps.div_ceil(GROUP_STEPS), 1, |task| {
        let (panel, step) = (task.start % across * GROUP, task.start / across * GROUP_STEPS);
        f(panel..(panel + GROUP).min(panels), step..(step + GROUP_STEPS).min(steps));
    });
}

/// Some rows of A from row-major `x[m, k]`, rows `stride` apart, some steps of k only, on this thread.
pub(crate) fn some_rows(
    x: &[bf16],
    k: usize,
    stride: usize,
    rows: Range<usize>,
    steps: Range<usize>,
    out: &mut [bf16],
) {
    if steps.is_empty() {
        return;
    }
    let (first, width) = (steps.start * STEP, (steps.end * STEP).min(k) - steps.start * STEP);
    let block_len = steps.len() * PAIR_LEN;
    for (index, block) in out.chunks_exact_mut(block_len).take(rows.len().div_ceil(PANEL)).enumerate() {
        let row = rows.start + index * PANEL;
        block_from_rows(x, stride, row..(row + PANEL).min(rows.end), first, width, block);
    }
}

/// Some rows of A = dyᵀ from row-major `dy[depth, n]`, rows `stride` apart, some steps of its depth only, on this
/// thread.
pub(crate) fn some_columns(dy: &[bf16], stride: usize, rows: Range<usize>, steps: Range<usize>, out: &mut [bf16]) {
    let depth = dy.len().div_ceil(stride.max(1));
    for step in steps.clone() {
        prefetch_strip(dy, stride, (step + 1) * STEP, &rows);
        for block in 0..rows.len().div_ceil(PANEL) {
            let pair = &mut out[(block * steps.len() + step - steps.start) * PAIR_LEN..][..PAIR_LEN];
            let column = rows.start + block * PANEL;
            let source = Strip {
                data: dy,
                stride,
                row: step * STEP,
                rows: STEP.min(depth - step * STEP),
                column,
                columns: PANEL.min(rows.end - column),
            };
            source.with_full(STEP, |data, stride| shuffle::transpose(data, stride, pair));
        }
    }
}

/// Asks for 32 rows of some columns: they lie too far apart for the hardware to guess.
fn prefetch_strip(data: &[bf16], stride: usize, row: usize, columns: &Range<usize>) {
    for row in row..row + STEP {
        let Some(line) = data.get(row * stride + columns.start..row * stride + columns.end) else { return };
        ask_for(line);
    }
}

/// B from row-major `w[k, n]`.
pub(crate) fn columns_from_rows<E: Element>(w: &[E], k: usize, n: usize, out: &mut [bf16]) {
    let (steps, out) = (k.div_ceil(STEP), &mut out[..panels_len(k, n)]);
    let large = size_of_val(&*out) >= LARGE;
    let out = SharedMut::new(out);
    for_groups(n.div_ceil(PANEL), steps, |panels, group_steps| {
        let mut packed = [bf16::ZERO; PAIR_LEN];
        for step in group_steps {
            for panel in panels.clone() {
                // SAFETY: tasks own different panels and steps.
                let pair = unsafe { out.slice((panel * steps + step) * PAIR_LEN, PAIR_LEN) };
                let source = Strip {
                    data: w,
                    stride: n,
                    row: step * STEP,
                    rows: STEP.min(k - step * STEP),
                    column: panel * PANEL,
                    columns: PANEL.min(n - panel * PANEL),
                };
                if large {
                    source.with_full(STEP, |data, stride| interleave(data, stride, &mut packed));
                    copy_past_caches(&packed, pair);
                } else {
                    source.with_full(STEP, |data, stride| interleave(data, stride, pair));
                }
            }
        }
        finish_stores();
    });
}

/// B = Wᵀ from row-major `w[n, k]`.
pub(crate) fn columns_from_transposed(w: &[f32], k: usize, n: usize, out: &mut [bf16]) {
    let panel_len = panels_len(k, PANEL);
    parallel::for_rows(&mut out[..panels_len(k, n)], panel_len, 1, |panel, pairs| {
        let rows = &w[panel * PANEL * k..((panel + 1) * PANEL).min(n) * k];
        for tile in 0..2 {
            for (step, pair) in pairs.chunks_exact_mut(PAIR_LEN).enumerate() {
                Square { rows, width: k, step }.transposed_tile(tile, &mut pair[tile * TILE_LEN..][..TILE_LEN]);
            }
        }
    });
}

/// 32 columns of up to 32 rows of f32 that lie one after the other; what is missing is zero.
pub(crate) struct Square<'a> {
    /// All columns of these rows.
    pub(crate) rows: &'a [f32],
    /// Length of a row.
    pub(crate) width: usize,
    /// Which columns.
    pub(crate) step: usize,
}

impl Square<'_> {
    /// Two tiles of B whose columns are these rows.
    pub(crate) fn transposed(&self, pair: &mut [bf16]) {
        for (tile, out) in pair.chunks_exact_mut(TILE_LEN).enumerate() {
            self.transposed_tile(tile, out);
        }
    }

    /// Two tiles of B whose rows are these rows.
    pub(crate) fn as_stored(&self, pair: &mut [bf16]) {
        self.strip(0, STEP).with_full(STEP, |data, stride| interleave(data, stride, pair));
    }

    fn transposed_tile(&self, tile: usize, out: &mut [bf16]) {
        let source = self.strip(tile * TILE, TILE);
        if source.rows == 0 {
            return out.fill(bf16::ZERO);
        }
        source.with_full(TILE, |data, stride| shuffle::round_transpose(data, stride, out));
    }

    /// Up to `rows` rows from `row` on.
    fn strip(&self, row: usize, rows: usize) -> Strip<'_, f32> {
        let (data, stride, column) = (self.rows, self.width, self.step * STEP);
        let rows = rows.min((data.len() / stride).saturating_sub(row));
        Strip { data, stride, row, rows, column, columns: STEP.min(stride - column) }
    }
}

/// Up to 32 x 32 elements of a row-major matrix.
struct Strip<'a, E> {
    data: &'a [E],
    stride: usize,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

impl<E: Element> Strip<'_, E> {
    /// Calls `f` with a slice that starts at the first element and holds `wanted` full rows of 32 at the given stride;
    /// edges are filled up with zeros.
    fn with_full(&self, wanted: usize, f: impl FnOnce(&[E], usize)) {
        let start = self.row * self.stride + self.column;
        if self.rows == wanted && self.columns == STEP {
            return f(&self.data[start..start + (wanted - 1) * self.stride + STEP], self.stride);
        }
        let mut padded = [E::default(); STEP * STEP];
        for (r, line) in padded.chunks_exact_mut(STEP).take(self.rows).enumerate() {
            line[..self.columns].copy_from_slice(&self.data[start + r * self.stride..][..self.columns]);
        }
        f(&padded, STEP);
    }
}

/// Bits of bf16 `value`, in the low half.
#[inline(always)]
fn low<E: Element>(value: E) -> u32 {
    u32::from(<bf16 as Element>::from_f32(value.to_f32()).to_bits())
}

/// Two tiles of B from 32 rows of 32 elements: values of row pairs side by side, rounded.
fn interleave<E: Element>(source: &[E], stride: usize, pair: &mut [bf16]) {
    match same_type(source) {
        Some(source) => shuffle::interleave(source, stride, pair),
        None => round_interleave(source, stride, pair),
    }
}

multiversion! {
    fn round_interleave<E: Element>(source: &[E], stride: usize, pair: &mut [bf16]) {
        let (lines, _) = bytemuck::cast_slice_mut::<bf16, u32>(pair).as_chunks_mut::<TILE>();
        for half in 0..2 {
            for p in 0..TILE {
                let start = 2 * p * stride + half * TILE;
                let (even, odd) = (&source[start..start + TILE], &source[start + stride..start + stride + TILE]);
                let line = &mut lines[half * TILE + p];
                for j in 0..TILE {
                    line[j] = low(even[j]) | low(odd[j]) << 16;
                }
            }
        }
    }
}
