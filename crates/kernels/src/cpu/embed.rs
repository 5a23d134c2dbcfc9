//! Moving rows: embedding, gathering, scattering, and image features into the token stream.
//! Knows row numbers only; whether they make sense is checked, and a wrong one is a bug of the caller.
//! Cost: one copy of the rows that move; sums over repeated rows run in the order of the row list.

use crate::cpu::elementwise::accumulate_row;
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::parallel::for_chunks;

// Rows handed to a thread at once.
const ROWS: usize = 64;

/// `out[t] = table[ids[t]]`, rows of width `d`.
pub fn embed(ids: &[u32], table: &[f32], d: usize, out: &mut [f32]) {
    gather_rows(table, ids, d, out);
}

/// `dtable[ids[t]] += dout[t]`; equal ids add up in token order.
pub fn embed_backward(ids: &[u32], dout: &[f32], d: usize, dtable: &mut [f32]) {
    scatter_rows_add(dout, ids, d, dtable);
}

/// `out[i] = x[rows[i]]`, rows of width `d`.
pub fn gather_rows<E: Element>(x: &[E], rows: &[u32], d: usize, out: &mut [E]) {
    assert_eq!(out.len(), rows.len() * d, "gather_rows: output length");
    let shared = SharedMut::new(out);
    for_chunks(rows.len(), ROWS, |range| {
        // SAFETY: chunks are disjoint.
        let out = unsafe { shared.slice(range.start * d, range.len() * d) };
        for (out, &row) in out.chunks_exact_mut(d).zip(&rows[range]) {
            out.copy_from_slice(&x[row as usize * d..][..d]);
        }
    });
}

/// `out_add[rows[i]] += dx_rows[i]`; duplicates are allowed and add up in the order of `rows`.
pub fn scatter_rows_add<E: Element>(dx_rows: &[E], rows: &[u32], d: usize, out_add: &mut [f32]) {
    assert_eq!(dx_rows.len(), rows.len() * d, "scatter_rows_add: input length");
    // Sorted by target, ties by position: each target row has one owner and one order.
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_unstable_by_key(|&i| (rows[i as usize], i));
    let mut runs = Vec::new();
    for (at, &i) in order.iter().enumerate() {
        if at == 0 || rows[order[at - 1] as usize] != rows[i as usize] {
            runs.push(at);
        }
    }
    let shared = SharedMut::new(out_add);
    for_chunks(runs.len(), ROWS, |range| {
        for run in range {
            let end = runs.get(run + 1).copied().unwrap_or(order.len());
            let target = rows[order[runs[run]] as usize] as usize;
            // SAFETY: each target row belongs to exactly one run.
            let out = unsafe { shared.slice(target * d, d) };
            for &i in &order[runs[run]..end] {
                accumulate_row(out, &dx_rows[i as usize * d..][..d]);
            }
        }
    });
}

/// Overwrites `x[rows[i]]` with `features[i]`: image features take the place of their placeholder tokens.
pub fn place_rows(features: &[f32], rows: &[u32], d: usize, x: &mut [f32]) {
    assert_eq!(features.len(), rows.len() * d, "place_rows: features length");
    for (feature, &row) in features.chunks_exact(d).zip(rows) {
        x[row as usize * d..][..d].copy_from_slice(feature);
    }
}

/// Moves the gradient of the placed rows to `dfeatures` and zeroes it in `dx`: the embeddings they replaced get none.
pub fn place_rows_backward(dx: &mut [f32], rows: &[u32], d: usize, dfeatures: &mut [f32]) {
    assert_eq!(dfeatures.len(), rows.len() * d, "place_rows_backward: features length");
    for (feature, &row) in dfeatures.chunks_exact_mut(d).zip(rows) {
        let dx = &mut dx[row as usize * d..][..d];
        feature.copy_from_slice(dx);
        dx.fill(0.0);
    }
}
