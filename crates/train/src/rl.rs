//! The reinforcement loop: ask, sample, score, learn, write down.
//! Knows the order of things; every part has its own room. Cost: sampling is most of a step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use foveate_model::{Gradients, TokenBatch};

use crate::data::{self, Order, Questions};
use crate::error::TrainError;
use crate::eval::finish_name;
use crate::frozen::Frozen;
use crate::learn::{Learned, learn};
use crate::report::records::{AnswerRecord, SampleRecord};
use crate::reward::{Completion, Group as RewardGroup, Rewards, Scored};
use crate::rollout::{self, Group, RowError};
use crate::session::{Event, Session, StageEnd};
use crate::update::kl::{Place, reward_penalty};
use crate::update::pack::{self, PackAnswer, PackGroup};
use crate::update::reduction::{Count, Counts};
use crate::update::selector::select;
use crate::update::statistics::{self, GroupRecord};
use crate::update::{GroupPlan, GroupRewards, Mode, PackOptions, Rule, RuleStats, Selector};

/// What a stage needs beside the session.
struct Parts {
    questions: Questions,
    rewards: Rewards,
    selector: Selector,
    rule: Rule,
    reference: Option<Frozen>,
    gradients: Gradients,
    banned: Arc<[u32]>,
}

/// Runs the current stage from where it stands.
pub fn run_stage(session: &mut Session) -> Result<StageEnd, TrainError> {
    let stage = session.current();
    let mut parts = open(session)?;
    loop {
        session.begin_step();
        let asked = parts.questions.next_batch(stage.questions_per_step as usize);
        let places: Vec<u64> = asked.iter().map(|question| question.index as u64).collect();
        let rows = asked.into_iter().map(|question| (question.position as u32, question.row)).collect();
        let prompts = rollout::render(&session.prompter, &stage.prompt, rows, stage.sampling.max_new_tokens)?;

        let sampling = Instant::now();
        let total = prompts.len() * stage.answers_per_question as usize;
        let watch = &mut *session.watch;
        let groups = rollout::sample(
            &mut session.policy,
            &session.prompter,
            prompts,
            &stage.sampling,
            stage.answers_per_question,
            session.run.seed,
            session.step as u32,
            &mut |unfinished| watch(Event::Sampling { unfinished, total }),
        )?;
        let sample_secs = sampling.elapsed().as_secs_f64();

        parts.rule.beta = parts.rule.kl.beta_at(session.controls.beta, session.stage_step, stage.steps);
        parts.rule.alpha = session.controls.entropy.alpha();
        let scored = score(&parts.rewards, &groups, session.stage_step)?;
        let rewards = group_rewards(&mut parts, session, &groups, &scored)?;
        let weights: Vec<f64> = parts.rewards.weights().into_iter().map(f64::from).collect();
        let progress = session.stage_step as f64 / stage.steps as f64;
        let plans = select(&rewards, &weights, &stage.advantage, &parts.selector, progress);

        let updating = Instant::now();
        let targets = targets(session, &groups, &plans)?;
        let mut packed = pack_groups(&groups, &scored, &plans, &targets, session, &parts.rule);
        mask_low_entropy(&parts.rule, &groups, &mut packed);
        let update = update(session, &mut parts, &packed)?;
        let update_secs = updating.elapsed().as_secs_f64();

        let mut metrics = step_metrics(session, &parts, &groups, &scored, &plans, &places, &update);
        metrics.insert("time/sample_secs".into(), sample_secs);
        metrics.insert("time/update_secs".into(), update_secs);
        write_samples(session, &parts, &groups, &scored, &plans, &targets)?;
        session.controls.after(&parts.rule, &update.all, total as u64);
        let num_tokens = groups.iter().map(|g| g.prompt.input.ids.len() + sampled_tokens(g)).sum();
        if let Some(end) = session.end_step(metrics, num_tokens)? {
            return Ok(end);
        }
    }
}

fn open(session: &mut Session) -> Result<Parts, TrainError> {
    let stage = session.current();
    let rows = Arc::new(data::open(&stage.data, &session.run.base, session.run.seed)?);
    let order = Order::shuffled(rows.len(), session.run.seed, session.stage as u32);
    let mut questions = Questions::new(rows, order);
    questions.seek(session.stage_step * u64::from(stage.questions_per_step));
    let rule = stage.rule.resolve()?;
    for warning in rule.warnings() {
        (session.watch)(Event::Remark(warning.to_string()));
    }
    if stage.sampling.is_truncated() {
        let text = "top_p, top_k or min_p is on: log-probabilities still refer to the whole distribution";
        (session.watch)(Event::Remark(text.to_string()));
    }
    Ok(Parts {
        questions,
        rewards: Rewards::new(stage.rewards.clone(), stage.unknown, stage.sampling.max_new_tokens as usize)?,
        selector: stage.selector.resolve(),
        rule,
        reference: session.reference()?,
        gradients: session.policy.new_gradients(),
        banned: Arc::from(session.prompter.banned_ids()),
    })
}

fn sampled_tokens(group: &Group) -> usize {
    group.rollouts.iter().map(|rollout| rollout.sampled.ids.len()).sum()
}

fn score(rewards: &Rewards, groups: &[Group], step: u64) -> Result<Vec<Vec<Scored>>, TrainError> {
    let asked: Vec<RewardGroup> = groups
        .iter()
        .map(|group| RewardGroup {
            row: &group.prompt.row,
            refined: None,
            frame: None,
            completions: group
                .rollouts
                .iter()
                .map(|rollout| Completion {
                    text: &rollout.text,
                    num_tokens: rollout.sampled.ids.len(),
                    truncated: rollout.truncated(),
                    external: &[],
                })
                .collect(),
        })
        .collect();
    Ok(rewards.score(&asked, step)?)
}

/// Rewards as the selector sees them: a KL term of the reward subtracted, cut answers left out if the rule says so.
fn group_rewards(
    parts: &mut Parts,
    session: &mut Session,
    groups: &[Group],
    scored: &[Vec<Scored>],
) -> Result<Vec<GroupRewards>, TrainError> {
    let mut rewards: Vec<GroupRewards> = groups
        .iter()
        .zip(scored)
        .map(|(group, scored)| {
            let lengths: Vec<usize> = group.rollouts.iter().map(|rollout| rollout.sampled.ids.len()).collect();
            GroupRewards::new(scored, &lengths)
        })
        .collect();
    if parts.rule.kl.place == Place::Reward && parts.rule.beta != 0.0 {
        let reference = reference_logprobs(parts, session, groups)?;
        let answers =
            groups.iter().zip(&mut rewards).flat_map(|(group, rewards)| group.rollouts.iter().zip(&mut rewards.totals));
        for ((rollout, total), reference) in answers.zip(reference) {
            let penalty = reward_penalty(parts.rule.beta, &rollout.sampled.logprob, &reference);
            *total = total.map(|total| total - penalty);
        }
    }
    if parts.rule.mask.truncated && parts.rule.mask.from_stats {
        for (group, rewards) in groups.iter().zip(&mut rewards) {
            for (rollout, total) in group.rollouts.iter().zip(&mut rewards.totals) {
                *total = total.filter(|_| !rollout.truncated());
            }
        }
    }
    Ok(rewards)
}

/// Log-probabilities of all sampled answers under the reference, answer by answer.
fn reference_logprobs(parts: &mut Parts, session: &mut Session, groups: &[Group]) -> Result<Vec<Vec<f32>>, TrainError> {
    let stage = session.current();
    let inv_temperature = 1.0 / stage.sampling.temperature;
    let packed: Vec<PackGroup> = groups
        .iter()
        .map(|group| PackGroup {
            prompt: &group.prompt.input,
            answers: group
                .rollouts
                .iter()
                .map(|r| PackAnswer::sampled(r.sampled.ids.clone(), r.sampled.logprob.clone(), 1.0, inv_temperature))
                .collect(),
        })
        .collect();
    let max_len = stage.sampling.max_new_tokens as usize;
    let options = PackOptions::new(&parts.rule, max_len, stage.tokens_per_batch, parts.banned.clone());
    let counts = pack::count(&packed, Count::All);
    let mut answers = Vec::new();
    for batch in pack::pack(&packed, &counts, &options)? {
        let reference = parts.reference.as_mut().expect("a KL term comes with a reference");
        let logprob = reference.logprob(&mut session.policy, &batch)?;
        answers
            .extend(batch.sequences.iter().map(|bounds| logprob[bounds.start as usize..bounds.end as usize].to_vec()));
    }
    Ok(answers)
}

/// Tokens and words of the targets that the selector put in, by group.
type Targets = Vec<Option<(Vec<u32>, String)>>;

fn targets(session: &Session, groups: &[Group], plans: &[GroupPlan]) -> Result<Targets, TrainError> {
    let stage = session.current();
    let target = |(group, plan): (&Group, &GroupPlan)| {
        plan.target_slot.map(|_| {
            let row = &group.prompt.row;
            let text = stage.target.text(row);
            let ids = session.prompter.completion(&stage.prompt.conversation(row), &text);
            ids.map(|ids| (ids, text)).map_err(|source| RowError { row: row.id.clone(), source }.into())
        })
    };
    groups.iter().zip(plans).map(|pair| target(pair).transpose()).collect()
}

/// Groups as they are packed: advantages on sampled answers, the target in its slot.
fn pack_groups<'g>(
    groups: &'g [Group],
    scored: &[Vec<Scored>],
    plans: &[GroupPlan],
    targets: &Targets,
    session: &Session,
    rule: &Rule,
) -> Vec<PackGroup<'g>> {
    let inv_temperature = 1.0 / session.current().sampling.temperature;
    let mut packed = Vec::with_capacity(groups.len());
    for (((group, scored), plan), target) in groups.iter().zip(scored).zip(plans).zip(targets) {
        let mut answers = Vec::with_capacity(group.rollouts.len());
        for (slot, (rollout, scored)) in group.rollouts.iter().zip(scored).enumerate() {
            let advantage = plan.advantages[slot];
            answers.push(match target {
                Some((ids, _)) if plan.target_slot == Some(slot) => PackAnswer::target(ids.clone(), advantage, 1.0),
                _ => PackAnswer {
                    masked: scored.total.is_none() || (rule.mask.truncated && rollout.truncated()),
                    ..PackAnswer::sampled(
                        rollout.sampled.ids.clone(),
                        rollout.sampled.logprob.clone(),
                        advantage,
                        inv_temperature,
                    )
                },
            });
        }
        packed.push(PackGroup { prompt: &group.prompt.input, answers });
    }
    packed
}

/// Keeps the policy term on the tokens of highest entropy, over the whole step, if the rule says so.
fn mask_low_entropy(rule: &Rule, groups: &[Group], packed: &mut [PackGroup]) {
    let Some(share) = rule.mask.top_entropy else { return };
    let mut all: Vec<f32> = Vec::new();
    for (group, packed) in groups.iter().zip(&*packed) {
        let sampled =
            group.rollouts.iter().zip(&packed.answers).filter(|(_, answer)| !answer.injected && !answer.masked);
        all.extend(sampled.flat_map(|(rollout, _)| &rollout.sampled.entropy));
    }
    if all.is_empty() {
        return;
    }
    all.sort_by(f32::total_cmp);
    let bound = all[((all.len() as f64 * (1.0 - share)) as usize).min(all.len() - 1)];
    for (group, packed) in groups.iter().zip(packed) {
        for (rollout, answer) in group.rollouts.iter().zip(&mut packed.answers).filter(|(_, answer)| !answer.injected) {
            answer.factor = rollout.sampled.entropy.iter().map(|h| f32::from(u8::from(*h >= bound))).collect();
        }
    }
}

/// What the optimiser steps of one step say.
struct Update {
    /// The first one, in which sampler and trainer must agree.
    first: RuleStats,
    /// The last one; none if no group taught anything.
    last: Option<Learned>,
    all: RuleStats,
    counts: Counts,
}

/// Learns the packed groups in `updates` optimiser steps of whole groups each. Groups that teach nothing make none.
fn update(session: &mut Session, parts: &mut Parts, packed: &[PackGroup]) -> Result<Update, TrainError> {
    let stage = session.current();
    let max_len = stage.sampling.max_new_tokens as usize;
    let options = PackOptions::new(&parts.rule, max_len, stage.tokens_per_batch, parts.banned.clone());
    let size = packed.len().div_ceil(stage.updates as usize);
    let mut update =
        Update { first: RuleStats::default(), last: None, all: RuleStats::default(), counts: Counts::default() };
    for (index, part) in packed.chunks(size).enumerate() {
        let counts = pack::count(part, parts.rule.count);
        update.counts = update.counts + counts;
        let mut batches: Vec<TokenBatch> = pack::pack(part, &counts, &options)?;
        if batches.is_empty() {
            continue;
        }
        if let Some(reference) = &mut parts.reference
            && parts.rule.has_kl_loss()
        {
            for batch in &mut batches {
                batch.ref_logprob = reference.logprob(&mut session.policy, batch)?;
            }
        }
        let learned = learn(session, &batches, &parts.rule, index as u64, &mut parts.gradients)?;
        update.all.merge(&learned.stats);
        if index == 0 {
            update.first = learned.stats;
        }
        update.last = Some(learned);
    }
    Ok(update)
}

fn step_metrics(
    session: &mut Session,
    parts: &Parts,
    groups: &[Group],
    scored: &[Vec<Scored>],
    plans: &[GroupPlan],
    places: &[u64],
    update: &Update,
) -> BTreeMap<String, f64> {
    let lengths: Vec<Vec<usize>> =
        groups.iter().map(|g| g.rollouts.iter().map(|r| r.sampled.ids.len()).collect()).collect();
    let truncated: Vec<Vec<bool>> = groups.iter().map(|g| g.rollouts.iter().map(|r| r.truncated()).collect()).collect();
    let records: Vec<GroupRecord> = (0..groups.len())
        .map(|i| GroupRecord {
            scored: &scored[i],
            plan: &plans[i],
            num_tokens: &lengths[i],
            truncated: &truncated[i],
            prior_accuracy: Some(session.controls.accuracy.get(places[i])),
        })
        .collect();
    let success = parts.selector.success;
    let mut metrics: BTreeMap<String, f64> =
        statistics::metrics(&records, &parts.rewards.names(), success).into_iter().collect();
    for (place, scored) in places.iter().zip(scored) {
        let right: Vec<bool> = scored.iter().filter_map(|s| s.accuracy.map(|a| f64::from(a) > success)).collect();
        if !right.is_empty() {
            let share = right.iter().filter(|right| **right).count() as f64 / right.len() as f64;
            session.controls.accuracy.add(*place, share);
        }
    }
    metrics.extend(update.all.metrics(&parts.rule).into_iter().map(|(name, value)| (name.to_string(), value)));
    let gap = &update.first.gap;
    if gap.count > 0 {
        metrics.insert("rollout/logprob_gap_mean".into(), gap.mean_abs());
        metrics.insert("rollout/logprob_gap_max".into(), gap.max_abs);
        metrics.insert("rollout/logprob_gap_kl".into(), gap.kl());
        metrics.insert("rollout/logprob_gap_ess".into(), gap.effective_share());
    }
    metrics.insert("update/num_sequences".into(), update.counts.num_sequences as f64);
    metrics.insert("update/num_trained_tokens".into(), update.counts.num_tokens as f64);
    if let Some(learned) = update.last {
        metrics.insert("optim/gradient_norm".into(), learned.gradient_norm);
        metrics.insert("optim/lr".into(), learned.lr);
    }
    metrics
}

fn write_samples(
    session: &mut Session,
    parts: &Parts,
    groups: &[Group],
    scored: &[Vec<Scored>],
    plans: &[GroupPlan],
    targets: &Targets,
) -> Result<(), TrainError> {
    let (step, stage) = (session.step + 1, session.current());
    let names = parts.rewards.names();
    for index in 0..groups.len().min(session.run.report.samples_per_step) {
        let (group, plan) = (&groups[index], &plans[index]);
        let row = &group.prompt.row;
        let answers = group
            .rollouts
            .iter()
            .zip(&scored[index])
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
