//! Dr.GRPO (arXiv 2503.20783): the clipped rule of `grpo.rs`, summed over tokens and divided by a constant, so that
//! long wrong answers are not favoured. Give it advantages without scale (`advantage.scale = "none"`).
//! The published mean over micro-batches is replaced by the global number of sequences.

use crate::update::reduction::Reduction;

/// Sum over tokens, divided by sequences times the length limit.
pub const REDUCTION: Reduction = Reduction::ConstantLength;
