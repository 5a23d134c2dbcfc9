//! Answers that are decoded together while others come and go: what a server needs.
//! The store of keys and values has a fixed number of rows; a request takes a stretch of them when it joins and gives
//! it back when it leaves. Every answer has settings and a key of randomness of its own, so it is the same whoever
//! decodes beside it. Knows token ids; knows no text and no clients.
//! Cost: one forward pass over the prompts that join, one row per unfinished answer and token.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::rng::{Purpose, Stream};
use foveate_kernels::segment::{Queries, Segment};

use crate::batch::{FinishReason, PromptInput, Sampled, Tile};
use crate::cache::KeyValueStore;
use crate::decode::store_rows;
use crate::error::ModelError;
use crate::policy::{Packed, Policy};
use crate::sampling::{Picked, SamplingSpec};
use crate::steps::{Asked, Steps};
use crate::tape::Attend;

/// One prompt that wants answers.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the model reads.
    pub prompt: PromptInput,
    /// How many answers.
    pub num_answers: u32,
    /// How they are drawn, and their longest length.
    pub sampling: SamplingSpec,
    /// Key of their randomness.
    pub seed: u64,
}

impl Request {
    /// Rows of the store that it takes until it leaves.
    pub fn num_rows(&self) -> usize {
        store_rows(&self.prompt, self.num_answers, &self.sampling)
    }
}

/// Names a request while it is in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

struct Answer {
    rows: Segment,
    stream: Stream,
    sampled: Sampled,
    done: bool,
}

struct Running {
    ticket: Ticket,
    rows: Range<u32>,
    prompt: Segment,
    /// Rotary position of the first token that is sampled.
    first_position: u32,
    sampling: SamplingSpec,
    answers: Vec<Answer>,
}

/// Requests that are decoded together.
pub struct Batcher {
    store: Rc<KeyValueStore>,
    free: Vec<Range<u32>>,
    running: Vec<Running>,
    next: u64,
    steps: Steps,
}

impl Batcher {
    /// An empty batch with a store of `num_rows` tokens.
    pub fn new(policy: &mut Policy, num_rows: usize) -> Batcher {
        let config = &policy.decoder().config;
        let (num_layers, key_width) = (config.num_layers, config.num_kv_heads * config.head_dim);
        let mut arena = policy.take_arena();
        let (device, operand) = (policy.device(), policy.operand());
        let store = Rc::new(KeyValueStore::new(&mut arena, device, operand, num_layers, num_rows, key_width));
        policy.put_arena(arena);
        let all = 0..num_rows as u32;
        Batcher { store, free: vec![all], running: Vec::new(), next: 0, steps: Steps::default() }
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Answers that are not finished.
    pub fn num_unfinished(&self) -> usize {
        self.running.iter().flat_map(|running| &running.answers).filter(|answer| !answer.done).count()
    }

    /// Whether the store has a free stretch for so many rows.
    pub fn has_room(&self, num_rows: usize) -> bool {
        self.free.iter().any(|free| free.len() >= num_rows)
    }

    /// Reads the prompts and draws the first token of every answer. The caller has asked [`Batcher::has_room`] for each
    /// of them, and the requests before it have joined since. A request that does not fit the model is refused before
    /// anything is read.
    pub fn join(&mut self, policy: &mut Policy, request: &Request) -> Result<Ticket, ModelError> {
        let first_position = policy.first_position(&request.prompt)?;
        let len = request.prompt.ids.len() as u32;
        let Some(rows) = self.take_rows(request.num_rows() as u32) else {
            return Err(ModelError::Batch { problem: "the store has no room for another request".into() });
        };
        let ticket = Ticket(self.next);
        self.next += 1;
        let room = request.sampling.max_new_tokens;
        let answers = (0..request.num_answers).map(|number| Answer {
            rows: Segment {
                start: rows.start + len.next_multiple_of(2) + number * room.next_multiple_of(2),
                len: 0,
                parent: None,
            },
            stream: Stream::new(request.seed, Purpose::Sampling, 0, 0, number),
            sampled: Sampled {
                ids: vec![],
                logprob: vec![],
                entropy: vec![],
                drawn_logprob: vec![],
                finish: FinishReason::Length,
            },
            done: room == 0,
        });
        let prompt = Segment { start: rows.start, len, parent: None };
        let answers = answers.collect();
        let sampling = request.sampling.clone();
        self.running.push(Running { ticket, rows, prompt, first_position, sampling, answers });
        match self.read(policy, &request.prompt) {
            Ok(()) => Ok(ticket),
            Err(error) => {
                self.leave(ticket);
                Err(error)
            }
        }
    }

    /// Draws one more token for every unfinished answer.
    pub fn step(&mut self, policy: &mut Policy) -> Result<(), ModelError> {
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut store_rows = Vec::new();
        let mut queries = Vec::new();
        let mut streams = Vec::new();
        let mut place = 0;
        for running in &mut self.running {
            place += 1;
            for answer in &mut running.answers {
                let (segment, position) = (place, answer.rows.len);
                place += 1;
                if answer.done {
                    continue;
                }
                answer.rows.len += 1;
                queries.push(Queries { first_row: ids.len() as u32, num_rows: 1, segment, first_position: position });
                ids.push(*answer.sampled.ids.last().expect("an answer has its first token when it joins"));
                positions.push(running.first_position + position);
                store_rows.push(answer.rows.start + position);
                streams.push((answer.stream, answer.sampled.ids.len() as u32));
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let attend = self.attend(queries, store_rows);
        let specs: Vec<&SamplingSpec> = self
            .running
            .iter()
            .flat_map(|running| running.answers.iter().filter(|answer| !answer.done).map(|_| &running.sampling))
            .collect();
        // Rounded up, so that what a step keeps for all positions need not be made anew for every longer request.
        let longest = self.running.iter().map(|running| running.first_position + running.sampling.max_new_tokens).max();
        let positions_end = longest.unwrap_or(0).next_power_of_two().max(256) as usize;
        let (ids, positions, streams) = (&ids[..], &positions[..], &streams[..]);
        let asked = Asked { ids, positions, attend: &attend, specs: &specs, streams, positions_end };
        let mut arena = policy.take_arena();
        let picked = policy.pick_next(&mut self.steps, &asked, &mut arena);
        policy.put_arena(arena);
        let mut picked = picked?.into_iter();
        for running in &mut self.running {
            for answer in running.answers.iter_mut().filter(|answer| !answer.done) {
                answer.take(picked.next().expect("one pick an answer"), &running.sampling)?;
            }
        }
        Ok(())
    }

    /// The answers of a request so far, and whether all of them are finished.
    pub fn answers(&self, ticket: Ticket) -> (Vec<&Sampled>, Vec<bool>) {
        let running = self.running.iter().find(|running| running.ticket == ticket);
        let answers = running.map_or(&[][..], |running| &running.answers);
        (answers.iter().map(|answer| &answer.sampled).collect(), answers.iter().map(|answer| answer.done).collect())
    }

    /// Ends one answer of a request early: no token is drawn for it any more.
    pub fn end(&mut self, ticket: Ticket, answer: usize) {
        if let Some(running) = self.running.iter_mut().find(|running| running.ticket == ticket) {
            running.answers[answer].done = true;
        }
    }

    /// Takes a request out, finished or not; its rows are free again.
    pub fn leave(&mut self, ticket: Ticket) {
        if let Some(place) = self.running.iter().position(|running| running.ticket == ticket) {
            let rows = self.running.remove(place).rows;
            self.give_rows(rows);
        }
    }

    /// The first stretch that is long enough.
    fn take_rows(&mut self, num_rows: u32) -> Option<Range<u32>> {
        let free = self.free.iter_mut().find(|free| free.len() >= num_rows as usize)?;
        let rows = free.start..free.start + num_rows;
        free.start = rows.end;
        self.free.retain(|free| !free.is_empty());
        Some(rows)
    }

    /// Puts a stretch back and joins neighbours.
    fn give_rows(&mut self, rows: Range<u32>) {
        self.free.push(rows);
        self.free.sort_by_key(|free| free.start);
        let mut joined: Vec<Range<u32>> = Vec::with_capacity(self.free.len());
        for free in self.free.drain(..).filter(|free| !free.is_empty()) {
            match joined.last_mut() {
                Some(last) if last.end == free.start => last.end = free.end,
                _ => joined.push(free),
            }
        }
        self.free = joined;
    }

    /// Reads the prompt of the newest request.
    fn read(&mut self, policy: &mut Policy, prompt: &PromptInput) -> Result<(), ModelError> {
        let newest = self.running.last().expect("a request has just joined");
        let segment = self.running.iter().rev().skip(1).map(|running| 1 + running.answers.len() as u32).sum();
        let queries = vec![Queries { first_row: 0, num_rows: newest.prompt.len, segment, first_position: 0 }];
        let rows = newest.prompt.start..newest.prompt.start + newest.prompt.len;
        let attend = self.attend(queries, rows.collect());
        let places: Vec<u32> = (0..newest.prompt.len).collect();
        let tiles: Vec<Arc<Tile>> = prompt.tiles.clone();
        let input = Packed { ids: &prompt.ids, places: &places, tiles: &tiles, placements: &prompt.placements };
        let whole = Segment { start: 0, len: newest.prompt.len, parent: None };
        let positions = policy.positions(&input, &[whole])?.0;
        let streams: Vec<(Stream, u32)> =
            newest.answers.iter().filter(|answer| !answer.done).map(|answer| (answer.stream, 0)).collect();
        let specs = vec![&newest.sampling; streams.len()];
        let mut arena = policy.take_arena();
        let rows = vec![0; streams.len()];
        let picked = policy.pick_from(
            &input,
            &positions,
            &attend,
            &[newest.prompt.len - 1],
            &specs,
            &mut arena,
            &rows,
            &streams,
        );
        policy.put_arena(arena);
        let newest = self.running.last_mut().expect("it is still there");
        for (answer, picked) in newest.answers.iter_mut().filter(|answer| !answer.done).zip(picked?) {
            answer.take(picked, &newest.sampling)?;
        }
        Ok(())
    }

    /// All segments of the batch: each request's prompt, then its answers.
    fn attend(&self, queries: Vec<Queries>, rows: Vec<u32>) -> Attend {
        let mut segments = Vec::new();
        for running in &self.running {
            let parent = segments.len() as u32;
            segments.push(running.prompt);
            segments.extend(running.answers.iter().map(|answer| Segment { parent: Some(parent), ..answer.rows }));
        }
        Attend::Stored {
            store: self.store.clone(),
            segments: segments.into(),
            queries: queries.into(),
            rows: rows.into(),
        }
    }
}

impl Answer {
    fn take(&mut self, picked: Picked, sampling: &SamplingSpec) -> Result<(), ModelError> {
        if !picked.logprob.is_finite() {
            return Err(ModelError::NotFinite { what: "the log-probability of a sampled token".into() });
        }
        self.sampled.ids.push(picked.id);
        self.sampled.logprob.push(picked.logprob);
        self.sampled.entropy.push(picked.entropy);
        self.sampled.drawn_logprob.push(picked.drawn_logprob);
        if sampling.end_ids.contains(&picked.id) {
            self.sampled.finish = FinishReason::Stop;
            self.done = true;
        } else if self.sampled.ids.len() as u32 >= sampling.max_new_tokens {
            self.done = true;
        }
        Ok(())
    }
}
