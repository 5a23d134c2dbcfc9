//! Numbers in, numbers out: the closed set of fused operations, each a forward/backward pair over plain slices.
//! Knows nothing of models, losses or text. The only crate with `unsafe`.
//! Cost: every op is one pass over its operands; nothing here allocates in proportion to `tokens x vocabulary` or
//! `tokens x tokens`.

pub mod bench;
pub mod cpu;
pub mod cuda;
pub mod element;
pub mod interrupt;
pub mod isa;
pub mod map;
pub mod memory;
pub mod parallel;
pub mod reference;
pub mod rng;
pub mod segment;
pub mod team;
