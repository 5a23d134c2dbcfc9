//! The loops around the block kernel: who computes which block, in what order memory is walked, and what happens to a
//! finished block (bias, addition, rounding).
//! Every thread packs the rows that it is about to multiply, into a buffer that stays in its second-level cache: rows
//! are read once, from wherever they are, and no thread waits for another's packing. One slice of a B panel stays in
//! the first-level cache while blocks of A stream past it from the second. Sums over k that are cut into slices
//! continue from where they stopped, so blocking changes no bits.
//! Cost: about 3 % of a 1024x576x1536 product is packing of A.

use super::kernel::{Block, Kernel};
use super::pack::{self, PANEL, STEP, TILE, TILE_LEN};
use super::target::{OutputLines, Place, Target};
use crate::cpu::ask::ask_for;
use crate::cpu::past_caches::finish_stores;
use crate::cpu::scratch::with_scratch;
use crate::element::bf16;
use crate::isa::MatmulPath;
use crate::parallel;
use crate::team;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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

    /// Everything, in the order of memory, if no k is left out.
    pub(crate) fn values(&self) -> &'a [bf16] {
        let first = self.first_panel * self.panel_stride;
        &self.data[first..first + self.panels * self.panel_stride]
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

/// The rows of A as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rows<'a> {
    /// Row-major `x[m, k]`, rows `stride` apart.
    RowMajor { x: &'a [bf16], k: usize, stride: usize },
    /// The transpose of row-major `dy[depth, n]`, rows `stride` apart: its columns are the rows.
    Transposed { dy: &'a [bf16], stride: usize },
}

impl Rows<'_> {
    /// Packs some steps of k of some rows, on this thread.
    fn pack(&self, rows: Range<usize>, steps: Range<usize>, out: &mut [bf16]) {
        match *self {
            Rows::RowMajor { x, k, stride } => pack::some_rows(x, k, stride, rows, steps, out),
            Rows::Transposed { dy, stride } => pack::some_columns(dy, stride, rows, steps, out),
        }
    }
}

/// Most rows that are packed together.
const GROUP_ROWS: usize = 512;
/// Rows below which reading B for them costs more than multiplying by it.
const LEAST_ROWS: usize = 192;
/// Bytes of the second-level cache that packed rows and unfinished sums may take; B and the output need the rest.
const GROUP_BYTES: usize = 1280 << 10;
/// Most steps of k whose panel slice stays in the first-level cache: 40 of 48 KiB.
const SLICE_STEPS: usize = 20;
/// Panels that go through all slices together where all of k is packed at once.
const PANELS_TOGETHER: usize = 8;
/// Panels of a task at most where slices are packed one by one: more would leave room for too few rows.
const SLICED_PANELS: usize = 24;
/// Steps of B, 2 KiB each, that are worth a task of their own when they come from memory: what is asked for beyond the
/// end of a task is asked for in vain.
const STREAM_STEPS: usize = 256;
/// How far ahead of the products B is asked for when it comes from memory, in elements: 8 KiB, which is more than can
/// be under way at a time.
const STREAM_AHEAD: usize = 1 << 12;
/// Blocks of 32x32x32 that are worth a task of their own, about 10 microseconds of AMX.
const TASK_BLOCKS: usize = 400;

/// How a product is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Blocks of 32 rows.
    blocks: usize,
    row_groups: usize,
    panels: usize,
    panel_groups: usize,
    /// Slices of k; sums wait between them.
    slices: usize,
    /// Pack one slice of the rows at a time and keep the sums of all panels, instead of packing all of k.
    sliced: bool,
}

impl Cut {
    fn new(rows: usize, b: &Columns<'_>, threads: usize) -> Self {
        let (blocks, steps, panels) = (rows.div_ceil(PANEL), b.steps, b.panels);
        // A panel that only one block reads is read once, whole and in the order of memory.
        let slices = if blocks <= 1 { 1 } else { steps.div_ceil(SLICE_STEPS).max(1) };
        let step_bytes = STEP * size_of::<bf16>();
        let panel_bytes = PANEL * size_of::<f32>();
        let fit = |bytes_per_row: usize| (GROUP_BYTES / bytes_per_row / PANEL).clamp(1, GROUP_ROWS / PANEL);
        let whole = fit(steps.max(1) * step_bytes + if slices > 1 { PANELS_TOGETHER * panel_bytes } else { 0 });
        let sliced_groups = panels.div_ceil(SLICED_PANELS).max(1);
        let one_slice = fit(steps.div_ceil(slices).max(1) * step_bytes + panels.div_ceil(sliced_groups) * panel_bytes);
        let sliced = slices > 1 && one_slice > whole;
        let most = if sliced { one_slice } else { whole };
        // As many groups for every thread, as long as they are large enough.
        let mut row_groups = blocks.div_ceil(most).max(1);
        if row_groups < threads {
            row_groups = threads.min(rows / LEAST_ROWS).max(row_groups);
        } else if blocks / row_groups.next_multiple_of(threads) >= LEAST_ROWS / PANEL {
            row_groups = row_groups.next_multiple_of(threads);
        }
        // More tasks than threads even out a machine that others use too, as long as a task is worth its start.
        // A single block of rows waits for B to come from memory; bytes count then, not products.
        let panel_groups = if blocks <= 1 {
            let most = (panels * steps / STREAM_STEPS).next_multiple_of(threads).clamp(threads, 4 * threads);
            // As many panels for every thread: for so short a product nothing evens out later.
            let even =
                (1..=most / threads).rev().map(|share| share * threads).find(|groups| panels.is_multiple_of(*groups));
            even.unwrap_or(most)
        } else if sliced {
            sliced_groups
        } else if row_groups < threads {
            (blocks * panels * steps / TASK_BLOCKS).min(threads.div_ceil(row_groups))
        } else {
            1
        };
        Self { blocks, row_groups, panels, panel_groups: panel_groups.clamp(1, panels.max(1)), slices, sliced }
    }

    fn blocks_of(&self, group: usize) -> Range<usize> {
        group * self.blocks / self.row_groups..(group + 1) * self.blocks / self.row_groups
    }

    fn panels_of(&self, group: usize) -> Range<usize> {
        group * self.panels / self.panel_groups..(group + 1) * self.panels / self.panel_groups
    }
}

/// Target = A·B, packing A on the way.
///
/// # Safety
/// `target` points to `m` rows and as many columns as it says, no other thread uses them, and B has those columns.
pub(crate) unsafe fn multiply_rows(
    path: MatmulPath,
    a: Rows<'_>,
    m: usize,
    b: Columns<'_>,
    bias: Option<&[f32]>,
    target: Target,
) {
    if m == 0 {
        return;
    }
    let threads = team::num_threads();
    let target = target.past_caches(m);
    let cut = Cut::new(m, &b, threads);
    let tasks = cut.row_groups * cut.panel_groups;
    let next = AtomicUsize::new(0);
    // Each thread takes tasks as long as there are any, and packs when their rows change.
    parallel::for_chunks(threads.min(tasks), 1, |_| {
        let most_blocks = cut.blocks.div_ceil(cut.row_groups);
        let packed_steps = if cut.sliced { b.steps.div_ceil(cut.slices) } else { b.steps };
        with_scratch(most_blocks * packed_steps * 2 * TILE_LEN, |packed: &mut [bf16]| {
            let kernel = Kernel::new(path);
            let mut holds = None;
            loop {
                let task = next.fetch_add(1, Relaxed);
                if task >= tasks {
                    if target.past_caches {
                        finish_stores();
                    }
                    return;
                }
                let (group, panels) = (task / cut.panel_groups, cut.panels_of(task % cut.panel_groups));
                if cut.blocks <= 1 {
                    // The products ask for what lies further ahead; the beginning comes while rows are packed.
                    let beginning = b.slice(panels.start, 0..b.steps);
                    ask_for(&beginning[..beginning.len().min(STREAM_AHEAD)]);
                }
                let blocks = cut.blocks_of(group);
                let rows = blocks.start * PANEL..(blocks.end * PANEL).min(m);
                // SAFETY: tasks differ in their rows or in their panels, so no two write the same element.
                let target = unsafe { target.skip_rows(rows.start) };
                let part = Part { rows: rows.len(), b, bias, target, kernel: &kernel };
                // SAFETY: as above.
                unsafe {
                    if cut.sliced {
                        part.multiply_sliced(|steps, out| a.pack(rows.clone(), steps, out), packed, panels, cut.slices);
                    } else {
                        if holds != Some(group) {
                            a.pack(rows.clone(), 0..b.steps, packed);
                            holds = Some(group);
                        }
                        part.multiply_whole(packed, panels, cut.slices);
                    }
                }
            }
        });
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
    let kernel = Kernel::new(path);
    let slices = if rows <= PANEL { 1 } else { b.steps.div_ceil(SLICE_STEPS).max(1) };
    let part = Part { rows, b, bias, target, kernel: &kernel };
    // SAFETY: as promised by the caller.
    unsafe { part.multiply_whole(a, 0..b.panels, slices) }
}

/// Sums of a block.
const BLOCK_LEN: usize = PANEL * PANEL;

/// Some rows of a product, on one thread.
struct Part<'a> {
    rows: usize,
    b: Columns<'a>,
    bias: Option<&'a [f32]>,
    target: Target,
    kernel: &'a Kernel,
}

/// A range of packed steps of k, and how they lie in memory.
#[derive(Clone, Copy)]
struct Packed<'a> {
    a: &'a [bf16],
    /// Step of k that stands first in `a`.
    first: usize,
    /// Steps of each block in `a`.
    steps: usize,
}

impl Part<'_> {
    fn blocks(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    fn steps_of(&self, slice: usize, slices: usize) -> Range<usize> {
        let most = self.b.steps.div_ceil(slices);
        (slice * most).min(self.b.steps)..((slice + 1) * most).min(self.b.steps)
    }

    /// Some panels; `a` holds all of k.
    ///
    /// # Safety
    /// The target has these panels of these rows, and no other thread uses them.
    unsafe fn multiply_whole(&self, a: &[bf16], panels: Range<usize>, slices: usize) {
        let a = Packed { a, first: 0, steps: self.b.steps };
        if slices == 1 {
            // A block is finished at once, and all blocks share one buffer.
            // A block that goes past the caches does so while the next is computed, in a second buffer.
            let buffers = if self.target.past_caches { 2 } else { 1 };
            with_scratch(buffers * BLOCK_LEN, |sums: &mut [f32]| {
                let mut finished = None;
                for panel in panels {
                    // SAFETY: as promised by the caller.
                    unsafe { self.multiply(a, panel, 0..self.b.steps, panel + 1, sums, &mut finished) }
                }
                // SAFETY: as promised by the caller; `sums` still holds it.
                unsafe { self.store(finished) }
            });
            return;
        }
        with_scratch(PANELS_TOGETHER * self.blocks() * BLOCK_LEN, |sums: &mut [f32]| {
            let mut finished = None;
            for first in panels.clone().step_by(PANELS_TOGETHER) {
                let together = first..(first + PANELS_TOGETHER).min(panels.end);
                for slice in 0..slices {
                    let steps = self.steps_of(slice, slices);
                    // SAFETY: as promised by the caller.
                    unsafe { self.multiply_slice(a, together.clone(), steps, sums, &mut finished) }
                }
            }
            // SAFETY: as above; `sums` still holds it.
            unsafe { self.store(finished) }
        });
    }

    /// Some panels; `pack` fills `a` with one slice of k after the other.
    ///
    /// # Safety
    /// As for [`Part::multiply_whole`].
    unsafe fn multiply_sliced(
        &self,
        pack: impl Fn(Range<usize>, &mut [bf16]),
        a: &mut [bf16],
        panels: Range<usize>,
        slices: usize,
    ) {
        with_scratch(panels.len() * self.blocks() * BLOCK_LEN, |sums: &mut [f32]| {
            let mut finished = None;
            for slice in 0..slices {
                let steps = self.steps_of(slice, slices);
                if steps.is_empty() {
                    continue;
                }
                pack(steps.clone(), a);
                let a = Packed { a, first: steps.start, steps: steps.len() };
                // SAFETY: as promised by the caller.
                unsafe { self.multiply_slice(a, panels.clone(), steps, sums, &mut finished) }
            }
            // SAFETY: as above; `sums` still holds it.
            unsafe { self.store(finished) }
        });
    }

    /// One slice of k for some panels, each with a buffer for all its blocks.
    ///
    /// # Safety
    /// As for [`Part::multiply_whole`].
    unsafe fn multiply_slice(
        &self,
        a: Packed<'_>,
        panels: Range<usize>,
        steps: Range<usize>,
        sums: &mut [f32],
        finished: &mut Option<Finished>,
    ) {
        if steps.is_empty() {
            return;
        }
        for (panel, sums) in panels.clone().zip(sums.chunks_exact_mut(self.blocks() * BLOCK_LEN)) {
            let next = if panel + 1 < panels.end { panel + 1 } else { panels.start };
            // SAFETY: as promised by the caller.
            unsafe { self.multiply(a, panel, steps.clone(), next, sums, finished) }
        }
    }

    /// All rows, one panel, some steps of k. `sums` holds one block, or one for each block of rows where k is cut into
    /// slices. The same steps of panel `next` are wanted afterwards.
    ///
    /// # Safety
    /// The target has this panel of these rows, and no other thread uses it.
    unsafe fn multiply(
        &self,
        a: Packed<'_>,
        panel: usize,
        steps: Range<usize>,
        next: usize,
        sums: &mut [f32],
        finished: &mut Option<Finished>,
    ) {
        let Self { rows, b, target, .. } = *self;
        let width = PANEL.min(target.columns - panel * PANEL);
        let (whole, last) = (steps.len() == b.steps, steps.end == b.steps);
        let direct = whole && self.bias.is_none() && !steps.is_empty();
        let b_slice = b.slice(panel, steps.clone());
        let streamed = rows <= PANEL;
        let next =
            if streamed { b_slice.as_ptr().wrapping_add(STREAM_AHEAD) } else { b.slice_start(next, steps.start) };
        let buffers = sums.len() / BLOCK_LEN;
        for index in 0..self.blocks() {
            let row = index * PANEL;
            let place = Place { row, column: panel * PANEL, height: PANEL.min(rows - row), width };
            // Where all of k comes at once any buffer will do, but not the one that is still to be written.
            let slot = match *finished {
                Some(one) if whole && buffers > 1 => usize::from(one.sums == sums.as_ptr()),
                _ => index % buffers,
            };
            let buffer = &mut sums[slot * BLOCK_LEN..][..BLOCK_LEN];
            // SAFETY: this place lies in the target, as the caller promises.
            let inside = if direct { unsafe { target.sums(place) } } else { None };
            let (c, c_stride) = inside.unwrap_or((buffer.as_mut_ptr(), PANEL));
            let start = (index * a.steps + steps.start - a.first) * 2 * TILE_LEN;
            let block = Block {
                a: a.a[start..start + steps.len() * 2 * TILE_LEN].as_ptr(),
                num_tiles: place.height.div_ceil(TILE),
                b: b_slice.as_ptr(),
                steps: steps.len(),
                c,
                c_stride,
                fresh: steps.start == 0,
                // Sixteen blocks fetch all of the next slice; further ones look at what is there already.
                next: next.wrapping_add(index % 16 * steps.len() * 64),
                streamed,
                output: last
                    .then(|| target.lines(place))
                    .flatten()
                    .unwrap_or_else(|| OutputLines::of_buffer(c.wrapping_add(if last { 0 } else { BLOCK_LEN }))),
            };
            let outgoing = finished.filter(|one| {
                self.kernel.takes_along(block.num_tiles, block.steps) && inside.is_none() && one.sums != c.cast_const()
            });
            let outgoing =
                outgoing.and_then(|one| target.outgoing(one.sums, self.bias_of(one.place), one.place, place));
            if outgoing.is_some() {
                *finished = None;
            } else {
                // SAFETY: it lies in the target, and its buffer still holds it.
                unsafe { self.store(finished.take()) }
            }
            match outgoing {
                _ if steps.is_empty() => buffer.fill(0.0),
                // SAFETY: `a` and `b_slice` have these steps; `c` is the buffer or a full block of the target.
                None => unsafe { self.kernel.multiply(&block) },
                // SAFETY: as above; the block before lies in the target and in another buffer.
                Some(outgoing) => unsafe { self.kernel.multiply_and_write(&block, &outgoing) },
            }
            if last && inside.is_none() {
                let one = Finished { sums: buffer.as_ptr(), place };
                if target.past_caches {
                    *finished = Some(one);
                } else {
                    // SAFETY: this place lies in the target, as the caller promises.
                    unsafe { self.store(Some(one)) }
                }
            }
        }
    }

    fn bias_of(&self, place: Place) -> Option<&[f32]> {
        self.bias.map(|bias| &bias[place.column..][..place.width])
    }

    /// Writes a finished block, if there is one.
    ///
    /// # Safety
    /// The target has its place, no other thread uses that, and its sums are where it says.
    unsafe fn store(&self, finished: Option<Finished>) {
        if let Some(Finished { sums, place }) = finished {
            // SAFETY: as promised by the caller.
            unsafe { self.target.store(std::slice::from_raw_parts(sums, BLOCK_LEN), self.bias_of(place), place) }
        }
    }
}

/// A block whose sums are complete in their buffer and not yet in the target.
#[derive(Clone, Copy)]
struct Finished {
    sums: *const f32,
    place: Place,
}
