//! One optimiser step: forward and backward over micro-batches, guard, clip, new weights. Both loops end here.
//! Knows batches, rules and the optimiser; knows no text. Cost: about three forward passes.

use foveate_model::{Derivatives, Dropout, Gradients, TokenBatch};

use crate::checkpoint::durable::write_with;
use crate::error::TrainError;
use crate::optim::clip_factor;
use crate::run::Run;
use crate::session::Session;
use crate::update::{Rule, RuleStats, derivatives};

/// What one optimiser step says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Learned {
    /// Sums over the trained tokens.
    pub stats: RuleStats,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens that went through the model.
    pub num_tokens: usize,
}

/// Learns `batches` as one optimiser step, the `index`-th of the running step. The weights do not change if anything is not finite; the batch is written
/// down then and the run ends.
pub fn learn(
    session: &mut Session,
    batches: &[TokenBatch],
    rule: &Rule,
    index: u64,
    gradients: &mut Gradients,
) -> Result<Learned, TrainError> {
    gradients.clear();
    let mut stats = RuleStats::default();
    let mut failed = None;
    let step = (session.step * u64::from(session.current().updates) + index) as u32;
    for (place, batch) in batches.iter().enumerate() {
        session.policy.weights_mut().set_dropout(dropout(session.run, step, place));
        let outcome =
            session.policy.accumulate_gradients(batch, gradients, &mut |head| match derivatives(rule, batch, head) {
                Ok((derivatives, sums)) => {
                    stats.merge(&sums);
                    derivatives
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    let zeros = vec![0.0; batch.num_trained()];
                    Derivatives { by_logprob: zeros.clone(), by_entropy: zeros }
                }
            });
        session.policy.weights_mut().set_dropout(None);
        outcome?;
        if let Some(error) = failed.take() {
            return Err(error.into());
        }
        if !stats.loss().is_finite() {
            return Err(refuse(session, "the loss", &batches[place..=place])?);
        }
    }
    let stage = session.current();
    // By the place in the stage, not by the steps made: a step without anything to learn must not delay the schedule.
    let updates = u64::from(stage.updates);
    let lr = stage.optim.lr_at(session.stage_step * updates + index, stage.steps * updates);
    let gradient_norm = session.optim.norm(&session.policy, gradients)?;
    if !gradient_norm.is_finite() {
        return Err(refuse(session, "the gradient", batches)?);
    }
    let factor = clip_factor(gradient_norm, stage.optim.max_norm, session.step + 1)?;
    session.optim.step(&mut session.policy, gradients, &stage.optim, lr, factor);
    let num_tokens = batches.iter().map(TokenBatch::num_tokens).sum();
    Ok(Learned { stats, gradient_norm, lr, num_tokens })
}

/// The draws that leave inputs of adapters out in one forward and backward pass.
fn dropout(run: &Run, step: u32, place: usize) -> Option<Dropout> {
    let rate = run.lora.as_ref()?.dropout;
    Some(Dropout { rate, seed: run.seed, step, batch: place as u32 })
}

/// Writes the offending batches down and gives the error that ends the run.
fn refuse(session: &Session, what: &str, batches: &[TokenBatch]) -> Result<TrainError, TrainError> {
    let step = session.step + 1;
    let dump = session.folder.join(format!("non-finite-step-{step:06}.json"));
    let columns: Vec<serde_json::Value> = batches
        .iter()
        .map(|batch| {
            let segments: Vec<(u32, u32, Option<u32>)> =
                batch.segments.iter().map(|segment| (segment.start, segment.len, segment.parent)).collect();
            let pixels_finite = batch.tiles.iter().all(|tile| tile.pixels.iter().all(|value| value.is_finite()));
            serde_json::json!({
                "ids": batch.ids,
                "positions": batch.positions,
                "segments": segments,
                "placements": batch.placements,
                "pixels_finite": pixels_finite,
                "source": batch.source,
                "target": batch.target,
                "old_logprob": batch.old_logprob,
                "ref_logprob": batch.ref_logprob,
                "advantage": batch.advantage,
                "weight": batch.weight,
                "injected": batch.injected,
            })
        })
        .collect();
    write_with(&dump, |writer| Ok(serde_json::to_writer(writer, &columns)?))?;
    Ok(TrainError::NonFinite { step, what: what.to_string(), dump })
}
