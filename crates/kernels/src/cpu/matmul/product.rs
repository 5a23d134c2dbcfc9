//! The loops around the block kernel: who computes which block, in what order memory is walked, and what happens to a
//! finished block (bias, addition, rounding).
//! B panels are the inner resident operand: one slice of a panel stays in the first-level cache while blocks of rows
//! stream past it. Sums over k that are cut into slices continue from where they stopped, so blocking changes no bits.
//! Cost: A is packed once per product, about 3 % of the time of a 1024x576x1536 product.

use super::pack::{self, PANEL, STEP, TILE, TILE_LEN};
use super::portable;
use crate::cpu::scratch::with_scratch;
use crate::element::{Element, bf16};
use crate::isa::{MatmulPath, multiversion};
use crate::parallel::{self, SharedPointer};
use std::ops::Range;

/// Packed B, or a range of its columns and of its k.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    data: &'a [bf16],
    /// Elements from one panel to the next.
    panel_stride: usize,
    /// First step of k.
    first_step: usize,
    steps: usize,
    /// First panel and number of panels.
    first_panel: usize,
    panels: usize,
}

impl<'a> Columns<'a> {
    pub(crate) fn new(data: &'a [bf16], k: usize, n: usize) -> Self {
        let steps = k.div_ceil(STEP);
        let panels = n.div_ceil(PANEL);
        assert!(data.len() >= panels * steps * 2 * TILE_LEN, "packed columns are complete");
        Self { data, panel_stride: steps * 2 * TILE_LEN, first_step: 0, steps, first_panel: 0, panels }
    }

    /// Columns `range` only; its start is a multiple of 32.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(PANEL), "columns start at a panel");
        let first = range.start / PANEL;
        let panels = range.end.div_ceil(PANEL) - first;
        assert!(first + panels <= self.panels, "columns exist");
        Self { first_panel: self.first_panel + first, panels, ..self }
    }

    /// k in `range` only; its start is a multiple of 32.
    pub(crate) fn depth(self, range: Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(STEP), "k starts at a step");
        let first = range.start / STEP;
        let steps = range.end.div_ceil(STEP) - first;
        assert!(first + steps <= self.steps, "k exists");
        Self { first_step: self.first_step + first, steps, ..self }
    }

    fn slice(&self, panel: usize, steps: Range<usize>) -> &'a [bf16] {
        let start = (self.first_panel + panel) * self.panel_stride + (self.first_step + steps.start) * 2 * TILE_LEN;
        &self.data[start..start + steps.len() * 2 * TILE_LEN]
    }
}

/// What to do with a finished block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sink {
    F32(*mut f32),
    F32Add(*mut f32),
    Bf16(*mut bf16),
}

/// A row-major output that tasks write disjoint blocks of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) sink: Sink,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Valid columns; the padding of the last panel is dropped.
    pub(crate) columns: usize,
}

// SAFETY: tasks write disjoint blocks, see `multiply_packed`.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The same output, starting `rows` further down.
    ///
    /// # Safety
    /// The output has more than `rows` rows.
    pub(crate) unsafe fn skip_rows(self, rows: usize) -> Self {
        let offset = rows * self.stride;
        // SAFETY: the caller says that these rows exist.
        let sink = unsafe {
            match self.sink {
                Sink::F32(out) => Sink::F32(out.add(offset)),
                Sink::F32Add(out) => Sink::F32Add(out.add(offset)),
                Sink::Bf16(out) => Sink::Bf16(out.add(offset)),
            }
        };
        Self { sink, ..self }
    }
}

/// Bytes of packed A made at a time: two second-level caches' worth.
const PACKED_BYTES: usize = 4 << 20;
/// Rows of a task; with k = 1536 they take 768 KiB, a good part of a second-level cache.
const TASK_ROWS: usize = 256;
/// Steps of k whose panel slice stays in the first-level cache (32 KiB).
const SLICE_STEPS: usize = 16;
/// A k of up to this many steps is not cut.
const WHOLE_STEPS: usize = 24;
/// Blocks of 32x32x32 that are worth a task of their own, about 10 microseconds of AMX.
const TASK_BLOCKS: usize = 400;

/// Target = x[m, k]·B, packing x on the way.
///
/// # Safety
/// `target` points to `m` rows and as many columns as it says, no other thread uses them, and B has those columns.
pub(crate) unsafe fn multiply_rows(
    path: MatmulPath,
    x: &[bf16],
    k: usize,
    m: usize,
    b: Columns<'_>,
    bias: Option<&[f32]>,
    target: Target,
) {
    let rows_at_once = (PACKED_BYTES / (size_of::<bf16>() * k.next_multiple_of(STEP).max(1))).max(TASK_ROWS);
    let rows_at_once = rows_at_once / TASK_ROWS * TASK_ROWS;
    for first in (0..m).step_by(rows_at_once) {
        let rows = rows_at_once.min(m - first);
        with_scratch(pack::rows_len(rows, k), |packed: &mut [bf16]| {
            pack::rows_from_rows(&x[first * k..][..rows * k], k, rows, packed);
            // SAFETY: rows `first..first + rows` exist, as the caller promises for all m.
            unsafe { multiply_packed(path, packed, rows, b, bias, target.skip_rows(first)) }
        });
    }
}

/// Target = A·B for packed A, in parallel.
///
/// # Safety
/// As for [`multiply_rows`], with `rows` rows.
pub(crate) unsafe fn multiply_packed(
    path: MatmulPath,
    a: &[bf16],
    rows: usize,
    b: Columns<'_>,
    bias: Option<&[f32]>,
    target: Target,
) {
    let row_groups = rows.div_ceil(TASK_ROWS);
    let blocks = rows.div_ceil(PANEL) * b.panels * b.steps;
    // More tasks than threads even out a machine that others use too, as long as a task is worth its start.
    let wanted = (blocks / TASK_BLOCKS).min(4 * rayon::current_num_threads()).max(1);
    let panels_per_task = b.panels.div_ceil(wanted.div_ceil(row_groups).min(b.panels).max(1)).max(1);
    let panel_groups = b.panels.div_ceil(panels_per_task);
    parallel::for_chunks(row_groups * panel_groups, 1, |task| {
        let (group, first_panel) = (task.start / panel_groups, task.start % panel_groups * panels_per_task);
        let first_row = group * TASK_ROWS;
        let task_rows = TASK_ROWS.min(rows - first_row);
        let panels = first_panel..(first_panel + panels_per_task).min(b.panels);
        let a = &a[first_row / TILE * b.steps * TILE_LEN..];
        // SAFETY: tasks differ in their rows or in their panels, so no two write the same element.
        unsafe { multiply_panels(path, a, task_rows, b, panels, bias, target.skip_rows(first_row)) }
    });
}

/// Target = A·B for packed A, on this thread.
///
/// # Safety
/// As for [`multiply_rows`], with `rows` rows.
pub(crate) unsafe fn multiply_serial(
    path: MatmulPath,
    a: &[bf16],
    rows: usize,
    b: Columns<'_>,
    bias: Option<&[f32]>,
    target: Target,
) {
    // SAFETY: as promised by the caller.
    unsafe { multiply_panels(path, a, rows, b, 0..b.panels, bias, target) }
}

/// The part of a product that one task does: all of `rows`, some panels.
///
/// # Safety
/// As for [`multiply_rows`].
unsafe fn multiply_panels(
    path: MatmulPath,
    a: &[bf16],
    rows: usize,
    b: Columns<'_>,
    panels: Range<usize>,
    bias: Option<&[f32]>,
    target: Target,
) {
    let blocks = rows.div_ceil(PANEL);
    let block_len = PANEL * PANEL;
    let slice_steps = if b.steps <= WHOLE_STEPS { b.steps.max(1) } else { SLICE_STEPS };
    let a_stride = b.steps * TILE_LEN;
    with_scratch(blocks * block_len, |sums: &mut [f32]| {
        for panel in panels {
            let width = PANEL.min(target.columns - panel * PANEL);
            let bias = bias.map(|bias| &bias[panel * PANEL..][..width]);
            for first_step in (0..b.steps.max(1)).step_by(slice_steps) {
                let steps = first_step..(first_step + slice_steps).min(b.steps);
                let b_slice = b.slice(panel, steps.clone());
                for (block, c) in sums.chunks_exact_mut(block_len).enumerate() {
                    let num_blocks = (rows - block * PANEL).div_ceil(TILE).min(2);
                    let a = &a[2 * block * a_stride + steps.start * TILE_LEN..];
                    portable::block(a, num_blocks, a_stride, b_slice, c, first_step == 0);
                    if steps.end == b.steps {
                        let height = PANEL.min(rows - block * PANEL);
                        // SAFETY: these rows and columns lie in the target, as the caller promises.
                        unsafe { finish(c, height, width, bias, target, block * PANEL, panel * PANEL) }
                    }
                }
            }
        }
    });
    let _ = path;
}

/// Writes the `height` x `width` valid part of a block to the target at (`row`, `column`).
///
/// # Safety
/// The target has these rows and columns, and no other thread uses them.
unsafe fn finish(
    c: &[f32],
    height: usize,
    width: usize,
    bias: Option<&[f32]>,
    target: Target,
    row: usize,
    column: usize,
) {
    let offset = row * target.stride + column;
    // SAFETY: the last element touched is at offset + (height - 1) * stride + width, inside the target.
    unsafe {
        match target.sink {
            Sink::F32(out) => write_f32(c, height, width, bias, SharedPointer(out.add(offset)), target.stride),
            Sink::F32Add(out) => add_f32(c, height, width, bias, SharedPointer(out.add(offset)), target.stride),
            Sink::Bf16(out) => write_bf16(c, height, width, bias, SharedPointer(out.add(offset)), target.stride),
        }
    }
}

/// A line of the block with the bias added; all 32 columns, so that the loop has a fixed length.
#[inline(always)]
fn biased(c: &[f32], bias: &[f32; PANEL]) -> [f32; PANEL] {
    std::array::from_fn(|j| c[j] + bias[j])
}

#[inline(always)]
fn padded_bias(bias: Option<&[f32]>) -> [f32; PANEL] {
    let mut padded = [0.0; PANEL];
    if let Some(bias) = bias {
        padded[..bias.len()].copy_from_slice(bias);
    }
    padded
}

/// Calls `write` with each output row of the block and its biased sums.
///
/// # Safety
/// `out` has `height` rows of `width` elements, `stride` apart.
#[inline(always)]
unsafe fn each_row<T>(
    c: &[f32],
    height: usize,
    width: usize,
    bias: Option<&[f32]>,
    out: SharedPointer<T>,
    stride: usize,
    write: impl Fn(&[f32; PANEL], &mut [T]),
) {
    let padded = padded_bias(bias);
    for (r, c) in c.chunks_exact(PANEL).take(height).enumerate() {
        // SAFETY: row r of the part that the caller vouches for.
        let row = unsafe { std::slice::from_raw_parts_mut(out.at(r * stride), width) };
        write(&biased(c, &padded), row);
    }
}

multiversion! {
    fn write_f32(c: &[f32], height: usize, width: usize, bias: Option<&[f32]>, out: SharedPointer<f32>, stride: usize) {
        // SAFETY: `finish` passes a part of the target.
        unsafe {
            each_row(c, height, width, bias, out, stride, |sums, row| match <&mut [f32; PANEL]>::try_from(&mut *row) {
                Ok(row) => *row = *sums,
                Err(_) => row.copy_from_slice(&sums[..row.len()]),
            });
        }
    }
}

multiversion! {
    fn add_f32(c: &[f32], height: usize, width: usize, bias: Option<&[f32]>, out: SharedPointer<f32>, stride: usize) {
        // SAFETY: `finish` passes a part of the target.
        unsafe {
            each_row(c, height, width, bias, out, stride, |sums, row| {
                for (out, sum) in row.iter_mut().zip(sums) {
                    *out += sum;
                }
            });
        }
    }
}

multiversion! {
    fn write_bf16(c: &[f32], height: usize, width: usize, bias: Option<&[f32]>, out: SharedPointer<bf16>, stride: usize) {
        // SAFETY: `finish` passes a part of the target.
        unsafe {
            each_row(c, height, width, bias, out, stride, |sums, row| match <&mut [bf16; PANEL]>::try_from(&mut *row) {
                Ok(row) => *row = sums.map(Element::from_f32),
                Err(_) => {
                    for (out, sum) in row.iter_mut().zip(sums) {
                        *out = Element::from_f32(*sum);
                    }
                }
            });
        }
    }
}
