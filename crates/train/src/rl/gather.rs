//! The questions of a step with their scored answers: asks, samples and scores in rounds, until enough groups can teach
//! something or the tries are used up. Knows sampling and rewards, nothing of updates.
//! Cost: decoding; what is dropped has been paid for.

use std::collections::{BTreeMap, BTreeSet};

use foveate_model::Sampled;

use super::{Parts, scores_refined};
use crate::data::Question;
use crate::error::TrainError;
use crate::reward::remote::{Asked, Failure, FailureKind};
use crate::reward::{Group as RewardGroup, Scored};
use crate::rollout::{self, Group, RowError, check_room};
use crate::session::{Event, Session};
use crate::update::assemble;
use crate::update::difficulty::gate::{DynamicSpec, GateKind, Refill};
use crate::update::difficulty::start_state::given_part;
use crate::update::kl::{Place, reward_penalty};
use crate::update::{GroupRewards, pack};

/// A question that the step learns from.
pub struct Kept {
    /// The row's index in the data.
    pub place: u64,
    /// The question with its answers.
    pub group: Group,
    /// Scores of the answers.
    pub scored: Vec<Scored>,
    /// The same as the selector sees them.
    pub rewards: GroupRewards,
    /// Running accuracy of the question before this step.
    pub prior: f64,
    /// Log-probabilities of the answers under the reference, where advantages are made of them.
    pub reference: Vec<Vec<f32>>,
}

/// What the rounds of a step brought.
#[derive(Default)]
pub struct Gathered {
    /// Groups to learn from.
    pub kept: Vec<Kept>,
    /// Rounds, and the share of groups that were kept, where groups can be dropped.
    pub refill: Option<(u32, f64)>,
    /// Answers sampled, those of dropped groups included.
    pub num_answers: usize,
    /// Answers among them whose reward is unknown.
    pub num_unknown: usize,
    /// Tokens of all prompts and answers.
    pub num_tokens: usize,
    /// What went wrong with helpers, by kind.
    pub failures: BTreeMap<FailureKind, usize>,
    /// The last failure, with the name of its reward.
    pub last_failure: Option<(String, Failure)>,
}

/// Gathers `wanted` groups, or as many as can be had.
pub fn gather(session: &mut Session, parts: &mut Parts, wanted: usize) -> Result<Gathered, TrainError> {
    let stage = session.current();
    let gate = stage.dynamic.clone().unwrap_or_else(|| DynamicSpec { enabled: false, ..DynamicSpec::default() });
    let by_accuracy = gate.enabled && gate.gate == GateKind::Accuracy;
    let mut refill = Refill::new(&gate, wanted);
    let mut gathered = Gathered::default();
    let mut met = BTreeSet::new();
    while refill.next_round() > 0 {
        let asked = ask(session, parts, refill.next_round(), refill.tries(), &mut met);
        if asked.is_empty() {
            break;
        }
        let places: Vec<u64> = asked.iter().map(|question| question.index as u64).collect();
        let groups = sample(session, asked)?;
        let scored = score(session, parts, &groups, &mut gathered)?;
        let reference = reference_of(parts, session, &groups)?;
        let rewards = group_rewards(parts, &groups, &scored, &reference);
        let drawn = groups.len();
        let before = gathered.kept.len();
        let groups = groups.into_iter().zip(scored).zip(rewards).zip(reference);
        for ((((group, scored), rewards), reference), place) in groups.zip(places) {
            gathered.num_answers += group.rollouts.len();
            gathered.num_unknown += scored.iter().filter(|scored| scored.total.is_none()).count();
            gathered.num_tokens += group.prompt.input.ids.len() + sampled_tokens(&group);
            let prior = session.controls.accuracy.get(place);
            note(session, parts, place, &scored);
            if !by_accuracy || gate.keeps(&rewards, &[]) {
                gathered.kept.push(Kept { place, group, scored, rewards, prior, reference });
            }
        }
        refill.note(drawn, gathered.kept.len() - before);
    }
    gathered.refill = by_accuracy.then(|| (refill.tries(), refill.kept_fraction()));
    Ok(gathered)
}

/// The next questions: in their order, or chosen by past results.
fn ask(session: &mut Session, parts: &mut Parts, count: usize, round: u32, met: &mut BTreeSet<u64>) -> Vec<Question> {
    let Some(spec) = &session.current().pools else {
        let asked = parts.questions.next_batch(count);
        session.controls.position = parts.questions.position();
        return asked;
    };
    let total = parts.dataset.len() as u64;
    let (seed, step) = (session.run.seed, session.step as u32);
    let drawn = session.controls.pools.draw(spec, total, count + met.len(), seed, step, round);
    let fresh: Vec<u64> = drawn.into_iter().filter(|place| !met.contains(place)).take(count).collect();
    met.extend(&fresh);
    fresh
        .into_iter()
        .map(|place| {
            // The position keys the randomness of the answers: it never repeats, the place may.
            let position = session.controls.position;
            session.controls.position += 1;
            Question { position, index: place as usize, row: parts.dataset.row(place as usize) }
        })
        .collect()
}

fn sample(session: &mut Session, asked: Vec<Question>) -> Result<Vec<Group>, TrainError> {
    let stage = session.current();
    let rows = asked.into_iter().map(|question| (question.position as u32, question.row)).collect();
    let mut prompts = rollout::render(&session.prompter, &stage.prompt, rows, stage.sampling.max_new_tokens)?;
    if let Some(start) = &stage.start_state {
        let progress = session.stage_step as f64 / stage.steps as f64;
        for prompt in &mut prompts {
            let part =
                given_part(&prompt.row.rationale, start, progress, session.run.seed, session.step as u32, prompt.index);
            let given = stage.target.beginning(&part);
            let room = stage.sampling.max_new_tokens as usize;
            prompt
                .continue_from(&session.prompter, &stage.prompt, given)
                .and_then(|()| check_room(&session.prompter, &prompt.input, room))
                .map_err(|source| RowError { row: prompt.row.id.clone(), source })?;
        }
    }
    let total = prompts.len() * stage.answers_per_question as usize;
    let watch = &mut *session.watch;
    Ok(rollout::sample(
        &mut session.policy,
        &session.prompter,
        prompts,
        &stage.sampling,
        stage.answers_per_question,
        session.run.seed,
        session.step as u32,
        &mut |unfinished| watch(Event::Sampling { unfinished, total }),
    )?)
}

/// Tokens that were sampled for a question.
pub fn sampled_tokens(group: &Group) -> usize {
    group.rollouts.iter().map(|rollout| rollout.sampled.ids.len()).sum()
}

fn score(
    session: &Session,
    parts: &mut Parts,
    groups: &[Group],
    gathered: &mut Gathered,
) -> Result<Vec<Vec<Scored>>, TrainError> {
    let outside = if parts.outside.is_empty() {
        None
    } else {
        let asked: Vec<Asked> = groups
            .iter()
            .map(|group| Asked {
                row: &group.prompt.row,
                texts: group.rollouts.iter().map(|rollout| rollout.text.as_str()).collect(),
            })
            .collect();
        let said = parts.outside.score(&asked);
        for (kind, count) in said.failures {
            *gathered.failures.entry(kind).or_default() += count;
        }
        gathered.last_failure = said.last.or(gathered.last_failure.take());
        Some(said.scores)
    };
    let refined: Option<Vec<Option<String>>> = match &parts.refiner {
        Some(refiner) if refiner.writer().is_none() && scores_refined(parts.rewards.specs()) => {
            let rows: Vec<_> = groups.iter().map(|group| &group.prompt.row).collect();
            let written = refiner.rationales(&rows, session.controls.templates.read().1);
            Some(written.into_iter().map(|text| text.ok().filter(|text| !text.is_empty())).collect())
        }
        _ => None,
    };
    let mut asked: Vec<_> = groups.iter().map(RewardGroup::of).collect();
    for (index, group) in asked.iter_mut().enumerate() {
        group.refined = refined.as_ref().and_then(|refined| refined[index].as_deref());
        if let Some(outside) = &outside {
            for (completion, scores) in group.completions.iter_mut().zip(&outside[index]) {
                completion.external = scores;
            }
        }
    }
    Ok(parts.rewards.score(&asked, session.stage_step)?)
}

/// Rewards as the selector sees them: a KL term of the reward subtracted, cut answers left out if the rule says so.
fn group_rewards(
    parts: &Parts,
    groups: &[Group],
    scored: &[Vec<Scored>],
    reference: &[Vec<Vec<f32>>],
) -> Vec<GroupRewards> {
    let mut all = Vec::with_capacity(groups.len());
    for ((group, scored), reference) in groups.iter().zip(scored).zip(reference) {
        let sampled: Vec<&Sampled> = group.rollouts.iter().map(|rollout| &rollout.sampled).collect();
        let mut rewards = assemble::group_rewards(scored, &sampled, &parts.rule);
        if parts.rule.kl.place == Place::Reward {
            for ((total, sampled), reference) in rewards.totals.iter_mut().zip(sampled).zip(reference) {
                let penalty = reward_penalty(parts.rule.beta, &sampled.logprob, reference);
                *total = total.map(|total| total - penalty);
            }
        }
        all.push(rewards);
    }
    all
}

/// Log-probabilities under the reference by group and answer, where rewards or advantages are made of them; else empty.
fn reference_of(parts: &mut Parts, session: &mut Session, groups: &[Group]) -> Result<Vec<Vec<Vec<f32>>>, TrainError> {
    let place = parts.rule.kl.place;
    if place == Place::Loss || parts.rule.beta == 0.0 {
        return Ok(vec![Vec::new(); groups.len()]);
    }
    let mut answers = reference_logprobs(parts, session, groups)?.into_iter();
    Ok(groups.iter().map(|group| answers.by_ref().take(group.rollouts.len()).collect()).collect())
}

/// Log-probabilities of all sampled answers under the reference, answer by answer.
fn reference_logprobs(parts: &mut Parts, session: &mut Session, groups: &[Group]) -> Result<Vec<Vec<f32>>, TrainError> {
    let stage = session.current();
    let inv_temperature = 1.0 / stage.sampling.scored_at();
    let packed: Vec<pack::PackGroup> = groups
        .iter()
        .map(|group| pack::PackGroup {
            prompt: &group.prompt.input,
            answers: group
                .rollouts
                .iter()
                .map(|r| {
                    pack::PackAnswer::sampled(r.sampled.ids.clone(), r.sampled.logprob.clone(), 1.0, inv_temperature)
                })
                .collect(),
        })
        .collect();
    let max_len = stage.sampling.max_new_tokens as usize;
    let options = pack::PackOptions::new(&parts.rule, max_len, stage.tokens_per_batch, parts.banned.clone());
    let counts = pack::count(&packed, crate::update::reduction::Count::All);
    let mut answers = Vec::new();
    for batch in pack::pack(&packed, &counts, &options)? {
        let reference = session.reference.as_mut().expect("a KL term comes with a reference");
        let logprob = reference.logprob(&mut session.policy, &batch)?;
        answers
            .extend(batch.sequences.iter().map(|bounds| logprob[bounds.start as usize..bounds.end as usize].to_vec()));
    }
    Ok(answers)
}

/// Remembers how the model fared on a question.
fn note(session: &mut Session, parts: &Parts, place: u64, scored: &[Scored]) {
    let success = parts.selector.success;
    let known: Vec<f64> = scored.iter().filter_map(|scored| scored.accuracy.map(f64::from)).collect();
    if known.is_empty() {
        return;
    }
    let right = known.iter().filter(|accuracy| **accuracy > success).count();
    session.controls.accuracy.add(place, right as f64 / known.len() as f64);
    if let Some(spec) = &session.current().pools {
        session.controls.pools.note(spec, place, known.iter().sum::<f64>() / known.len() as f64);
    }
}
