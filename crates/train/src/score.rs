//! Answers two questions about any checkpoint: how likely are these given answers, and what would it say.
//! Knows conversations, prompts and the policy; learns nothing.
//! Cost: one forward pass over packed rows, or one decoding.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use foveate_model::{ModelError, Policy, PromptInput, SampleJob, Segment, TokenBatch};
use rayon::prelude::*;
use serde::Serialize;

use crate::checkpoint::durable::{FileError, write_with};
use crate::eval::finish_name;
use crate::messages::{self, MessageError};
use crate::prompt::{Conversation, PromptError, Prompter};
use crate::rollout::SamplingConfig;

/// Why rows could not be scored or answered.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// A line is not a conversation.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A conversation cannot be put to the model.
    #[error("{}:{line}: {source}", file.display())]
    Prompt {
        /// The input file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        source: PromptError,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The output could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ScoreError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ScoreError::Message(error) => Some(error.hint()),
            ScoreError::Prompt { source, .. } => Some(source.hint().to_string()),
            ScoreError::Model(error) => Some(error.hint()),
            ScoreError::File(error) => error.hint(),
        }
    }
}

/// Log-probabilities of one given answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoredRow {
    /// Tokens that the model read.
    pub prompt_ids: Vec<u32>,
    /// Tokens of the answer, end token included.
    pub completion_ids: Vec<u32>,
    /// Natural log-probability of each at temperature 1 over the whole vocabulary.
    pub logprobs: Vec<f32>,
    /// Entropy of the distribution that predicts each.
    pub entropy: Vec<f32>,
    /// Mean negative log-probability.
    pub mean_nll: f64,
}

/// One generated answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GeneratedRow {
    /// Tokens that the model read.
    pub prompt_ids: Vec<u32>,
    /// New tokens, end token included if there is one.
    pub completion_ids: Vec<u32>,
    /// The same in words, special tokens left out.
    pub text: String,
    /// `stop` or `length`.
    pub finish: String,
}

/// Packed tokens of one forward pass.
const TOKENS_PER_BATCH: usize = 4096;
/// Rows that are rendered together.
const ROWS_PER_WAVE: usize = 64;

/// Scores the last turn of every conversation in `input` and gives the rows in order.
pub fn score_file(policy: &mut Policy, prompter: &Prompter, input: &Path) -> Result<Vec<ScoredRow>, ScoreError> {
    let conversations = messages::read(input)?;
    let mut scored = Vec::with_capacity(conversations.len());
    for wave in conversations.chunks(ROWS_PER_WAVE) {
        let rendered = render(wave, input, |conversation| prompter.scored(conversation))?;
        let mut rest = &rendered[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|(prompt, completion)| {
                tokens += prompt.ids.len() + completion.len();
                tokens <= TOKENS_PER_BATCH
            });
            let (batch, tail) = rest.split_at(fits.count().max(1));
            rest = tail;
            score_batch(policy, batch, &mut scored)?;
        }
    }
    Ok(scored)
}

/// Scores a few rows in one forward pass; every row is a segment of its own.
fn score_batch(
    policy: &mut Policy,
    rows: &[(PromptInput, Vec<u32>)],
    scored: &mut Vec<ScoredRow>,
) -> Result<(), ScoreError> {
    let mut batch = TokenBatch::default();
    for (prompt, completion) in rows {
        let start = batch.ids.len() as u32;
        let len = (prompt.ids.len() + completion.len()) as u32;
        batch.segments.push(Segment { start, len, parent: None });
        batch.ids.extend(prompt.ids.iter().chain(completion));
        batch.positions.extend(0..len);
        batch.tiles.extend(prompt.tiles.iter().cloned());
        batch.placements.extend(prompt.placements.iter().map(|row| start + row));
        let first = start + prompt.ids.len() as u32 - 1;
        batch.source.extend(first..first + completion.len() as u32);
        batch.target.extend(completion);
        batch.inv_temperature.extend(completion.iter().map(|_| 1.0));
    }
    let output = policy.score(&batch)?;
    let mut at = 0;
    for (prompt, completion) in rows {
        let range = at..at + completion.len();
        at = range.end;
        let logprobs = output.logprob[range.clone()].to_vec();
        let sum: f64 = logprobs.iter().map(|logprob| f64::from(*logprob)).sum();
        scored.push(ScoredRow {
            prompt_ids: prompt.ids.clone(),
            completion_ids: completion.clone(),
            mean_nll: -sum / completion.len().max(1) as f64,
            logprobs,
            entropy: output.entropy[range].to_vec(),
        });
    }
    Ok(())
}

/// Answers every conversation in `input` once and gives the rows in order. A last turn of the assistant is left out:
/// the same file can be scored and answered.
pub fn generate_file(
    policy: &mut Policy,
    prompter: &Prompter,
    input: &Path,
    sampling: &SamplingConfig,
    seed: u64,
) -> Result<Vec<GeneratedRow>, ScoreError> {
    let conversations = messages::read(input)?;
    let mut spec = sampling.spec(prompter);
    if spec.temperature == 0.0 {
        // What `transformers` gives greedily is the likeliest of all ids; being comparable matters more here than never
        // writing an image token.
        spec.banned = Arc::from([]);
    }
    let mut generated = Vec::with_capacity(conversations.len());
    for wave in conversations.chunks(ROWS_PER_WAVE) {
        let prompts = render(wave, input, |conversation| prompter.prompt(&without_answer(conversation)))?;
        let jobs: Vec<SampleJob> = prompts
            .iter()
            .enumerate()
            .map(|(place, prompt)| SampleJob {
                prompt,
                num_answers: 1,
                seed,
                step: 0,
                question: (generated.len() + place) as u32,
                first_answer: 0,
            })
            .collect();
        for (prompt, mut answers) in prompts.iter().zip(policy.sample(&jobs, &spec, &mut |_| {})?) {
            let sampled = answers.remove(0);
            generated.push(GeneratedRow {
                prompt_ids: prompt.ids.clone(),
                text: prompter.decode(&sampled.ids, true),
                finish: finish_name(sampled.finish).to_string(),
                completion_ids: sampled.ids,
            });
        }
    }
    Ok(generated)
}

/// Writes rows as lines of JSON, all of them or none.
pub fn write_rows<T: Serialize>(output: &Path, rows: &[T]) -> Result<(), ScoreError> {
    Ok(write_with(output, |writer| {
        rows.iter().try_for_each(|row| {
            serde_json::to_writer(&mut *writer, row)?;
            writer.write_all(b"\n")
        })
    })?)
}

fn without_answer(conversation: &Conversation) -> Conversation {
    let mut turns = conversation.turns.clone();
    if turns.len() > 1 && turns.last().is_some_and(|turn| turn.role == crate::prompt::Role::Assistant) {
        turns.pop();
    }
    Conversation { turns }
}

/// Renders conversations in parallel; the first that fails is named by its line.
fn render<T: Send>(
    wave: &[(usize, Conversation)],
    file: &Path,
    make: impl Fn(&Conversation) -> Result<T, PromptError> + Sync,
) -> Result<Vec<T>, ScoreError> {
    let rendered: Vec<Result<T, ScoreError>> = wave
        .par_iter()
        .map(|(line, conversation)| {
            make(conversation).map_err(|source| ScoreError::Prompt { file: file.to_path_buf(), line: *line, source })
        })
        .collect();
    rendered.into_iter().collect()
}
