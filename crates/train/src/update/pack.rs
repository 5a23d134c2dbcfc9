//! Packs questions and their answers into micro-batches of plain columns, the question stored once for all its answers
//! (methods 1.6; the room's exit to the tensor side). Exact: sharing, splitting and dropping change no gradient.
//! Knows token ids, never text. Cost: one copy of the ids; `P + sum(R)` rows per group in place of `G P + sum(R)`.
//!
//! Rows of an answer are its tokens except the last, which is only predicted. The last row of the question predicts
//! the first token of every answer. Answers without any gradient get no rows and still count in the denominators.

use std::sync::Arc;

use foveate_model::batch::{PromptInput, Segment, Tile, TokenBatch};

use super::UpdateError;
use super::reduction::{Count, Counts, Reduction};
use super::rule::Rule;

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

/// A question, or the shared start of several, with what hangs off it.
struct Block<'a> {
    prompt: &'a PromptInput,
    /// Leading tokens of the prompt that are shared.
    prefix: usize,
    children: Vec<Child<'a>>,
    /// Parent and children, or one segment per child.
    tree: bool,
}

/// What weights are divided by: the counts of the whole step, or those of each micro-batch.
struct Denominators {
    size: usize,
    counts: Vec<Counts>,
    /// One over the number of micro-batches, times the factor of all weights.
    scale: f64,
}

impl Denominators {
    fn new<'a>(answers: impl Iterator<Item = &'a PackAnswer>, step: &Counts, options: &PackOptions) -> Self {
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
struct Child<'a> {
    context: &'a [u32],
    answer: &'a PackAnswer,
    weight: f64,
    kl_weight: f64,
    entropy_weight: f64,
}

impl<'a> Child<'a> {
    /// `None` if the answer has no gradient.
    fn new(
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

fn micro_batches(blocks: Vec<Block<'_>>, options: &PackOptions) -> Vec<TokenBatch> {
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

/// Pictures of a batch, each once, with the number of times it is used: what a vision tower has to encode.
pub fn distinct_tiles(batch: &TokenBatch) -> Vec<(&Arc<Tile>, usize)> {
    let mut distinct: Vec<(&Arc<Tile>, usize)> = Vec::new();
    for tile in &batch.tiles {
        match distinct.iter_mut().find(|(known, _)| Arc::ptr_eq(known, tile)) {
            Some((_, uses)) => *uses += 1,
            None => distinct.push((tile, 1)),
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use foveate_kernels::segment::ancestors;
    use proptest::prelude::*;

    use super::*;
    use crate::update::reduction::Reduction;

    fn tile(value: f32) -> Arc<Tile> {
        Arc::new(Tile::new(1, 1, vec![value; 3]))
    }

    fn prompt(ids: &[u32], tiles: &[Arc<Tile>], placements: &[u32]) -> PromptInput {
        PromptInput { ids: ids.to_vec(), tiles: tiles.to_vec(), placements: placements.to_vec() }
    }

    fn options() -> PackOptions {
        PackOptions {
            reduction: Reduction::SequenceMean,
            count: Count::All,
            max_len: 8,
            token_budget: 10_000,
            share_prefix: true,
            has_kl: false,
            has_entropy: false,
            micro_batch: None,
            scale: 1.0,
            banned: Arc::new([]),
        }
    }

    #[test]
    fn micro_batches_may_have_denominators_of_their_own() {
        let question = prompt(&[1, 2], &[], &[]);
        let answer = |n: u32| PackAnswer::sampled((10..10 + n).collect(), vec![-1.0; n as usize], 1.0, 1.0);
        let groups = [PackGroup { prompt: &question, answers: vec![answer(2), answer(4)] }];
        let weights = |reduction, micro_batch| {
            let options = PackOptions { reduction, micro_batch, ..options() };
            let batches = pack(&groups, &count(&groups, Count::All), &options).expect("packs");
            assert_eq!(batches.len(), 1, "how rows are packed has nothing to do with it");
            (batches[0].weight[0], batches[0].weight[2])
        };
        assert_eq!(weights(Reduction::SequenceMean, None), (0.25, 0.125));
        assert_eq!(weights(Reduction::TokenMean, None), (1.0 / 6.0, 1.0 / 6.0));
        // Published bnpo: each micro-batch by its own tokens, then their mean.
        assert_eq!(weights(Reduction::TokenMean, Some(1)), (0.25, 0.125));
        assert_eq!(weights(Reduction::TokenMean, Some(2)), (1.0 / 6.0, 1.0 / 6.0));
        assert_eq!(weights(Reduction::SequenceMean, Some(1)), (0.25, 0.125));
    }

    /// What a trained token is to a model: everything it sees, in order, with positions and pictures; and its columns.
    type View = (Vec<(u32, u32, Option<String>)>, u32, Vec<u32>);

    fn views(batches: &[TokenBatch]) -> Vec<View> {
        let mut views = Vec::new();
        for batch in batches {
            // The segments cover the rows in order.
            let mut at = 0;
            for segment in &batch.segments {
                assert!(segment.start == at && segment.len > 0);
                assert!(segment.parent.is_none_or(|p| batch.segments[p as usize].start < segment.start));
                at += segment.len;
            }
            assert_eq!(at as usize, batch.ids.len());
            assert_eq!(batch.placements.len(), batch.tiles.len(), "one feature per tile in these tests");
            let picture = |row: u32| {
                let feature = batch.placements.iter().position(|p| *p == row)?;
                Some(format!("{:?}", batch.tiles[feature].pixels))
            };
            for i in 0..batch.num_trained() {
                let source = batch.source[i];
                let own =
                    batch.segments.iter().position(|s| (s.start..s.start + s.len).contains(&source)).expect("row");
                let mut rows: Vec<u32> = Vec::new();
                for ancestor in ancestors(&batch.segments, own as u32) {
                    let s = batch.segments[ancestor as usize];
                    rows.extend(s.start..s.start + s.len);
                }
                rows.extend(batch.segments[own].start..=source);
                let seen =
                    rows.iter().map(|&r| (batch.ids[r as usize], batch.positions[r as usize], picture(r))).collect();
                let columns = [
                    batch.weight[i].to_bits(),
                    batch.kl_weight[i].to_bits(),
                    batch.entropy_weight[i].to_bits(),
                    batch.advantage[i].to_bits(),
                    batch.old_logprob[i].to_bits(),
                    batch.inv_temperature[i].to_bits(),
                    u32::from(batch.injected[i]),
                ];
                views.push((seen, batch.target[i], columns.to_vec()));
            }
        }
        views.sort();
        views
    }

    fn answer(ids: &[u32], advantage: f64) -> PackAnswer {
        PackAnswer::sampled(ids.to_vec(), ids.iter().map(|id| -(*id as f32) / 10.0).collect(), advantage, 1.0)
    }

    fn run(groups: &[PackGroup<'_>], options: &PackOptions) -> Vec<TokenBatch> {
        pack(groups, &count(groups, options.count), options).expect("packs")
    }

    #[test]
    fn a_group_hangs_off_its_question() {
        let question = prompt(&[5, 90, 6], &[tile(1.0)], &[1]);
        let answers = vec![answer(&[7, 8, 2], 1.0), answer(&[9], -1.0), PackAnswer::target(vec![3, 2], 0.5, 0.5)];
        let batch = run(&[PackGroup { prompt: &question, answers }], &options()).remove(0);
        assert_eq!(batch.ids, [5, 90, 6, 7, 8, 3]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 4, 3]);
        let segment = |start, len, parent| Segment { start, len, parent };
        assert_eq!(batch.segments, [segment(0, 3, None), segment(3, 2, Some(0)), segment(5, 1, Some(0))]);
        assert_eq!(batch.source, [2, 3, 4, 2, 2, 5]);
        assert_eq!(batch.target, [7, 8, 2, 9, 3, 2]);
        assert_eq!(batch.sequences, [0..3, 3..4, 4..6]);
        assert_eq!(batch.injected, [false, false, false, false, true, true]);
        let third = (1.0f64 / 9.0) as f32;
        assert_eq!(batch.weight, [third, third, third, 1.0 / 3.0, 1.0 / 6.0, 1.0 / 6.0]);
        assert_eq!((batch.placements, batch.inv_temperature[5]), (vec![1], 0.5));
        assert_eq!(batch.old_logprob[4..], [0.0, 0.0]);
    }

    #[test]
    fn answers_without_gradient_leave_rows_and_still_count() {
        let question = prompt(&[5, 6], &[], &[]);
        let mut unknown = answer(&[7, 8], 0.0);
        unknown.masked = true;
        let answers = vec![answer(&[7, 8, 9], 1.0), answer(&[4, 4, 4, 4], 0.0), unknown];
        let groups = [
            PackGroup { prompt: &question, answers },
            PackGroup { prompt: &question, answers: vec![answer(&[1], 0.0)] },
        ];
        let dropped = run(&groups, &options());
        assert_eq!((dropped.len(), dropped[0].ids.len(), dropped[0].sequences.len()), (1, 4, 1));
        assert_eq!(dropped[0].weight[0], (1.0f64 / 12.0) as f32, "four sequences count");
        let kl = PackOptions { has_kl: true, ..options() };
        let kept = run(&groups, &kl);
        assert_eq!(kept[0].sequences.len(), 3, "all but the masked one");
        assert_eq!(kept[0].weight[..3], dropped[0].weight[..3]);
        assert_eq!(kept[0].kl_weight[3], (1.0f64 / 16.0) as f32);
        let nonzero = PackOptions { count: Count::Nonzero, ..options() };
        assert_eq!(run(&groups, &nonzero)[0].weight[0], 1.0 / 3.0);
        let silent = [PackGroup { prompt: &question, answers: vec![answer(&[1], 0.0)] }];
        assert!(run(&silent, &options()).is_empty());
    }

    #[test]
    fn supervised_rows_share_their_image() {
        let picture = tile(1.0);
        let a = prompt(&[5, 90, 6, 10, 11], std::slice::from_ref(&picture), &[1]);
        let b = prompt(&[5, 90, 6, 10, 12, 13], std::slice::from_ref(&picture), &[1]);
        let other = prompt(&[5, 90, 6, 10, 11], &[tile(1.0)], &[1]);
        let early = prompt(&[4, 90, 6], &[picture], &[1]);
        let rows: Vec<SupervisedRow> =
            [(&a, vec![20, 2]), (&b, vec![21, 22, 2]), (&a, vec![23]), (&other, vec![24, 2]), (&early, vec![2])]
                .iter()
                .map(|(prompt, target)| SupervisedRow {
                    prompt,
                    target: target.clone().leak(),
                    weight: 1.0,
                    inv_temperature: 1.0,
                })
                .collect();
        let shared = PackOptions { reduction: Reduction::TokenMean, count: Count::Unmasked, ..options() };
        let counts = count_supervised(&rows, shared.count);
        let batches = pack_supervised(&rows, &counts, &shared).expect("packs");
        assert_eq!(batches[0].segments[0].len, 4, "image and common words once");
        assert_eq!(distinct_tiles(&batches[0]).len(), 2, "one picture is used twice");
        assert_eq!(batches[0].tiles.len(), 3);
        let separate = PackOptions { share_prefix: false, ..shared };
        let apart = pack_supervised(&rows, &counts, &separate).expect("packs");
        assert_eq!(views(&batches), views(&apart));
        assert_eq!(batches[0].weight[0], (1.0f64 / 9.0) as f32);
    }

    #[test]
    fn bad_input_is_named() {
        let (good, empty) = (prompt(&[1], &[], &[]), prompt(&[], &[], &[]));
        let counts = Counts::default();
        let error = |prompt, answer: PackAnswer| {
            pack(&[PackGroup { prompt, answers: vec![answer] }], &counts, &options()).expect_err("bad").to_string()
        };
        assert!(error(&empty, answer(&[1], 1.0)).contains("empty"));
        assert!(error(&good, answer(&[], 1.0)).contains("no tokens"));
        assert!(error(&good, PackAnswer { old_logprob: vec![], ..answer(&[1], 1.0) }).contains("old_logprob"));
        assert!(error(&good, answer(&[1], f64::NAN)).contains("advantage"));
        let wild = prompt(&[1], &[], &[3]);
        assert!(
            error(&wild, answer(&[1], 1.0)).contains("placement") || error(&wild, answer(&[1], 1.0)).contains("image")
        );
    }

    proptest! {
        #[test]
        fn any_split_any_sharing_same_tokens(
            shapes in proptest::collection::vec(
                (1usize..6, proptest::collection::vec((1usize..5, -1i32..2, any::<bool>(), any::<bool>()), 1..5)), 1..5),
            budget in 1usize..40,
            kl in any::<bool>(),
            reduction in prop_oneof![Just(Reduction::SequenceMean), Just(Reduction::TokenMean), Just(Reduction::SequenceSum)],
            kind in prop_oneof![Just(Count::All), Just(Count::Unmasked), Just(Count::Nonzero)],
        ) {
            let prompts: Vec<PromptInput> = shapes.iter().enumerate().map(|(g, (len, _))| {
                let ids: Vec<u32> = (0..*len as u32).map(|i| 100 * g as u32 + i).collect();
                prompt(&ids, &[tile(g as f32)], &[*len as u32 - 1])
            }).collect();
            let groups: Vec<PackGroup> = shapes.iter().zip(&prompts).map(|((_, answers), prompt)| PackGroup {
                prompt,
                answers: answers.iter().enumerate().map(|(i, (len, advantage, injected, masked))| {
                    let ids: Vec<u32> = (0..*len as u32).map(|t| 1000 + 10 * i as u32 + t).collect();
                    let mut answer = answer(&ids, f64::from(*advantage));
                    if *injected {
                        answer = PackAnswer::target(ids, f64::from(*advantage), 1.0);
                    }
                    answer.masked = *masked;
                    answer
                }).collect(),
            }).collect();
            let whole = PackOptions { has_kl: kl, has_entropy: kl, reduction, count: kind, ..options() };
            let want = views(&run(&groups, &whole));
            let pieces = PackOptions { token_budget: budget, ..whole.clone() };
            prop_assert_eq!(&views(&run(&groups, &pieces)), &want);
            let apart = PackOptions { share_prefix: false, ..pieces };
            prop_assert_eq!(&views(&run(&groups, &apart)), &want);
            let mut reversed = groups.clone();
            reversed.reverse();
            prop_assert_eq!(&views(&run(&reversed, &whole)), &want);
        }
    }
}
