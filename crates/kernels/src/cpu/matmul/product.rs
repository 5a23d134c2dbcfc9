//! The loops around the block kernel: who computes which block, in what order memory is walked, and what happens to a
//! finished block (bias, addition, rounding).
//! One slice of a B panel stays in the first-level cache while blocks of A stream past it from the second. Sums over k
//! that are cut into slices continue from where they stopped, so blocking changes no bits.
//! Cost: A is packed once per product, about 3 % of the time of a 1024x576x1536 product.

use super::pack::{self, PANEL, STEP, TILE, TILE_LEN};
use super::portable;
#[cfg(target_arch = "x86_64")]
use super::{amx, avx512};
use crate::cpu::scratch::with_scratch;
use crate::element::{Element, bf16};
use crate::isa::{Machine, MatmulPath, multiversion};
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
    /// Overwrite.
    F32(*mut f32),
    /// Add the finished sums.
    F32Add(*mut f32),
    /// Continue the sums that are there: no extra pass, another order of rounding.
    F32Chain(*mut f32),
    /// Overwrite, rounded.
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
                Sink::F32Chain(out) => Sink::F32Chain(out.add(offset)),
                Sink::Bf16(out) => Sink::Bf16(out.add(offset)),
            }
        };
        Self { sink, ..self }
    }

    /// Where a kernel may keep the sums of a block instead of in a buffer: in the target, if it holds f32 and the block
    /// needs no finishing.
    ///
    /// # Safety
    /// The target has this row and column.
    unsafe fn sums(self, row: usize, column: usize, plain: bool) -> Option<(*mut f32, usize)> {
        match self.sink {
            Sink::F32(out) | Sink::F32Chain(out) if plain => {
                // SAFETY: as the caller promises.
                Some((unsafe { out.add(row * self.stride + column) }, self.stride))
            }
            _ => None,
        }
    }
}

/// One call of a block kernel: up to 32x32 sums over some steps of k.
#[derive(Debug)]
pub(super) struct Block {
    /// Packed rows at the first step.
    pub(super) a: *const bf16,
    /// Tiles of 16 rows to compute, 1 or 2.
    pub(super) num_tiles: usize,
    /// Packed columns at the first step.
    pub(super) b: *const bf16,
    /// Steps of k, at least 1.
    pub(super) steps: usize,
    /// 16 or 32 rows of 32 sums.
    pub(super) c: *mut f32,
    /// Elements from one row of sums to the next.
    pub(super) c_stride: usize,
    /// Start from zero instead of from the sums.
    pub(super) fresh: bool,
    /// Part of B that is wanted soon: 256 bytes per step are prefetched from here on. Need not be valid.
    pub(super) next: *const bf16,
}

/// A block kernel, ready on this thread.
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Tiles),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    Portable,
}

impl Kernel {
    /// The kernel of `path`; a path that the machine lacks becomes the portable one.
    fn new(path: MatmulPath) -> Self {
        let machine = Machine::get();
        match path {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: detection found AMX and got permission for it.
            MatmulPath::Amx if machine.amx_bf16 => Self::Amx(unsafe { amx::Tiles::new() }),
            #[cfg(target_arch = "x86_64")]
            MatmulPath::Avx512Bf16 if machine.avx512_bf16 => Self::Avx512Bf16,
            _ => {
                let _ = machine;
                Self::Portable
            }
        }
    }

    /// # Safety
    /// The pointers of `block` are valid for its sizes, and nobody else writes to its sums.
    unsafe fn multiply(&self, block: &Block) {
        // SAFETY: as promised by the caller; `new` checked the machine.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Amx(tiles) => tiles.multiply(block),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => avx512::multiply(block),
                Self::Portable => portable::multiply(block),
            }
        }
    }
}

/// A loop without memory, for measuring what a path can do at best.
#[derive(Clone, Copy)]
pub(crate) struct PeakRate {
    /// Floating-point operations of one run.
    pub(crate) flops: usize,
    /// Runs it on this thread.
    pub(crate) run: fn(),
}

/// The peak loop of a path, if the machine has a unit for it.
pub(crate) fn peak_rate(path: MatmulPath) -> Option<PeakRate> {
    match Kernel::new(path) {
        #[cfg(target_arch = "x86_64")]
        Kernel::Amx(_) => Some(PeakRate {
            flops: amx::PEAK_STEPS * 4 * 2 * TILE * TILE_LEN,
            run: || {
                if let Kernel::Amx(tiles) = Kernel::new(MatmulPath::Amx) {
                    amx::peak(&tiles);
                }
            },
        }),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Bf16 => Some(PeakRate {
            flops: avx512::PEAK_ROUNDS * 16 * 2 * STEP,
            run: || {
                // SAFETY: this path was available a moment ago.
                std::hint::black_box(unsafe { avx512::peak() });
            },
        }),
        Kernel::Portable => None,
    }
}

/// Bytes of packed A made at a time: two second-level caches' worth.
const PACKED_BYTES: usize = 4 << 20;
/// Bytes of packed A that a task works on: half a second-level cache.
const TASK_BYTES: usize = 1 << 20;
/// Most rows of a task; more would save little of the traffic of B.
const TASK_ROWS: usize = 512;
/// Most steps of k whose panel slice stays in the first-level cache: 40 of 48 KiB.
const SLICE_STEPS: usize = 20;
/// Blocks of 32x32x32 that are worth a task of their own, about 10 microseconds of AMX.
const TASK_BLOCKS: usize = 400;

/// Rows of a task for `steps` steps of k.
fn task_rows(steps: usize) -> usize {
    (TASK_BYTES / (steps.max(1) * STEP * size_of::<bf16>()) / PANEL * PANEL).clamp(128, TASK_ROWS)
}

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
    let group = task_rows(b.steps);
    let rows_at_once = (PACKED_BYTES / (b.steps.max(1) * STEP * size_of::<bf16>()) / group).max(1) * group;
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
    let group_rows = task_rows(b.steps);
    let row_groups = rows.div_ceil(group_rows);
    let blocks = rows.div_ceil(PANEL) * b.panels * b.steps;
    // More tasks than threads even out a machine that others use too, as long as a task is worth its start.
    let wanted = (blocks / TASK_BLOCKS).min(4 * rayon::current_num_threads()).max(1);
    let panels_per_task = b.panels.div_ceil(wanted.div_ceil(row_groups.max(1)).min(b.panels).max(1)).max(1);
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
    let num_blocks = rows.div_ceil(PANEL);
    let block_len = PANEL * PANEL;
    let a_stride = b.steps * 2 * TILE_LEN;
    assert!(a.len() >= num_blocks * a_stride, "packed rows are complete");
    let kernel = Kernel::new(path);
    let num_slices = b.steps.div_ceil(SLICE_STEPS);
    let slice_steps = b.steps.div_ceil(num_slices.max(1)).max(1);
    // With one slice of k a block is finished at once, and all blocks share one buffer.
    let buffers = if num_slices > 1 { num_blocks } else { 1 };
    with_scratch(buffers * block_len, |sums: &mut [f32]| {
        for panel in panels {
            let width = PANEL.min(target.columns - panel * PANEL);
            let bias = bias.map(|bias| &bias[panel * PANEL..][..width]);
            for slice in 0..num_slices.max(1) {
                let steps = slice * slice_steps..((slice + 1) * slice_steps).min(b.steps);
                let last = slice + 1 >= num_slices;
                let b_slice = b.slice(panel, steps.clone());
                for index in 0..num_blocks {
                    let (row, column) = (index * PANEL, panel * PANEL);
                    let height = PANEL.min(rows - row);
                    let full = height == PANEL && width == PANEL;
                    let buffer = &mut sums[index % buffers * block_len..][..block_len];
                    // SAFETY: this block lies in the target, as the caller promises.
                    let place = unsafe { target.sums(row, column, full && bias.is_none() && b.steps > 0) };
                    let chain = matches!(target.sink, Sink::F32Chain(_));
                    if chain && place.is_none() && slice == 0 {
                        // SAFETY: as above.
                        unsafe { load(buffer, height, width, target, row, column) }
                    }
                    let (c, c_stride) = place.unwrap_or((buffer.as_mut_ptr(), PANEL));
                    let fresh = slice == 0 && !chain;
                    if steps.is_empty() {
                        if fresh {
                            buffer.fill(0.0);
                        }
                    } else {
                        let block = Block {
                            a: a[index * a_stride + steps.start * 2 * TILE_LEN..].as_ptr(),
                            num_tiles: height.div_ceil(TILE),
                            b: b_slice.as_ptr(),
                            steps: steps.len(),
                            c,
                            c_stride,
                            fresh,
                            // Eight blocks fetch all of the next slice; further ones look at what is there already.
                            next: b_slice.as_ptr_range().end.wrapping_add(index % 8 * steps.len() * 128),
                        };
                        // SAFETY: `a` and `b_slice` have these steps; `c` is the buffer or a full block of the target.
                        unsafe { kernel.multiply(&block) }
                    }
                    if last && place.is_none() {
                        // SAFETY: as above.
                        unsafe { finish(buffer, height, width, bias, target, row, column) }
                    }
                }
            }
        }
    });
}

/// Fills the buffer of a block that is not full with the sums that a chain continues.
///
/// # Safety
/// The target has these rows and columns, and no other thread uses them.
unsafe fn load(c: &mut [f32], height: usize, width: usize, target: Target, row: usize, column: usize) {
    let Sink::F32Chain(out) = target.sink else { return };
    c.fill(0.0);
    for (r, c) in c.chunks_exact_mut(PANEL).take(height).enumerate() {
        // SAFETY: row `row + r` of the target.
        let source = unsafe { std::slice::from_raw_parts(out.add((row + r) * target.stride + column), width) };
        c[..width].copy_from_slice(source);
    }
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
            Sink::F32(out) | Sink::F32Chain(out) => {
                write_f32(c, height, width, bias, SharedPointer(out.add(offset)), target.stride)
            }
            Sink::F32Add(out) => add_f32(c, height, width, bias, SharedPointer(out.add(offset)), target.stride),
            Sink::Bf16(out) => write_bf16(c, height, width, bias, SharedPointer(out.add(offset)), target.stride),
        }
    }
}

/// Calls `write` with each output row of the block and its biased sums; always all 32 columns, so that loops have a
/// fixed length.
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
    let (lines, _) = c.as_chunks::<PANEL>();
    // SAFETY: row r of the part that the caller vouches for.
    let row = |r: usize| unsafe { std::slice::from_raw_parts_mut(out.at(r * stride), width) };
    match bias {
        None => {
            for (r, sums) in lines.iter().take(height).enumerate() {
                write(sums, row(r));
            }
        }
        Some(bias) => {
            let mut padded = [0.0; PANEL];
            padded[..width].copy_from_slice(bias);
            for (r, sums) in lines.iter().take(height).enumerate() {
                let mut biased = *sums;
                for j in 0..PANEL {
                    biased[j] += padded[j];
                }
                write(&biased, row(r));
            }
        }
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
            each_row(c, height, width, bias, out, stride, |sums, row| match <&mut [f32; PANEL]>::try_from(&mut *row) {
                Ok(row) => {
                    for j in 0..PANEL {
                        row[j] += sums[j];
                    }
                }
                Err(_) => {
                    for (out, sum) in row.iter_mut().zip(sums) {
                        *out += sum;
                    }
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
                // A plain loop: `array::map` is not inlined and would run without vector instructions.
                Ok(row) => {
                    for j in 0..PANEL {
                        row[j] = Element::from_f32(sums[j]);
                    }
                }
                Err(_) => {
                    for (out, sum) in row.iter_mut().zip(sums) {
                        *out = Element::from_f32(*sum);
                    }
                }
            });
        }
    }
}
