//! What every step says about its groups (methods 7.1): how many could teach anything, what the selector did, what the
//! rewards looked like. Plain numbers with published names. Cost: one pass over the groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reward::{Scored, Status};

use super::advantage::has_spread;
use super::difficulty::expected_use;
use super::selector::{GroupPlan, Mode};

/// One group of a step, for statistics.
#[derive(Clone, Copy, Debug)]
pub struct GroupRecord<'a> {
    /// Scores of its answers.
    pub scored: &'a [Scored],
    /// What the selector decided.
    pub plan: &'a GroupPlan,
    /// Loss tokens per sampled answer.
    pub num_tokens: &'a [usize],
    /// Whether the length limit cut each answer.
    pub truncated: &'a [bool],
    /// Running accuracy of the question before this step, if it was met before.
    pub prior_accuracy: Option<f64>,
}

/// Named numbers of one step.
pub type Metrics = Vec<(String, f64)>;

/// Statistics of all groups of a step. `names` are those of the reward terms; `success` is the bound of a right answer.
pub fn metrics(groups: &[GroupRecord<'_>], names: &[&str], success: f64) -> Metrics {
    let mut metrics = Metrics::new();
    group_metrics(groups, success, &mut metrics);
    reward_metrics(groups, names, &mut metrics);
    advantage_metrics(groups, success, &mut metrics);
    length_metrics(groups, success, &mut metrics);
    metrics
}

fn share(count: usize, of: usize) -> f64 {
    count as f64 / of.max(1) as f64
}

fn is_success(scored: &Scored, success: f64) -> Option<bool> {
    scored.accuracy.map(|a| f64::from(a) > success)
}

fn group_metrics(groups: &[GroupRecord<'_>], success: f64, metrics: &mut Metrics) {
    let (mut dead, mut mixed, mut all, mut counted) = (0, 0, 0, 0);
    for group in groups {
        let known: Vec<bool> = group.scored.iter().filter_map(|s| is_success(s, success)).collect();
        if known.is_empty() {
            continue;
        }
        counted += 1;
        match known.iter().filter(|right| **right).count() {
            0 => dead += 1,
            n if n == known.len() => all += 1,
            _ => mixed += 1,
        }
    }
    metrics.push(("group/dead_fraction".into(), share(dead, counted)));
    metrics.push(("group/mixed_fraction".into(), share(mixed, counted)));
    metrics.push(("group/all_correct_fraction".into(), share(all, counted)));
    let useful = groups.iter().filter(|g| g.plan.advantages.iter().any(|a| *a != 0.0)).count();
    metrics.push(("group/useful_fraction".into(), share(useful, groups.len())));
    let expected: f64 = groups.iter().map(|g| expected_use(g.prior_accuracy.unwrap_or(0.5), g.scored.len())).sum();
    metrics.push(("group/useful_expected".into(), expected / groups.len().max(1) as f64));
    for (name, mode) in [("memorise", Mode::Memorise), ("explore", Mode::Explore), ("skip", Mode::Skip)] {
        let count = groups.iter().filter(|g| g.plan.mode == mode).count();
        metrics.push((format!("mode/{name}_fraction"), share(count, groups.len())));
    }
}

fn reward_metrics(groups: &[GroupRecord<'_>], names: &[&str], metrics: &mut Metrics) {
    let answers = || groups.iter().flat_map(|g| g.scored.iter());
    let num = answers().count();
    push_column(metrics, "reward".into(), groups, &|s: &Scored| s.total);
    metrics.push(("reward/unknown_fraction".into(), share(answers().filter(|s| s.total.is_none()).count(), num)));
    for (index, name) in names.iter().enumerate() {
        push_column(metrics, format!("reward/{name}"), groups, &|s: &Scored| s.parts.get(index).copied().flatten());
    }
    if answers().any(|s| s.accuracy.is_some()) {
        for status in Status::ALL {
            let count = answers().filter(|s| s.verdict.status == status).count();
            metrics.push((format!("verifier/{}_fraction", status.name()), share(count, num)));
        }
    }
}

// Mean, spread over the step, and share of groups in which the quantity is constant.
fn push_column(
    metrics: &mut Metrics,
    name: String,
    groups: &[GroupRecord<'_>],
    column: &dyn Fn(&Scored) -> Option<f32>,
) {
    let known = |g: &GroupRecord<'_>| g.scored.iter().filter_map(column).map(f64::from).collect::<Vec<f64>>();
    let all: Vec<f64> = groups.iter().flat_map(known).collect();
    if all.is_empty() {
        return;
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let variance = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64;
    let constant = groups.iter().filter(|g| !has_spread(&known(g))).count();
    metrics.push((format!("{name}/mean"), mean));
    metrics.push((format!("{name}/std"), variance.sqrt()));
    metrics.push((format!("{name}/zero_std_fraction"), share(constant, groups.len())));
}

fn advantage_metrics(groups: &[GroupRecord<'_>], success: f64, metrics: &mut Metrics) {
    let (mut sum, mut answers, mut right, mut negative, mut effective) = (0.0, 0, 0, 0, 0);
    for group in groups {
        for (i, advantage) in group.plan.advantages.iter().enumerate() {
            answers += 1;
            sum += advantage.abs();
            let is_target = group.plan.target_slot == Some(i);
            effective +=
                usize::from(advantage.abs() > 1e-8 && (is_target || group.num_tokens.get(i).is_some_and(|n| *n > 0)));
            if !is_target && group.scored.get(i).and_then(|s| is_success(s, success)) == Some(true) {
                right += 1;
                negative += usize::from(*advantage < 0.0);
            }
        }
    }
    metrics.push(("advantage/mean_abs".into(), sum / answers.max(1) as f64));
    metrics.push(("advantage/negative_correct_fraction".into(), share(negative, right)));
    metrics.push(("update/num_effective_sequences".into(), effective as f64));
    metrics.push(("update/effective_fraction".into(), share(effective, answers)));
}

fn length_metrics(groups: &[GroupRecord<'_>], success: f64, metrics: &mut Metrics) {
    let mut all = Vec::new();
    let mut by_outcome: BTreeMap<bool, Vec<usize>> = BTreeMap::new();
    for group in groups {
        for (i, num_tokens) in group.num_tokens.iter().enumerate() {
            all.push(*num_tokens);
            if let Some(right) = group.scored.get(i).and_then(|s| is_success(s, success)) {
                by_outcome.entry(right).or_default().push(*num_tokens);
            }
        }
    }
    if all.is_empty() {
        return;
    }
    all.sort_unstable();
    let mean = |values: &[usize]| values.iter().sum::<usize>() as f64 / values.len().max(1) as f64;
    let quantile = |q: f64| all[((all.len() - 1) as f64 * q).round() as usize] as f64;
    metrics.push(("rollout/length_mean".into(), mean(&all)));
    metrics.push(("rollout/length_p50".into(), quantile(0.5)));
    metrics.push(("rollout/length_p95".into(), quantile(0.95)));
    metrics.push(("rollout/length_max".into(), quantile(1.0)));
    for (right, name) in [(true, "correct"), (false, "wrong")] {
        if let Some(lengths) = by_outcome.get(&right) {
            metrics.push((format!("rollout/length_{name}"), mean(lengths)));
        }
    }
    let cut = groups.iter().flat_map(|g| g.truncated).filter(|cut| **cut).count();
    metrics.push(("rollout/truncated_fraction".into(), share(cut, all.len())));
}

/// Running accuracy per question: a mean that starts at one half with the weight of one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunningAccuracy {
    /// Question index to (sum of group accuracies, number of groups).
    seen: BTreeMap<u64, (f64, u32)>,
}

impl RunningAccuracy {
    /// The estimate for a question.
    pub fn get(&self, question: u64) -> f64 {
        let (sum, count) = self.seen.get(&question).copied().unwrap_or((0.0, 0));
        (0.5 + sum) / (1.0 + f64::from(count))
    }

    /// Adds the accuracy of a group.
    pub fn add(&mut self, question: u64, accuracy: f64) {
        let entry = self.seen.entry(question).or_insert((0.0, 0));
        entry.0 += accuracy;
        entry.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::Verdict;

    fn scored(accuracy: f32, thinking: f32) -> Scored {
        Scored {
            parts: vec![Some(accuracy), Some(thinking)],
            total: Some(accuracy + thinking),
            accuracy: Some(accuracy),
            verdict: Verdict::ok(accuracy, "x"),
        }
    }

    #[test]
    fn groups_are_described() {
        let plan = |mode, advantages: &[f64], target_slot| GroupPlan {
            mode,
            advantages: advantages.to_vec(),
            target_slot,
            queue_target: false,
        };
        let failed = vec![scored(0.0, 0.2), scored(0.0, 0.4)];
        let mixed = vec![scored(1.0, 0.0), scored(0.0, 0.9)];
        let unknown = vec![Scored::default(), Scored { parts: vec![None, None], ..Default::default() }];
        let plans = [
            plan(Mode::Memorise, &[1.0, 0.0], Some(0)),
            plan(Mode::Explore, &[-0.5, 0.5], None),
            plan(Mode::Skip, &[0.0, 0.0], None),
        ];
        let groups: Vec<GroupRecord> = [&failed, &mixed, &unknown]
            .iter()
            .zip(&plans)
            .map(|(scored, plan)| GroupRecord {
                scored,
                plan,
                num_tokens: &[4, 8],
                truncated: &[false, true],
                prior_accuracy: None,
            })
            .collect();
        let metrics = metrics(&groups, &["accuracy", "thinking_f1"], 0.5);
        let get = |name: &str| metrics.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name}")).1;
        assert_eq!((get("group/dead_fraction"), get("group/mixed_fraction")), (0.5, 0.5));
        assert_eq!(get("mode/memorise_fraction"), 1.0 / 3.0);
        assert_eq!(get("reward/unknown_fraction"), 1.0 / 3.0);
        assert_eq!(get("advantage/negative_correct_fraction"), 1.0);
        assert_eq!(get("update/num_effective_sequences"), 3.0);
        assert_eq!(get("group/useful_expected"), 0.5);
        assert!((get("reward/thinking_f1/zero_std_fraction") - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((get("rollout/length_mean"), get("rollout/length_correct")), (6.0, 4.0));
        assert_eq!(get("verifier/ok_fraction"), 4.0 / 6.0);
        let names: std::collections::BTreeSet<_> = metrics.iter().map(|(n, _)| n).collect();
        assert_eq!(names.len(), metrics.len(), "every name once");
    }

    #[test]
    fn running_accuracy_starts_at_one_half() {
        let mut running = RunningAccuracy::default();
        assert_eq!(running.get(3), 0.5);
        running.add(3, 1.0);
        assert_eq!((running.get(3), running.get(4)), (0.75, 0.5));
    }
}
