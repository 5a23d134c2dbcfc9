//! The update rule of a stage: a named preset, its knobs, and the two derivatives per trained token that it answers
//! with (methods 1.6, 1.12). A pure function over the flat columns of a `TokenBatch`; no model, no device.
//! Cost: a few exponentials per trained token, in f64.

use foveate_model::batch::{Derivatives, HeadOutput, TokenBatch};
use serde::{Deserialize, Serialize};

use super::UpdateError;
use super::entropy::EntropySpec;
use super::kl::{KlSpec, Place};
use super::knob::number_or_table;
use super::mismatch::{MismatchMode, MismatchSpec};
use super::reduction::{Count, Reduction};
use super::rules::{self, Clip, Held, Sequence, Term, cispo, gmpo, sapo, vespo};
use super::sums::RuleStats;

/// The update rule. `kind` names a preset; every other knob that is left out follows from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuleSpec {
    /// The preset.
    pub kind: RuleKind,
    /// Bounds of the ratio, `[low, high]`: it stops counting below `1 - low` and above `1 + high`. A higher upper
    /// bound (0.28) lets rare tokens grow. Inert while `updates = 1`. For `gmpo`: bounds of the log-ratio.
    pub clip: Option<[f64; 2]>,
    /// Ratio at which bad answers stop counting; 3 is customary. Off unless set.
    pub dual_clip: Option<f64>,
    /// Whether tokens or whole answers are clipped (for the clipped rules).
    pub ratio: Option<Ratio>,
    /// `cispo`: largest factor, 5 unless set.
    pub cap: Option<f64>,
    /// `cispo`: clamps the factor into the bounds of `clip` on both sides, in place of `cap`.
    pub floor: bool,
    /// How token losses become one loss.
    pub reduction: Option<Reduction>,
    /// Which sequences enter the denominators. The published systems count `all`.
    pub count: Count,
    /// Sequences of a micro-batch that has denominators of its own, the micro-batches being averaged: reproduces curves of
    /// trainers that do so. Leave it out: one denominator for the whole step lets every token count as the rule says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Distance to the reference: a number (beta) or a table.
    #[serde(deserialize_with = "number_or_table")]
    pub kl: KlSpec,
    /// Entropy bonus: a number (alpha) or a table.
    #[serde(deserialize_with = "number_or_table")]
    pub entropy: EntropySpec,
    /// Correction for a foreign or stale sampler.
    pub mismatch: MismatchSpec,
    /// Tokens and answers that are left out.
    pub mask: MaskSpec,
    /// Multiplies supervised tokens by `p (1 - p)` (CHORD-phi).
    pub phi: bool,
}

/// Named presets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Supervised fine-tuning: every sequence is a target.
    Sft,
    /// Clipped policy gradient, mean over each answer, then over answers.
    #[default]
    Grpo,
    /// The same, summed over tokens and divided by a constant.
    DrGrpo,
    /// Another name of `dapo` with symmetric bounds: under one global denominator both are the same.
    Bnpo,
    /// Clip-higher, mean over all tokens.
    Dapo,
    /// Bounded ratio as a factor, never switched off.
    Cispo,
    /// Clipped ratio of whole answers.
    Gspo,
    /// Geometric mean of clipped token ratios.
    Gmpo,
    /// Soft gate in place of the clip.
    Sapo,
    /// Clipped ratio of whole answers, long answers in full.
    Luspo,
    /// Smooth weight of the whole answer's ratio.
    Vespo,
}

/// What is clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// Each token's ratio.
    Token,
    /// The ratio of the whole answer.
    Sequence,
}

/// Tokens and answers that are left out of the policy term.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskSpec {
    /// Answers cut off by the length limit teach nothing. Use it when the limit is tight and cut answers are not wrong
    /// for their content.
    pub truncated: bool,
    /// Such answers also leave the group's baseline and spread.
    pub from_stats: bool,
    /// Share of the loss tokens to keep, those of highest entropy (0.2 is published). All unless set.
    pub top_entropy: Option<f64>,
    /// Bad answers whose log-probability fell by more than this per token since sampling are left out; 0.5 is
    /// published. Off unless set.
    pub off_policy: Option<f64>,
}

/// What a rule computes on the tokens of one answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Surrogate {
    /// Every token is supervised.
    Supervised,
    /// `grpo.rs`.
    TokenClip(Clip),
    /// `gspo.rs`.
    SequenceClip(Clip),
    /// `cispo.rs`.
    Cispo(cispo::Bound),
    /// `gmpo.rs`.
    Gmpo(gmpo::LogClip),
    /// `sapo.rs`.
    Sapo(sapo::Gate),
    /// `vespo.rs`.
    Vespo(vespo::Shape),
}

/// A rule with every knob decided. `beta` and `alpha` move during a run; the loop sets them before each step.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The preset it came from.
    pub kind: RuleKind,
    /// What it computes.
    pub surrogate: Surrogate,
    /// How token losses become one loss.
    pub reduction: Reduction,
    /// Which sequences enter the denominators.
    pub count: Count,
    /// Sequences of a micro-batch with denominators of its own.
    pub micro_batch: Option<usize>,
    /// The KL term.
    pub kl: KlSpec,
    /// The entropy term.
    pub entropy: EntropySpec,
    /// Correction for a foreign sampler.
    pub mismatch: MismatchSpec,
    /// What is left out.
    pub mask: MaskSpec,
    /// CHORD-phi on supervised tokens.
    pub phi: bool,
    /// Strength of the KL term in the coming step.
    pub beta: f64,
    /// Strength of the entropy term in the coming step.
    pub alpha: f64,
}

impl RuleSpec {
    /// A preset without overrides.
    pub fn preset(kind: RuleKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// Decides what the recipe leaves open and refuses knobs that the preset does not have.
    pub fn resolve(&self) -> Result<Rule, UpdateError> {
        let refuse = |why: &str| Err(UpdateError::Rule { kind: self.kind, why: why.to_string() });
        let clip = |default: Clip| {
            let [low, high] = self.clip.unwrap_or([default.low, default.high]);
            Clip { low, high, dual: self.dual_clip }
        };
        if let Some([low, high]) = self.clip
            && !(low >= 0.0 && high >= 0.0 && high.is_finite() && (low <= 1.0 || self.kind == RuleKind::Gmpo))
        {
            return refuse("clip needs two numbers [low, high] of at least 0, low at most 1");
        }
        let clipped = matches!(
            self.kind,
            RuleKind::Grpo | RuleKind::DrGrpo | RuleKind::Bnpo | RuleKind::Dapo | RuleKind::Gspo | RuleKind::Luspo
        );
        if (self.ratio.is_some() || self.dual_clip.is_some()) && !clipped {
            return refuse("ratio and dual_clip belong to the clipped rules (grpo, dr_grpo, bnpo, dapo, gspo, luspo)");
        }
        if (self.cap.is_some() || self.floor) && self.kind != RuleKind::Cispo {
            return refuse("cap and floor belong to cispo");
        }
        if self.floor && self.cap.is_some() {
            return refuse("floor clamps between the bounds of clip; drop cap");
        }
        if self.clip.is_some()
            && (matches!(self.kind, RuleKind::Sft | RuleKind::Sapo | RuleKind::Vespo)
                || (self.kind == RuleKind::Cispo && !self.floor))
        {
            return refuse("this rule has no clip");
        }
        let (default_clip, sequence) = match self.kind {
            RuleKind::Dapo => (rules::dapo::CLIP, false),
            RuleKind::Gspo => (rules::gspo::CLIP, true),
            RuleKind::Luspo => (rules::luspo::CLIP, true),
            _ => (rules::grpo::CLIP, false),
        };
        let clip = clip(default_clip);
        if clip.dual.is_some_and(|dual| dual.is_nan() || dual <= 1.0 + clip.high) {
            return refuse("dual_clip must lie above 1 + the upper clip");
        }
        let ratio = self.ratio.unwrap_or(if sequence { Ratio::Sequence } else { Ratio::Token });
        let surrogate = match self.kind {
            RuleKind::Sft => Surrogate::Supervised,
            RuleKind::Cispo if self.floor => Surrogate::Cispo(cispo::Bound::Range(1.0 - clip.low, 1.0 + clip.high)),
            RuleKind::Cispo => Surrogate::Cispo(self.cap.map_or(cispo::BOUND, cispo::Bound::Cap)),
            RuleKind::Gmpo => Surrogate::Gmpo(self.clip.map_or(gmpo::CLIP, |[low, high]| gmpo::LogClip { low, high })),
            RuleKind::Sapo => Surrogate::Sapo(sapo::GATE),
            RuleKind::Vespo => Surrogate::Vespo(vespo::SHAPE),
            _ if ratio == Ratio::Sequence => Surrogate::SequenceClip(clip),
            _ => Surrogate::TokenClip(clip),
        };
        let reduction = self.reduction.unwrap_or(match self.kind {
            RuleKind::Grpo | RuleKind::Sapo | RuleKind::Gmpo | RuleKind::Gspo => Reduction::SequenceMean,
            RuleKind::DrGrpo => rules::dr_grpo::REDUCTION,
            RuleKind::Luspo => rules::luspo::REDUCTION,
            RuleKind::Dapo | RuleKind::Bnpo | RuleKind::Cispo | RuleKind::Vespo | RuleKind::Sft => {
                rules::dapo::REDUCTION
            }
        });
        if let Err(why) = self.kl.check() {
            return refuse(why);
        }
        if let Err(why) = self.entropy.check() {
            return refuse(why);
        }
        if self.mask.top_entropy.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            return refuse("mask.top_entropy is a share above 0 and at most 1");
        }
        if self.micro_batch == Some(0) {
            return refuse("micro_batch must be at least 1");
        }
        let mismatch = &self.mismatch;
        if mismatch.max.is_some_and(|max| max.is_nan() || max <= mismatch.min) {
            return refuse("mismatch.max must lie above mismatch.min");
        }
        if self.kind == RuleKind::Vespo
            && matches!(mismatch.mode, MismatchMode::SequenceTruncate | MismatchMode::SequenceMask)
        {
            return refuse("vespo takes the correction of each token: mismatch.mode is token_truncate or token_mask");
        }
        Ok(Rule {
            kind: self.kind,
            surrogate,
            reduction,
            count: self.count,
            micro_batch: self.micro_batch,
            kl: self.kl.clone(),
            entropy: self.entropy.clone(),
            mismatch: mismatch.clone(),
            mask: self.mask.clone(),
            phi: self.phi,
            beta: self.kl.beta,
            alpha: self.entropy.start().alpha(),
        })
    }
}

impl Rule {
    /// Whether the loss holds a KL term in the coming step.
    pub fn has_kl_loss(&self) -> bool {
        self.beta != 0.0 && self.kl.place == Place::Loss
    }

    /// Whether a correction for another sampler is part of the ratio in place of a factor beside it.
    pub fn takes_correction_into_ratio(&self) -> bool {
        self.kind == RuleKind::Vespo && self.mismatch.mode != MismatchMode::Off
    }

    /// What a person should know about an odd combination of settings.
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if self.kind == RuleKind::Bnpo {
            warnings.push("bnpo is an alias: under one global denominator it is dapo with symmetric bounds");
        }
        if self.micro_batch.is_some() {
            warnings.push("denominators per micro-batch, as others have them: short answers' micro-batches weigh more");
        }
        if matches!(self.surrogate, Surrogate::SequenceClip(_)) && self.reduction == Reduction::TokenMean {
            warnings.push("a sequence ratio with token_mean lets long answers dominate; gspo means sequence_mean");
        }
        warnings
    }

    fn terms(&self, sequence: &Sequence<'_>) -> Vec<Term> {
        match &self.surrogate {
            Surrogate::Supervised => (0..sequence.len())
                .map(|t| rules::sft::term(sequence.logprob[t], sequence.advantage[t], self.phi))
                .collect(),
            Surrogate::TokenClip(clip) => rules::grpo::terms(sequence, clip),
            Surrogate::SequenceClip(clip) => rules::gspo::terms(sequence, clip),
            Surrogate::Cispo(bound) => cispo::terms(sequence, bound),
            Surrogate::Gmpo(clip) => gmpo::terms(sequence, clip),
            Surrogate::Sapo(gate) => sapo::terms(sequence, gate),
            Surrogate::Vespo(shape) => vespo::terms(sequence, shape),
        }
    }
}

/// The two derivatives per trained token of a micro-batch, and its sums.
pub fn derivatives(
    rule: &Rule,
    batch: &TokenBatch,
    head: &HeadOutput,
) -> Result<(Derivatives, RuleStats), UpdateError> {
    let n = batch.num_trained();
    check_columns(batch, head, rule)?;
    let mut out = Derivatives { by_logprob: vec![0.0; n], by_entropy: vec![0.0; n] };
    let mut stats = RuleStats::default();
    let has_reference = !batch.ref_logprob.is_empty();
    let (mut logprob, mut old, mut advantage) = (Vec::new(), Vec::new(), Vec::new());
    for bounds in &batch.sequences {
        let range = bounds.start as usize..bounds.end as usize;
        for (column, source) in
            [(&mut logprob, &head.logprob), (&mut old, &batch.old_logprob), (&mut advantage, &batch.advantage)]
        {
            column.clear();
            column.extend(source[range.clone()].iter().map(|v| f64::from(*v)));
        }
        let sequence = Sequence { logprob: &logprob, old_logprob: &old, advantage: &advantage };
        let supervised = batch.injected[range.start] || rule.surrogate == Surrogate::Supervised;
        let terms = if supervised {
            (0..sequence.len()).map(|t| rules::sft::term(logprob[t], advantage[t], rule.phi)).collect()
        } else if off_policy(rule, &sequence) {
            vec![Term::default(); sequence.len()]
        } else {
            rule.terms(&sequence)
        };
        if !supervised {
            count_held(rule, &terms, &mut stats);
        }
        for (t, term) in terms.iter().enumerate() {
            let i = range.start + t;
            let weight = f64::from(batch.weight[i]);
            let mut slope = weight * term.by_logprob;
            if supervised {
                stats.loss_sft += weight * term.loss;
                stats.num_supervised += 1;
            } else {
                stats.loss_policy += weight * term.loss;
                stats.gap.add(logprob[t], old[t]);
                stats.sum_entropy += f64::from(head.entropy[i]);
                if has_reference {
                    let reference = f64::from(batch.ref_logprob[i]);
                    stats.add_reference(&head.logprob[i..=i], &batch.ref_logprob[i..=i]);
                    if rule.has_kl_loss() {
                        let (value, by) = rule.kl.estimate(logprob[t], reference, logprob[t] - old[t]);
                        let weight = rule.beta * f64::from(batch.kl_weight[i]);
                        stats.loss_kl += weight * value;
                        slope += weight * by;
                    }
                }
            }
            let entropy_weight = rule.alpha * f64::from(batch.entropy_weight[i]);
            stats.loss_entropy -= entropy_weight * f64::from(head.entropy[i]);
            out.by_logprob[i] = slope as f32;
            out.by_entropy[i] = -entropy_weight as f32;
        }
    }
    Ok((out, stats))
}

fn off_policy(rule: &Rule, sequence: &Sequence<'_>) -> bool {
    let fallen = -sequence.mean_log_ratio();
    let bad = sequence.advantage.first().is_some_and(|a| *a < 0.0);
    rule.mask.off_policy.is_some_and(|bound| bad && fallen > bound)
}

fn count_held(rule: &Rule, terms: &[Term], stats: &mut RuleStats) {
    let per_sequence = matches!(rule.surrogate, Surrogate::SequenceClip(_));
    let counted = if per_sequence { &terms[..terms.len().min(1)] } else { terms };
    for term in counted {
        stats.num_clippable += 1;
        match term.held {
            Held::No => {}
            Held::Low => stats.num_held_low += 1,
            Held::High => stats.num_held_high += 1,
        }
    }
}

fn check_columns(batch: &TokenBatch, head: &HeadOutput, rule: &Rule) -> Result<(), UpdateError> {
    let n = batch.num_trained();
    let columns = [
        ("logprob", head.logprob.len()),
        ("entropy", head.entropy.len()),
        ("old_logprob", batch.old_logprob.len()),
        ("advantage", batch.advantage.len()),
        ("weight", batch.weight.len()),
        ("kl_weight", batch.kl_weight.len()),
        ("entropy_weight", batch.entropy_weight.len()),
        ("injected", batch.injected.len()),
    ];
    for (column, have) in columns {
        if have != n {
            return Err(UpdateError::Column { column, have, need: n });
        }
    }
    let have = batch.ref_logprob.len();
    if have != n && (have != 0 || rule.has_kl_loss()) {
        return Err(UpdateError::Column { column: "ref_logprob", have, need: n });
    }
    let covered = batch
        .sequences
        .iter()
        .try_fold(0u32, |at, bounds| (bounds.start == at && bounds.end > at).then_some(bounds.end));
    match covered {
        Some(end) if end as usize == n => Ok(()),
        _ => Err(UpdateError::Column { column: "sequences", have: covered.unwrap_or(0) as usize, need: n }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sampled answers and a target; three, one and two tokens.
    fn batch() -> (TokenBatch, HeadOutput) {
        let batch = TokenBatch {
            target: vec![1; 6],
            old_logprob: vec![-1.0, -2.0, -0.5, -1.5, 0.0, 0.0],
            ref_logprob: vec![-1.1, -1.7, -0.4, -2.0, 0.0, 0.0],
            advantage: vec![1.5, 1.5, 1.5, -0.7, 1.0, 1.0],
            weight: vec![0.1, 0.1, 0.1, 0.3, 0.15, 0.15],
            kl_weight: vec![0.1, 0.1, 0.1, 0.3, 0.0, 0.0],
            entropy_weight: vec![0.25, 0.25, 0.25, 0.25, 0.0, 0.0],
            injected: vec![false, false, false, false, true, true],
            sequences: vec![0..3, 3..4, 4..6],
            ..Default::default()
        };
        let head = HeadOutput {
            logprob: vec![-0.9, -2.1, -0.45, -1.4, -3.0, -0.2],
            entropy: vec![1.0, 1.5, 0.2, 0.7, 2.0, 0.1],
        };
        (batch, head)
    }

    fn rule(text: &str) -> Rule {
        toml::from_str::<RuleSpec>(text).expect("syntax").resolve().expect("rule")
    }

    #[test]
    fn derivatives_are_those_of_the_reported_loss() {
        for kind in ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "luspo", "gmpo", "sapo"] {
            let mut rule = rule(&format!("kind = '{kind}'\nkl = 0.5\nentropy = 0.3\n[mask]\noff_policy = 5"));
            if let Surrogate::SequenceClip(clip) = &mut rule.surrogate {
                (clip.low, clip.high) = (0.5, 0.5); // the published bounds would hold everything here
            }
            let (batch, head) = batch();
            let (slopes, _) = derivatives(&rule, &batch, &head).expect("columns fit");
            for i in 0..6 {
                let step = 1e-3f32;
                let mut up = head.clone();
                up.logprob[i] += step;
                let mut down = head.clone();
                down.logprob[i] -= step;
                let loss = |head: &HeadOutput| derivatives(&rule, &batch, head).expect("columns fit").1.loss();
                let width = f64::from(up.logprob[i]) - f64::from(down.logprob[i]);
                let slope = (loss(&up) - loss(&down)) / width;
                assert!((slope - f64::from(slopes.by_logprob[i])).abs() < 1e-5, "{kind} token {i}");
                let mut high = head.clone();
                high.entropy[i] += 1.0;
                let by_entropy = loss(&high) - loss(&head);
                assert!((by_entropy - f64::from(slopes.by_entropy[i])).abs() < 1e-6, "{kind} entropy {i}");
            }
        }
    }

    #[test]
    fn targets_are_cross_entropy_whatever_the_rule() {
        let (batch, head) = batch();
        for kind in ["grpo", "cispo", "vespo", "sft"] {
            let (slopes, stats) =
                derivatives(&rule(&format!("kind = '{kind}'\nkl = 1.0")), &batch, &head).expect("fit");
            assert_eq!(&slopes.by_logprob[4..], [-0.15, -0.15], "{kind}");
            let of_targets = 0.15 * (3.0 + 0.2);
            if kind == "sft" {
                assert_eq!(stats.num_supervised, 6);
            } else {
                assert!((stats.loss_sft - of_targets).abs() < 1e-6);
                assert_eq!((stats.num_supervised, stats.gap.count), (2, 4));
            }
        }
    }

    #[test]
    fn the_first_update_has_a_gradient_and_no_loss() {
        let (mut batch, head) = batch();
        batch.old_logprob = head.logprob.clone();
        let (slopes, stats) = derivatives(&rule("kind = 'grpo'"), &batch, &head).expect("fit");
        assert_eq!(slopes.by_logprob[0], -0.15);
        assert_eq!(stats.gap.max_abs, 0.0);
        let centred: f64 = -(3.0 * 0.1 * 1.5 - 0.3 * 0.7);
        assert!((stats.loss_policy - centred).abs() < 1e-6);
    }

    #[test]
    fn masks_and_bounds_are_counted() {
        let (mut batch, head) = batch();
        batch.old_logprob = vec![-2.0, -2.1, -0.45, -0.2, 0.0, 0.0];
        let clipped = rule("kind = 'grpo'");
        let (slopes, stats) = derivatives(&clipped, &batch, &head).expect("fit");
        assert_eq!((stats.num_held_low, stats.num_held_high, stats.num_clippable), (1, 1, 4));
        assert_eq!((slopes.by_logprob[0], slopes.by_logprob[3]), (0.0, 0.0));
        let cispo = rule("kind = 'cispo'\nmask = { off_policy = 0.5 }");
        let (slopes, _) = derivatives(&cispo, &batch, &head).expect("fit");
        assert!(slopes.by_logprob[0] != 0.0 && slopes.by_logprob[3] == 0.0, "the bad answer fell by 1.2 per token");
        let names: Vec<_> = stats.metrics(&clipped).iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"update/kl_k3") && names.contains(&"update/clip_low_fraction"));
    }

    #[test]
    fn presets_expand() {
        let of = |text: &str| (rule(text).surrogate, rule(text).reduction);
        let clip = |low, high, dual| Clip { low, high, dual };
        assert_eq!(of("kind = 'grpo'"), (Surrogate::TokenClip(clip(0.2, 0.2, None)), Reduction::SequenceMean));
        assert_eq!(
            of("kind = 'dapo'\ndual_clip = 3"),
            (Surrogate::TokenClip(clip(0.2, 0.28, Some(3.0))), Reduction::TokenMean)
        );
        assert_eq!(of("kind = 'gspo'"), (Surrogate::SequenceClip(clip(3e-4, 4e-4, None)), Reduction::SequenceMean));
        assert_eq!(of("kind = 'dr_grpo'").1, Reduction::ConstantLength);
        assert_eq!(of("kind = 'luspo'").1, Reduction::SequenceSum);
        assert_eq!(of("kind = 'cispo'"), (Surrogate::Cispo(cispo::Bound::Cap(5.0)), Reduction::TokenMean));
        assert_eq!(of("kind = 'cispo'\nfloor = true").0, Surrogate::Cispo(cispo::Bound::Range(0.8, 1.2)));
        assert_eq!(of("kind = 'grpo'\nratio = 'sequence'").0, Surrogate::SequenceClip(clip(0.2, 0.2, None)));
        assert_eq!(of("kind = 'sft'\nreduction = 'sequence_mean'"), (Surrogate::Supervised, Reduction::SequenceMean));
        assert_eq!(rule("kl = { beta = 0.04, estimator = 'k2' }").beta, 0.04);
        assert!(!rule("kind = 'bnpo'").warnings().is_empty() && rule("kind = 'grpo'").warnings().is_empty());
    }

    #[test]
    fn settings_without_meaning_are_refused() {
        for bad in [
            "kind = 'sapo'\nclip = [0.2, 0.2]",
            "kind = 'cispo'\nratio = 'token'",
            "kind = 'grpo'\ncap = 5",
            "kind = 'grpo'\ndual_clip = 1.1",
            "kind = 'grpo'\nclip = [2, 0.2]",
            "kl = -1",
            "mask = { top_entropy = 0 }",
            "kind = 'vespo'\nmismatch = { mode = 'sequence_mask' }",
            "mismatch = { min = 3, max = 2 }",
        ] {
            let error = toml::from_str::<RuleSpec>(bad).expect(bad).resolve().expect_err(bad);
            assert!(!error.hint().is_empty());
        }
        for bad in ["kl = { bta = 1 }", "kind = 'grpu'", "clp = 1", "kl = 'high'"] {
            let message = toml::from_str::<RuleSpec>(bad).expect_err(bad).to_string();
            assert!(message.contains("unknown") || message.contains("invalid type"), "{message}");
        }
    }

    #[test]
    fn columns_that_do_not_fit_are_named() {
        let (mut batch, head) = batch();
        batch.weight.pop();
        let error = derivatives(&rule("kind = 'grpo'"), &batch, &head).expect_err("short column");
        assert!(error.to_string().contains("weight"), "{error}");
        let (mut batch, head) = super::tests::batch();
        batch.ref_logprob.clear();
        assert!(derivatives(&rule("kl = 0.1"), &batch, &head).is_err());
        assert!(derivatives(&rule("kl = 0"), &batch, &head).is_ok());
        batch.sequences = vec![0..3, 4..6];
        assert!(derivatives(&rule("kl = 0"), &batch, &head).is_err());
    }
}
