//! Decides per group whether to explore (learn from the sampled answers) or to memorise (learn one reference target),
//! and which advantage every answer gets (methods 2.3, 2.4). DyME, arXiv 2506.23061, is the kind `any_correct`.
//! Sees rewards, never tokens. Cost: none.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::advantage::{AdvantageSpec, GroupRewards, advantages};

/// How groups are chosen; knobs that are left out follow from the kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectorSpec {
    /// Who decides.
    pub kind: SelectorKind,
    /// An answer is a success above this value: of the accuracy, or of the mean reward for `threshold` (there 0.9).
    pub success: Option<f64>,
    /// Which answer of the group the target replaces.
    pub slot: Option<Slot>,
    /// Advantage of the target: a number, `"cosine"` (falls from 1 to 0 over the run) or `"onehot"` (as loud as the
    /// only right answer of its group would be).
    pub weight: Option<TargetWeight>,
    /// What becomes of the other answers of a memorised group.
    pub siblings: Option<Siblings>,
    /// Groups in which every answer is right teach nothing, even if other rewards differ.
    pub skip_all_correct: Option<bool>,
    /// Whether the replaced answer's reward still counts in the group's statistics.
    pub stats_include_replaced: Option<bool>,
    /// Targets that `replay` collects before it makes a step of them.
    pub budget: Option<usize>,
    /// `replay`: targets beyond the budget are forgotten when a step is made of the first ones, as released.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forgetful: bool,
}

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectorKind {
    /// Always explore: plain GRPO.
    #[default]
    Never,
    /// Always memorise: supervised fine-tuning.
    Always,
    /// Explore if any answer is right, else memorise: DyME.
    AnyCorrect,
    /// The same, where right means a mean reward above `success`.
    Threshold,
    /// The target always takes one slot, with a weight that falls over the run.
    Anneal,
    /// Failed groups put their target in a queue; a full queue becomes a supervised step of its own.
    Replay,
}

/// Which answer the target replaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The first answer of the group.
    #[default]
    First,
    /// The last one.
    Last,
}

/// What becomes of the other answers of a memorised group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Siblings {
    /// They teach nothing (they still count in the denominators that count all sequences).
    #[default]
    Zero,
    /// They keep their own advantages.
    Keep,
}

/// Advantage of the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TargetWeight {
    /// This number.
    Fixed(f64),
    /// `(1 + cos(pi step / steps)) / 2`.
    Cosine,
    /// What GRPO gives to the only success of a group: `(G-1)/sqrt(G)` before eps.
    OneHot,
}

impl Serialize for TargetWeight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TargetWeight::Fixed(value) => serializer.serialize_f64(*value),
            TargetWeight::Cosine => serializer.serialize_str("cosine"),
            TargetWeight::OneHot => serializer.serialize_str("onehot"),
        }
    }
}

impl<'de> Deserialize<'de> for TargetWeight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(f64),
            Word(String),
        }
        match Raw::deserialize(deserializer) {
            Ok(Raw::Number(value)) if value.is_finite() => Ok(TargetWeight::Fixed(value)),
            Ok(Raw::Word(word)) if word == "cosine" => Ok(TargetWeight::Cosine),
            Ok(Raw::Word(word)) if word == "onehot" => Ok(TargetWeight::OneHot),
            _ => Err(D::Error::custom("the weight of a target is a number, \"cosine\" or \"onehot\"")),
        }
    }
}

/// A selector with every knob decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector {
    /// Who decides.
    pub kind: SelectorKind,
    /// Bound of a success, exclusive.
    pub success: f64,
    /// Which answer the target replaces.
    pub slot: Slot,
    /// Advantage of the target.
    pub weight: TargetWeight,
    /// What becomes of the others.
    pub siblings: Siblings,
    /// Whether all-correct groups are skipped.
    pub skip_all_correct: bool,
    /// Whether the replaced answer's reward still counts.
    pub stats_include_replaced: bool,
    /// Size of a replayed step.
    pub budget: usize,
    /// Whether a replayed step forgets the targets beyond its budget.
    pub forgetful: bool,
}

impl SelectorSpec {
    /// Decides what the recipe leaves open.
    pub fn resolve(&self) -> Selector {
        let anneal = self.kind == SelectorKind::Anneal;
        let keep = anneal || self.kind == SelectorKind::Replay;
        let switch = matches!(self.kind, SelectorKind::AnyCorrect | SelectorKind::Threshold);
        Selector {
            kind: self.kind,
            success: self.success.unwrap_or(if self.kind == SelectorKind::Threshold { 0.9 } else { 0.5 }),
            slot: self.slot.unwrap_or(if anneal { Slot::Last } else { Slot::First }),
            weight: self.weight.unwrap_or(if anneal { TargetWeight::Cosine } else { TargetWeight::Fixed(1.0) }),
            siblings: self.siblings.unwrap_or(if keep { Siblings::Keep } else { Siblings::Zero }),
            skip_all_correct: self.skip_all_correct.unwrap_or(switch),
            stats_include_replaced: self.stats_include_replaced.unwrap_or(true),
            budget: self.budget.unwrap_or(192),
            forgetful: self.forgetful,
        }
    }
}

impl Selector {
    /// Whether groups may need a reference target.
    pub fn needs_targets(&self) -> bool {
        self.kind != SelectorKind::Never
    }
}

/// What a group is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Learn from the sampled answers.
    Explore,
    /// Learn the target.
    Memorise,
    /// Learn nothing.
    Skip,
}

/// The decision about one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupPlan {
    /// What it is used for.
    pub mode: Mode,
    /// Advantage per answer (that of the target in its slot).
    pub advantages: Vec<f64>,
    /// The slot that holds the target in place of a sampled answer.
    pub target_slot: Option<usize>,
    /// Whether the target goes into the replay queue.
    pub queue_target: bool,
}

/// Decides about all groups of a step. `progress` is step / steps of the stage.
pub fn select(
    groups: &[GroupRewards],
    part_weights: &[f64],
    advantage: &AdvantageSpec,
    selector: &Selector,
    progress: f64,
) -> Vec<GroupPlan> {
    let slot_of = |group: &GroupRewards| match selector.slot {
        Slot::First => 0,
        Slot::Last => group.len().saturating_sub(1),
    };
    let modes: Vec<Mode> = groups.iter().map(|group| mode(group, selector)).collect();
    let injects = |mode: Mode| mode == Mode::Memorise && selector.kind != SelectorKind::Replay;

    let all = if selector.stats_include_replaced {
        advantages(groups, part_weights, advantage)
    } else {
        let mut without: Vec<GroupRewards> = groups.to_vec();
        for (group, mode) in without.iter_mut().zip(&modes) {
            let slot = slot_of(group);
            if injects(*mode) && !group.is_empty() {
                group.totals[slot] = None;
            }
        }
        advantages(&without, part_weights, advantage)
    };

    let mut plans = Vec::with_capacity(groups.len());
    for ((group, mode), mut advantages) in groups.iter().zip(modes).zip(all) {
        let mut plan = GroupPlan { mode, advantages: Vec::new(), target_slot: None, queue_target: false };
        match mode {
            Mode::Explore => {}
            Mode::Skip => advantages.iter_mut().for_each(|a| *a = 0.0),
            Mode::Memorise => {
                if selector.siblings == Siblings::Zero {
                    advantages.iter_mut().for_each(|a| *a = 0.0);
                }
                if selector.kind == SelectorKind::Replay {
                    plan.queue_target = true;
                } else if !group.is_empty() {
                    let slot = slot_of(group);
                    advantages[slot] = target_weight(selector.weight, group.len(), advantage, progress);
                    plan.target_slot = Some(slot);
                }
            }
        }
        plan.advantages = advantages;
        plans.push(plan);
    }
    plans
}

fn mode(group: &GroupRewards, selector: &Selector) -> Mode {
    let successes: Vec<Option<bool>> = match selector.kind {
        SelectorKind::Never if !selector.skip_all_correct => return Mode::Explore,
        SelectorKind::Always | SelectorKind::Anneal => return Mode::Memorise,
        SelectorKind::Threshold => {
            (0..group.len()).map(|i| mean_part(group, i).map(|m| m > selector.success)).collect()
        }
        _ => group.accuracy.iter().map(|a| a.map(|a| a > selector.success)).collect(),
    };
    // An answer whose judge failed decides nothing: it could have been right.
    let known: Vec<bool> = successes.into_iter().flatten().collect();
    if known.is_empty() {
        return if selector.kind == SelectorKind::Never { Mode::Explore } else { Mode::Skip };
    }
    let any = known.contains(&true);
    if selector.skip_all_correct && known.iter().all(|right| *right) {
        Mode::Skip
    } else if any || selector.kind == SelectorKind::Never {
        Mode::Explore
    } else {
        Mode::Memorise
    }
}

// Plain mean of the reward terms, as the published variant divides their sum by three.
fn mean_part(group: &GroupRewards, index: usize) -> Option<f64> {
    let parts = group.parts.get(index)?;
    let known: Option<Vec<f64>> = parts.iter().copied().collect();
    known.filter(|k| !k.is_empty()).map(|known| known.iter().sum::<f64>() / known.len() as f64)
}

fn target_weight(weight: TargetWeight, size: usize, advantage: &AdvantageSpec, progress: f64) -> f64 {
    match weight {
        TargetWeight::Fixed(value) => value,
        TargetWeight::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.clamp(0.0, 1.0)).cos()),
        TargetWeight::OneHot => {
            let g = size as f64;
            let eps = advantage.eps.unwrap_or(1e-4);
            // (1 - 1/G) over the sample deviation 1/sqrt(G) of a one-hot reward.
            (1.0 - 1.0 / g) / (1.0 / g.sqrt() + eps)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rewards of DyME: format 1, thinking as given, accuracy as given.
    fn group(accuracy: &[f64], thinking: &[f64]) -> GroupRewards {
        GroupRewards {
            totals: accuracy.iter().zip(thinking).map(|(a, t)| Some(1.0 + a + t)).collect(),
            parts: accuracy.iter().zip(thinking).map(|(a, t)| vec![Some(1.0), Some(*t), Some(*a)]).collect(),
            accuracy: accuracy.iter().map(|a| Some(*a)).collect(),
            num_tokens: vec![3; accuracy.len()],
        }
    }

    fn run(spec: &SelectorSpec, groups: &[GroupRewards], progress: f64) -> Vec<GroupPlan> {
        select(groups, &[1.0; 3], &AdvantageSpec::default(), &spec.resolve(), progress)
    }

    fn near(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} for {want}");
        }
    }

    #[test]
    fn golden_dyme() {
        let dyme = SelectorSpec { kind: SelectorKind::AnyCorrect, ..Default::default() };
        let thinking = [0.2, 0.4, 0.1, 0.3];
        let groups =
            [group(&[0.0; 4], &thinking), group(&[1.0; 4], &thinking), group(&[0.0, 1.0, 0.0, 0.0], &thinking)];
        let plans = run(&dyme, &groups, 0.0);
        assert_eq!(plans.iter().map(|p| p.mode).collect::<Vec<_>>(), [Mode::Memorise, Mode::Skip, Mode::Explore]);
        near(&plans[0].advantages, &[1.0, 0.0, 0.0, 0.0]);
        assert_eq!((plans[0].target_slot, plans[1].target_slot, plans[2].target_slot), (Some(0), None, None));
        near(&plans[1].advantages, &[0.0; 4]);
        near(&plans[2].advantages, &[-0.495352, 1.486056, -0.660469, -0.330235]);
        // A right answer with poor thinking may be pushed down.
        let negative = group(&[0.0, 1.0, 1.0, 0.0], &[0.0; 4]);
        let mut negative = GroupRewards { totals: [2.1, 2.9, 2.9, 1.9].map(Some).to_vec(), ..negative };
        negative.accuracy = [1.0, 0.0, 0.0, 0.0].map(Some).to_vec();
        near(&run(&dyme, &[negative], 0.0)[0].advantages, &[-0.665284, 0.855365, 0.855365, -1.045446]);
    }

    #[test]
    fn every_switch() {
        let failed = [group(&[0.0; 4], &[0.2, 0.4, 0.1, 0.3])];
        let dyme = SelectorSpec { kind: SelectorKind::AnyCorrect, ..Default::default() };
        let last = SelectorSpec { slot: Some(Slot::Last), weight: Some(TargetWeight::Fixed(0.5)), ..dyme.clone() };
        near(&run(&last, &failed, 0.0)[0].advantages, &[0.0, 0.0, 0.0, 0.5]);
        let keep = SelectorSpec { siblings: Some(Siblings::Keep), ..dyme.clone() };
        let plan = run(&keep, &failed, 0.0).remove(0);
        assert!(plan.advantages[0] == 1.0 && plan.advantages[1] > 1.0 && plan.advantages[2] < 0.0);
        let fresh = SelectorSpec { stats_include_replaced: Some(false), ..keep };
        let plan = run(&fresh, &failed, 0.0).remove(0);
        assert!((plan.advantages[1..].iter().sum::<f64>()).abs() < 1e-9, "the others are centred among themselves");
        let no_skip = SelectorSpec { skip_all_correct: Some(false), ..dyme.clone() };
        let solved = [group(&[1.0; 4], &[0.2, 0.4, 0.1, 0.3])];
        assert_eq!(run(&no_skip, &solved, 0.0)[0].mode, Mode::Explore);
        let onehot = SelectorSpec { weight: Some(TargetWeight::OneHot), ..dyme.clone() };
        assert!((run(&onehot, &failed, 0.0)[0].advantages[0] - 1.4997).abs() < 1e-4);
        let strict = SelectorSpec { success: Some(0.9), ..dyme };
        assert_eq!(run(&strict, &[group(&[0.8, 0.0], &[0.0, 0.1])], 0.0)[0].mode, Mode::Memorise);
    }

    #[test]
    fn variants() {
        let mixed = group(&[0.0, 1.0, 0.0, 0.0], &[0.2, 0.4, 0.1, 0.3]);
        let failed = group(&[0.0; 4], &[0.2, 0.4, 0.1, 0.3]);
        let never = run(&SelectorSpec::default(), std::slice::from_ref(&failed), 0.0).remove(0);
        assert!(never.mode == Mode::Explore && never.target_slot.is_none() && never.advantages[1] > 0.0);
        let always = SelectorSpec { kind: SelectorKind::Always, ..Default::default() };
        let plan = run(&always, std::slice::from_ref(&mixed), 0.0).remove(0);
        assert_eq!((plan.mode, plan.advantages), (Mode::Memorise, vec![1.0, 0.0, 0.0, 0.0]));
        let threshold = SelectorSpec { kind: SelectorKind::Threshold, ..Default::default() };
        assert_eq!(run(&threshold, std::slice::from_ref(&mixed), 0.0)[0].mode, Mode::Memorise, "mean of parts is 0.8");
        let loose = SelectorSpec { success: Some(0.5), ..threshold };
        assert_eq!(run(&loose, std::slice::from_ref(&mixed), 0.0)[0].mode, Mode::Explore);
        let anneal = SelectorSpec { kind: SelectorKind::Anneal, ..Default::default() };
        for (progress, want) in [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)] {
            let plan = run(&anneal, std::slice::from_ref(&mixed), progress).remove(0);
            assert!((plan.advantages[3] - want).abs() < 1e-9 && plan.target_slot == Some(3));
            assert!((plan.advantages[1] - 1.486056).abs() < 1e-6);
        }
        let replay = SelectorSpec { kind: SelectorKind::Replay, ..Default::default() };
        let plan = run(&replay, &[failed], 0.0).remove(0);
        assert!(plan.queue_target && plan.target_slot.is_none() && plan.advantages[1] > 0.0);
        assert!(!run(&replay, &[mixed], 0.0)[0].queue_target);
    }

    #[test]
    fn unknown_answers_decide_nothing() {
        let dyme = SelectorSpec { kind: SelectorKind::AnyCorrect, ..Default::default() };
        let mut group = group(&[0.0, 0.0], &[0.1, 0.2]);
        group.accuracy = vec![None, None];
        group.totals = vec![None, None];
        assert_eq!(run(&dyme, &[group], 0.0)[0].mode, Mode::Skip);
    }

    #[test]
    fn recipes_read() {
        let spec: SelectorSpec = toml::from_str(
            "kind = 'any_correct'\nsuccess = 0.5\nslot = 'first'\nweight = 1.0\nsiblings = 'zero'\nskip_all_correct = true",
        )
        .expect("dyme");
        assert_eq!(spec.resolve(), SelectorSpec { kind: SelectorKind::AnyCorrect, ..Default::default() }.resolve());
        let spec: SelectorSpec = toml::from_str("kind = 'anneal'\nweight = 'cosine'").expect("anneal");
        assert_eq!(spec.weight, Some(TargetWeight::Cosine));
        assert!(toml::from_str::<SelectorSpec>("weight = 'sine'").is_err());
        assert!(toml::from_str::<SelectorSpec>("kind = 'any_corect'").is_err());
        assert!(toml::from_str::<SelectorSpec>("weights = 1").is_err());
    }
}
