//! Packs questions and their answers into micro-batches of plain columns, the question stored once for all its answers
//! (methods 1.6; the room's exit to the tensor side). Exact: sharing, splitting and dropping change no gradient.
//! Knows token ids, never text. Cost: one copy of the ids; `P + sum(R)` rows per group in place of `G P + sum(R)`.
//!
//! Rows of an answer are its tokens except the last, which is only predicted. The last row of the question predicts
//! the first token of every answer. Answers without any gradient get no rows and still count in the denominators.

mod rows;

use std::sync::Arc;

use foveate_model::batch::{PromptInput, TokenBatch};

use super::UpdateError;
use super::reduction::{Count, Counts, Reduction};
use super::rule::Rule;
use rows::{Block, Child, Denominators, micro_batches};

/// Advantage of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Advantage {
    /// One number for all its tokens.
    Answer(f64),
    /// One per token.
    Tokens(Vec<f32>),
}

/// One answer, sampled or injected, ready to be packed.
#[derive(Clone, Debug, PartialEq)]
pub struct PackAnswer {
    /// Tokens, the end token included where there is one.
    pub ids: Vec<u32>,
    /// Log-probability of each at sampling; empty for an injected target.
    pub old_logprob: Vec<f32>,
    /// Advantage.
    pub advantage: Advantage,
    /// One over the temperature that its log-probabilities refer to.
    pub inv_temperature: f32,
    /// A supervised target: ratio fixed to 1, no KL, no entropy term.
    pub injected: bool,
    /// No loss tokens at all (unknown reward, cut off by the limit).
    pub masked: bool,
    /// Factor on the policy term per token (sampler correction, token masks); empty means 1.
    pub factor: Vec<f32>,
}

impl PackAnswer {
    /// A sampled answer.
    pub fn sampled(ids: Vec<u32>, old_logprob: Vec<f32>, advantage: f64, inv_temperature: f32) -> Self {
        Self {
            ids,
            old_logprob,
            advantage: Advantage::Answer(advantage),
            inv_temperature,
            injected: false,
            masked: false,
            factor: Vec::new(),
        }
    }

    /// A supervised target.
    pub fn target(ids: Vec<u32>, advantage: f64, inv_temperature: f32) -> Self {
        Self { injected: true, ..Self::sampled(ids, Vec::new(), advantage, inv_temperature) }
    }

    /// Number of loss tokens.
    pub fn num_loss_tokens(&self) -> usize {
        if self.masked { 0 } else { self.ids.len() }
    }

    /// Whether any token has an advantage.
    pub fn has_signal(&self) -> bool {
        match &self.advantage {
            Advantage::Answer(value) => *value != 0.0,
            Advantage::Tokens(values) => values.iter().any(|value| *value != 0.0),
        }
    }

    fn advantage_at(&self, token: usize) -> f32 {
        match &self.advantage {
            Advantage::Answer(value) => *value as f32,
            Advantage::Tokens(values) => values[token],
        }
    }

    fn check(&self) -> Result<(), UpdateError> {
        let n = self.ids.len();
        if n == 0 {
            return Err(UpdateError::EmptyAnswer);
        }
        let wrong = |column, have| Err(UpdateError::Column { column, have, need: n });
        if self.old_logprob.len() != n && !(self.injected && self.old_logprob.is_empty()) {
            return wrong("old_logprob", self.old_logprob.len());
        }
        if !self.factor.is_empty() && self.factor.len() != n {
            return wrong("factor", self.factor.len());
        }
        match &self.advantage {
            Advantage::Tokens(values) if values.len() != n => wrong("advantage", values.len()),
            Advantage::Answer(value) if !value.is_finite() => Err(UpdateError::NonFinite { what: "advantage" }),
            Advantage::Tokens(values) if !values.iter().all(|v| v.is_finite()) => {
                Err(UpdateError::NonFinite { what: "advantage" })
            }
            _ => Ok(()),
        }
    }
}

/// A question with its answers.
#[derive(Clone, Debug)]
pub struct PackGroup<'a> {
    /// The rendered question.
    pub prompt: &'a PromptInput,
    /// Its answers.
    pub answers: Vec<PackAnswer>,
}

/// How groups become micro-batches.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// How token losses become one loss.
    pub reduction: Reduction,
    /// Which sequences enter the denominators.
    pub count: Count,
    /// Length limit of an answer, for `constant_length`.
    pub max_len: usize,
    /// Most rows per micro-batch; a single answer with its question may exceed it.
    pub token_budget: usize,
    /// One copy of the question per group. Off: one per answer, for tests and comparisons.
    pub share_prefix: bool,
    /// Whether the loss has a KL term, so that answers without advantage are needed too.
    pub has_kl: bool,
    /// Whether the loss has an entropy term.
    pub has_entropy: bool,
    /// Sequences of a micro-batch that has denominators of its own; the step's counts are not used then.
    pub micro_batch: Option<usize>,
    /// Factor on all weights, for mixtures of losses that each have their own denominators.
    pub scale: f64,
    /// Sorted ids whose logit is minus infinity everywhere.
    pub banned: Arc<[u32]>,
}

impl PackOptions {
    /// The options that follow from a rule.
    pub fn new(rule: &Rule, max_len: usize, token_budget: usize, banned: Arc<[u32]>) -> Self {
        Self {
            reduction: rule.reduction,
            count: rule.count,
            max_len,
            token_budget,
            share_prefix: true,
            has_kl: rule.has_kl_loss(),
            has_entropy: rule.alpha != 0.0,
            micro_batch: rule.micro_batch,
            scale: 1.0,
            banned,
        }
    }
}

/// The denominators of these groups; add those of other ranks, then pack.
pub fn count(groups: &[PackGroup<'_>], count: Count) -> Counts {
    let mut counts = Counts::default();
    for answer in groups.iter().flat_map(|group| &group.answers) {
        counts.add_sequence(count, answer.num_loss_tokens(), answer.has_signal(), answer.injected);
    }
    counts
}

/// Packs groups into micro-batches, in order. Groups without gradient leave no rows; the result may be empty.
pub fn pack(groups: &[PackGroup<'_>], counts: &Counts, options: &PackOptions) -> Result<Vec<TokenBatch>, UpdateError> {
    let denominators = Denominators::new(groups.iter().flat_map(|group| &group.answers), counts, options);
    let mut blocks = Vec::new();
    let mut place = 0;
    for group in groups {
        check_prompt(group.prompt)?;
        let mut children = Vec::new();
        for answer in &group.answers {
            answer.check()?;
            children.extend(Child::new(&[], answer, &denominators, place, options));
            place += 1;
        }
        // A group is a tree even if one answer is left: decoding cut its attention at the same place, and the
        // log-probabilities shall have the same bits.
        blocks.push(Block {
            prompt: group.prompt,
            prefix: group.prompt.ids.len(),
            children,
            tree: options.share_prefix,
        });
    }
    Ok(micro_batches(blocks, options))
}

/// One supervised row.
#[derive(Clone, Copy, Debug)]
pub struct SupervisedRow<'a> {
    /// The rendered question.
    pub prompt: &'a PromptInput,
    /// The answer to learn, end token included.
    pub target: &'a [u32],
    /// Its advantage; 1 unless rows are weighted.
    pub weight: f64,
    /// One over the temperature that its log-probabilities refer to; 1 unless the recipe says otherwise.
    pub inv_temperature: f32,
}

/// The denominators of supervised rows.
pub fn count_supervised(rows: &[SupervisedRow<'_>], count: Count) -> Counts {
    let mut counts = Counts::default();
    rows.iter().for_each(|row| counts.add_sequence(count, row.target.len(), row.weight != 0.0, true));
    counts
}

/// Packs supervised rows. Consecutive rows with the same images (the same tiles in memory) share the longest common
/// start of their questions, images included, in one segment; the loss is that of separate rows.
pub fn pack_supervised(
    rows: &[SupervisedRow<'_>],
    counts: &Counts,
    options: &PackOptions,
) -> Result<Vec<TokenBatch>, UpdateError> {
    let mut answers = Vec::with_capacity(rows.len());
    for row in rows {
        check_prompt(row.prompt)?;
        let answer = PackAnswer::target(row.target.to_vec(), row.weight, row.inv_temperature);
        answer.check()?;
        answers.push(answer);
    }
    let denominators = Denominators::new(answers.iter(), counts, options);
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < rows.len() {
        let (end, prefix) = if options.share_prefix { shared_run(rows, at) } else { (at + 1, 0) };
        let tree = end - at > 1;
        let prefix = if tree { prefix } else { rows[at].prompt.ids.len() };
        let child = |i: usize| Child::new(&rows[i].prompt.ids[prefix..], &answers[i], &denominators, i, options);
        let children = (at..end).filter_map(child).collect();
        blocks.push(Block { prompt: rows[at].prompt, prefix, children, tree });
        at = end;
    }
    Ok(micro_batches(blocks, options))
}

/// Fewest common tokens that are worth a segment of their own when there is no image.
const MIN_SHARED_TEXT: usize = 16;

// The run of rows from `start` on that share a prefix, and its length.
fn shared_run(rows: &[SupervisedRow<'_>], start: usize) -> (usize, usize) {
    let first = rows[start].prompt;
    let needed = first.placements.iter().max().map_or(MIN_SHARED_TEXT, |last| *last as usize + 1);
    let (mut end, mut prefix) = (start + 1, first.ids.len());
    while let Some(row) = rows.get(end) {
        let same_images = row.prompt.placements == first.placements
            && row.prompt.tiles.len() == first.tiles.len()
            && row.prompt.tiles.iter().zip(&first.tiles).all(|(a, b)| Arc::ptr_eq(a, b));
        let common = first.ids.iter().zip(&row.prompt.ids).take(prefix).take_while(|(a, b)| a == b).count();
        if !same_images || common < needed {
            break;
        }
        prefix = common;
        end += 1;
    }
    (end, prefix)
}

fn check_prompt(prompt: &PromptInput) -> Result<(), UpdateError> {
    if prompt.ids.is_empty() {
        return Err(UpdateError::EmptyPrompt);
    }
    match prompt.placements.iter().max() {
        Some(&last) if last as usize >= prompt.ids.len() => {
            Err(UpdateError::Placement { at: last, len: prompt.ids.len() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
