//! The loops around the block kernel: who computes which block, in what order memory is walked, and what happens to a
//! finished block (bias, addition, rounding).
//! One slice of a B panel stays in the first-level cache while blocks of A stream past it from the second. Sums over k
//! that are cut into slices continue from where they stopped, so blocking changes no bits.
//! Cost: A is packed once per product, about 3 % of the time of a 1024x576x1536 product.

use super::kernel::{Block, Kernel};
use super::pack::{self, PANEL, STEP, TILE, TILE_LEN};
use super::target::{OutputLines, Place, Target};
use crate::cpu::scratch::with_scratch;
use crate::element::bf16;
use crate::isa::MatmulPath;
use crate::parallel;
use crate::team;
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

    /// Where a slice starts, for prefetching; it need not exist.
    fn slice_start(&self, panel: usize, step: usize) -> *const bf16 {
        let offset = (self.first_panel + panel) * self.panel_stride + (self.first_step + step) * 2 * TILE_LEN;
        self.data.as_ptr().wrapping_add(offset)
    }
}

/// Rows of a task. A slice of k of that many rows takes 640 KiB of the second-level cache.
const TASK_ROWS: usize = 512;
/// Rows packed at a time, for each thread.
const ROWS_PER_THREAD: usize = 2 * TASK_ROWS;
/// Most steps of k whose panel slice stays in the first-level cache: 40 of 48 KiB.
const SLICE_STEPS: usize = 20;
/// Panels that a task takes through all slices together. Their sums take 512 KiB of the second-level cache; fewer
/// would have the slices of A read again more often.
const PANELS_TOGETHER: usize = 8;
/// Steps of B, 2 KiB each, that are worth a task of their own when they come from memory.
const STREAM_STEPS: usize = 64;
/// How far ahead of the products B is asked for when it comes from memory, in elements: 32 KiB.
const STREAM_AHEAD: usize = 1 << 14;
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
    let rows_at_once = ROWS_PER_THREAD * team::num_threads();
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
    let threads = team::num_threads();
    let row_groups = rows.div_ceil(TASK_ROWS).max(1);
    let group_rows = rows.div_ceil(row_groups).next_multiple_of(PANEL);
    // More tasks than threads even out a machine that others use too, as long as a task is worth its start and, once
    // there is one for every thread, wide enough to pay for reading its rows.
    let blocks = rows.div_ceil(PANEL) * b.panels * b.steps;
    // A single block of rows waits for B to come from memory; bytes count then, not products.
    let worthwhile = if rows <= PANEL { b.panels * b.steps / STREAM_STEPS } else { blocks / TASK_BLOCKS };
    let wanted = worthwhile.min(4 * threads).div_ceil(row_groups);
    let wide_enough = b.panels.div_ceil(PANELS_TOGETHER).max(threads.div_ceil(row_groups));
    let panels_per_task = b.panels.div_ceil(wanted.min(wide_enough).max(1)).max(1);
    let panel_groups = b.panels.div_ceil(panels_per_task);
    parallel::for_chunks(row_groups * panel_groups, 1, |task| {
        let (group, first_panel) = (task.start / panel_groups, task.start % panel_groups * panels_per_task);
        let first_row = group * group_rows;
        let task_rows = group_rows.min(rows - first_row);
        let panels = first_panel..(first_panel + panels_per_task).min(b.panels);
        let a = &a[first_row * b.steps * STEP..];
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
    // A panel that only one block reads is read once, whole and in the order of memory.
    let slices = if blocks <= 1 { 1 } else { b.steps.div_ceil(SLICE_STEPS).max(1) };
    let slice_steps = b.steps.div_ceil(slices);
    let task = PanelTask { a, rows, b, bias, target, kernel: Kernel::new(path) };
    assert!(a.len() >= blocks * task.a_stride(), "packed rows are complete");
    if slices == 1 {
        // A block is finished at once, and all blocks share one buffer.
        with_scratch(BLOCK_LEN, |sums: &mut [f32]| {
            for panel in panels {
                // SAFETY: this panel of these rows belongs to the task.
                unsafe { task.multiply(panel, 0..b.steps, panel + 1, sums) }
            }
        });
        return;
    }
    with_scratch(PANELS_TOGETHER * blocks * BLOCK_LEN, |sums: &mut [f32]| {
        for first in panels.clone().step_by(PANELS_TOGETHER) {
            let together = first..(first + PANELS_TOGETHER).min(panels.end);
            for slice in 0..slices {
                let steps = slice * slice_steps..((slice + 1) * slice_steps).min(b.steps);
                for (panel, sums) in together.clone().zip(sums.chunks_exact_mut(blocks * BLOCK_LEN)) {
                    let next = if panel + 1 < together.end { panel + 1 } else { first };
                    // SAFETY: this panel of these rows belongs to the task.
                    unsafe { task.multiply(panel, steps.clone(), next, sums) }
                }
            }
        }
    });
}

/// Sums of a block.
const BLOCK_LEN: usize = PANEL * PANEL;

/// What one task multiplies.
struct PanelTask<'a> {
    a: &'a [bf16],
    rows: usize,
    b: Columns<'a>,
    bias: Option<&'a [f32]>,
    target: Target,
    kernel: Kernel,
}

impl PanelTask<'_> {
    /// Elements from one block of packed rows to the next.
    fn a_stride(&self) -> usize {
        self.b.steps * 2 * TILE_LEN
    }

    /// All rows, one panel, some steps of k. `sums` holds one block, or one for each block of rows where k is cut into
    /// slices. The same steps of panel `next` are wanted afterwards.
    ///
    /// # Safety
    /// The target has this panel of these rows, and no other thread uses it.
    unsafe fn multiply(&self, panel: usize, steps: Range<usize>, next: usize, sums: &mut [f32]) {
        let Self { a, rows, b, target, .. } = *self;
        let width = PANEL.min(target.columns - panel * PANEL);
        let bias = self.bias.map(|bias| &bias[panel * PANEL..][..width]);
        let (whole, last) = (steps.len() == b.steps, steps.end == b.steps);
        let direct = whole && bias.is_none() && !steps.is_empty();
        let b_slice = b.slice(panel, steps.clone());
        let streamed = rows <= PANEL;
        let next =
            if streamed { b_slice.as_ptr().wrapping_add(STREAM_AHEAD) } else { b.slice_start(next, steps.start) };
        let buffers = sums.len() / BLOCK_LEN;
        for index in 0..rows.div_ceil(PANEL) {
            let row = index * PANEL;
            let place = Place { row, column: panel * PANEL, height: PANEL.min(rows - row), width };
            let buffer = &mut sums[index % buffers * BLOCK_LEN..][..BLOCK_LEN];
            // SAFETY: this place lies in the target, as the caller promises.
            let inside = if direct { unsafe { target.sums(place) } } else { None };
            let (c, c_stride) = inside.unwrap_or((buffer.as_mut_ptr(), PANEL));
            let block = Block {
                a: a[index * self.a_stride() + steps.start * 2 * TILE_LEN..].as_ptr(),
                num_tiles: place.height.div_ceil(TILE),
                b: b_slice.as_ptr(),
                steps: steps.len(),
                c,
                c_stride,
                fresh: steps.start == 0,
                // Eight blocks fetch all of the next slice; further ones look at what is there already.
                next: next.wrapping_add(index % 8 * steps.len() * 128),
                streamed,
                output: if last { target.lines(place) } else { OutputLines::of_buffer(c.wrapping_add(BLOCK_LEN)) },
            };
            if steps.is_empty() {
                buffer.fill(0.0);
            } else {
                // SAFETY: `a` and `b_slice` have these steps; `c` is the buffer or a full block of the target.
                unsafe { self.kernel.multiply(&block) }
            }
            if last && inside.is_none() {
                // SAFETY: this place lies in the target, as the caller promises.
                unsafe { target.store(buffer, bias, place) }
            }
        }
    }
}
