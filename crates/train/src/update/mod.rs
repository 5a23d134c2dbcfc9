//! From scored groups to gradients of the loss by log-probability: a selector picks what each group teaches, advantages
//! weigh the answers, packing lays them out, a rule answers with two numbers per trained token.
//! Slices and plain structs; no devices, no text. Cost: small beside one forward pass.

use thiserror::Error;

pub mod advantage;
pub mod assemble;
pub mod credit;
pub mod difficulty;
pub mod entropy;
pub mod kl;
mod knob;
pub mod mask;
pub mod mismatch;
pub mod mix;
pub mod pack;
pub mod reduction;
pub mod replay;
pub mod rule;
pub mod rules;
pub mod selector;
pub mod statistics;
pub mod sums;

pub use advantage::{AdvantageSpec, GroupRewards};
pub use pack::{PackAnswer, PackGroup, PackOptions};
pub use rule::{Rule, RuleKind, RuleSpec, derivatives};
pub use selector::{GroupPlan, Mode, Selector, SelectorSpec};
pub use sums::RuleStats;

/// Why an update cannot be made.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum UpdateError {
    /// A rule whose knobs do not fit together.
    #[error("rule {kind:?}: {why}")]
    Rule {
        /// The preset.
        kind: RuleKind,
        /// What does not fit.
        why: String,
    },
    /// A column of the wrong length.
    #[error("column `{column}` has {have} entries where {need} are needed")]
    Column {
        /// Name of the column.
        column: &'static str,
        /// Its length.
        have: usize,
        /// The length it should have.
        need: usize,
    },
    /// A question without tokens.
    #[error("a prompt is empty: nothing predicts the first token of its answers")]
    EmptyPrompt,
    /// An answer without tokens.
    #[error("an answer has no tokens")]
    EmptyAnswer,
    /// A memorised group without a reference target.
    #[error("a group is to be memorised, but its row has no target")]
    MissingTarget,
    /// An image feature outside of its prompt.
    #[error("an image feature is placed at token {at} of a prompt of {len} tokens")]
    Placement {
        /// Where it is placed.
        at: u32,
        /// Length of the prompt.
        len: usize,
    },
    /// NaN or infinity.
    #[error("{what} is not finite")]
    NonFinite {
        /// Name of the quantity.
        what: &'static str,
    },
}

impl UpdateError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            UpdateError::Rule { .. } => "see the knobs of the rule in the recipe reference",
            UpdateError::Column { .. } => "run the model over the same batch that was packed",
            UpdateError::EmptyPrompt => "the chat template rendered nothing; check the prompt settings",
            UpdateError::EmptyAnswer => "an answer holds at least its end token; check the target template",
            UpdateError::MissingTarget => "give rows a rationale or an answer, or use selector.kind = \"never\"",
            UpdateError::Placement { .. } => "placements and ids must come from the same rendering",
            UpdateError::NonFinite { .. } => "check the rewards of the batch",
        }
    }
}
