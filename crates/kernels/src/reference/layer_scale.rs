//! Layer scale by its formula. Cost: as slow as it looks.

/// `stream + scale * branch` for every row of `scale.len()` values.
pub fn layer_scale(branch: &[f64], scale: &[f64], stream: &[f64]) -> Vec<f64> {
    stream
        .iter()
        .zip(branch)
        .enumerate()
        .map(|(i, (stream, branch))| stream + scale[i % scale.len()] * branch)
        .collect()
}
