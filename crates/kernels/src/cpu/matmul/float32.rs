//! f32 products through the `gemm` crate, cut so that bits depend neither on the number of rows nor on threads.
//! `gemm` picks other code for one row, for one column and for tiny results, and other slices of k for other sizes;
//! each of these changes the last bits. Hence: k is cut into slices here, small row counts are padded with zero rows,
//! and single columns are computed here. A test sweeps the row counts, so that an update of `gemm` cannot break this
//! unseen.
//! Cost: that of `gemm` on one thread per block of the output.

use crate::cpu::scratch::with_scratch;
use crate::isa::multiversion;
use crate::parallel::{self, SharedPointer};
use crate::team;
use gemm::Parallelism;

/// k per call: the largest that `gemm` never cuts further.
const SLICE: usize = 512;
/// Rows of a task where sums are made or changed row by row.
const ROWS: usize = 256;
/// Most output columns of a task.
const COLUMNS: usize = 640;
/// Most output rows of a task: `gemm` packs the columns again for each, which is worth it for many rows.
const MOST_ROWS: usize = 2048;
/// Rows, and columns, below which a task costs more than it spares.
const LEAST_ROWS: usize = 64;
const LEAST_COLUMNS: usize = 64;
/// Bytes of a task's sums where many slices of k are added to them: most of a second-level cache.
const SUMS_BYTES: usize = 2 << 20;
/// `gemm` sums results of at most this many elements in another order.
const TINY: usize = 256;

/// A matrix read by strides.
#[derive(Clone, Copy)]
struct Operand<'a> {
    data: &'a [f32],
    row_stride: usize,
    column_stride: usize,
}

impl Operand<'_> {
    fn at(&self, row: usize, column: usize) -> *const f32 {
        self.data[row * self.row_stride + column * self.column_stride..].as_ptr()
    }
}

/// out[m, n] (+)= x[m, k]·Wᵀ (+ bias) for row-major W `[n, k]`.
pub fn matmul_f32_nt(
    x: &[f32],
    m: usize,
    w_nk: &[f32],
    n: usize,
    k: usize,
    bias: Option<&[f32]>,
    add: bool,
    out: &mut [f32],
) {
    assert_eq!(x.len(), m * k, "x is [m, k] = [{m}, {k}]");
    assert_eq!(w_nk.len(), n * k, "w is [n, k] = [{n}, {k}]");
    assert_eq!(out.len(), m * n, "out is [m, n] = [{m}, {n}]");
    let a = Operand { data: x, row_stride: k, column_stride: 1 };
    let b = Operand { data: w_nk, row_stride: 1, column_stride: k };
    product(a, b, m, n, k, add, out);
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n, "bias is [n] = [{n}]");
        parallel::for_rows(out, n, ROWS, |_, rows| {
            for row in rows.chunks_exact_mut(n) {
                for (out, bias) in row.iter_mut().zip(bias) {
                    *out += bias;
                }
            }
        });
    }
}

/// dx[m, k] (+)= dy[m, n]·W for row-major W `[n, k]`.
pub fn matmul_f32_nn(dy: &[f32], m: usize, w_nk: &[f32], n: usize, k: usize, add: bool, dx: &mut [f32]) {
    assert_eq!(dy.len(), m * n, "dy is [m, n] = [{m}, {n}]");
    assert_eq!(w_nk.len(), n * k, "w is [n, k] = [{n}, {k}]");
    assert_eq!(dx.len(), m * k, "dx is [m, k] = [{m}, {k}]");
    let a = Operand { data: dy, row_stride: n, column_stride: 1 };
    let b = Operand { data: w_nk, row_stride: k, column_stride: 1 };
    product(a, b, m, k, n, add, dx);
}

/// dw[n, k] += dyᵀ[n, m]·x[m, k]; `fresh` takes dw for zero, whatever stands there.
pub fn matmul_f32_weight_gradient(dy: &[f32], x: &[f32], m: usize, n: usize, k: usize, fresh: bool, dw: &mut [f32]) {
    assert_eq!(dy.len(), m * n, "dy is [m, n] = [{m}, {n}]");
    assert_eq!(x.len(), m * k, "x is [m, k] = [{m}, {k}]");
    assert_eq!(dw.len(), n * k, "dw is [n, k] = [{n}, {k}]");
    let a = Operand { data: dy, row_stride: 1, column_stride: n };
    let b = Operand { data: x, row_stride: k, column_stride: 1 };
    product(a, b, n, k, m, !fresh, dw);
}

/// out[m, n] = x[m, k]·Wᵀ for row-major W `[n, k]` on this thread, rows of `out` `stride` apart. The bits are those of
/// [`matmul_f32_nt`].
///
/// # Safety
/// `out` has these rows and columns, and no other thread uses them.
pub(crate) unsafe fn f32_nt_serial(
    x: &[f32],
    m: usize,
    w_nk: &[f32],
    n: usize,
    k: usize,
    out: *mut f32,
    stride: usize,
) {
    assert!(x.len() == m * k && w_nk.len() == n * k, "operands are [m, k] and [n, k]");
    let a = Operand { data: x, row_stride: k, column_stride: 1 };
    let b = Operand { data: w_nk, row_stride: 1, column_stride: k };
    if k == 0 || n == 1 {
        with_scratch(m * n, |sums: &mut [f32]| {
            if k == 0 {
                sums.fill(0.0)
            } else {
                single_column(a, b, k, false, sums)
            }
            for (row, sums) in sums.chunks_exact(n).enumerate() {
                // SAFETY: row `row` of the output.
                unsafe { std::slice::from_raw_parts_mut(out.add(row * stride), n) }.copy_from_slice(sums);
            }
        });
        return;
    }
    // SAFETY: as promised by the caller.
    unsafe { block(a, b, 0, m, 0, n, k, false, out, stride) }
}

/// out[m, n] (+)= A[m, k]·B[k, n], blocks of the output in parallel.
fn product(a: Operand<'_>, b: Operand<'_>, m: usize, n: usize, k: usize, add: bool, out: &mut [f32]) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    if n == 1 {
        return single_column(a, b, k, add, out);
    }
    let cut = Cut::new(m, n, k);
    let out = SharedPointer(out.as_mut_ptr());
    parallel::for_chunks(cut.row_groups * cut.column_groups, 1, |task| {
        let (row, group) = (task.start / cut.column_groups * cut.rows, task.start % cut.column_groups);
        let column = group * cut.columns;
        let columns = if group + 1 == cut.column_groups { n - column } else { cut.columns };
        let rows = cut.rows.min(m - row);
        // SAFETY: (row, column) lies in the output, and tasks write disjoint blocks of it.
        unsafe { block(a, b, row, rows, column, columns, k, add, out.at(row * n + column), n) }
    });
}

/// How an output is cut into tasks. Bits do not depend on it.
struct Cut {
    rows: usize,
    row_groups: usize,
    columns: usize,
    column_groups: usize,
}

impl Cut {
    fn new(m: usize, n: usize, k: usize) -> Self {
        let few_slices = k <= 3 * SLICE;
        let most = if few_slices { MOST_ROWS } else { SUMS_BYTES / size_of::<f32>() / n.min(COLUMNS) };
        let threads = team::num_threads();
        let mut row_groups = m.div_ceil(most);
        // As many tasks for every thread, as long as they are worth their start.
        if m / row_groups.next_multiple_of(threads) >= LEAST_ROWS {
            row_groups = row_groups.next_multiple_of(threads);
        }
        let rows = m.div_ceil(row_groups).next_multiple_of(16);
        let row_groups = m.div_ceil(rows);
        // Few rows, as in decoding, leave the columns to be shared among threads.
        let shares = threads.div_ceil(row_groups).min(n / LEAST_COLUMNS).max(1);
        let columns = n.div_ceil(n.div_ceil(COLUMNS).max(shares)).next_multiple_of(16);
        // A last group of one column would be summed in another order: the group before it takes it in.
        let column_groups = if n > columns && n % columns == 1 { n / columns } else { n.div_ceil(columns) };
        Self { rows, row_groups, columns, column_groups }
    }
}

/// One block of the output, padded with zero rows where `gemm` would sum differently.
///
/// # Safety
/// `out` has `rows` rows of `columns` elements, `stride` apart, that no other thread uses.
unsafe fn block(
    a: Operand<'_>,
    b: Operand<'_>,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    k: usize,
    add: bool,
    out: *mut f32,
    stride: usize,
) {
    let least = (TINY / columns + 1).max(2);
    let b_from = |depth: usize| b.at(depth, column);
    if rows >= least {
        // SAFETY: the operands hold these rows, columns and k; the caller vouches for `out`.
        return unsafe {
            slices(rows, columns, k, add, (out, stride), |depth| a.at(row, depth), a, b_from, b);
        };
    }
    with_scratch(least * (k + columns), |scratch: &mut [f32]| {
        let (padded, sums) = scratch.split_at_mut(least * k);
        padded.fill(0.0);
        sums.fill(0.0);
        for (r, line) in padded.chunks_exact_mut(k).take(rows).enumerate() {
            for (depth, value) in line.iter_mut().enumerate() {
                *value = a.data[(row + r) * a.row_stride + depth * a.column_stride];
            }
        }
        for (r, sums) in sums.chunks_exact_mut(columns).take(rows).enumerate() {
            // SAFETY: row r of the block.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(r * stride), columns) };
            if add {
                sums.copy_from_slice(out);
            }
        }
        let a = Operand { data: padded, row_stride: k, column_stride: 1 };
        // SAFETY: `padded` and `sums` have `least` rows.
        unsafe {
            slices(least, columns, k, add, (sums.as_mut_ptr(), columns), |depth| a.at(0, depth), a, b_from, b);
        }
        for (r, sums) in sums.chunks_exact(columns).take(rows).enumerate() {
            // SAFETY: row r of the block.
            unsafe { std::slice::from_raw_parts_mut(out.add(r * stride), columns) }.copy_from_slice(sums);
        }
    });
}

/// One `gemm` call per slice of k.
///
/// # Safety
/// The pointers given for each depth lead to `rows` x slice and slice x `columns` elements at the operands' strides,
/// and `out` to `rows` x `columns` that no other thread uses.
unsafe fn slices<'a>(
    rows: usize,
    columns: usize,
    k: usize,
    add: bool,
    out: (*mut f32, usize),
    a_from: impl Fn(usize) -> *const f32,
    a: Operand<'a>,
    b_from: impl Fn(usize) -> *const f32,
    b: Operand<'a>,
) {
    // Slices of one length: a short last one would cost a pass over the sums for little.
    let slice = k.div_ceil(k.div_ceil(SLICE));
    for depth in (0..k).step_by(slice) {
        // SAFETY: as the caller promises; the strides fit isize because the slices exist.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                slice.min(k - depth),
                out.0,
                1,
                out.1 as isize,
                add || depth > 0,
                a_from(depth),
                a.column_stride as isize,
                a.row_stride as isize,
                b_from(depth),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// out[m] (+)= A[m, k]·b[k], each row on its own in a fixed order.
fn single_column(a: Operand<'_>, b: Operand<'_>, k: usize, add: bool, out: &mut [f32]) {
    parallel::for_rows(out, 1, ROWS, |first, out| {
        with_scratch(2 * k, |scratch: &mut [f32]| {
            let (x, y) = scratch.split_at_mut(k);
            for (depth, y) in y.iter_mut().enumerate() {
                *y = b.data[depth * b.row_stride];
            }
            for (r, out) in out.iter_mut().enumerate() {
                for (depth, x) in x.iter_mut().enumerate() {
                    *x = a.data[(first + r) * a.row_stride + depth * a.column_stride];
                }
                *out = if add { *out } else { 0.0 } + dot(x, y);
            }
        });
    });
}

multiversion! {
    /// Sixteen chains, added in order, then the rest.
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        const LANES: usize = 16;
        let mut sums = [0.0f32; LANES];
        let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let tail: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x * y).sum();
        for (x, y) in xs.zip(ys) {
            for lane in 0..LANES {
                sums[lane] += x[lane] * y[lane];
            }
        }
        sums.iter().sum::<f32>() + tail
    }
}
