//! Layer scale: the result of a block is weighed channel by channel before it joins the residual stream.
//! Touvron et al. 2021 (CaiT), section 2.3; InternViT has it. Sums over rows are per fixed chunk, then in order.
//! Cost: one pass at memory bandwidth each way.

// T rows, D width

use crate::cpu::norm::with_parameter_sums;
use crate::cpu::shared::SharedMut;
use crate::cpu::vector::{WIDTH, load, store, vectorised};
use crate::element::Element;
use crate::parallel::for_chunks;

// Rows handed to a thread at once.
const ROWS: usize = 64;

/// `stream += scale * branch`, rows of `scale.len()` values.
pub fn layer_scale<E: Element>(branch: &[E], scale: &[f32], stream: &mut [f32]) {
    let d = scale.len();
    assert!(branch.len() == stream.len() && stream.len().is_multiple_of(d), "layer_scale: lengths differ");
    let rows = stream.len() / d;
    let shared = SharedMut::new(stream);
    for_chunks(rows, ROWS, |range| {
        let (start, len) = (range.start * d, range.len() * d);
        // SAFETY: chunks of rows are disjoint.
        let stream = unsafe { shared.slice(start, len) };
        layer_scale_chunk(&branch[start..][..len], scale, stream);
    });
}

vectorised! {
    fn layer_scale_chunk<V, E: Element>(branch: &[E], scale: &[f32], stream: &mut [f32]) {
        let d = scale.len();
        for (branch, stream) in branch.chunks_exact(d).zip(stream.chunks_exact_mut(d)) {
            for at in (0..d).step_by(WIDTH) {
                let scaled = load::<V, E>(branch, at).mul(load(scale, at));
                store(scaled.add(load::<V, f32>(stream, at)), stream, at);
            }
        }
    }
}

/// `d_branch = scale * d_stream`, and `d_scale += ` the sum over rows of `branch * d_stream` unless the scale is frozen.
/// The stream itself keeps its gradient.
pub fn layer_scale_backward<E: Element>(
    d_stream: &[f32],
    branch: &[E],
    scale: &[f32],
    d_branch: &mut [E],
    d_scale: Option<&mut [f32]>,
) {
    let d = scale.len();
    assert!(
        branch.len() == d_stream.len() && d_branch.len() == d_stream.len() && d_stream.len().is_multiple_of(d),
        "layer_scale_backward: lengths differ"
    );
    let shared = SharedMut::new(d_branch);
    with_parameter_sums(d_stream.len() / d, d, d_scale, None, |range, d_scale, _| {
        let (start, len) = (range.start * d, range.len() * d);
        // SAFETY: chunks of rows are disjoint.
        let d_branch = unsafe { shared.slice(start, len) };
        layer_scale_backward_chunk(&d_stream[start..][..len], &branch[start..][..len], scale, d_branch, d_scale);
    });
}

vectorised! {
    fn layer_scale_backward_chunk<V, E: Element>(
        d_stream: &[f32], branch: &[E], scale: &[f32], d_branch: &mut [E], d_scale: &mut [f32],
    ) {
        let d = scale.len();
        let rows = d_stream.chunks_exact(d).zip(branch.chunks_exact(d)).zip(d_branch.chunks_exact_mut(d));
        for ((d_stream, branch), d_branch) in rows {
            for at in (0..d).step_by(WIDTH) {
                let by_stream: V = load(d_stream, at);
                store(by_stream.mul(load(scale, at)), d_branch, at);
                if !d_scale.is_empty() {
                    let more = by_stream.mul(load(branch, at));
                    store(load::<V, f32>(d_scale, at).add(more), d_scale, at);
                }
            }
        }
    }
}
