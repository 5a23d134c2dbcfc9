//! What to do about questions that are too hard or too easy: weights per group (ODSW), gates that refill a step, pools
//! of questions, and starts part of the way through a solution (methods 1.13, 5.1, 5.3). Sources: VL-Cogito,
//! arXiv 2507.22607; DAPO, arXiv 2503.14476; R3, arXiv 2402.05808. Plain numbers and keyed draws. Cost: none.

use std::f64::consts::PI;

pub mod gate;
pub mod pools;
pub mod start_state;

use serde::{Deserialize, Serialize};

/// Factor on the advantages of a group, from its mean accuracy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupWeight {
    /// 1.
    #[default]
    None,
    /// Full weight for questions that are mostly solved: the first stage of a curriculum.
    OdswEasy,
    /// Full weight for questions that are solved half of the time.
    OdswMedium,
    /// Full weight for questions that are mostly failed: the last stage.
    OdswHard,
    /// 1 inside these bounds, else 0.
    Window([f64; 2]),
}

/// The factor for a group with this mean accuracy. An accuracy of 0 matters only if another reward breaks the tie;
/// the released code then gives 0.25 in the hard stage, and so do we.
pub fn weight(kind: &GroupWeight, accuracy: f64) -> f64 {
    let hump = (PI * accuracy).sin().max(0.0);
    match kind {
        GroupWeight::None => 1.0,
        GroupWeight::OdswEasy if accuracy < 0.5 => hump,
        GroupWeight::OdswEasy => 1.0,
        GroupWeight::OdswMedium => hump,
        GroupWeight::OdswHard if accuracy == 0.0 => 0.25,
        GroupWeight::OdswHard if accuracy <= 0.5 => 1.0,
        GroupWeight::OdswHard => hump,
        GroupWeight::Window([low, high]) => f64::from(u8::from((*low..=*high).contains(&accuracy))),
    }
}

/// Chance that a group of `size` answers is mixed when each is right with probability `p`.
pub fn expected_use(p: f64, size: usize) -> f64 {
    1.0 - p.powi(size as i32) - (1.0 - p).powi(size as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::approx_constant, reason = "published golden values")]
    fn golden_odsw() {
        let rows = [
            (GroupWeight::OdswEasy, [0.382683, 0.707107, 1.0, 1.0]),
            (GroupWeight::OdswMedium, [0.382683, 0.707107, 0.707107, 0.382683]),
            (GroupWeight::OdswHard, [1.0, 1.0, 0.707107, 0.382683]),
            (GroupWeight::Window([0.25, 0.75]), [0.0, 1.0, 1.0, 0.0]),
        ];
        for (kind, want) in rows {
            for (accuracy, want) in [0.125, 0.25, 0.75, 0.875].into_iter().zip(want) {
                assert!((weight(&kind, accuracy) - want).abs() < 1e-6, "{kind:?} at {accuracy}");
            }
        }
        assert_eq!(weight(&GroupWeight::OdswEasy, 0.0), 0.0);
        assert_eq!(weight(&GroupWeight::OdswHard, 0.0), 0.25);
    }

    #[test]
    fn golden_expected_use() {
        for (p, eight, four) in
            [(0.02, 0.149237, 0.077632), (0.1, 0.569533, 0.3438), (0.5, 0.992188, 0.875), (0.9, 0.569533, 0.3438)]
        {
            assert!((expected_use(p, 8) - eight).abs() < 1e-6 && (expected_use(p, 4) - four).abs() < 1e-6, "{p}");
        }
    }
}
