//! Puts a step together: sampled answers, what the selector decided and the reference targets become groups that can be
//! packed, with masks and sampler correction applied. The last place where an answer is more than its tokens.
//! Cost: one copy of the answers.

use foveate_model::batch::{FinishReason, PromptInput, Sampled};

use crate::reward::Scored;

use super::mask;
use super::mismatch::{self, MismatchMode};
use super::pack::{PackAnswer, PackGroup};
use super::rule::Rule;
use super::rules::vespo;
use super::selector::GroupPlan;
use super::{GroupRewards, UpdateError};

/// One question of a step with everything that was found out about it.
#[derive(Clone, Debug)]
pub struct StepGroup<'a> {
    /// The rendered question.
    pub prompt: &'a PromptInput,
    /// Its answers.
    pub sampled: Vec<&'a Sampled>,
    /// Their scores.
    pub scored: &'a [Scored],
    /// What the selector decided.
    pub plan: &'a GroupPlan,
    /// The reference target, end token included; needed where the plan puts one in.
    pub target: Option<&'a [u32]>,
}

/// Temperatures that log-probabilities refer to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperatures {
    /// Of sampled answers: the temperature that their recorded log-probabilities refer to.
    pub sampled: f32,
    /// Of injected targets: 1 unless the recipe says otherwise, because nothing was sampled.
    pub target: f32,
}

/// Rewards of a group for the selector. Answers cut off by the limit leave the statistics if the rule says so.
pub fn group_rewards(scored: &[Scored], sampled: &[&Sampled], rule: &Rule) -> GroupRewards {
    let num_tokens: Vec<usize> = sampled.iter().map(|s| s.ids.len()).collect();
    let mut rewards = GroupRewards::new(scored, &num_tokens);
    if rule.mask.truncated && rule.mask.from_stats {
        for (total, answer) in rewards.totals.iter_mut().zip(sampled) {
            if answer.finish == FinishReason::Length {
                *total = None;
            }
        }
    }
    rewards
}

/// The groups of a step, ready to be counted and packed.
pub fn assemble<'a>(
    groups: &[StepGroup<'a>],
    rule: &Rule,
    temperatures: Temperatures,
) -> Result<Vec<PackGroup<'a>>, UpdateError> {
    let threshold = rule.mask.top_entropy.and_then(|share| {
        let used = groups.iter().flat_map(|group| {
            let slots = group.sampled.iter().copied().zip(group.scored).enumerate();
            slots.filter(|(slot, (sampled, scored))| {
                group.plan.target_slot != Some(*slot) && !is_masked(sampled, scored, rule)
            })
        });
        mask::entropy_threshold(used.flat_map(|(_, (sampled, _))| sampled.entropy.iter().copied()), share)
    });
    let mut packed = Vec::with_capacity(groups.len());
    for group in groups {
        let lengths = [("scored", group.scored.len()), ("advantages", group.plan.advantages.len())];
        for (column, have) in lengths {
            if have != group.sampled.len() {
                return Err(UpdateError::Column { column, have, need: group.sampled.len() });
            }
        }
        let mut answers = Vec::with_capacity(group.sampled.len());
        for (slot, (&sampled, scored)) in group.sampled.iter().zip(group.scored).enumerate() {
            let advantage = group.plan.advantages[slot];
            if group.plan.target_slot == Some(slot) {
                let target = group.target.ok_or(UpdateError::MissingTarget)?;
                answers.push(PackAnswer::target(target.to_vec(), advantage, 1.0 / temperatures.target));
                continue;
            }
            let inv_temperature = 1.0 / temperatures.sampled;
            let mut answer =
                PackAnswer::sampled(sampled.ids.clone(), sampled.logprob.clone(), advantage, inv_temperature);
            answer.masked = is_masked(sampled, scored, rule);
            if rule.mismatch.mode != MismatchMode::Off {
                if sampled.drawn_logprob.len() != sampled.ids.len() {
                    return Err(UpdateError::Column {
                        column: "drawn_logprob",
                        have: sampled.drawn_logprob.len(),
                        need: sampled.ids.len(),
                    });
                }
                let weights = mismatch::weights(&rule.mismatch, &sampled.logprob, &sampled.drawn_logprob);
                if rule.takes_correction_into_ratio() {
                    for (old, weight) in answer.old_logprob.iter_mut().zip(&weights) {
                        *old -= weight.max(vespo::LEAST_RATIO).ln() as f32;
                    }
                } else {
                    answer.factor = weights.into_iter().map(|w| w as f32).collect();
                }
            }
            if let Some(threshold) = threshold {
                let kept = mask::factors(&sampled.entropy, threshold);
                answer.factor = match answer.factor.is_empty() {
                    true => kept,
                    false => answer.factor.iter().zip(kept).map(|(w, keep)| w * keep).collect(),
                };
            }
            answers.push(answer);
        }
        packed.push(PackGroup { prompt: group.prompt, answers });
    }
    Ok(packed)
}

fn is_masked(sampled: &Sampled, scored: &Scored, rule: &Rule) -> bool {
    scored.total.is_none() || (rule.mask.truncated && sampled.finish == FinishReason::Length)
}

#[cfg(test)]
mod tests {
    use super::super::RuleSpec;
    use super::super::selector::Mode;
    use super::*;

    fn sampled(ids: &[u32], finish: FinishReason) -> Sampled {
        Sampled {
            ids: ids.to_vec(),
            logprob: vec![-1.0; ids.len()],
            entropy: ids.iter().map(|id| *id as f32 / 10.0).collect(),
            drawn_logprob: vec![-1.0; ids.len()],
            finish,
        }
    }

    fn scored(total: Option<f32>) -> Scored {
        Scored { total, accuracy: total, ..Default::default() }
    }

    #[test]
    fn targets_masks_and_corrections_reach_the_answers() {
        let prompt = PromptInput { ids: vec![1, 2], ..Default::default() };
        let mut answers = [
            sampled(&[5, 6], FinishReason::Stop),
            sampled(&[7], FinishReason::Length),
            sampled(&[8, 1], FinishReason::Stop),
            sampled(&[9], FinishReason::Stop),
        ];
        let scores = [scored(Some(0.0)), scored(Some(0.0)), scored(Some(1.0)), scored(None)];
        let plan = GroupPlan {
            mode: Mode::Memorise,
            advantages: vec![1.0, -0.5, 0.5, 0.0],
            target_slot: Some(0),
            queue_target: false,
        };
        // The first token of the good answer was drawn with half of the probability that is trained.
        answers[2].drawn_logprob[0] -= 2f32.ln();
        let group = StepGroup {
            prompt: &prompt,
            sampled: answers.iter().collect(),
            scored: &scores,
            plan: &plan,
            target: Some(&[3, 4, 2]),
        };
        let rule: RuleSpec = toml::from_str(
            "mask = { truncated = true, from_stats = true, top_entropy = 0.5 }\nmismatch = { mode = 'token_truncate' }",
        )
        .expect("rule");
        let rule = rule.resolve().expect("rule");
        let temperatures = Temperatures { sampled: 0.5, target: 1.0 };
        let packed = assemble(std::slice::from_ref(&group), &rule, temperatures).expect("assembles").remove(0);
        let [target, cut, good, unknown] = &packed.answers[..] else { panic!("four answers") };
        assert!(target.injected && target.ids == [3, 4, 2] && target.inv_temperature == 1.0 && !target.masked);
        assert!(cut.masked && unknown.masked && !good.masked && good.inv_temperature == 2.0);
        assert!((good.factor[0] - 2.0).abs() < 1e-5 && good.factor[1] == 0.0, "{:?}", good.factor);
        assert_eq!(good.old_logprob, [-1.0, -1.0], "the ratio is that of two weights, whatever the draw was");
        let rewards = group_rewards(&scores, &group.sampled, &rule);
        assert_eq!(rewards.totals, [Some(0.0), None, Some(1.0), None]);
        let missing = StepGroup { target: None, ..group };
        assert_eq!(assemble(&[missing], &rule, temperatures).expect_err("no target"), UpdateError::MissingTarget);
    }
}
