//! The reinforcement loop: ask, sample, score, learn, write down.
//! Knows the order of things; every part has its own room. Cost: sampling is most of a step.

mod gather;
mod tell;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use foveate_model::Gradients;

use crate::data::{Dataset, Order, Questions};
use crate::error::TrainError;
use crate::reward::refiner::Refiner;
use crate::reward::remote::writer::Writer;
use crate::reward::remote::{Outside, Surroundings};
use crate::reward::{RewardSpec, Rewards};
use crate::session::{Event, Session, StageEnd};
use crate::update::selector::select;
use crate::update::{GroupPlan, GroupRewards, Rule, Selector};
use gather::{Kept, gather};
use update::{Lesson, learn_step};

/// What a stage needs beside the session.
struct Parts {
    dataset: Arc<Dataset>,
    questions: Questions,
    rewards: Rewards,
    outside: Outside,
    refiner: Option<Refiner>,
    selector: Selector,
    rule: Rule,
    /// Worked examples that are mixed in, and their order.
    examples: Option<(Dataset, Order)>,
    gradients: Gradients,
    banned: Arc<[u32]>,
}

/// Keeps the order of mixed-in examples apart from that of the questions.
const EXAMPLES: u32 = 0x6578_616d;

/// Runs the current stage from where it stands.
pub fn run_stage(session: &mut Session) -> Result<StageEnd, TrainError> {
    let stage = session.current();
    let mut parts = open(session)?;
    loop {
        session.begin_step();
        parts.rule.beta = parts.rule.kl.beta_at(session.controls.beta, session.stage_step, stage.steps);
        parts.rule.alpha = session.controls.entropy.alpha();
        let share = stage.mix.as_ref().map_or(0.0, |mix| mix.supervised_share(session.stage_step, stage.steps));
        let (asked, shown) = stage
            .mix
            .as_ref()
            .map_or((stage.questions_per_step as usize, 0), |mix| mix.split(share, stage.questions_per_step));

        let sampling = Instant::now();
        let gathered = gather(session, &mut parts, asked)?;
        let sample_secs = sampling.elapsed().as_secs_f64();

        let kept = &gathered.kept;
        let rewards: Vec<GroupRewards> = kept.iter().map(|kept| kept.rewards.clone()).collect();
        let weights: Vec<f64> = parts.rewards.weights().into_iter().map(f64::from).collect();
        let progress = session.stage_step as f64 / stage.steps as f64;
        let mut plans = select(&rewards, &weights, &stage.advantage, &parts.selector, progress);
        let dropped = drop_silent(session, kept, &mut plans);

        let updating = Instant::now();
        let (targets, refined) = update::targets(session, &parts, kept, &plans)?;
        let lesson = Lesson { kept, plans: &plans, targets: &targets, share, shown, dropped: &dropped };
        let mut update = learn_step(session, &mut parts, &lesson)?;
        // Where the KL term is no part of the loss, the distance is that of the answers when they were sampled.
        for (rollout, reference) in kept.iter().flat_map(|kept| kept.group.rollouts.iter().zip(&kept.reference)) {
            update.all.add_reference(&rollout.sampled.logprob, reference);
        }
        session.follow()?;
        update::learn_template(session, &parts, kept);
        let update_secs = updating.elapsed().as_secs_f64();

        let mut metrics = tell::step_metrics(session, &parts, &gathered, &plans, &update);
        metrics.extend(tell::refiner_metrics(session, &parts, &refined));
        metrics.insert("time/sample_secs".into(), sample_secs);
        metrics.insert("time/update_secs".into(), update_secs);
        if stage.mix.is_some() {
            metrics.insert("mix/supervised_share".into(), share);
        }
        tell::write_samples(session, &parts, kept, &plans, &targets)?;
        tell::watch_rewards(session, &parts, &gathered)?;
        tell::watch_refiner(session, &refined)?;
        session.controls.after(&parts.rule, &update.all, gathered.num_answers as u64);
        session.controls.calls.extend(parts.calls());
        let num_tokens = gathered.num_tokens + update.num_shown_tokens;
        if let Some(end) = session.end_step(metrics, num_tokens)? {
            return Ok(end);
        }
    }
}

/// Under which name the refiner's requests are counted; no reward can be called so.
const REFINER: &str = "(refiner)";

impl Parts {
    fn writer(&self) -> Option<&Writer> {
        self.refiner.as_ref()?.writer()
    }

    /// Requests to language models so far.
    fn calls(&self) -> BTreeMap<String, u64> {
        let mut calls = self.outside.calls();
        calls.extend(self.writer().map(|writer| (REFINER.to_string(), writer.chat().calls())));
        calls
    }
}

fn open(session: &mut Session) -> Result<Parts, TrainError> {
    let stage = session.current();
    let (base, seed) = (&session.run.base, session.run.seed);
    let dataset = Arc::new(stage.open(base, seed)?);
    let order = Order::shuffled(dataset.len(), seed, session.stage as u32);
    let mut questions = Questions::new(dataset.clone(), order);
    questions.seek(session.controls.position);
    let examples = stage.open_mix(base, seed)?.map(|rows| {
        let order = Order::shuffled(rows.len(), seed, EXAMPLES ^ session.stage as u32);
        (rows, order)
    });
    let rule = stage.rule.resolve()?;
    for warning in rule.warnings() {
        (session.watch)(Event::Remark(warning.to_string()));
    }
    if stage.sampling.is_off_policy() {
        let text = "answers are drawn from another distribution (temperature, top_p, top_k, min_p) than the one that is \
                    scored and trained: see rollout/sampler_kl and rollout/sampler_ess";
        (session.watch)(Event::Remark(text.to_string()));
    }
    session.load_reference()?;
    let around = Surroundings { base: base.clone(), folder: Some(session.folder.clone()) };
    let mut outside = Outside::new(&stage.rewards, &around)?;
    outside.set_calls(&session.controls.calls);
    let refiner = stage.refiner.as_ref().map(|spec| Refiner::new(spec, &around)).transpose()?;
    if let (Some(writer), Some(calls)) =
        (refiner.as_ref().and_then(Refiner::writer), session.controls.calls.get(REFINER))
    {
        writer.chat().set_calls(*calls);
    }
    Ok(Parts {
        dataset,
        questions,
        rewards: Rewards::new(stage.rewards.clone(), stage.unknown, stage.sampling.max_new_tokens as usize)?,
        outside,
        refiner,
        selector: stage.selector.resolve(),
        rule,
        examples,
        gradients: session.policy.new_gradients(),
        banned: Arc::from(session.prompter.banned_ids()),
    })
}

/// With the gate on advantages: which groups teach nothing and leave the step, denominators included. Their plans stay
/// for the statistics.
fn drop_silent(session: &Session, kept: &[Kept], plans: &mut [GroupPlan]) -> Vec<bool> {
    let Some(dynamic) = session.current().dynamic.as_ref().filter(|dynamic| dynamic.enabled) else {
        return vec![false; kept.len()];
    };
    kept.iter()
        .zip(plans)
        .map(|(kept, plan)| match dynamic.gate {
            // Those were dropped before they came here.
            crate::update::difficulty::gate::GateKind::Accuracy => false,
            crate::update::difficulty::gate::GateKind::Advantage => !dynamic.keeps(&kept.rewards, &plan.advantages),
        })
        .collect()
}

/// Whether a reward compares with refined reasoning, which must then be there before scoring.
fn scores_refined(rewards: &[RewardSpec]) -> bool {
    use crate::reward::spec::Against;
    rewards.iter().any(|reward| matches!(reward, RewardSpec::ThinkingF1(s) if s.against == Against::Refined))
}
