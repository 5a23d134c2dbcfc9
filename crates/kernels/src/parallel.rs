//! Fixed-size chunks over the team: who computes a chunk may vary, what a chunk is never does.
//! Reductions keep one partial result per chunk and add them in chunk order, so results do not depend on the number of
//! threads. Small jobs (one chunk) stay on the calling thread.
//! Cost: about a microsecond per call with more than one chunk.

use crate::team;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

fn num_chunks(len: usize, chunk: usize) -> usize {
    assert!(chunk > 0, "a chunk holds at least one item");
    len.div_ceil(chunk)
}

fn bounds(index: usize, len: usize, chunk: usize) -> Range<usize> {
    index * chunk..((index + 1) * chunk).min(len)
}

/// Items of a chunk where what a chunk is does not show in the results: at most `most`, and few items still occupy all
/// threads.
pub fn share(len: usize, most: usize) -> usize {
    len.div_ceil(team::num_threads()).clamp(1, most)
}

/// Calls `f` for `0..chunk`, `chunk..2 * chunk`, ... up to `len`.
pub fn for_chunks(len: usize, chunk: usize, f: impl Fn(Range<usize>) + Sync) {
    match num_chunks(len, chunk) {
        0 => {}
        1 => f(0..len),
        count => team::run(count, |index| f(bounds(index, len, chunk))),
    }
}

/// Cuts `data` (rows of `width` values) into chunks of `rows` rows; `f` gets the index of the first row and the chunk.
pub fn for_rows<T: Send>(data: &mut [T], width: usize, rows: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let chunk = width * rows;
    if chunk == 0 || data.is_empty() {
        return;
    }
    if data.len() <= chunk {
        return f(0, data);
    }
    let parts = Parts::new(data, chunk);
    // SAFETY: every number is asked for once.
    team::run(parts.count(), |index| f(index * rows, unsafe { parts.part(index) }));
}

/// [`for_rows`] over two tensors with the same number of rows.
pub fn for_rows2<A: Send, B: Send>(
    a: (&mut [A], usize),
    b: (&mut [B], usize),
    rows: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (a, a_width) = a;
    let (b, b_width) = b;
    assert!(rows > 0 && a_width > 0 && b_width > 0, "rows and widths are positive");
    assert_eq!(a.len() / a_width, b.len() / b_width, "both tensors have the same rows");
    if a.len() <= a_width * rows {
        if !a.is_empty() {
            f(0, a, b);
        }
        return;
    }
    let (a, b) = (Parts::new(a, a_width * rows), Parts::new(b, b_width * rows));
    // SAFETY: every number is asked for once.
    team::run(a.count(), |index| unsafe { f(index * rows, a.part(index), b.part(index)) });
}

/// [`for_rows`] over three tensors with the same number of rows.
pub fn for_rows3<A: Send, B: Send, C: Send>(
    a: (&mut [A], usize),
    b: (&mut [B], usize),
    c: (&mut [C], usize),
    rows: usize,
    f: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
) {
    let (a, a_width) = a;
    let (b, b_width) = b;
    let (c, c_width) = c;
    assert!(rows > 0 && a_width > 0 && b_width > 0 && c_width > 0, "rows and widths are positive");
    assert_eq!(a.len() / a_width, b.len() / b_width, "all tensors have the same rows");
    assert_eq!(a.len() / a_width, c.len() / c_width, "all tensors have the same rows");
    if a.len() <= a_width * rows {
        if !a.is_empty() {
            f(0, a, b, c);
        }
        return;
    }
    let (a, b, c) = (Parts::new(a, a_width * rows), Parts::new(b, b_width * rows), Parts::new(c, c_width * rows));
    // SAFETY: every number is asked for once.
    team::run(a.count(), |index| unsafe { f(index * rows, a.part(index), b.part(index), c.part(index)) });
}

/// Adds up `f` over fixed chunks of `0..len`, in chunk order.
pub fn sum_chunks(len: usize, chunk: usize, f: impl Fn(Range<usize>) -> f64 + Sync) -> f64 {
    match num_chunks(len, chunk) {
        0 => 0.0,
        1 => f(0..len),
        count => {
            let parts = map(count, |index| f(bounds(index, len, chunk)));
            parts.iter().sum()
        }
    }
}

/// Whether `f` holds on every chunk of `0..len`; may stop early.
pub fn all_chunks(len: usize, chunk: usize, f: impl Fn(Range<usize>) -> bool + Sync) -> bool {
    let holds = AtomicBool::new(true);
    for_chunks(len, chunk, |range| {
        if holds.load(Relaxed) && !f(range) {
            holds.store(false, Relaxed);
        }
    });
    holds.into_inner()
}

/// `f` of every number below `count`, in order.
pub fn map<T: Send>(count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for_rows(&mut results, 1, 1, |index, result| result[0] = Some(f(index)));
    results.into_iter().map(|result| result.expect("every number was asked for")).collect()
}

/// Equal parts of a slice, the last one perhaps shorter, handed out by number.
struct Parts<T> {
    start: SharedPointer<T>,
    len: usize,
    chunk: usize,
}

impl<T: Send> Parts<T> {
    /// The slice stays borrowed by the caller's own `&mut` for as long as parts are used.
    fn new(data: &mut [T], chunk: usize) -> Self {
        Self { start: SharedPointer(data.as_mut_ptr()), len: data.len(), chunk }
    }

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    /// Part `index`.
    ///
    /// # Safety
    /// The slice is alive, and no number is asked for twice.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, index: usize) -> &mut [T] {
        let range = bounds(index, self.len, self.chunk);
        // SAFETY: the range lies in the slice; parts of different numbers do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.at(range.start), range.len()) }
    }
}

/// Sums over rows: `f` adds the rows of one chunk into a zeroed partial of `out.len()` values, and the partials are
/// added to `out` in chunk order. Used for the gradients of norms, biases and their like.
pub fn sum_rows(num_rows: usize, rows: usize, out: &mut [f32], f: impl Fn(Range<usize>, &mut [f32]) + Sync) {
    let width = out.len();
    let count = num_chunks(num_rows, rows);
    if width == 0 || count == 0 {
        return;
    }
    let mut partials = vec![0.0f32; count * width];
    for_rows(&mut partials, width, 1, |index, partial| f(bounds(index, num_rows, rows), partial));
    const COLUMNS: usize = 4096;
    for_rows(out, 1, COLUMNS, |first, out| {
        for partial in partials.chunks_exact(width) {
            for (out, partial) in out.iter_mut().zip(&partial[first..]) {
                *out += partial;
            }
        }
    });
}

/// A pointer that tasks share to write parts that do not overlap and that no slice splitting can express, such as
/// column blocks of a row-major matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedPointer<T>(pub *mut T);

impl<T> SharedPointer<T> {
    /// The pointer `offset` elements further.
    ///
    /// # Safety
    /// The element lies in the same allocation.
    pub(crate) unsafe fn at(&self, offset: usize) -> *mut T {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(offset) }
    }
}

// SAFETY: the pointer is only a number; whoever dereferences it promises that tasks touch disjoint elements.
unsafe impl<T: Send> Send for SharedPointer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedPointer<T> {}

#[cfg(test)]
pub(crate) use crate::team::with_threads;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_do_not_depend_on_threads() {
        let x: Vec<f32> = (0..10_007).map(|i| ((i * 37) as f32).sin()).collect();
        let run = |threads| {
            with_threads(threads, || {
                let total = sum_chunks(x.len(), 100, |range| x[range].iter().map(|&x| f64::from(x)).sum());
                let mut columns = vec![1.0f32; 7];
                sum_rows(x.len() / 7, 16, &mut columns, |rows, partial| {
                    for row in rows {
                        for (partial, x) in partial.iter_mut().zip(&x[row * 7..row * 7 + 7]) {
                            *partial += x;
                        }
                    }
                });
                (total.to_bits(), columns.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            })
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }

    #[test]
    fn rows_are_cut_at_fixed_places() {
        let mut a = vec![0usize; 10 * 3];
        let mut b = vec![0usize; 10];
        let mut c = vec![0usize; 10 * 2];
        for_rows3((&mut a, 3), (&mut b, 1), (&mut c, 2), 4, |first, a, b, c| {
            a.fill(first);
            b.fill(first);
            c.fill(a.len());
        });
        assert_eq!(b, [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]);
        assert_eq!(a[12], 4);
        assert_eq!(c[19], 6);
        for_rows2((&mut a, 3), (&mut b, 1), 100, |first, _, b| b.fill(first + 1));
        assert_eq!(b, [1; 10]);
        for_rows::<u8>(&mut [], 3, 4, |_, _| panic!("no rows, no call"));
        for_chunks(0, 3, |_| panic!("no items, no call"));
        assert!(all_chunks(10, 3, |range| range.end <= 10));
    }
}
