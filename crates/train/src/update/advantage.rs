//! Turns the rewards of a group into one advantage per answer (methods 1.4).
//! Plain numbers in f64; knows no tokens but their count. Cost: none beside sampling.
//!
//! Two rules hold for every preset. An unknown reward leaves mean and spread, and its advantage is 0. A group without
//! spread gets exactly 0: rounding divided by a small eps would otherwise leak a signal.

use serde::{Deserialize, Serialize};

use crate::reward::Scored;

use super::difficulty::{self, GroupWeight};

/// How rewards become advantages. Presets: GRPO is the default; Dr.GRPO `scale = "none"`; RLOO
/// `baseline = "leave_one_out", scale = "none"`; REINFORCE++ `scale = "none", whiten = "token"`; GDPO
/// `combine = "normalise_first"`; MaxRL `scale = "group_mean"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvantageSpec {
    /// What is subtracted from a reward.
    pub baseline: Baseline,
    /// What the difference is divided by. `sample_std` makes groups equally loud whatever their spread; `none` lets
    /// groups with little at stake speak softly and removes the bias towards very easy and very hard questions.
    pub scale: Scale,
    /// Added to the spread before dividing; 1e-4 unless set (1e-6 for `second_best`).
    pub eps: Option<f64>,
    /// Whether several rewards are added before or after normalising. `normalise_first` keeps a reward with small
    /// spread from drowning beside one with a large spread.
    pub combine: Combine,
    /// A second normalisation, over all answers of the step.
    pub whiten: Whiten,
    /// A factor per group that depends on how many of its answers are right.
    pub weight: GroupWeight,
}

/// What is subtracted from a reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of the group.
    #[default]
    GroupMean,
    /// The mean of the other answers of the group (RLOO).
    LeaveOneOut,
    /// Only the best answer counts, by its lead over the second best.
    SecondBest,
}

/// What the difference is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The group's standard deviation with n-1 (GRPO as released).
    #[default]
    SampleStd,
    /// The group's standard deviation with n (GRPO as in DyME's paper).
    PopulationStd,
    /// The standard deviation (n-1) of all rewards of the step.
    BatchStd,
    /// The group's mean; 0 where it is not positive (MaxRL).
    GroupMean,
    /// Nothing.
    None,
}

/// Order of adding and normalising.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// Add the rewards, then normalise the sum.
    #[default]
    SumFirst,
    /// Normalise each reward in its group, add, then normalise over the step (GDPO).
    NormaliseFirst,
}

/// Normalisation over all answers of the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whiten {
    /// None.
    #[default]
    None,
    /// Answers weigh as many times as they have tokens (REINFORCE++ as released).
    Token,
    /// Answers weigh the same.
    Sequence,
}

/// Rewards of one group, as numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupRewards {
    /// Total per answer; `None` if it leaves baseline and loss.
    pub totals: Vec<Option<f64>>,
    /// Each term per answer, gates applied.
    pub parts: Vec<Vec<Option<f64>>>,
    /// The accuracy per answer, gates not applied.
    pub accuracy: Vec<Option<f64>>,
    /// Loss tokens per answer.
    pub num_tokens: Vec<usize>,
}

impl GroupRewards {
    /// From what the room `reward` gives.
    pub fn new(scored: &[Scored], num_tokens: &[usize]) -> Self {
        Self {
            totals: scored.iter().map(|s| s.total.map(f64::from)).collect(),
            parts: scored.iter().map(|s| s.parts.iter().map(|p| p.map(f64::from)).collect()).collect(),
            accuracy: scored.iter().map(|s| s.accuracy.map(f64::from)).collect(),
            num_tokens: num_tokens.to_vec(),
        }
    }

    /// Number of answers.
    pub fn len(&self) -> usize {
        self.totals.len()
    }

    /// Whether there are no answers.
    pub fn is_empty(&self) -> bool {
        self.totals.is_empty()
    }

    /// Mean accuracy over the answers where it is known.
    pub fn mean_accuracy(&self) -> Option<f64> {
        let known: Vec<f64> = self.accuracy.iter().flatten().copied().collect();
        (!known.is_empty()).then(|| mean(&known))
    }
}

/// Whether values have a spread that means something.
pub fn has_spread(values: &[f64]) -> bool {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for &value in values {
        (low, high) = (low.min(value), high.max(value));
    }
    values.len() >= 2 && high - low > 1e-6 * mean(values).abs().max(1.0)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

// Standard deviation with n - `less` in the denominator.
fn std(values: &[f64], less: usize) -> f64 {
    let m = mean(values);
    let denominator = values.len().saturating_sub(less).max(1) as f64;
    (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / denominator).sqrt()
}

/// One advantage per answer of each group. `part_weights` are the weights of the reward terms (GDPO adds the terms
/// itself). Groups must be all groups of the step: some presets look across them.
pub fn advantages(groups: &[GroupRewards], part_weights: &[f64], spec: &AdvantageSpec) -> Vec<Vec<f64>> {
    let mut advantages = match spec.combine {
        Combine::SumFirst => {
            let all: Vec<f64> = groups.iter().flat_map(|g| g.totals.iter().flatten().copied()).collect();
            let batch_std = std(&all, 1);
            groups.iter().map(|group| normalise(&group.totals, spec, batch_std)).collect()
        }
        Combine::NormaliseFirst => normalise_first(groups, part_weights, spec),
    };
    match spec.whiten {
        Whiten::None => {}
        Whiten::Token => whiten(groups, &mut advantages, true),
        Whiten::Sequence => whiten(groups, &mut advantages, false),
    }
    for (group, advantages) in groups.iter().zip(&mut advantages) {
        let factor = group.mean_accuracy().map_or(1.0, |accuracy| difficulty::weight(&spec.weight, accuracy));
        if factor != 1.0 {
            advantages.iter_mut().for_each(|a| *a *= factor);
        }
    }
    advantages
}

// One group by baseline and scale.
fn normalise(values: &[Option<f64>], spec: &AdvantageSpec, batch_std: f64) -> Vec<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    if !has_spread(&known) {
        return vec![0.0; values.len()];
    }
    let (m, n) = (mean(&known), known.len() as f64);
    let eps = spec.eps.unwrap_or(if spec.baseline == Baseline::SecondBest { 1e-6 } else { 1e-4 });
    let divisor = match spec.scale {
        Scale::SampleStd => std(&known, 1) + eps,
        Scale::PopulationStd => std(&known, 0) + eps,
        Scale::BatchStd => batch_std + eps,
        Scale::GroupMean if m > 0.0 => m,
        Scale::GroupMean => return vec![0.0; values.len()],
        Scale::None => 1.0,
    };
    if spec.baseline == Baseline::SecondBest {
        return lead_of_the_best(values, divisor);
    }
    let factor = if spec.baseline == Baseline::LeaveOneOut { n / (n - 1.0) } else { 1.0 };
    values.iter().map(|value| value.map_or(0.0, |value| factor * (value - m) / divisor)).collect()
}

fn lead_of_the_best(values: &[Option<f64>], divisor: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| values[i].is_some()).collect();
    // Stable: of equals the first stays first, and then its lead is 0 anyway.
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap_or(std::cmp::Ordering::Equal));
    let mut advantages = vec![0.0; values.len()];
    if let [best, second, ..] = order.as_slice() {
        let lead = values[*best].unwrap_or(0.0) - values[*second].unwrap_or(0.0);
        advantages[*best] = lead / divisor;
    }
    advantages
}

// GDPO: every term is normalised in its group, the weighted sum over the step.
fn normalise_first(groups: &[GroupRewards], part_weights: &[f64], spec: &AdvantageSpec) -> Vec<Vec<f64>> {
    let eps = spec.eps.unwrap_or(1e-4);
    let mut sums: Vec<Vec<f64>> = Vec::with_capacity(groups.len());
    for group in groups {
        let mut sum = vec![0.0; group.len()];
        for (part, weight) in part_weights.iter().enumerate() {
            let scored = |i: usize| group.totals[i].and(group.parts[i].get(part).copied().flatten());
            let values: Vec<Option<f64>> = (0..group.len()).map(scored).collect();
            for (sum, z) in sum.iter_mut().zip(normalise(&values, spec, 1.0)) {
                *sum += weight * z;
            }
        }
        sums.push(sum);
    }
    let known: Vec<f64> = groups
        .iter()
        .zip(&sums)
        .flat_map(|(group, sum)| group.totals.iter().zip(sum).filter(|(total, _)| total.is_some()).map(|(_, s)| *s))
        .collect();
    if !has_spread(&known) {
        return sums.into_iter().map(|sum| vec![0.0; sum.len()]).collect();
    }
    let (m, s) = (mean(&known), std(&known, 1));
    let dead: Vec<bool> = sums.iter().map(|sum| sum.iter().all(|s| *s == 0.0)).collect();
    groups
        .iter()
        .zip(sums)
        .zip(dead)
        .map(|((group, sum), dead)| {
            let scored = group.totals.iter().zip(sum);
            scored.map(|(total, v)| if dead || total.is_none() { 0.0 } else { (v - m) / (s + eps) }).collect()
        })
        .collect()
}

// Groups without spread take part in the statistics with their zeros and stay exactly 0.
fn whiten(groups: &[GroupRewards], advantages: &mut [Vec<f64>], by_token: bool) {
    let mut entries = Vec::new();
    for (group, row) in groups.iter().zip(advantages.iter()) {
        for i in 0..group.len() {
            if group.totals[i].is_some() {
                let weight = if by_token { group.num_tokens[i] as f64 } else { 1.0 };
                entries.push((row[i], weight));
            }
        }
    }
    let total: f64 = entries.iter().map(|(_, w)| w).sum();
    if total <= 1.0 {
        return;
    }
    let m = entries.iter().map(|(a, w)| a * w).sum::<f64>() / total;
    let variance = entries.iter().map(|(a, w)| w * (a - m).powi(2)).sum::<f64>() / (total - 1.0);
    let divisor = (variance + 1e-8).sqrt();
    for (group, row) in groups.iter().zip(advantages.iter_mut()) {
        if row.iter().all(|a| *a == 0.0) {
            continue;
        }
        for (a, total) in row.iter_mut().zip(&group.totals) {
            *a = if total.is_some() { (*a - m) / divisor } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(totals: &[f64]) -> GroupRewards {
        GroupRewards {
            totals: totals.iter().map(|t| Some(*t)).collect(),
            num_tokens: vec![3; totals.len()],
            ..Default::default()
        }
    }

    fn check(spec: &AdvantageSpec, groups: &[GroupRewards], want: &[f64]) {
        let got: Vec<f64> = advantages(groups, &[], spec).concat();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} for {want} by {spec:?}");
        }
    }

    #[test]
    fn golden_grpo() {
        let grpo = AdvantageSpec::default();
        let eighth = [2.474174, -0.353453, -0.353453, -0.353453, -0.353453, -0.353453, -0.353453, -0.353453];
        check(&grpo, &[group(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])], &eighth);
        check(&grpo, &[group(&[1.0, 1.0, 1.0, 0.999])], &[0.416667, 0.416667, 0.416667, -1.25]);
        check(&grpo, &[group(&[2.0, 2.0, 1.0, 0.0])], &[0.783268, 0.783268, -0.261089, -1.305446]);
        let four: Vec<f64> = advantages(&[group(&[1.0, 0.0, 0.0, 0.0])], &[], &grpo).concat();
        assert!((four[0] - 1.4997).abs() < 1e-4 && (four[1] + 0.4999).abs() < 1e-4);
        let population = AdvantageSpec { scale: Scale::PopulationStd, ..Default::default() };
        check(&population, &[group(&[1.0, 0.0, 0.0, 0.0])], &[1.731651, -0.577217, -0.577217, -0.577217]);
        check(&population, &[group(&[2.0, 2.0, 1.0, 0.0])], &[0.904425, 0.904425, -0.301475, -1.507375]);
    }

    #[test]
    fn golden_relatives() {
        let dr = AdvantageSpec { scale: Scale::None, ..Default::default() };
        check(&dr, &[group(&[2.0, 2.0, 1.0, 0.0])], &[0.75, 0.75, -0.25, -1.25]);
        let rloo = AdvantageSpec { baseline: Baseline::LeaveOneOut, ..dr.clone() };
        check(&rloo, &[group(&[2.0, 2.0, 1.0, 0.0])], &[1.0, 1.0, -1.0 / 3.0, -5.0 / 3.0]);
        let two = [group(&[1.0, 0.0, 0.0, 0.0]), group(&[1.0, 1.0, 1.0, 0.0])];
        let spread = |a: f64, b: f64| [a, b, b, b, -b, -b, -b, -a];
        let batch = AdvantageSpec { scale: Scale::BatchStd, ..Default::default() };
        check(&batch, &two, &spread(1.402859, -0.46762));
        let sequence = AdvantageSpec { whiten: Whiten::Sequence, ..dr.clone() };
        check(&sequence, &two, &spread(1.620185, -0.540062));
        let mut lengths = two.to_vec();
        lengths[0].num_tokens = vec![2, 4, 4, 4];
        lengths[1].num_tokens = vec![2, 2, 2, 8];
        let token = AdvantageSpec { whiten: Whiten::Token, ..dr };
        let want = [2.143487, -0.079388, -0.079388, -0.079388, 1.032049, 1.032049, 1.032049, -1.190826];
        check(&token, &lengths, &want);
        let maxrl = AdvantageSpec { scale: Scale::GroupMean, ..Default::default() };
        check(&maxrl, &[group(&[1.0, 0.0, 0.0, 0.0]), group(&[-1.0, 0.0])], &[3.0, -1.0, -1.0, -1.0, 0.0, 0.0]);
        let best = AdvantageSpec { baseline: Baseline::SecondBest, ..Default::default() };
        let s = std(&[2.0, 3.0, 1.0], 1) + 1e-6;
        check(&best, &[group(&[2.0, 3.0, 1.0])], &[0.0, 1.0 / s, 0.0]);
        check(&best, &[group(&[3.0, 3.0, 1.0])], &[0.0, 0.0, 0.0]);
    }

    #[test]
    fn golden_gdpo() {
        let with_parts = |rows: &[(f64, f64)]| GroupRewards {
            totals: rows.iter().map(|(a, b)| Some(a + 0.5 * b)).collect(),
            parts: rows.iter().map(|(a, b)| vec![Some(*a), Some(*b)]).collect(),
            num_tokens: vec![1; rows.len()],
            ..Default::default()
        };
        let groups = [
            with_parts(&[(1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (0.0, 1.0)]),
            with_parts(&[(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]),
        ];
        let gdpo = AdvantageSpec { combine: Combine::NormaliseFirst, ..Default::default() };
        let got: Vec<f64> = advantages(&groups, &[1.0, 0.5], &gdpo).concat();
        let want = [1.779552, -0.254222, -1.271109, -0.254222, 1.134895, 0.118008, -0.626452, -0.626452];
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} for {want}");
        }
        let sum = [1.390538, -0.198648, -0.993241, -0.198648, 1.30531, 0.261062, -0.783186, -0.783186];
        check(&AdvantageSpec::default(), &groups, &sum);
    }

    #[test]
    fn golden_unknown_and_no_spread() {
        let mut unknown = group(&[1.0, 0.0, 0.0, 0.0]);
        unknown.totals[2] = None;
        check(&AdvantageSpec::default(), &[unknown], &[1.154501, -0.57725, 0.0, -0.57725]);
        let tiny = 0.1 + 0.2;
        check(&AdvantageSpec::default(), &[group(&[tiny, 0.3, tiny])], &[0.0; 3]);
        let mut alone = group(&[1.0, 0.0]);
        alone.totals[1] = None;
        check(&AdvantageSpec::default(), &[alone], &[0.0, 0.0]);
        let whitened = AdvantageSpec { whiten: Whiten::Token, scale: Scale::None, ..Default::default() };
        let got = advantages(&[group(&[1.0, 1.0]), group(&[1.0, 0.0])], &[], &whitened);
        assert_eq!(got[0], [0.0, 0.0], "a group without spread stays exactly 0");
    }

    #[test]
    fn binary_rewards_follow_the_closed_form() {
        for (g, c) in [(2usize, 1usize), (4, 1), (8, 3), (8, 7)] {
            let totals: Vec<f64> = (0..g).map(|i| f64::from(u8::from(i < c))).collect();
            let spec = AdvantageSpec { eps: Some(0.0), ..Default::default() };
            let got = advantages(&[group(&totals)], &[], &spec).concat();
            let (p, shrink) = (c as f64 / g as f64, (g as f64 - 1.0) / g as f64);
            assert!((got[0] - (shrink * (1.0 - p) / p).sqrt()).abs() < 1e-9);
            assert!((got[g - 1] + (shrink * p / (1.0 - p)).sqrt()).abs() < 1e-9);
        }
    }

    #[test]
    fn specs_read_from_toml() {
        let spec: AdvantageSpec = toml::from_str("scale = 'batch_std'\nweight = 'odsw_hard'").expect("spec");
        assert_eq!((spec.scale, spec.weight), (Scale::BatchStd, GroupWeight::OdswHard));
        let spec: AdvantageSpec = toml::from_str("weight = { window = [0.25, 0.75] }").expect("spec");
        assert_eq!(spec.weight, GroupWeight::Window([0.25, 0.75]));
        assert!(toml::from_str::<AdvantageSpec>("scal = 'none'").is_err());
    }

    proptest! {
        #[test]
        fn shifts_scales_and_permutations(
            rewards in proptest::collection::vec(-3.0f64..3.0, 2..9),
            shift in -5.0f64..5.0,
            factor in 0.5f64..4.0,
        ) {
            prop_assume!(has_spread(&rewards));
            for scale in [Scale::SampleStd, Scale::PopulationStd, Scale::None] {
                let spec = AdvantageSpec { scale, eps: Some(1e-12), ..Default::default() };
                let of = |rewards: &[f64]| advantages(&[group(rewards)], &[], &spec).concat();
                let base = of(&rewards);
                prop_assert!(base.iter().sum::<f64>().abs() < 1e-6);
                let shifted: Vec<f64> = rewards.iter().map(|r| r + shift).collect();
                for (a, b) in of(&shifted).iter().zip(&base) {
                    prop_assert!((a - b).abs() < 1e-5);
                }
                if scale != Scale::None {
                    let scaled: Vec<f64> = rewards.iter().map(|r| r * factor).collect();
                    for (a, b) in of(&scaled).iter().zip(&base) {
                        prop_assert!((a - b).abs() < 1e-5);
                    }
                }
                let reversed: Vec<f64> = rewards.iter().rev().copied().collect();
                for (a, b) in of(&reversed).iter().rev().zip(&base) {
                    prop_assert!((a - b).abs() < 1e-9);
                }
            }
        }
    }
}
