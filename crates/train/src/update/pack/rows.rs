//! Rows of micro-batches: what a block of answers writes into the columns of a batch, and what its weights are divided by.
//! Knows token ids and weights; the rules that made them are elsewhere. Cost: one copy of the ids.

use foveate_model::batch::{PromptInput, Segment, TokenBatch};

use super::{PackAnswer, PackOptions};
use crate::update::reduction::Counts;

/// A question, or the shared start of several, with what hangs off it.
pub(super) struct Block<'a> {
    pub prompt: &'a PromptInput,
    /// Leading tokens of the prompt that are shared.
    pub prefix: usize,
    pub children: Vec<Child<'a>>,
    /// Parent and children, or one segment per child.
    pub tree: bool,
}

/// What weights are divided by: the counts of the whole step, or those of each micro-batch.
pub(super) struct Denominators {
    size: usize,
    counts: Vec<Counts>,
    /// One over the number of micro-batches, times the factor of all weights.
    scale: f64,
}

impl Denominators {
    pub fn new<'a>(answers: impl Iterator<Item = &'a PackAnswer>, step: &Counts, options: &PackOptions) -> Self {
        let Some(size) = options.micro_batch else {
            return Self { size: usize::MAX, counts: vec![*step], scale: options.scale };
        };
        let mut counts: Vec<Counts> = Vec::new();
        for (place, answer) in answers.enumerate() {
            if place % size == 0 {
                counts.push(Counts::default());
            }
            let last = counts.last_mut().expect("pushed at the first place");
            last.add_sequence(options.count, answer.num_loss_tokens(), answer.has_signal(), answer.injected);
        }
        let scale = options.scale / counts.len().max(1) as f64;
        Self { size, counts, scale }
    }

    fn of(&self, place: usize) -> &Counts {
        &self.counts[place / self.size]
    }
}

/// One answer with the part of its question that is not shared, and its weights.
pub(super) struct Child<'a> {
    context: &'a [u32],
    answer: &'a PackAnswer,
    weight: f64,
    kl_weight: f64,
    entropy_weight: f64,
}

impl<'a> Child<'a> {
    /// `None` if the answer has no gradient.
    pub fn new(
        context: &'a [u32],
        answer: &'a PackAnswer,
        denominators: &Denominators,
        place: usize,
        options: &PackOptions,
    ) -> Option<Self> {
        let sampled = !answer.injected;
        let used = answer.has_signal() || (sampled && (options.has_kl || options.has_entropy));
        if answer.masked || !used {
            return None;
        }
        let (n, counts, scale) = (answer.ids.len(), denominators.of(place), denominators.scale);
        let weight = scale * counts.weight(options.reduction, n, options.max_len);
        let kl_weight = scale * counts.kl_weight(options.reduction, n, options.max_len);
        let entropy_weight = scale * counts.entropy_weight();
        Some(Self {
            context,
            answer,
            weight,
            kl_weight: if sampled && options.has_kl { kl_weight } else { 0.0 },
            entropy_weight: if sampled && options.has_entropy { entropy_weight } else { 0.0 },
        })
    }

    fn num_rows(&self) -> usize {
        self.context.len() + self.answer.ids.len() - 1
    }
}

/// Blocks as micro-batches of at most so many tokens, in order.
pub(super) fn micro_batches(blocks: Vec<Block<'_>>, options: &PackOptions) -> Vec<TokenBatch> {
    let mut batches = Vec::new();
    let mut open = TokenBatch { banned: options.banned.clone(), ..Default::default() };
    for block in blocks {
        let rows_of = |children: &[Child<'_>]| match block.tree {
            true => block.prefix + children.iter().map(Child::num_rows).sum::<usize>(),
            false => children.iter().map(|child| block.prefix + child.num_rows()).sum(),
        };
        let fits = |open: &TokenBatch, rows: usize| open.num_tokens() + rows <= options.token_budget;
        let mut rest = block.children.as_slice();
        while !rest.is_empty() {
            if !open.ids.is_empty() && !fits(&open, rows_of(rest)) {
                let empty = TokenBatch { banned: options.banned.clone(), ..Default::default() };
                batches.push(std::mem::replace(&mut open, empty));
            }
            // The whole rest if it fits; else as many answers as do, at least one.
            let mut take = rest.len();
            while take > 1 && !fits(&open, rows_of(&rest[..take])) {
                take -= 1;
            }
            push(&mut open, &block, &rest[..take]);
            rest = &rest[take..];
        }
    }
    if !open.ids.is_empty() {
        batches.push(open);
    }
    batches
}

fn push(batch: &mut TokenBatch, block: &Block<'_>, children: &[Child<'_>]) {
    if !block.tree {
        for child in children {
            let start = push_prefix(batch, block);
            let last = push_rows(batch, child, block.prefix);
            let len = batch.ids.len() as u32 - start;
            batch.segments.push(Segment { start, len, parent: None });
            push_trained(batch, child, last);
        }
        return;
    }
    let start = push_prefix(batch, block);
    let parent = batch.segments.len() as u32;
    batch.segments.push(Segment { start, len: block.prefix as u32, parent: None });
    let last_prefix_row = batch.ids.len() as u32 - 1;
    for child in children {
        let start = batch.ids.len() as u32;
        push_rows(batch, child, block.prefix);
        let len = batch.ids.len() as u32 - start;
        if len > 0 {
            batch.segments.push(Segment { start, len, parent: Some(parent) });
        }
        let last = if child.context.is_empty() { last_prefix_row } else { start + child.context.len() as u32 - 1 };
        push_trained_from(batch, child, last, start + child.context.len() as u32);
    }
}

// Rows of the prefix with its pictures; gives the first row.
fn push_prefix(batch: &mut TokenBatch, block: &Block<'_>) -> u32 {
    let start = batch.ids.len() as u32;
    batch.ids.extend_from_slice(&block.prompt.ids[..block.prefix]);
    batch.positions.extend(0..block.prefix as u32);
    batch.tiles.extend(block.prompt.tiles.iter().cloned());
    batch.placements.extend(block.prompt.placements.iter().map(|at| start + at));
    start
}

// Rows of the context and of the answer but its last token; gives the row before the answer.
fn push_rows(batch: &mut TokenBatch, child: &Child<'_>, position: usize) -> u32 {
    let answer = &child.answer.ids;
    batch.ids.extend_from_slice(child.context);
    let last = batch.ids.len() as u32 - 1;
    batch.ids.extend_from_slice(&answer[..answer.len() - 1]);
    batch.positions.extend(position as u32..(position + child.num_rows()) as u32);
    last
}

fn push_trained(batch: &mut TokenBatch, child: &Child<'_>, last: u32) {
    push_trained_from(batch, child, last, last + 1);
}

// `first_source` predicts the answer's first token; the answer's own rows begin at `own_rows`.
fn push_trained_from(batch: &mut TokenBatch, child: &Child<'_>, first_source: u32, own_rows: u32) {
    let answer = child.answer;
    let begin = batch.target.len() as u32;
    for (t, id) in answer.ids.iter().enumerate() {
        batch.source.push(if t == 0 { first_source } else { own_rows + t as u32 - 1 });
        batch.target.push(*id);
        batch.inv_temperature.push(answer.inv_temperature);
        batch.old_logprob.push(answer.old_logprob.get(t).copied().unwrap_or(0.0));
        batch.advantage.push(answer.advantage_at(t));
        let factor = answer.factor.get(t).map_or(1.0, |factor| f64::from(*factor));
        batch.weight.push((child.weight * factor) as f32);
        batch.kl_weight.push(child.kl_weight as f32);
        batch.entropy_weight.push(child.entropy_weight as f32);
        batch.injected.push(answer.injected);
    }
    batch.sequences.push(begin..batch.target.len() as u32);
}
