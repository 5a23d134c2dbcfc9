//! The flow of a run, room by room, in this order:
//! data -> prompt -> rollout -> reward -> update -> optim -> checkpoint, eval, report.
//! A room imports only rooms before it; a test holds that.
#![forbid(unsafe_code)]

// Files and generators to rows.
pub mod data;

// A conversation to token ids, pixels and loss mask.
pub mod prompt;

// A row to a conversation and a target text.
pub mod ask;

// Prompts to groups of sampled answers.
pub mod rollout;

// Answers to scores.
pub mod reward;

// Scores to a token batch, and a token batch to two derivatives per token.
pub mod update;

// Gradients to new weights.
pub mod adamw;
pub mod optim;

// State to files that are there in full or not at all.
pub mod checkpoint;

// Models that travel inside the program, and new ones.
pub mod builtin;
pub mod fresh;

// A model to scores on test suites.
pub mod eval;

// Given or asked answers of any checkpoint.
pub mod messages;
pub mod score;

// What happened to files and a page.
pub mod report;

// What was typed, and what it resolves to.
pub mod recipe;
pub mod run;

// What can go wrong, from any room.
pub mod error;

// One run in progress, the two loops, and the whole.
pub mod learn;
pub mod rl;
pub mod session;
pub mod sft;
pub mod train;
