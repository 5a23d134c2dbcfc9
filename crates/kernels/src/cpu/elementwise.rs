//! Conversions and sums of whole buffers.
//! Every element stands alone, so nothing here has an order to keep.
//! Cost: one pass at memory bandwidth, in parallel above one chunk.

use crate::cpu::ask::{ahead, ask_ahead};
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::isa::multiversion;
use crate::parallel::for_chunks;

// 64 KiB of f32: long enough to hide the hand-over to another thread, short enough to balance.
const CHUNK: usize = 16 * 1024;

/// `b = a`, rounded to the type of `b`.
pub fn convert<A: Element, B: Element>(a: &[A], b: &mut [B]) {
    assert_eq!(a.len(), b.len(), "convert: lengths differ");
    let shared = SharedMut::new(b);
    for_chunks(a.len(), CHUNK, |range| {
        // SAFETY: chunks are disjoint.
        let b = unsafe { shared.slice(range.start, range.len()) };
        convert_chunk(&a[range], b);
    });
}

multiversion! {
    fn convert_chunk<A: Element, B: Element>(a: &[A], b: &mut [B]) {
        const TOGETHER: usize = 64;
        for (b, a) in b.chunks_mut(TOGETHER).zip(a.chunks(TOGETHER)) {
            ask_ahead(a, ahead::<A>(1), TOGETHER);
            for (b, a) in b.iter_mut().zip(a) {
                *b = B::from_f32(a.to_f32());
            }
        }
    }
}

/// `x += y`.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    accumulate(x, y);
}

/// `x += y`, with `y` in either type: how gradients of activations join the residual stream.
pub fn accumulate<E: Element>(x: &mut [f32], y: &[E]) {
    assert_eq!(x.len(), y.len(), "accumulate: lengths differ");
    let shared = SharedMut::new(x);
    for_chunks(y.len(), CHUNK, |range| {
        // SAFETY: chunks are disjoint.
        let x = unsafe { shared.slice(range.start, range.len()) };
        accumulate_chunk(x, &y[range]);
    });
}

multiversion! {
    fn accumulate_chunk<E: Element>(x: &mut [f32], y: &[E]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y.to_f32();
        }
    }
}

/// `x += y` on the calling thread: the step that ops with their own chunks are made of.
pub(crate) fn accumulate_row<E: Element>(x: &mut [f32], y: &[E]) {
    accumulate_chunk(x, y);
}
