//! Whole steps on the clock: training, a group's update, sampling, the image tower, at given shapes.
//! Used by `foveate bench`; what is timed is the same code that runs use, on random token ids.
//! Cost: the steps themselves, a few of them.

pub mod shapes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use foveate_kernels::cuda::Repeats;
use foveate_model::profile::{Spent, profiled};
use foveate_model::{
    Derivatives, Gradients, HeadOutput, ModelError, Policy, PromptInput, SampleJob, SamplingSpec, Segment, Tile,
    TokenBatch,
};

use crate::adamw::AdamW;
use crate::optim::{OptimSpec, clip_factor};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// A supervised optimiser step: forward, backward, norm, AdamW.
    Train {
        /// Texts per step.
        rows: usize,
        /// Tokens of a text.
        tokens: usize,
        /// Texts that go through the model together.
        rows_together: usize,
    },
    /// The optimiser step of one question with its answers.
    Group {
        /// Tokens of the question.
        prompt: usize,
        /// Number of answers.
        answers: usize,
        /// Tokens of an answer.
        tokens: usize,
        /// Pictures in the question; their features are part of its tokens.
        images: usize,
        /// One copy of the question for all answers, or one for each.
        shared: bool,
    },
    /// Drawing answers.
    Sample {
        /// Questions.
        sequences: usize,
        /// Tokens of a question.
        prompt: usize,
        /// Tokens of an answer.
        tokens: usize,
    },
    /// Forward and backward of the image tower and its connector.
    Tower {
        /// Pictures that go through together.
        images: usize,
    },
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Seconds of every round, in order; the warm-up is not among them.
    pub seconds: Vec<f64>,
    /// Tokens per round: trained on, or drawn.
    pub tokens: usize,
    /// Floating-point operations of a round, by the usual count: 2 per weight and token forward, 4 backward; attention
    /// apart.
    pub flops: f64,
    /// Where the time of the last round went.
    pub profile: BTreeMap<&'static str, Spent>,
}

impl Timed {
    /// The middle one of the rounds.
    pub fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

/// Runs `work` once to warm up and `rounds` times on the clock.
pub fn time(policy: &mut Policy, work: Work, rounds: usize) -> Result<Timed, ModelError> {
    match work {
        Work::Sample { sequences, prompt, tokens } => sampling(policy, sequences, prompt, tokens, rounds),
        _ => learning(policy, work, rounds),
    }
}

/// The same once more with every step of decoding launched afresh, to be compared with; none where nothing is repeated
/// otherwise.
pub fn time_afresh(policy: &mut Policy, work: Work, rounds: usize) -> Result<Option<Timed>, ModelError> {
    let device = policy.device().filter(|device| device.repeats() != Repeats::Afresh).cloned();
    let Some(device) = device.filter(|_| matches!(work, Work::Sample { .. })) else { return Ok(None) };
    let usual = device.repeats();
    device.set_repeats(Repeats::Afresh);
    let timed = time(policy, work, rounds);
    device.set_repeats(usual);
    timed.map(Some)
}

fn learning(policy: &mut Policy, work: Work, rounds: usize) -> Result<Timed, ModelError> {
    let batches = batches(policy, work);
    let num_trained: usize = batches.iter().map(TokenBatch::num_trained).sum();
    let num_tokens: usize = batches.iter().map(TokenBatch::num_tokens).sum();
    let mut gradients = policy.new_gradients();
    let mut optim = AdamW::new(policy);
    let weight = -1.0 / num_trained.max(1) as f32;
    let mut rule = |head: &HeadOutput| Derivatives {
        by_logprob: vec![weight; head.logprob.len()],
        by_entropy: vec![0.0; head.logprob.len()],
    };
    let [vision, connector, language] = policy.description().num_parameters;
    let num_features: usize = batches.iter().map(|batch| batch.placements.len()).sum();
    let embedding = policy.description().vocabulary * policy.description().width;
    let body = language.saturating_sub(embedding * if tied(policy) { 1 } else { 2 });
    let num_patches = patches(&batches);
    let flops = 6.0
        * (num_tokens as f64 * body as f64
            + num_trained as f64 * embedding as f64
            + num_patches as f64 * vision as f64
            + num_features as f64 * connector as f64);
    let tower_only = matches!(work, Work::Tower { .. });
    let mut step = |gradients: &mut Gradients| -> Result<(), ModelError> {
        gradients.clear();
        for batch in &batches {
            policy.accumulate_gradients(batch, gradients, &mut rule)?;
        }
        if !tower_only {
            let _timer = foveate_model::profile::timer("norm and AdamW");
            let norm = optim.norm(policy, gradients)?;
            let factor = clip_factor(norm, 1.0, 1).unwrap_or(0.0);
            optim.step(policy, gradients, &OptimSpec::default(), 1e-5, factor);
        }
        // The clock waits for a device.
        policy.check_device()
    };
    step(&mut gradients)?;
    let mut timed = Timed { seconds: Vec::new(), tokens: num_tokens, flops, profile: BTreeMap::new() };
    for round in 0..rounds {
        let start = Instant::now();
        if round + 1 == rounds {
            let (done, profile) = profiled(|| step(&mut gradients));
            done?;
            timed.profile = profile;
        } else {
            step(&mut gradients)?;
        }
        timed.seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(timed)
}

fn tied(policy: &Policy) -> bool {
    policy.decoder().config.tied
}

fn patches(batches: &[TokenBatch]) -> usize {
    // 16 x 16 pixels is the patch of every shape here.
    batches.iter().flat_map(|batch| &batch.tiles).map(|tile| (tile.height * tile.width / 256) as usize).sum()
}

fn sampling(
    policy: &mut Policy,
    sequences: usize,
    prompt: usize,
    tokens: usize,
    rounds: usize,
) -> Result<Timed, ModelError> {
    let vocabulary = policy.description().vocabulary;
    let prompts: Vec<PromptInput> =
        (0..sequences).map(|i| PromptInput { ids: ids(vocabulary, prompt, i), ..PromptInput::default() }).collect();
    let spec = SamplingSpec {
        temperature: 1.0,
        logprob_temperature: None,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        max_new_tokens: tokens as u32,
        end_ids: Vec::new(),
        banned: Arc::from([]),
    };
    let [_, _, language] = policy.description().num_parameters;
    let flops = 2.0 * (sequences * (prompt + tokens)) as f64 * language as f64;
    let mut timed = Timed { seconds: Vec::new(), tokens: sequences * tokens, flops, profile: BTreeMap::new() };
    for round in 0..=rounds {
        let jobs: Vec<SampleJob> = prompts
            .iter()
            .enumerate()
            .map(|(question, prompt)| SampleJob {
                prompt,
                num_answers: 1,
                seed: 1,
                step: round as u32,
                question: question as u32,
                first_answer: 0,
            })
            .collect();
        let start = Instant::now();
        let (drawn, profile) = profiled(|| policy.sample(&jobs, &spec, &mut |_| {}));
        let seconds = start.elapsed().as_secs_f64();
        drawn?;
        if round > 0 {
            timed.seconds.push(seconds);
            timed.profile = profile;
        }
    }
    Ok(timed)
}

/// Token ids that look random and are the same every time.
fn ids(vocabulary: usize, len: usize, row: usize) -> Vec<u32> {
    let id = |at: usize| ((row * 7919 + at + 1) as u32).wrapping_mul(2_654_435_761) >> 8;
    (0..len).map(|at| id(at) % vocabulary as u32).collect()
}

fn batches(policy: &Policy, work: Work) -> Vec<TokenBatch> {
    let description = policy.description();
    let vocabulary = description.vocabulary;
    match work {
        Work::Train { rows, tokens, rows_together } => (0..rows)
            .step_by(rows_together.max(1))
            .map(|first| {
                let mut batch = TokenBatch::default();
                for row in first..(first + rows_together.max(1)).min(rows) {
                    let segment = append(&mut batch, &ids(vocabulary, tokens, row), None, 0);
                    train_inside(&mut batch, segment);
                }
                batch
            })
            .collect(),
        Work::Group { prompt, answers, tokens, images, shared } => {
            let question = ids(vocabulary, prompt, 0);
            let mut batch = TokenBatch::default();
            let mut parent = None;
            for answer in 0..answers {
                if parent.is_none() || !shared {
                    let segment = append(&mut batch, &question, None, 0);
                    show(policy, &mut batch, segment, images);
                    parent = Some(segment);
                }
                let reply = ids(vocabulary, tokens, answer + 1);
                let root = parent.expect("set above");
                let segment = append(&mut batch, &reply[..tokens - 1], Some(root as u32), prompt);
                let last = batch.segments[root].start + batch.segments[root].len - 1;
                let start = batch.segments[segment].start;
                batch.source.push(last);
                batch.source.extend((0..tokens as u32 - 1).map(|at| start + at));
                batch.target.extend_from_slice(&reply);
                batch.inv_temperature.extend(std::iter::repeat_n(1.0, tokens));
            }
            vec![batch]
        }
        Work::Tower { images } => {
            let mut batch = TokenBatch::default();
            let len = images * description.features_per_tile + 1;
            let segment = append(&mut batch, &ids(vocabulary, len, 0), None, 0);
            show(policy, &mut batch, segment, images);
            batch.source.push(len as u32 - 1);
            batch.target.push(0);
            batch.inv_temperature.push(1.0);
            vec![batch]
        }
        Work::Sample { .. } => Vec::new(),
    }
}

fn append(batch: &mut TokenBatch, ids: &[u32], parent: Option<u32>, position: usize) -> usize {
    batch.segments.push(Segment { start: batch.ids.len() as u32, len: ids.len() as u32, parent });
    batch.ids.extend_from_slice(ids);
    batch.positions.extend((position..position + ids.len()).map(|at| at as u32));
    batch.segments.len() - 1
}

/// Every token of a segment but the first is a target.
fn train_inside(batch: &mut TokenBatch, segment: usize) {
    let Segment { start, len, .. } = batch.segments[segment];
    for row in start..start + len - 1 {
        batch.source.push(row);
        batch.target.push(batch.ids[row as usize + 1]);
        batch.inv_temperature.push(1.0);
    }
}

/// Puts pictures' features over the first tokens of a segment.
fn show(policy: &Policy, batch: &mut TokenBatch, segment: usize, images: usize) {
    let description = policy.description();
    let Some(side) = description.tile_side.filter(|_| images > 0) else { return };
    let start = batch.segments[segment].start;
    for image in 0..images {
        let pixels = (0..3 * side * side).map(|i| ((i * 31 + image) % 255) as f32 / 127.5 - 1.0).collect();
        batch.tiles.push(Arc::new(Tile::new(side as u32, side as u32, pixels)));
    }
    batch.placements.extend((0..(images * description.features_per_tile) as u32).map(|at| start + at));
}

#[cfg(test)]
mod tests {
    use super::*;
    use foveate_model::Precision;

    #[test]
    fn every_work_runs_and_counts_its_tokens() {
        let config = shapes::find("minnow-like").expect("a shape").config;
        let mut policy = Policy::fresh(&config, 1, Precision::F32).expect("a small model");
        let group = |shared| Work::Group { prompt: 40, answers: 3, tokens: 5, images: 1, shared };
        for (work, tokens) in [
            (Work::Train { rows: 3, tokens: 10, rows_together: 2 }, 30),
            (group(true), 40 + 3 * 4),
            (group(false), 3 * (40 + 4)),
            (Work::Sample { sequences: 2, prompt: 6, tokens: 4 }, 8),
            (Work::Tower { images: 2 }, 33),
        ] {
            let timed = time(&mut policy, work, 2).expect("it runs");
            assert_eq!((timed.tokens, timed.seconds.len()), (tokens, 2), "{work:?}");
            assert!(timed.flops > 0.0 && !timed.profile.is_empty() && timed.median() > 0.0);
            assert!(time_afresh(&mut policy, work, 1).expect("nothing to do").is_none(), "the CPU repeats nothing");
        }
    }
}
