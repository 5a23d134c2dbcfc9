//! DAPO (arXiv 2503.14476): the clipped rule of `grpo.rs` with a higher upper bound, so that unlikely tokens can grow,
//! and every token of the step counted alike. Its dynamic sampling and over-long penalty are parts of their own.
//! `bnpo` differs from it only by its denominators per micro-batch; under one global denominator both are the same.

use super::Clip;
use crate::update::reduction::Reduction;

/// The published bounds.
pub const CLIP: Clip = Clip { low: 0.2, high: 0.28, dual: None };

/// Mean over all loss tokens of the step.
pub const REDUCTION: Reduction = Reduction::TokenMean;
