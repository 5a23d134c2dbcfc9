//! Slow oracles: each op written as its formula, in f64, one loop per index.
//! Used by tests and by `foveate doctor`; never by training.
//! Cost: as slow as it looks.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod differences;
pub mod head;
pub mod interpolate;
pub mod layer_scale;
pub mod matmul;
pub mod norm;
pub mod pixel_shuffle;
pub mod rope;
