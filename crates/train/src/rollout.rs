//! Samples groups: every question of a step with its G answers and the evidence of how they were drawn.
//! Knows rows, prompts and the policy; knows no rewards. Cost: decoding, nearly all of a step's time.

use std::sync::Arc;

use foveate_model::{FinishReason, ModelError, Policy, PromptInput, SampleJob, Sampled, SamplingSpec};
use foveate_tasks::row::Row;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ask::AskConfig;
use crate::prompt::{PromptError, Prompter};

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Divides the logits. 1 explores as the model is; below 0.7 groups become alike and carry little signal. 0 takes
    /// the likeliest token always, for evaluation only.
    pub temperature: f32,
    /// The temperature that log-probabilities, entropy and KL refer to, if not that of the draw. Leave it out: answers
    /// are then scored as they were drawn. Reason-RFT draws at 0.9 and scores at 1, which is mildly off-policy;
    /// `rule.mismatch` can correct for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob_temperature: Option<f32>,
    /// Longest answer in tokens, end token included. Twice the length of a good answer is plenty; answers that run
    /// into it are counted as truncated.
    pub max_new_tokens: u32,
    /// Draw only from the likeliest tokens that together reach this share. Keep it at 1 in training: log-probabilities
    /// refer to the whole distribution.
    pub top_p: f32,
    /// Draw only from so many likeliest tokens; 0 draws from all. Keep it at 0 in training.
    pub top_k: u32,
    /// Drop tokens less likely than this share of the likeliest; 0 keeps all. Keep it at 0 in training.
    pub min_p: f32,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { temperature: 1.0, logprob_temperature: None, max_new_tokens: 64, top_p: 1.0, top_k: 0, min_p: 0.0 }
    }
}

impl SamplingConfig {
    /// Greedy decoding with the same length limit.
    pub fn greedy(&self) -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, ..self.clone() }
    }

    /// Says what is out of range.
    pub fn problem(&self) -> Option<String> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            Some(format!("sampling.temperature = {} must be 0 or more", self.temperature))
        } else if self.logprob_temperature.is_some_and(|at| !(at > 0.0 && at.is_finite())) {
            Some("sampling.logprob_temperature must be above 0".to_string())
        } else if self.max_new_tokens == 0 {
            Some("sampling.max_new_tokens must be at least 1".to_string())
        } else if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            Some(format!("sampling.top_p = {} must be above 0 and at most 1", self.top_p))
        } else if !(0.0..1.0).contains(&self.min_p) {
            Some(format!("sampling.min_p = {} must be 0 or more and below 1", self.min_p))
        } else {
            None
        }
    }

    /// Whether some tokens cannot be drawn although their log-probabilities are finite.
    pub fn is_truncated(&self) -> bool {
        self.top_p < 1.0 || self.top_k > 0 || self.min_p > 0.0
    }

    /// The temperature that log-probabilities refer to (1 when greedy).
    pub fn scored_at(&self) -> f32 {
        let own = if self.temperature > 0.0 { self.temperature } else { 1.0 };
        self.logprob_temperature.unwrap_or(own)
    }

    /// Whether answers are drawn from another distribution than the one that their log-probabilities refer to.
    pub fn is_off_policy(&self) -> bool {
        self.is_truncated() || self.scored_at() != self.temperature
    }

    /// The same with the ids that the model's tokenizer asks for.
    pub fn spec(&self, prompter: &Prompter) -> SamplingSpec {
        SamplingSpec {
            temperature: self.temperature,
            logprob_temperature: self.logprob_temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            max_new_tokens: self.max_new_tokens,
            end_ids: prompter.end_ids().to_vec(),
            banned: Arc::from(prompter.banned_ids()),
        }
    }
}

/// A row ready to be asked.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Key of its randomness: its index in the dataset.
    pub index: u32,
    /// The row.
    pub row: Row,
    /// What the model reads.
    pub input: PromptInput,
    /// The beginning of the answer that is given, as text; its tokens are the end of `input`.
    pub given: String,
}

impl Prompt {
    /// Lets every answer go on from `given`, which becomes part of what the model reads.
    pub fn continue_from(&mut self, prompter: &Prompter, ask: &AskConfig, given: String) -> Result<(), PromptError> {
        if given.is_empty() {
            return Ok(());
        }
        let mut ids = prompter.completion(&ask.conversation(&self.row), &given)?;
        while ids.last().is_some_and(|last| prompter.end_ids().contains(last)) {
            ids.pop();
        }
        self.input.ids.extend(ids);
        self.given = given;
        Ok(())
    }
}

/// One sampled answer with its evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Tokens and log-probabilities as drawn.
    pub sampled: Sampled,
    /// The whole answer in words, its given beginning included, the end token left out.
    pub text: String,
}

impl Rollout {
    /// Whether the length limit cut it off.
    pub fn truncated(&self) -> bool {
        self.sampled.finish == FinishReason::Length
    }
}

/// A question with its answers.
#[derive(Clone, Debug)]
pub struct Group {
    /// The question.
    pub prompt: Prompt,
    /// The answers, in the order of their numbers.
    pub rollouts: Vec<Rollout>,
}

/// A row that cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("row {row}: {source}")]
pub struct RowError {
    /// Id of the row.
    pub row: String,
    /// What is wrong.
    pub source: PromptError,
}

/// Renders rows in parallel; the order is kept and the first row that fails is named. A prompt must leave room for
/// `room` tokens of an answer within what the model can read.
pub fn render(prompter: &Prompter, ask: &AskConfig, rows: Vec<(u32, Row)>, room: u32) -> Result<Vec<Prompt>, RowError> {
    rows.into_par_iter()
        .map(|(index, row)| {
            let prompt = prompter.prompt(&ask.conversation(&row));
            match prompt.and_then(|input| check_room(prompter, &input, room as usize).map(|()| input)) {
                Ok(input) => Ok(Prompt { index, row, input, given: String::new() }),
                Err(source) => Err(RowError { row: row.id, source }),
            }
        })
        // Collected first: which of several errors a parallel `collect` returns depends on timing.
        .collect::<Vec<_>>()
        .into_iter()
        .collect()
}

/// Refuses a prompt whose answer would not fit behind it.
pub fn check_room(prompter: &Prompter, input: &PromptInput, room: usize) -> Result<(), PromptError> {
    let (tokens, limit) = (input.ids.len() + room, prompter.max_tokens());
    if tokens <= limit {
        Ok(())
    } else {
        Err(PromptError::TooLong { tokens, image_tokens: input.placements.len(), limit })
    }
}

/// Draws `num_answers` answers for each prompt, all of them in one batch. `progress` is told the number of unfinished
/// answers after each token.
pub fn sample(
    policy: &mut Policy,
    prompter: &Prompter,
    prompts: Vec<Prompt>,
    sampling: &SamplingConfig,
    num_answers: u32,
    seed: u64,
    step: u32,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Group>, ModelError> {
    let jobs: Vec<SampleJob> = prompts
        .iter()
        .map(|prompt| SampleJob {
            prompt: &prompt.input,
            num_answers,
            seed,
            step,
            question: prompt.index,
            first_answer: 0,
        })
        .collect();
    let answers = policy.sample(&jobs, &sampling.spec(prompter), progress)?;
    Ok(prompts
        .into_iter()
        .zip(answers)
        .map(|(prompt, answers)| {
            let rollouts = answers
                .into_iter()
                .map(|sampled| {
                    let text = format!("{}{}", prompt.given, prompter.decode(&sampled.ids, true));
                    Rollout { text: text.trim().to_string(), sampled }
                })
                .collect();
            Group { prompt, rollouts }
        })
        .collect())
}
