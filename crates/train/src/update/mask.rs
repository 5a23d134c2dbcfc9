//! The top-entropy mask (methods 1.5): only the most uncertain tokens of a step teach. Uses the entropies recorded while
//! sampling, so that the choice is made before packing and does not depend on micro-batches.
//! Cost: one sort of the step's entropies.

/// Entropy from which on a token is kept, so that about `share` of all are: the (1 - share) quantile, interpolated.
/// `None` without tokens.
pub fn entropy_threshold(entropies: impl IntoIterator<Item = f32>, share: f64) -> Option<f32> {
    let mut sorted: Vec<f32> = entropies.into_iter().collect();
    if sorted.is_empty() {
        return None;
    }
    sorted.sort_by(f32::total_cmp);
    let at = (1.0 - share.clamp(0.0, 1.0)) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract() as f32)
}

/// Factor per token of an answer: 1 where the entropy reaches the threshold, else 0.
pub fn factors(entropies: &[f32], threshold: f32) -> Vec<f32> {
    entropies.iter().map(|entropy| f32::from(u8::from(*entropy >= threshold))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_uncertain_tokens_are_kept() {
        let entropies = [0.1, 0.9, 0.5, 0.3, 0.7];
        let threshold = entropy_threshold(entropies, 0.4).expect("tokens");
        assert!((threshold - 0.58).abs() < 1e-6);
        assert_eq!(factors(&entropies, threshold), [0.0, 1.0, 0.0, 0.0, 1.0]);
        assert_eq!(entropy_threshold(entropies, 1.0), Some(0.1));
        assert_eq!(entropy_threshold([], 0.2), None);
    }
}
