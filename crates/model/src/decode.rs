//! Samples answers: every prompt is read once, its answers are decoded together, all prompts of a call in one batch.
//! Knows prompts as token ids; knows no text. An answer depends on its own key of randomness and its prompt alone.
//! Cost: one forward pass over the prompts, then one row per unfinished answer and token; the store of keys and
//! values is sized before the first token.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::head::{self, Scaling};
use foveate_kernels::parallel;
use foveate_kernels::rng::{Purpose, Stream};
use foveate_kernels::segment::{Queries, Segment};

use crate::arena::{Arena, Buffer};
use crate::batch::{FinishReason, PromptInput, Sampled, Tile};
use crate::cache::KeyValueStore;
use crate::error::ModelError;
use crate::policy::{Packed, Policy};
use crate::positions::Positions;
use crate::profile::timer;
use crate::sampling::{Picked, SamplingSpec, pick_with};
use crate::steps::{Asked, Steps};
use crate::tape::{Attend, Tape, typed};

/// One prompt to be answered several times.
#[derive(Clone, Debug)]
pub struct SampleJob<'a> {
    /// What the model reads.
    pub prompt: &'a PromptInput,
    /// How many answers.
    pub num_answers: u32,
    /// Seed of the run.
    pub seed: u64,
    /// Step of the run.
    pub step: u32,
    /// Key of the question.
    pub question: u32,
    /// Number of the first answer, so that a group can be drawn in parts.
    pub first_answer: u32,
}

/// Prompts are read in packs of about this many tokens: enough to fill the machine, little enough to bound memory.
pub(crate) const PREFILL_TOKENS: usize = 4096;
/// Rows of logits that exist at once.
const LOGIT_ROWS: usize = 64;
/// Bytes of keys and values that one wave of prompts may take.
pub const STORE_BYTES: usize = 3 << 30;

/// Rows of a store that a prompt and its answers take. Segments start at even rows.
pub(crate) fn store_rows(prompt: &PromptInput, num_answers: u32, spec: &SamplingSpec) -> usize {
    let even = |rows: usize| rows.next_multiple_of(2);
    even(prompt.ids.len()) + num_answers as usize * even(spec.max_new_tokens as usize)
}

struct Answer {
    job: usize,
    /// Rotary position of its first token.
    first_position: u32,
    stream: Stream,
    segment: usize,
    room: u32,
    sampled: Sampled,
    done: bool,
}

impl Policy {
    /// Draws `num_answers` answers for every job. `progress` is told the number of unfinished answers after each
    /// token.
    pub fn sample(
        &mut self,
        jobs: &[SampleJob],
        spec: &SamplingSpec,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<Sampled>>, ModelError> {
        for job in jobs {
            self.first_position(job.prompt)?;
        }
        let per_token = self.description().cache_bytes_per_token;
        let mut results = Vec::with_capacity(jobs.len());
        let mut rest = jobs;
        while !rest.is_empty() {
            // A wave holds as many prompts as the store has room for, at least one.
            let mut bytes = 0;
            let mut count = 0;
            for job in rest {
                let rows = store_rows(job.prompt, job.num_answers, spec);
                bytes += rows * per_token;
                if count > 0 && bytes > STORE_BYTES {
                    break;
                }
                count += 1;
            }
            let (wave, tail) = rest.split_at(count);
            rest = tail;
            let mut arena = self.take_arena();
            let answered = self.sample_wave(wave, spec, &mut arena, progress);
            self.put_arena(arena);
            results.extend(answered?);
        }
        Ok(results)
    }

    /// Checks a prompt; rotary position of the first token that is sampled after it.
    pub(crate) fn first_position(&self, prompt: &PromptInput) -> Result<u32, ModelError> {
        if prompt.ids.is_empty() {
            return Err(ModelError::Batch { problem: "a prompt has no tokens".into() });
        }
        let len = prompt.ids.len() as u32;
        let places: Vec<u32> = (0..len).collect();
        let input = Packed { ids: &prompt.ids, places: &places, tiles: &prompt.tiles, placements: &prompt.placements };
        self.check(&input)?;
        let (_, saved) = self.positions(&input, &[Segment { start: 0, len, parent: None }])?;
        Ok(len - saved[0])
    }

    fn sample_wave(
        &self,
        jobs: &[SampleJob],
        spec: &SamplingSpec,
        arena: &mut Arena,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<Sampled>>, ModelError> {
        let config = &self.decoder().config;
        let key_width = config.num_kv_heads * config.head_dim;

        // Rows of the store: all prompts first, then a place of full length for every answer, each from an even row on.
        let mut segments = Vec::new();
        let mut answers = Vec::new();
        let mut at = 0u32;
        for job in jobs {
            segments.push(Segment { start: at, len: job.prompt.ids.len() as u32, parent: None });
            at += (job.prompt.ids.len() as u32).next_multiple_of(2);
        }
        for (index, job) in jobs.iter().enumerate() {
            let first_position = self.first_position(job.prompt)?;
            for number in 0..job.num_answers {
                answers.push(Answer {
                    job: index,
                    first_position,
                    stream: Stream::new(job.seed, Purpose::Sampling, job.step, job.question, job.first_answer + number),
                    segment: segments.len(),
                    room: spec.max_new_tokens,
                    sampled: Sampled {
                        ids: Vec::new(),
                        logprob: Vec::new(),
                        entropy: Vec::new(),
                        drawn_logprob: Vec::new(),
                        finish: FinishReason::Length,
                    },
                    done: spec.max_new_tokens == 0,
                });
                segments.push(Segment { start: at, len: 0, parent: Some(index as u32) });
                at += spec.max_new_tokens.next_multiple_of(2);
            }
        }
        let rows = at as usize;
        let store =
            Rc::new(KeyValueStore::new(arena, self.device(), self.operand(), config.num_layers, rows, key_width));

        let outcome = self.decode_all(jobs, spec, arena, &store, &mut segments, &mut answers, progress);
        if let Ok(store) = Rc::try_unwrap(store) {
            store.release(arena);
        }
        outcome?;
        let mut results: Vec<Vec<Sampled>> = jobs.iter().map(|_| Vec::new()).collect();
        for answer in answers {
            results[answer.job].push(answer.sampled);
        }
        Ok(results)
    }

    fn decode_all(
        &self,
        jobs: &[SampleJob],
        spec: &SamplingSpec,
        arena: &mut Arena,
        store: &Rc<KeyValueStore>,
        segments: &mut [Segment],
        answers: &mut [Answer],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), ModelError> {
        // The first token of every answer comes from the last row of its prompt.
        let mut first = 0;
        while first < jobs.len() {
            let mut last = first;
            let mut tokens = 0;
            while last < jobs.len() && (last == first || tokens + jobs[last].prompt.ids.len() <= PREFILL_TOKENS) {
                tokens += jobs[last].prompt.ids.len();
                last += 1;
            }
            let asked: Vec<usize> =
                (0..answers.len()).filter(|i| (first..last).contains(&answers[*i].job) && !answers[*i].done).collect();
            let rows: Vec<u32> = asked.iter().map(|i| (answers[*i].job - first) as u32).collect();
            let streams: Vec<(Stream, u32)> = asked.iter().map(|i| (answers[*i].stream, 0)).collect();
            let picked = self.read_prompts(&jobs[first..last], first, spec, arena, store, segments, &rows, &streams)?;
            for (index, picked) in asked.into_iter().zip(picked) {
                answers[index].take(picked, spec)?;
            }
            first = last;
        }
        let mut steps = Steps::default();
        loop {
            let active: Vec<usize> = (0..answers.len()).filter(|i| !answers[*i].done).collect();
            progress(active.len());
            if active.is_empty() {
                return Ok(());
            }
            let picked = self.next_tokens(&active, spec, arena, store, segments, answers, &mut steps)?;
            for (index, picked) in active.into_iter().zip(picked) {
                answers[index].take(picked, spec)?;
            }
        }
    }

    /// Reads prompts into the store and picks a token from the last row of prompt `rows[i]`.
    fn read_prompts(
        &self,
        jobs: &[SampleJob],
        first_segment: usize,
        spec: &SamplingSpec,
        arena: &mut Arena,
        store: &Rc<KeyValueStore>,
        segments: &[Segment],
        rows: &[u32],
        streams: &[(Stream, u32)],
    ) -> Result<Vec<Picked>, ModelError> {
        let mut ids = Vec::new();
        let mut places = Vec::new();
        let mut packed = Vec::new();
        let mut tiles: Vec<Arc<Tile>> = Vec::new();
        let mut placements = Vec::new();
        let mut queries = Vec::new();
        let mut store_rows = Vec::new();
        let mut last_rows = Vec::new();
        for (offset, job) in jobs.iter().enumerate() {
            let start = ids.len() as u32;
            let prompt = job.prompt;
            let segment = segments[first_segment + offset];
            queries.push(Queries {
                first_row: start,
                num_rows: segment.len,
                segment: (first_segment + offset) as u32,
                first_position: 0,
            });
            store_rows.extend(segment.start..segment.start + segment.len);
            placements.extend(prompt.placements.iter().map(|row| row + start));
            tiles.extend(prompt.tiles.iter().cloned());
            ids.extend_from_slice(&prompt.ids);
            places.extend(0..segment.len);
            packed.push(Segment { start, len: segment.len, parent: None });
            last_rows.push(ids.len() as u32 - 1);
        }
        let attend = Attend::Stored {
            store: store.clone(),
            segments: segments.into(),
            queries: queries.into(),
            rows: store_rows.into(),
        };
        let input = Packed { ids: &ids, places: &places, tiles: &tiles, placements: &placements };
        let positions = self.positions(&input, &packed)?.0;
        self.pick_from(&input, &positions, &attend, &last_rows, &vec![spec; rows.len()], arena, rows, streams)
    }

    /// Feeds the newest token of every active answer and picks the next.
    fn next_tokens(
        &self,
        active: &[usize],
        spec: &SamplingSpec,
        arena: &mut Arena,
        store: &Rc<KeyValueStore>,
        segments: &mut [Segment],
        answers: &[Answer],
        steps: &mut Steps,
    ) -> Result<Vec<Picked>, ModelError> {
        let mut ids = Vec::with_capacity(active.len());
        let mut positions = Vec::with_capacity(active.len());
        let mut queries = Vec::with_capacity(active.len());
        let mut store_rows = Vec::with_capacity(active.len());
        let mut streams = Vec::with_capacity(active.len());
        for (row, &index) in active.iter().enumerate() {
            let answer = &answers[index];
            let segment = &mut segments[answer.segment];
            let position = segment.len;
            segment.len += 1;
            ids.push(*answer.sampled.ids.last().expect("an active answer has a token"));
            positions.push(answer.first_position + position);
            store_rows.push(segment.start + position);
            queries.push(Queries {
                first_row: row as u32,
                num_rows: 1,
                segment: answer.segment as u32,
                first_position: position,
            });
            streams.push((answer.stream, answer.sampled.ids.len() as u32));
        }
        let attend = Attend::Stored {
            store: store.clone(),
            segments: (&*segments).into(),
            queries: queries.into(),
            rows: store_rows.into(),
        };
        let longest = answers.iter().map(|answer| answer.first_position + spec.max_new_tokens).max();
        let asked = Asked {
            ids: &ids,
            positions: &positions,
            attend: &attend,
            specs: &vec![spec; active.len()],
            streams: &streams,
            positions_end: longest.unwrap_or(0) as usize,
        };
        self.pick_next(steps, &asked, arena)
    }

    /// One pass without a record; logits of `last_rows`; one pick for each `(rows[i], specs[i], streams[i])`.
    pub(crate) fn pick_from(
        &self,
        input: &Packed,
        positions: &Positions,
        attend: &Attend,
        last_rows: &[u32],
        specs: &[&SamplingSpec],
        arena: &mut Arena,
        rows: &[u32],
        streams: &[(Stream, u32)],
    ) -> Result<Vec<Picked>, ModelError> {
        let mut tape = Tape::new(self.weights(), std::mem::take(arena), self.operand(), false, false);
        let x = self.forward(&mut tape, input, positions, attend);
        let x = self.last_norm(&mut tape, x, last_rows.into());
        let _timer = timer("head and pick");
        if let Buffer::Device(x) = tape.value(x) {
            let picked = self.pick_on_device(x, last_rows.len(), specs, rows, streams);
            *arena = tape.into_arena();
            return picked;
        }
        let vocabulary = self.decoder().config.vocabulary;
        let width = self.decoder().config.width;
        let mut picked = vec![None; rows.len()];
        let mut logits = tape.arena().take_f32(last_rows.len().min(LOGIT_ROWS) * vocabulary);
        for first in (0..last_rows.len()).step_by(LOGIT_ROWS) {
            let last = (first + LOGIT_ROWS).min(last_rows.len());
            let logits = &mut logits[..(last - first) * vocabulary];
            // Of the first answer that picks from a row; answers of one prompt share their first row.
            let scalings: Vec<Scaling> = (first..last)
                .map(|row| specs[rows.iter().position(|of| *of as usize == row).unwrap_or(0)].scaling())
                .collect();
            let statistics = typed!(tape.value(x), x => {
                head::head_logits(&x[first * width..last * width], self.head_weight(false), vocabulary, &scalings, logits)
            });
            let logits = &*logits;
            parallel::for_rows(&mut picked, 1, 1, |index, picked| {
                let row = rows[index] as usize;
                if (first..last).contains(&row) {
                    let (stream, position) = &streams[index];
                    let logits = &logits[(row - first) * vocabulary..][..vocabulary];
                    picked[0] = Some(pick_with(logits, &statistics[row - first], specs[index], stream, *position));
                }
            });
        }
        tape.arena().give_f32(logits);
        *arena = tape.into_arena();
        Ok(picked.into_iter().map(|picked| picked.expect("every row was visited")).collect())
    }
}

impl Answer {
    fn take(&mut self, picked: Picked, spec: &SamplingSpec) -> Result<(), ModelError> {
        if !picked.logprob.is_finite() {
            return Err(ModelError::NotFinite { what: "the log-probability of a sampled token".into() });
        }
        self.sampled.ids.push(picked.id);
        self.sampled.logprob.push(picked.logprob);
        self.sampled.entropy.push(picked.entropy);
        self.sampled.drawn_logprob.push(picked.drawn_logprob);
        self.room -= 1;
        if spec.end_ids.contains(&picked.id) {
            self.sampled.finish = FinishReason::Stop;
            self.done = true;
        } else if self.room == 0 {
            self.done = true;
        }
        Ok(())
    }
}
