//! Brings operands into the order in which the matrix unit reads them.
//! A (rows): blocks of 16 rows, in each of them tiles of 16 rows x 32 k, one cache line per row.
//! B (columns): panels of 32 columns, in each of them per 32 k two tiles of 16 columns; a tile holds 16 lines, one per
//! pair of k, with the pair's two values side by side for each of the 16 columns.
//! What a matrix lacks up to a full tile is zero. Rounding to bf16 happens here, to nearest, ties to even.
//! Cost: one pass over the source, parallel over blocks or panels.

use crate::element::{Element, bf16};
use crate::parallel;

/// Rows and columns of a tile, in elements of C.
pub(crate) const TILE: usize = 16;
/// Columns of a panel: two tiles side by side.
pub(crate) const PANEL: usize = 32;
/// k covered by one tile of A or B.
pub(crate) const STEP: usize = 32;
/// bf16 values of a tile.
pub(crate) const TILE_LEN: usize = TILE * STEP;

/// bf16 values of packed columns, `k` rows by `n` columns.
pub(crate) fn panels_len(k: usize, n: usize) -> usize {
    k.div_ceil(STEP) * STEP * n.div_ceil(PANEL) * PANEL
}

/// bf16 values of packed rows, `m` rows by `k`.
pub(crate) fn rows_len(m: usize, k: usize) -> usize {
    m.div_ceil(TILE) * TILE * k.div_ceil(STEP) * STEP
}

/// A from row-major `x[m, k]`.
pub(crate) fn rows_from_rows(x: &[bf16], k: usize, m: usize, out: &mut [bf16]) {
    let block_len = rows_len(TILE, k);
    parallel::for_rows(&mut out[..rows_len(m, k)], block_len, 4, |first, blocks| {
        for (index, block) in blocks.chunks_exact_mut(block_len).enumerate() {
            let row = (first + index) * TILE;
            let rows = TILE.min(m - row);
            block_from_rows(&x[row * k..][..rows * k], k, block);
        }
    });
}

fn block_from_rows(x: &[bf16], k: usize, block: &mut [bf16]) {
    for (step, tile) in block.chunks_exact_mut(TILE_LEN).enumerate() {
        let width = STEP.min(k - step * STEP);
        for (r, line) in tile.chunks_exact_mut(STEP).enumerate() {
            if r * k < x.len() {
                line[..width].copy_from_slice(&x[r * k + step * STEP..][..width]);
                line[width..].fill(bf16::ZERO);
            } else {
                line.fill(bf16::ZERO);
            }
        }
    }
}

/// A = dyᵀ: rows `row..row + rows` of the transpose of row-major `dy[depth, n]`.
pub(crate) fn rows_from_transposed(dy: &[bf16], n: usize, row: usize, rows: usize, depth: usize, out: &mut [bf16]) {
    let block_len = rows_len(TILE, depth);
    parallel::for_rows(&mut out[..rows_len(rows, depth)], block_len, 2, |first, blocks| {
        for (index, block) in blocks.chunks_exact_mut(block_len).enumerate() {
            let offset = (first + index) * TILE;
            let height = TILE.min(rows - offset);
            for (step, tile) in block.chunks_exact_mut(TILE_LEN).enumerate() {
                let width = STEP.min(depth - step * STEP);
                tile.fill(bf16::ZERO);
                for c in 0..width {
                    let source = &dy[(step * STEP + c) * n + row + offset..][..height];
                    for (r, value) in source.iter().enumerate() {
                        tile[r * STEP + c] = *value;
                    }
                }
            }
        }
    });
}

/// B from row-major `w[k, n]`.
pub(crate) fn columns_from_rows<E: Element>(w: &[E], k: usize, n: usize, out: &mut [bf16]) {
    let panel_len = panels_len(k, PANEL);
    parallel::for_rows(&mut out[..panels_len(k, n)], panel_len, 2, |first, panels| {
        for (index, panel) in panels.chunks_exact_mut(panel_len).enumerate() {
            for (t, tile) in panel.chunks_exact_mut(TILE_LEN).enumerate() {
                let (row, column) = (t / 2 * STEP, (first + index) * PANEL + t % 2 * TILE);
                tile.fill(bf16::ZERO);
                let width = TILE.min(n.saturating_sub(column));
                for r in 0..STEP.min(k - row) {
                    for j in 0..width {
                        tile[(r / 2) * STEP + 2 * j + r % 2] = bf16::from_f32(w[(row + r) * n + column + j].to_f32());
                    }
                }
            }
        }
    });
}

/// B = Wᵀ from row-major `w[n, k]`.
pub(crate) fn columns_from_transposed(w: &[f32], k: usize, n: usize, out: &mut [bf16]) {
    let panel_len = panels_len(k, PANEL);
    parallel::for_rows(&mut out[..panels_len(k, n)], panel_len, 2, |first, panels| {
        for (index, panel) in panels.chunks_exact_mut(panel_len).enumerate() {
            for (t, tile) in panel.chunks_exact_mut(TILE_LEN).enumerate() {
                let (row, column) = (t / 2 * STEP, (first + index) * PANEL + t % 2 * TILE);
                tile.fill(bf16::ZERO);
                for j in 0..TILE.min(n.saturating_sub(column)) {
                    for r in 0..STEP.min(k - row) {
                        tile[(r / 2) * STEP + 2 * j + r % 2] = Element::from_f32(w[(column + j) * k + row + r]);
                    }
                }
            }
        }
    });
}
