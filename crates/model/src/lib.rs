//! Tape, weights, layers, model families and decoding with a cache.
//! Knows kernels; knows nothing of rewards, rules or files other than checkpoints.
#![forbid(unsafe_code)]

pub mod batch;
