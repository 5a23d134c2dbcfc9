//! RMS norm and layer norm by their formulas.
//! Knows nothing of chunks. Cost: as slow as it looks.

/// `x / sqrt(mean(x^2) + eps) * w` for every row of `w.len()` values.
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(w.len()) {
        let square = row.iter().map(|x| x * x).sum::<f64>() / w.len() as f64;
        y.extend(row.iter().zip(w).map(|(x, w)| x / (square + eps).sqrt() * w));
    }
    y
}

/// `(x - mean) / sqrt(variance + eps) * w + b` for every row.
pub fn layer_norm(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(w.len()) {
        let mean = row.iter().sum::<f64>() / w.len() as f64;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / w.len() as f64;
        y.extend(row.iter().zip(w).zip(b).map(|((x, w), b)| (x - mean) / (variance + eps).sqrt() * w + b));
    }
    y
}

/// [`rms_norm`] of each of the first `queries` heads by `weights[0]` and of the next `keys` heads by `weights[1]`, in
/// rows of `width`; the rest of a row is copied.
pub fn head_norm(x: &[f64], width: usize, queries: usize, keys: usize, weights: [&[f64]; 2], eps: f64) -> Vec<f64> {
    let d = weights[0].len();
    let mut y = x.to_vec();
    for row in y.chunks_exact_mut(width) {
        for (head, values) in row.chunks_exact_mut(d).take(queries + keys).enumerate() {
            let normed = rms_norm(values, weights[(head >= queries) as usize], eps);
            values.copy_from_slice(&normed);
        }
    }
    y
}
