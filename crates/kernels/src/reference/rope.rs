//! Rotary embedding as a rotation of pairs.
//! Cost: as slow as it looks.

/// Rotates heads `first_head .. first_head + num_heads` of each row; `angles` is `[T, half]`, and pair `i` of a head is
/// made of its elements `i` and `i + half`.
pub fn rope(
    x: &[f64],
    row_width: usize,
    first_head: usize,
    num_heads: usize,
    head_dim: usize,
    angles: &[f64],
    half: usize,
) -> Vec<f64> {
    let mut y = x.to_vec();
    for row in 0..x.len() / row_width {
        for head in first_head..first_head + num_heads {
            for i in 0..half {
                let (sin, cos) = angles[row * half + i].sin_cos();
                let first = row * row_width + head * head_dim + i;
                y[first] = x[first] * cos - x[first + half] * sin;
                y[first + half] = x[first + half] * cos + x[first] * sin;
            }
        }
    }
    y
}
