//! Adding in place: whole tensors, rows of a learned table, and some columns of a wider row tensor (what low-rank
//! adapters add to and take gradients from).
//! Cost: one pass over what is added.

use crate::element::Element;
use crate::parallel::for_rows;

/// Values that one task adds.
const CHUNK: usize = 1 << 14;

/// Rows of `width` values that one task adds.
fn rows_of(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// `x[:, column..column + n] += scale * y`, where rows of `x` are `width` long and rows of `y` are `n` long.
pub fn add_columns<E: Element>(x: &mut [E], width: usize, column: usize, y: &[f32], n: usize, scale: f32) {
    for_rows(x, width, rows_of(width), |first, x| {
        for (x, y) in x.chunks_exact_mut(width).zip(y[first * n..].chunks_exact(n)) {
            for (x, y) in x[column..column + n].iter_mut().zip(y) {
                *x = E::from_f32(x.to_f32() + scale * y);
            }
        }
    });
}

/// `y = scale * x[:, column..column + n]`.
pub fn take_columns<E: Element>(x: &[E], width: usize, column: usize, y: &mut [E], n: usize, scale: f32) {
    for_rows(y, n, rows_of(n), |first, y| {
        for (y, x) in y.chunks_exact_mut(n).zip(x[first * width..].chunks_exact(width)) {
            for (y, x) in y.iter_mut().zip(&x[column..column + n]) {
                *y = E::from_f32(scale * x.to_f32());
            }
        }
    });
}

/// `x += y`, element by element, in the tensors' own type.
pub fn add_elements<E: Element>(x: &mut [E], y: &[E]) {
    assert_eq!(x.len(), y.len(), "both tensors have the same values");
    for_rows(x, 1, CHUNK, |first, x| {
        for (x, y) in x.iter_mut().zip(&y[first..]) {
            *x = E::from_f32(x.to_f32() + y.to_f32());
        }
    });
}

/// `x[i] += table[rows[i]]` for rows of `d` values.
pub fn add_table_rows(rows: &[u32], table: &[f32], d: usize, x: &mut [f32]) {
    for_rows(x, d, rows_of(d), |first, x| {
        for (x, row) in x.chunks_exact_mut(d).zip(&rows[first..]) {
            for (x, value) in x.iter_mut().zip(&table[*row as usize * d..][..d]) {
                *x += value;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_added_and_taken() {
        let mut x = vec![1f32; 8];
        add_columns(&mut x, 4, 1, &[1.0, 2.0, 3.0, 4.0], 2, 0.5);
        assert_eq!(x, [1.0, 1.5, 2.0, 1.0, 1.0, 2.5, 3.0, 1.0]);
        let mut y = vec![0f32; 4];
        take_columns(&x, 4, 1, &mut y, 2, 2.0);
        assert_eq!(y, [3.0, 4.0, 5.0, 6.0]);
    }
}
