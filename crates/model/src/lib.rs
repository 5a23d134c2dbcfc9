//! Tape, weights, layers, model families and decoding with a cache.
//! Knows kernels; knows nothing of rewards, rules or files other than checkpoints.
#![forbid(unsafe_code)]

/// Low-rank adapters.
pub mod adapters;
/// Buffers of activations, reused from step to step.
pub mod arena;
/// The narrow waist between text and tensors.
pub mod batch;
/// Answers decoded together while others come and go.
pub mod batcher;
/// Keys and values of tokens that were read before.
pub mod cache;
/// Reading `config.json`.
pub mod config;
/// Sampling answers with a cache.
pub mod decode;
/// Where a model computes.
pub mod device;
/// What can go wrong.
pub mod error;
/// Model families, one file each.
pub mod families;
mod gradients;
mod linear;
mod master;
/// The optimiser's side of a model on a GPU.
pub mod moments;
mod on_device;
mod packed;
/// Adapters on disk.
pub mod peft;
/// What a model will take.
pub mod plan;
/// What a model will take on a GPU.
pub mod plan_device;
/// A model that scores, learns and samples.
pub mod policy;
mod policy_device;
/// Rotary positions in one or three axes.
pub mod positions;
pub mod profile;
/// Reading and writing weights.
pub mod safetensors_io;
/// Picking a token.
pub mod sampling;
mod steps;
/// Ops forward and backward.
pub mod tape;
/// Parameters.
pub mod weights;

pub use adapters::AdapterSpec;
pub use batch::{Cuts, Derivatives, FinishReason, HeadOutput, PromptInput, Sampled, Segment, Tile, TokenBatch};
pub use decode::SampleJob;
pub use device::DeviceChoice;
pub use error::ModelError;
pub use gradients::Gradients;
pub use moments::DeviceMoments;
pub use policy::{ModelDescription, Policy, Precision};
pub use safetensors_io::SaveType;
pub use sampling::SamplingSpec;
pub use weights::{Dropout, ParamInfo, Part, Trainable};
