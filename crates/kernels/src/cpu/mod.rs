//! The operations on the CPU, one file per kind, forward and backward side by side.
//! Plain functions over slices; f32 arithmetic whatever the element type. Parameter gradients accumulate, activation
//! gradients overwrite unless a name says `_add`. A row's result never depends on other rows.
//! Cost: see each file.

pub mod activation;
pub mod adamw;
pub(crate) mod ask;
pub mod attention;
pub mod elementwise;
pub mod embed;
pub mod head;
pub mod head_norm;
pub mod interpolate;
pub mod layer_scale;
pub mod math;
pub mod matmul;
pub mod norm;
pub(crate) mod past_caches;
pub mod pixel_shuffle;
pub mod rope;
pub(crate) mod scratch;
mod shared;
pub mod sums;
mod vector;
