//! The learning half of a step: targets, past answers and worked examples join the sampled groups, and all of it is
//! learned in `updates` optimiser steps. Knows plans and packing; samples nothing.
//! Cost: about three forward passes over what has a gradient.

use foveate_model::TokenBatch;

use super::Parts;
use super::gather::Kept;
use crate::error::TrainError;
use crate::learn::{Learned, learn};
use crate::prompt::Prompter;
use crate::reward::RewardSpec;
use crate::reward::remote::Failure;
use crate::rollout::{self, Prompt, RowError};
use crate::run::Stage;
use crate::session::Session;
use crate::sft::{Example, lessons_at, supervised};
use crate::update::assemble::{StepGroup, assemble};
use crate::update::credit::{reward_to_go, token_rewards};
use crate::update::kl::Place;
use crate::update::pack::{self, PackAnswer, PackGroup, SupervisedRow};
use crate::update::reduction::{Count, Counts, Reduction};
use crate::update::replay::{Pick, Replayed};
use crate::update::{GroupPlan, PackOptions, Rule, RuleStats};

/// What a step learns from.
pub struct Lesson<'a> {
    /// The groups.
    pub kept: &'a [Kept],
    /// What the selector decided about them.
    pub plans: &'a [GroupPlan],
    /// Targets of those that are memorised.
    pub targets: &'a Targets,
    /// Weight of the supervised part.
    pub share: f64,
    /// Worked examples of the supervised part.
    pub shown: usize,
    /// Groups that leave the step.
    pub dropped: &'a [bool],
}

/// What the optimiser steps of one step say.
#[derive(Default)]
pub struct Update {
    /// The first one, in which sampler and trainer must agree.
    pub first: RuleStats,
    /// The last one; none if no group taught anything.
    pub last: Option<Learned>,
    /// All of them.
    pub all: RuleStats,
    /// Denominators of the sampled part, added up.
    pub counts: Counts,
    /// Past answers that were learned again.
    pub num_replayed: usize,
    /// Tokens of worked examples that were mixed in.
    pub num_shown_tokens: usize,
    /// Targets of a full queue that took the place of this step's groups.
    pub num_queued: usize,
}

/// Tokens and words of the targets that the selector put in, by group.
pub type Targets = Vec<Option<(Vec<u32>, String)>>;

/// How the refiner fared in a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refined {
    /// Targets written anew.
    pub written: usize,
    /// Targets that kept their own reasoning because the language model failed.
    pub failed: usize,
    /// The last failure.
    pub last: Option<Failure>,
}

/// The targets of memorised groups, refined if the stage has a refiner.
pub fn targets(
    session: &mut Session,
    parts: &Parts,
    kept: &[Kept],
    plans: &[GroupPlan],
) -> Result<(Targets, Refined), TrainError> {
    let stage = session.current();
    let memorised: Vec<usize> = (0..kept.len()).filter(|index| plans[*index].target_slot.is_some()).collect();
    let refined = match &parts.refiner {
        None => Vec::new(),
        Some(refiner) => {
            let rows: Vec<_> = memorised.iter().map(|index| &kept[*index].group.prompt.row).collect();
            refiner.rationales(&rows, session.controls.templates.read().1)
        }
    };
    let mut told = Refined::default();
    let mut refined = refined.into_iter();
    let mut targets: Targets = vec![None; kept.len()];
    for index in memorised {
        let mut row = kept[index].group.prompt.row.clone();
        match refined.next() {
            Some(Ok(rationale)) if !rationale.trim().is_empty() => {
                told.written += 1;
                row.rationale = rationale;
            }
            // It leaves the row to its own reasoning.
            Some(Err(failure)) => {
                told.failed += 1;
                tracing::warn!("a target is not refined: {}", failure.detail);
                told.last = Some(failure);
            }
            Some(Ok(_)) | None => {}
        }
        let text = stage.target.text(&row, Some(&kept[index].group.prompt.input));
        let ids = session.prompter.completion(&stage.prompt.conversation(&row), &text);
        let ids = ids.map_err(|source| RowError { row: row.id.clone(), source })?;
        targets[index] = Some((ids, text));
    }
    Ok((targets, told))
}

/// Learns in `updates` optimiser steps of whole groups each. Parts that teach nothing make no step.
pub fn learn_step(session: &mut Session, parts: &mut Parts, lesson: &Lesson) -> Result<Update, TrainError> {
    let stage = session.current();
    for (kept, plan) in lesson.kept.iter().zip(lesson.plans) {
        if plan.queue_target {
            session.controls.queue.push(kept.place);
        }
    }
    if let Some(places) = session.controls.queue.take(parts.selector.budget, parts.selector.forgetful) {
        return learn_queue(session, parts, places);
    }
    let mut current = assemble_groups(session, parts, lesson)?;
    let prompts;
    let mut past: Vec<PackGroup> = Vec::new();
    let mut update = Update::default();
    if stage.replay.is_some() {
        let chosen = replay(session, lesson, &mut current);
        prompts = prompts_of(&session.prompter, stage, parts, &chosen)?;
        let inv_temperature = 1.0 / stage.sampling.scored_at();
        past = chosen
            .into_iter()
            .zip(&prompts)
            .map(|(past, prompt)| PackGroup {
                prompt: &prompt.input,
                answers: vec![PackAnswer::sampled(past.ids, past.old_logprob, past.advantage, inv_temperature)],
            })
            .collect();
        update.num_replayed = past.len();
    }
    let examples = examples(session, parts, lesson.shown)?;
    let shown = supervised(&examples, stage);
    update.num_shown_tokens = examples.iter().map(|example| example.prompt.ids.len() + example.target.len()).sum();

    let max_len = stage.sampling.max_new_tokens as usize;
    let rule = match &stage.mix {
        Some(mix) if mix.phi => Rule { phi: true, ..parts.rule.clone() },
        _ => parts.rule.clone(),
    };
    let options = PackOptions {
        scale: 1.0 - lesson.share,
        ..PackOptions::new(&rule, max_len, stage.tokens_per_batch, parts.banned.clone())
    };
    let updates = stage.updates as usize;
    for index in 0..updates {
        let mut groups: Vec<PackGroup> = part(&current, index, updates).to_vec();
        groups.extend_from_slice(part(&past, index, updates));
        let counts = pack::count(&groups, rule.count);
        update.counts = update.counts + counts;
        let mut batches: Vec<TokenBatch> = pack::pack(&groups, &counts, &options)?;
        if let Some(reference) = &mut session.reference
            && rule.has_kl_loss()
        {
            for batch in &mut batches {
                batch.ref_logprob = reference.logprob(&mut session.policy, batch)?;
            }
        }
        batches.extend(pack_examples(part(&shown, index, updates), lesson.share, &options, &rule)?);
        if batches.is_empty() {
            continue;
        }
        let learned = learn(session, &batches, &rule, index as u64, &mut parts.gradients)?;
        update.all.merge(&learned.stats);
        if index == 0 {
            update.first = learned.stats;
        }
        update.last = Some(learned);
    }
    Ok(update)
}

/// The `index`-th of `count` parts, as equal as can be.
fn part<T>(items: &[T], index: usize, count: usize) -> &[T] {
    &items[index * items.len() / count..(index + 1) * items.len() / count]
}

/// Worked examples as micro-batches: the mean over their tokens, times their share of the loss.
fn pack_examples(
    shown: &[SupervisedRow],
    share: f64,
    options: &PackOptions,
    rule: &Rule,
) -> Result<Vec<TokenBatch>, TrainError> {
    let options = PackOptions {
        reduction: Reduction::TokenMean,
        count: Count::Unmasked,
        scale: share,
        has_kl: false,
        has_entropy: false,
        ..options.clone()
    };
    let counts = pack::count_supervised(shown, options.count);
    let mut batches = pack::pack_supervised(shown, &counts, &options)?;
    if rule.has_kl_loss() {
        // The column is asked for; targets have no KL term that would use it.
        batches.iter_mut().for_each(|batch| batch.ref_logprob = vec![0.0; batch.num_trained()]);
    }
    Ok(batches)
}

/// A full queue of targets in place of the step's groups (DyME's replay variant).
fn learn_queue(session: &mut Session, parts: &mut Parts, places: Vec<u64>) -> Result<Update, TrainError> {
    let stage = session.current();
    let places: Vec<usize> = places.into_iter().map(|place| place as usize).collect();
    let num_queued = places.len();
    let examples = lessons_at(&session.prompter, stage, &parts.dataset, places)?;
    let shown = supervised(&examples, stage);
    let options =
        PackOptions::new(&parts.rule, session.prompter.max_tokens(), stage.tokens_per_batch, parts.banned.clone());
    let batches = pack_examples(&shown, 1.0, &options, &parts.rule)?;
    let counts = pack::count_supervised(&shown, Count::Unmasked);
    let learned = learn(session, &batches, &parts.rule, 0, &mut parts.gradients)?;
    Ok(Update {
        first: learned.stats,
        last: Some(learned),
        all: learned.stats,
        counts,
        num_shown_tokens: examples.iter().map(|example| example.prompt.ids.len() + example.target.len()).sum(),
        num_queued,
        ..Update::default()
    })
}

/// The next worked examples of a mixture.
fn examples(session: &mut Session, parts: &Parts, count: usize) -> Result<Vec<Example>, TrainError> {
    let Some((rows, order)) = parts.examples.as_ref().filter(|_| count > 0) else { return Ok(Vec::new()) };
    let first = session.controls.shown;
    session.controls.shown += count as u64;
    let places = (first..session.controls.shown).map(|position| order.row_at(position)).collect();
    Ok(lessons_at(&session.prompter, session.current(), rows, places)?)
}

/// Groups as they are packed: advantages on sampled answers, the target in its slot, masks applied.
fn assemble_groups<'g>(
    session: &Session,
    parts: &Parts,
    lesson: &Lesson<'g>,
) -> Result<Vec<PackGroup<'g>>, TrainError> {
    let step: Vec<StepGroup> = (0..lesson.kept.len())
        .filter(|index| !lesson.dropped[*index])
        .map(|index| {
            let kept = &lesson.kept[index];
            StepGroup {
                prompt: &kept.group.prompt.input,
                sampled: kept.group.rollouts.iter().map(|rollout| &rollout.sampled).collect(),
                scored: &kept.scored,
                plan: &lesson.plans[index],
                target: lesson.targets[index].as_ref().map(|(ids, _)| ids.as_slice()),
            }
        })
        .collect();
    let temperatures = session.current().temperatures();
    let mut groups = assemble(&step, &parts.rule, temperatures)?;
    if parts.rule.kl.place == Place::Tokens && parts.rule.beta != 0.0 {
        let kept = lesson.kept.iter().zip(lesson.dropped).filter(|(_, dropped)| !**dropped).map(|(kept, _)| kept);
        for (group, kept) in groups.iter_mut().zip(kept) {
            for (answer, reference) in group.answers.iter_mut().zip(&kept.reference) {
                spread(answer, parts.rule.beta, reference);
            }
        }
    }
    Ok(groups)
}

/// Lets each token of a sampled answer answer for the distance to the reference from itself on.
fn spread(answer: &mut PackAnswer, beta: f64, reference: &[f32]) {
    let pack::Advantage::Answer(advantage) = answer.advantage else { return };
    if answer.injected || answer.masked {
        return;
    }
    let rewards = token_rewards(advantage, beta, &answer.old_logprob, reference);
    let tokens = reward_to_go(&rewards, 0.0).into_iter().map(|value| value as f32).collect();
    answer.advantage = pack::Advantage::Tokens(tokens);
}

/// Leaves of the current answers those that are drawn, gives the past ones that fill the step up, and remembers the
/// current ones.
fn replay(session: &mut Session, lesson: &Lesson, current: &mut Vec<PackGroup>) -> Vec<Replayed> {
    let spec = session.current().replay.as_ref().expect("the caller looked");
    let used: Vec<&Kept> =
        lesson.kept.iter().zip(lesson.dropped).filter(|(_, dropped)| !**dropped).map(|(kept, _)| kept).collect();
    let advantage = |answer: &PackAnswer| match answer.advantage {
        pack::Advantage::Answer(value) if !answer.masked => value,
        _ => 0.0,
    };
    let advantages: Vec<f64> = current.iter().flat_map(|group| group.answers.iter().map(advantage)).collect();
    let buffer = &mut session.controls.replay;
    let picks = buffer.choose(spec, &advantages, session.run.seed, session.step as u32);
    let past = picks
        .iter()
        .filter_map(|pick| match pick {
            Pick::Buffered(index) => buffer.get(*index).cloned(),
            Pick::Current(_) => None,
        })
        .collect();
    let fresh: Vec<Replayed> = current
        .iter()
        .zip(&used)
        .flat_map(|(group, kept)| {
            group.answers.iter().map(|answer| Replayed {
                question: kept.place,
                ids: answer.ids.clone(),
                old_logprob: answer.old_logprob.clone(),
                given: kept.group.prompt.given.clone(),
                advantage: advantage(answer),
            })
        })
        .collect();
    buffer.push(spec, fresh, advantages.len());
    let mut place = 0;
    for group in current.iter_mut() {
        group.answers.retain(|_| {
            place += 1;
            picks.contains(&Pick::Current(place - 1))
        });
    }
    current.retain(|group| !group.answers.is_empty());
    past
}

/// The questions of past answers, rendered again.
fn prompts_of(prompter: &Prompter, stage: &Stage, parts: &Parts, past: &[Replayed]) -> Result<Vec<Prompt>, TrainError> {
    let rows = past.iter().map(|past| (0, parts.dataset.row(past.question as usize))).collect();
    let mut prompts = rollout::render(prompter, &stage.prompt, rows, stage.sampling.max_new_tokens)?;
    for (prompt, past) in prompts.iter_mut().zip(past) {
        prompt
            .continue_from(prompter, &stage.prompt, past.given.clone())
            .map_err(|source| RowError { row: prompt.row.id.clone(), source })?;
    }
    Ok(prompts)
}

/// Offers the reasoning of one right answer that the checker graded high to the refiner's template store.
pub fn learn_template(session: &mut Session, parts: &Parts, kept: &[Kept]) {
    let stage = session.current();
    let (Some(spec), Some(refiner)) = (&stage.refiner, &parts.refiner) else { return };
    let checker = parts.rewards.specs().iter().enumerate().find_map(|(index, spec)| match spec {
        RewardSpec::Checker(checker) => Some((index, checker)),
        _ => None,
    });
    let (true, Some((index, checker))) = (spec.learn_template, checker) else { return };
    let good = kept.iter().find_map(|kept| {
        let slot = kept.scored.iter().position(|scored| {
            let right = scored.accuracy.is_some_and(|accuracy| f64::from(accuracy) > parts.selector.success);
            right && scored.parts[index].is_some_and(|part| part >= checker.grades.high)
        })?;
        Some(kept.group.rollouts[slot].text.as_str())
    });
    if let Some(text) = good {
        let thought = crate::reward::extract::thinking(text, checker.extract);
        // A helper that fails here costs a template, not a step.
        if let Err(failure) = refiner.learn(&mut session.controls.templates, thought) {
            tracing::warn!("no new template: {}", failure.detail);
        }
    }
}
