//! The flow of a run, room by room, in this order:
//! data -> prompt -> rollout -> reward -> update -> optim -> checkpoint, eval, report.
//! A room imports only rooms before it; a test holds that.
#![forbid(unsafe_code)]

// HTTP clients.
pub mod net;

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

// Learning rates and clipping.
pub mod optim;

// Gradients to new weights.
pub mod adamw;

// Whole steps on the clock.
pub mod speed;

// State to files that are there in full or not at all.
pub mod checkpoint;

// Models that travel inside the program.
pub mod builtin;

// Models of the hub: found in its cache, or fetched into it.
pub mod hub;

// The name of a model to the folder that holds it.
pub mod source;

// Low-rank adapters as a recipe asks for them.
pub mod lora;

// What a recipe may do to need less memory.
pub mod memory;

// New models from architecture numbers.
pub mod fresh;

// A model to scores on test suites.
pub mod eval;

// A model's good answers to examples.
pub mod collect;

// Conversations from files.
pub mod messages;

// Log-probabilities of given answers; answers to given conversations.
pub mod score;

// A model that answers many clients.
pub mod serve;

// What happened to files and a page.
pub mod report;

// When a stage is over.
pub mod until;

// What was typed.
pub mod recipe;

// What can go wrong, from any room.
pub mod error;

// What was typed, resolved.
pub mod run;

// What a stage carries from step to step.
pub mod controls;

// The models of a run.
pub mod opening;

// Memory on a GPU before a stage's first step.
pub mod reserve;

// What of a model a run writes down and reads back.
pub mod kept;

// The frozen model of a KL term.
pub mod frozen;

// Adapters into models, and models into one.
pub mod merge;

// One run in progress.
pub mod session;

// One optimiser step.
pub mod learn;

// The supervised loop.
pub mod sft;

// The reinforcement loop.
pub mod rl;

// A whole run.
pub mod train;

// Many runs, compared.
pub mod study;
