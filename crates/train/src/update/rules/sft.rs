//! Supervised target: a sampled answer whose ratio is fixed to 1 (methods 1.11). Per token: `-a logprob`, so the
//! derivative is `-a` and with a = 1 the loss is cross-entropy. Every injected target goes this way, whatever the rule.
//!
//! CHORD-phi (arXiv 2508.11408) multiplies by `p (1 - p)`, p the token's probability, held fixed: tokens that are
//! already known, and tokens that are hopeless, count little.

use super::Term;

/// One token.
pub fn term(logprob: f64, advantage: f64, phi: bool) -> Term {
    let weight = if phi { phi_weight(logprob) } else { 1.0 };
    Term { loss: -advantage * weight * logprob, by_logprob: -advantage * weight, ..Term::default() }
}

/// `p (1 - p)` of a log-probability.
pub fn phi_weight(logprob: f64) -> f64 {
    let p = logprob.min(0.0).exp();
    p * (1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_phi() {
        for (p, want) in [(0.01f64, 0.0099), (0.5, 0.25), (0.9, 0.09)] {
            assert!((phi_weight(p.ln()) - want).abs() < 1e-12);
            assert!((term(p.ln(), 1.0, true).by_logprob + want).abs() < 1e-12);
        }
        assert_eq!(term(-0.7, 1.0, false), Term { loss: 0.7, by_logprob: -1.0, ..Default::default() });
    }
}
