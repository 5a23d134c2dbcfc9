//! The one-denominator rule (methods 1.6): every denominator is counted once per optimiser step, over all micro-batches
//! and ranks, and reaches each trained token as one constant weight. Plain counts. Cost: none.

use serde::{Deserialize, Serialize};

/// How token losses become one loss. N sequences, M loss tokens, n tokens of the answer, L the length limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// `1/(N n)`: every answer counts alike, so tokens of long answers count less (GRPO).
    SequenceMean,
    /// `1/M`: every token counts alike (DAPO).
    TokenMean,
    /// `1/(N L)`: every token counts alike, whatever the answers' lengths in this step (Dr.GRPO).
    ConstantLength,
    /// `1/N`: long answers keep their full weight (LUSPO).
    SequenceSum,
}

/// Which sequences enter the denominators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// Every sequence of the batch, as published by DyME, Curr-ReFT and Reason-RFT.
    All,
    /// Those with at least one loss token.
    #[default]
    Unmasked,
    /// Those with a loss token and an advantage other than 0: groups without signal no longer shrink the step.
    Nonzero,
}

/// The denominators of one optimiser step. Add those of all ranks before packing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// N of the policy term.
    pub num_sequences: u64,
    /// M of the policy term.
    pub num_tokens: u64,
    /// N of the KL term.
    pub kl_num_sequences: u64,
    /// M of the KL term.
    pub kl_num_tokens: u64,
    /// Tokens of the entropy term.
    pub entropy_num_tokens: u64,
}

impl std::ops::Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts {
            num_sequences: self.num_sequences + other.num_sequences,
            num_tokens: self.num_tokens + other.num_tokens,
            kl_num_sequences: self.kl_num_sequences + other.kl_num_sequences,
            kl_num_tokens: self.kl_num_tokens + other.kl_num_tokens,
            entropy_num_tokens: self.entropy_num_tokens + other.entropy_num_tokens,
        }
    }
}

impl Counts {
    /// Counts one sequence. `num_tokens` is 0 for a masked one.
    pub fn add_sequence(&mut self, count: Count, num_tokens: usize, signal: bool, injected: bool) {
        let tokens = num_tokens as u64;
        let unmasked = num_tokens > 0;
        let counted = match count {
            Count::All => true,
            Count::Unmasked => unmasked,
            Count::Nonzero => unmasked && signal,
        };
        if counted {
            self.num_sequences += 1;
            self.num_tokens += tokens;
        }
        // The KL term keeps the denominators of `unmasked` where zero advantages are not counted.
        if count == Count::All || unmasked {
            self.kl_num_sequences += 1;
            self.kl_num_tokens += tokens;
        }
        if unmasked && !injected {
            self.entropy_num_tokens += tokens;
        }
    }

    /// `c_it` of the policy term for a token of an answer of `num_tokens`.
    pub fn weight(&self, reduction: Reduction, num_tokens: usize, max_len: usize) -> f64 {
        weight(reduction, self.num_sequences, self.num_tokens, num_tokens, max_len)
    }

    /// `c_it` of the KL term.
    pub fn kl_weight(&self, reduction: Reduction, num_tokens: usize, max_len: usize) -> f64 {
        weight(reduction, self.kl_num_sequences, self.kl_num_tokens, num_tokens, max_len)
    }

    /// Weight of each token of the entropy term.
    pub fn entropy_weight(&self) -> f64 {
        1.0 / self.entropy_num_tokens.max(1) as f64
    }
}

fn weight(reduction: Reduction, sequences: u64, tokens: u64, num_tokens: usize, max_len: usize) -> f64 {
    let sequences = sequences.max(1) as f64;
    match reduction {
        Reduction::SequenceMean => 1.0 / (sequences * num_tokens.max(1) as f64),
        Reduction::TokenMean => 1.0 / tokens.max(1) as f64,
        Reduction::ConstantLength => 1.0 / (sequences * max_len.max(1) as f64),
        Reduction::SequenceSum => 1.0 / sequences,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_weights() {
        let mut counts = Counts::default();
        for n in [2, 4] {
            counts.add_sequence(Count::All, n, true, false);
        }
        for (reduction, two, four) in [
            (Reduction::SequenceMean, 0.25, 0.125),
            (Reduction::TokenMean, 1.0 / 6.0, 1.0 / 6.0),
            (Reduction::ConstantLength, 1.0 / 16.0, 1.0 / 16.0),
            (Reduction::SequenceSum, 0.5, 0.5),
        ] {
            assert_eq!(counts.weight(reduction, 2, 8), two);
            assert_eq!(counts.weight(reduction, 4, 8), four);
        }
    }

    #[test]
    fn which_sequences_count() {
        // A masked one, one without advantage, one with both, an injected target.
        let cases = [(0, true, false), (3, false, false), (5, true, false), (7, true, true)];
        let count = |kind| {
            let mut counts = Counts::default();
            cases.iter().for_each(|&(n, signal, injected)| counts.add_sequence(kind, n, signal, injected));
            counts
        };
        let (all, unmasked, nonzero) = (count(Count::All), count(Count::Unmasked), count(Count::Nonzero));
        assert_eq!((all.num_sequences, all.num_tokens, all.kl_num_sequences), (4, 15, 4));
        assert_eq!((unmasked.num_sequences, unmasked.num_tokens), (3, 15));
        assert_eq!((nonzero.num_sequences, nonzero.num_tokens, nonzero.kl_num_sequences), (2, 12, 3));
        assert_eq!(nonzero.entropy_num_tokens, 8);
        assert_eq!((all + nonzero).num_tokens, 27);
        assert_eq!(Counts::default().weight(Reduction::TokenMean, 0, 0), 1.0, "never a division by zero");
    }
}
