//! LUSPO (arXiv 2602.05261): the sequence ratio of `gspo.rs`, every answer multiplied by its length, so that long answers keep their
//! full weight. The published mean over micro-batches is replaced by the global number of sequences.

use super::Clip;
use crate::update::reduction::Reduction;

/// The published bounds of the sequence ratio.
pub const CLIP: Clip = Clip { low: 2e-3, high: 2.5e-3, dual: None };

/// Sum over tokens, divided by sequences.
pub const REDUCTION: Reduction = Reduction::SequenceSum;
