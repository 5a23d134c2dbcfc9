//! How supervised and reinforcement losses share a run (methods 5.5): `L = (1 - mu) L_RL + mu L_SFT`, each with its own
//! denominators. Sources: CHORD, arXiv 2508.11408; Synergy or Dilemma, arXiv 2507.07562. Cost: none.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::data::Sources;

/// The share of supervised learning over a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixSpec {
    /// The strategy.
    pub kind: MixKind,
    /// `interleave`, `batch`: share of supervised steps or rows.
    pub share: f64,
    /// `interleave`: length of a period in steps.
    pub period: u64,
    /// `progressive`: how the share falls from 1 to 0.
    pub curve: Curve,
    /// `chord`: largest share.
    pub peak: f64,
    /// `chord`: share that remains.
    pub valley: f64,
    /// `chord`: steps of rise to the peak.
    pub warmup: u64,
    /// `chord`: steps of fall to the valley.
    pub decay: u64,
    /// Multiplies supervised tokens by `p (1 - p)`: known and hopeless tokens count little.
    pub phi: bool,
    /// Worked examples of the supervised part; the stage's own data unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Sources>,
    /// Worked examples per step; the stage's `questions_per_step` unless set. For `batch` it follows from `share`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u32>,
}

impl Default for MixSpec {
    fn default() -> Self {
        Self {
            kind: MixKind::None,
            share: 0.5,
            period: 10,
            curve: Curve::Cosine,
            peak: 0.9,
            valley: 0.05,
            warmup: 0,
            decay: 200,
            phi: false,
            data: None,
            rows: None,
        }
    }
}

/// How the two losses share a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixKind {
    /// Not mixed.
    #[default]
    None,
    /// Whole steps of one kind: the first `share` of every period is supervised.
    Interleave,
    /// From supervised to reinforcement over the stage.
    Progressive,
    /// Both kinds of rows in every step.
    Batch,
    /// Rise, fall, rest.
    Chord,
}

/// How a share falls from 1 to 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// As half a cosine.
    #[default]
    Cosine,
    /// In a straight line.
    Linear,
}

impl MixSpec {
    /// Whether the settings make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        let shares = [self.share, self.peak, self.valley];
        if !shares.iter().all(|share| (0.0..=1.0).contains(share)) {
            return Err("mix.share, mix.peak and mix.valley lie between 0 and 1");
        }
        if self.kind == MixKind::Interleave && self.period == 0 {
            return Err("mix.period must be at least 1");
        }
        if self.rows == Some(0) {
            return Err("mix.rows must be at least 1");
        }
        if self.kind == MixKind::Batch && self.rows.is_some() {
            return Err("mix.rows follows from mix.share in a batch");
        }
        Ok(())
    }

    /// Questions to be asked and worked examples to be shown in a step of so many questions, given the share.
    pub fn split(&self, share: f64, questions: u32) -> (usize, usize) {
        let all = questions as usize;
        match self.kind {
            MixKind::None => (all, 0),
            MixKind::Batch => {
                let shown = (share * all as f64).round() as usize;
                (all - shown, shown)
            }
            _ => {
                let shown = self.rows.map_or(all, |rows| rows as usize);
                (if share < 1.0 { all } else { 0 }, if share > 0.0 { shown } else { 0 })
            }
        }
    }

    /// Weight of the supervised loss at `step` of `steps`.
    pub fn supervised_share(&self, step: u64, steps: u64) -> f64 {
        let s = step as f64;
        match self.kind {
            MixKind::None => 0.0,
            MixKind::Interleave => {
                let supervised = (self.share * self.period as f64).round() as u64;
                f64::from(u8::from(step % self.period.max(1) < supervised))
            }
            MixKind::Progressive => {
                let progress = (s / steps.max(1) as f64).min(1.0);
                match self.curve {
                    Curve::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
                    Curve::Linear => 1.0 - progress,
                }
            }
            MixKind::Batch => self.share,
            MixKind::Chord => {
                let (warmup, decay) = (self.warmup as f64, self.decay as f64);
                if s < warmup {
                    self.peak * s / warmup
                } else if s < warmup + decay {
                    let turn = 0.5 * (1.0 + (PI * (s - warmup) / decay).cos());
                    self.valley + (self.peak - self.valley) * turn
                } else {
                    self.valley
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_chord() {
        let chord = MixSpec { kind: MixKind::Chord, warmup: 10, ..Default::default() };
        for (step, want) in
            [(5, 0.45), (10, 0.9), (60, 0.77552), (110, 0.475), (160, 0.17448), (210, 0.05), (999, 0.05)]
        {
            assert!((chord.supervised_share(step, 1000) - want).abs() < 1e-5, "{step}");
        }
    }

    #[test]
    fn other_strategies() {
        let of = |kind| MixSpec { kind, share: 0.3, ..Default::default() };
        let interleave: Vec<f64> = (0..12).map(|s| of(MixKind::Interleave).supervised_share(s, 100)).collect();
        assert_eq!(interleave, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(of(MixKind::Batch).supervised_share(7, 100), 0.3);
        assert_eq!(of(MixKind::None).supervised_share(7, 100), 0.0);
        let progressive = of(MixKind::Progressive);
        assert_eq!(progressive.supervised_share(0, 100), 1.0);
        assert!((progressive.supervised_share(50, 100) - 0.5).abs() < 1e-12);
        let linear = MixSpec { curve: Curve::Linear, ..progressive };
        assert_eq!(linear.supervised_share(25, 100), 0.75);
        assert_eq!(of(MixKind::Batch).split(0.3, 10), (7, 3));
        assert_eq!(of(MixKind::Chord).split(0.5, 10), (10, 10));
        assert_eq!(MixSpec { rows: Some(4), ..of(MixKind::Interleave) }.split(1.0, 10), (0, 4));
        assert_eq!(of(MixKind::Interleave).split(0.0, 10), (10, 0));
        assert!(MixSpec { share: 2.0, ..Default::default() }.check().is_err());
        assert!(MixSpec { kind: MixKind::Interleave, period: 0, ..Default::default() }.check().is_err());
    }
}
