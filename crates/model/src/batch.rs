//! The narrow waist: all that passes from the side that knows text to the side that knows tensors.
//! Plain columns; knows nothing of templates, rewards or rules. Cost: pixels are shared, the rest is a few words per
//! token.

use std::ops::Range;
use std::sync::Arc;

pub use foveate_kernels::segment::Segment;

/// One picture, or one cut of it, as the vision tower sees it. Families with towers of variable size take a picture as
/// one tile.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// Rows of pixels.
    pub height: u32,
    /// Columns of pixels.
    pub width: u32,
    /// Normalised values, `[3, height, width]`.
    pub pixels: Vec<f32>,
    /// On the first tile of a picture whose features depend on how its tiles lie; `None` where every tile stands for
    /// itself.
    pub cuts: Option<Cuts>,
}

/// How the tiles that follow this one make up a picture (any-resolution families).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// Rows of tiles that follow.
    pub rows: u32,
    /// Columns of tiles that follow, row by row.
    pub columns: u32,
    /// Rows of pixels before the picture was fitted into the tiles.
    pub picture_height: u32,
    /// Columns of pixels before the picture was fitted into the tiles.
    pub picture_width: u32,
}

impl Tile {
    /// A tile that stands for itself.
    pub fn new(height: u32, width: u32, pixels: Vec<f32>) -> Tile {
        Tile { height, width, pixels, cuts: None }
    }
}

/// A rendered prompt: what the model reads before it answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptInput {
    /// Token ids, image tokens included.
    pub ids: Vec<u32>,
    /// Pictures in the order of their features.
    pub tiles: Vec<Arc<Tile>>,
    /// Index into `ids` of each image feature, in feature order (all features of the first tile, then the next).
    pub placements: Vec<u32>,
}

/// Packed rows. Everything is a flat column; the tensor side learns nothing else about text, rewards or rules.
///
/// The first block has one entry per packed token. The second has one per *trained* token: because the last prompt
/// row predicts the first token of every answer of a group, a trained token names the row that predicts it (`source`)
/// instead of being that row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenBatch {
    /// Token ids, `T` of them.
    pub ids: Vec<u32>,
    /// Place of each token in its own text, `T`; families turn it into rotary positions.
    pub positions: Vec<u32>,
    /// Who sees whom; together the segments cover the `T` rows in order.
    pub segments: Vec<Segment>,
    /// Pictures of all prompts.
    pub tiles: Vec<Arc<Tile>>,
    /// Packed row of each image feature, in feature order.
    pub placements: Vec<u32>,

    /// Packed row whose hidden state predicts the trained token, `R` of them.
    pub source: Vec<u32>,
    /// The trained token, `R`.
    pub target: Vec<u32>,
    /// One over the temperature that its log-probability refers to, `R`.
    pub inv_temperature: Vec<f32>,
    /// Log-probability recorded while sampling, never recomputed in its place; 0 on injected targets. `R`.
    pub old_logprob: Vec<f32>,
    /// Log-probability under the frozen reference; empty when no rule needs it.
    pub ref_logprob: Vec<f32>,
    /// Advantage of the token's sequence, `R`.
    pub advantage: Vec<f32>,
    /// `c_it` of methods 1.6: the global denominators of the whole optimiser step, applied once. `R`.
    pub weight: Vec<f32>,
    /// The same for the KL term; 0 on injected targets. `R`.
    pub kl_weight: Vec<f32>,
    /// The same for the entropy term (one over the number of counted tokens, or 0). `R`.
    pub entropy_weight: Vec<f32>,
    /// Whether the token belongs to a supervised target: its ratio is fixed to one. `R`.
    pub injected: Vec<bool>,
    /// Bounds of whole answers in the trained columns, for rules that need a whole answer.
    pub sequences: Vec<Range<u32>>,
    /// Sorted ids that can never be produced: their logit is minus infinity everywhere.
    pub banned: Arc<[u32]>,
}

impl TokenBatch {
    /// Number of packed tokens.
    pub fn num_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of trained tokens.
    pub fn num_trained(&self) -> usize {
        self.target.len()
    }
}

/// What the head says about the trained tokens of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadOutput {
    /// Log-probability of each trained token, nats.
    pub logprob: Vec<f32>,
    /// Entropy of the distribution it was drawn from, nats.
    pub entropy: Vec<f32>,
}

/// What an update rule answers: two numbers per trained token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Derivatives {
    /// d(loss) / d(log-probability).
    pub by_logprob: Vec<f32>,
    /// d(loss) / d(entropy).
    pub by_entropy: Vec<f32>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It produced an end token.
    Stop,
    /// It reached the limit of new tokens.
    Length,
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// New tokens, the end token included if there is one.
    pub ids: Vec<u32>,
    /// Log-probability of each at sampling, over the untruncated distribution at the temperature that log-probabilities
    /// refer to.
    pub logprob: Vec<f32>,
    /// Entropy of that distribution at each position.
    pub entropy: Vec<f32>,
    /// Log-probability of each under the distribution it was drawn from; the same numbers unless the draw was truncated
    /// or had a temperature of its own.
    pub drawn_logprob: Vec<f32>,
    /// Why it ended.
    pub finish: FinishReason,
}
