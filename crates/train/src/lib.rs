//! The flow of a run, room by room, in this order:
//! data -> prompt -> rollout -> reward -> update -> optim -> checkpoint, eval, report.
//! A room imports only rooms before it; a test holds that.
#![forbid(unsafe_code)]

/// Rows from built-in worlds and from files, in an order that can be resumed from one number.
pub mod data;

/// Turns a conversation into token ids, pixels and the tokens that count as its answer.
pub mod prompt;

/// Scores answers: verifiers, format checks and shaping terms.
pub mod reward;

// State to files that are there in full or not at all.
pub mod checkpoint;

// A new model from architecture numbers.
pub mod fresh;

pub mod report;

pub mod recipe;
