//! What a step says about itself: metrics, sampled groups, and warnings about rewards that teach nothing.
//! Knows names that are published; decides nothing but when a failing helper ends the run. Cost: one pass.

use std::collections::BTreeMap;

use super::Parts;
use super::gather::{Gathered, Kept};
use super::update::{Refined, Targets, Update};
use crate::error::TrainError;
use crate::eval::finish_name;
use crate::report::records::{AnswerRecord, SampleRecord};
use crate::reward::remote::FailureKind;
use crate::session::{Event, Session};
use crate::update::mismatch::Gap;
use crate::update::statistics::{self, GroupRecord};
use crate::update::{GroupPlan, Mode};

/// Metrics of the step by their published names.
pub fn step_metrics(
    session: &Session,
    parts: &Parts,
    gathered: &Gathered,
    plans: &[GroupPlan],
    update: &Update,
) -> BTreeMap<String, f64> {
    let kept = &gathered.kept;
    let lengths: Vec<Vec<usize>> =
        kept.iter().map(|k| k.group.rollouts.iter().map(|r| r.sampled.ids.len()).collect()).collect();
    let truncated: Vec<Vec<bool>> =
        kept.iter().map(|k| k.group.rollouts.iter().map(|r| r.truncated()).collect()).collect();
    let records: Vec<GroupRecord> = (0..kept.len())
        .map(|i| GroupRecord {
            scored: &kept[i].scored,
            plan: &plans[i],
            num_tokens: &lengths[i],
            truncated: &truncated[i],
            prior_accuracy: Some(kept[i].prior),
        })
        .collect();
    let mut metrics = BTreeMap::new();
    if !records.is_empty() {
        metrics.extend(statistics::metrics(&records, &parts.rewards.names(), parts.selector.success));
    }
    metrics.extend(update.all.metrics(&parts.rule).into_iter().map(|(name, value)| (name.to_string(), value)));
    let gap = &update.first.gap;
    // Past answers were drawn by other weights, and a corrected ratio is no gap: neither says anything about sampler and
    // trainer.
    if gap.count > 0 && update.num_replayed == 0 && !parts.rule.takes_correction_into_ratio() {
        metrics.insert("rollout/logprob_gap_mean".into(), gap.mean_abs());
        metrics.insert("rollout/logprob_gap_max".into(), gap.max_abs);
        metrics.insert("rollout/logprob_gap_kl".into(), gap.kl());
        metrics.insert("rollout/logprob_gap_ess".into(), gap.effective_share());
    }
    if session.current().sampling.is_off_policy() {
        let mut gap = Gap::default();
        for sampled in kept.iter().flat_map(|kept| kept.group.rollouts.iter().map(|rollout| &rollout.sampled)) {
            for (scored, drawn) in sampled.logprob.iter().zip(&sampled.drawn_logprob) {
                gap.add(f64::from(*scored), f64::from(*drawn));
            }
        }
        if gap.count > 0 {
            metrics.insert("rollout/sampler_gap_mean".into(), gap.mean_abs());
            metrics.insert("rollout/sampler_gap_max".into(), gap.max_abs);
            metrics.insert("rollout/sampler_kl".into(), gap.kl());
            metrics.insert("rollout/sampler_chi_square".into(), gap.chi_square());
            metrics.insert("rollout/sampler_ess".into(), gap.effective_share());
        }
    }
    metrics.insert("update/num_sequences".into(), update.counts.num_sequences as f64);
    metrics.insert("update/num_trained_tokens".into(), update.counts.num_tokens as f64);
    if let Some(learned) = update.last {
        metrics.insert("optim/gradient_norm".into(), learned.gradient_norm);
        metrics.insert("optim/lr".into(), learned.lr);
    }
    let stage = session.current();
    if let Some((tries, share)) = gathered.refill {
        metrics.insert("dynamic/tries".into(), f64::from(tries));
        metrics.insert("dynamic/kept_fraction".into(), share);
    }
    if let Some(spec) = &stage.pools {
        for (name, size) in ["hard", "normal", "easy"].iter().zip(session.controls.pools.sizes(spec)) {
            metrics.insert(format!("pools/num_{name}"), size as f64);
        }
    }
    if stage.replay.is_some() {
        metrics.insert("replay/num_replayed".into(), update.num_replayed as f64);
        metrics.insert("replay/num_kept".into(), session.controls.replay.len() as f64);
    }
    if parts.selector.kind == crate::update::selector::SelectorKind::Replay {
        metrics.insert("mode/num_queued".into(), session.controls.queue.len() as f64);
        metrics.insert("mode/num_learned_from_queue".into(), update.num_queued as f64);
    }
    if !parts.outside.is_empty() {
        for kind in FailureKind::ALL {
            let count = gathered.failures.get(&kind).copied().unwrap_or(0);
            metrics.insert(format!("helper/{}", kind.name()), count as f64);
        }
    }
    metrics
}

/// What the refiner did, and its template; nothing where there is none.
pub fn refiner_metrics(session: &Session, parts: &Parts, refined: &Refined) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    let Some(refiner) = &parts.refiner else { return metrics };
    metrics.insert("refiner/num_written".to_string(), refined.written as f64);
    metrics.insert("refiner/num_failed".to_string(), refined.failed as f64);
    let elements = refiner.writer().and_then(|writer| writer.elements());
    let failed = elements.map_or(0, |elements| elements.num_failed()) + parts.outside.num_failed_elements();
    metrics.insert("elements/num_failed".to_string(), failed as f64);
    if session.current().refiner.as_ref().is_some_and(|spec| spec.learn_template) {
        let store = &session.controls.templates;
        metrics.insert("templates/num_proposed".to_string(), store.proposed as f64);
        metrics.insert("templates/num_accepted".to_string(), store.accepted as f64);
        metrics.insert("templates/num_lost_races".to_string(), store.lost_races as f64);
    }
    metrics
}

/// Mentions rewards that never tell answers apart, and stops a run whose helpers fail too often.
pub fn watch_rewards(session: &mut Session, parts: &Parts, gathered: &Gathered) -> Result<(), TrainError> {
    if gathered.num_answers == 0 {
        return Ok(());
    }
    let names = parts.rewards.names();
    let varies = |index: usize| {
        gathered.kept.iter().any(|kept| {
            let mut values = kept.scored.iter().filter_map(|scored| scored.parts[index]);
            let first = values.next();
            values.any(|value| Some(value) != first)
        })
    };
    let noted = names.iter().enumerate().map(|(index, name)| (*name, varies(index)));
    for name in session.controls.constant.note(noted) {
        let text = format!(
            "the reward `{name}` was the same for all answers of every group so far: it teaches nothing; check its \
             settings and look at the answers in samples.jsonl"
        );
        (session.watch)(Event::Remark(text));
    }
    let bound = &session.current().max_unknown;
    let share = session.controls.unknown.note(bound, gathered.num_unknown, gathered.num_answers);
    if let Some(share) = share {
        let last = gathered.last_failure.as_ref();
        return Err(TrainError::Unknown {
            share,
            last: last.map_or(String::new(), |(name, failure)| {
                format!("`{name}` ({}): {}", failure.kind.name(), failure.detail)
            }),
            hint: last.map_or("look at samples.jsonl", |(_, failure)| failure.kind.hint()),
        });
    }
    Ok(())
}

/// Stops a run whose refiner fails too often: its targets would be what they were, and nobody would know.
pub fn watch_refiner(session: &mut Session, refined: &Refined) -> Result<(), TrainError> {
    let bound = &session.current().max_unknown;
    let share = session.controls.refiner.note(bound, refined.failed, refined.failed + refined.written);
    match (share, &refined.last) {
        (Some(share), Some(last)) => Err(TrainError::Refiner {
            share,
            last: format!("{}: {}", last.kind.name(), last.detail),
            hint: last.kind.hint(),
        }),
        _ => Ok(()),
    }
}

/// Writes some groups of the step down.
pub fn write_samples(
    session: &mut Session,
    parts: &Parts,
    kept: &[Kept],
    plans: &[GroupPlan],
    targets: &Targets,
) -> Result<(), TrainError> {
    let (step, stage) = (session.step + 1, session.current());
    let names = parts.rewards.names();
    for index in 0..kept.len().min(session.run.report.samples_per_step) {
        let (group, plan) = (&kept[index].group, &plans[index]);
        let row = &group.prompt.row;
        let answers = group
            .rollouts
            .iter()
            .zip(&kept[index].scored)
            .zip(&plan.advantages)
            .enumerate()
            .map(|(slot, ((rollout, scored), advantage))| AnswerRecord {
                text: rollout.text.clone(),
                reward: scored.total,
                parts: names.iter().map(|name| name.to_string()).zip(scored.parts.iter().copied()).collect(),
                // The advantage of a replaced answer belongs to the target.
                advantage: if plan.target_slot == Some(slot) { 0.0 } else { *advantage as f32 },
                correct: scored.accuracy.is_some_and(|accuracy| f64::from(accuracy) > parts.selector.success),
                num_tokens: rollout.sampled.ids.len(),
                finish: finish_name(rollout.sampled.finish).to_string(),
            })
            .collect();
        let mode = match plan.mode {
            Mode::Explore => "explore",
            Mode::Memorise => "memorise",
            Mode::Skip => "skip",
        };
        let record = SampleRecord {
            step,
            stage: stage.name.clone(),
            id: row.id.clone(),
            level: row.level,
            images: Vec::new(),
            question: row.question.clone(),
            gold: row.answer.text(),
            mode: mode.to_string(),
            answers,
            target: targets[index].as_ref().map(|(_, text)| text.clone()),
        };
        session.logs().sample(record, &row.images)?;
    }
    Ok(())
}
