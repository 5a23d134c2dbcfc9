//! Rewards per token turned into advantages per token (methods 5.7), for a KL penalty that each token answers for itself.
//! Without a critic: no recipe needs one. Plain slices. Cost: one pass.

/// `r_t = -beta (old - ref)`, plus the answer's reward on its last token.
pub fn token_rewards(reward: f64, beta: f64, old_logprob: &[f32], ref_logprob: &[f32]) -> Vec<f64> {
    let mut rewards: Vec<f64> = old_logprob
        .iter()
        .zip(ref_logprob)
        .map(|(old, reference)| -beta * (f64::from(*old) - f64::from(*reference)))
        .collect();
    if let Some(last) = rewards.last_mut() {
        *last += reward;
    }
    rewards
}

/// Reward from each token on, minus a baseline: `A_t = sum of r from t on - b`.
pub fn reward_to_go(rewards: &[f64], baseline: f64) -> Vec<f64> {
    let mut sum = 0.0;
    let mut advantages: Vec<f64> = rewards
        .iter()
        .rev()
        .map(|reward| {
            sum += reward;
            sum - baseline
        })
        .collect();
    advantages.reverse();
    advantages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_flow_back() {
        let rewards = token_rewards(1.0, 0.5, &[-1.0, -2.0], &[-1.5, -1.0]);
        assert_eq!(rewards, [-0.25, 1.5]);
        assert_eq!(reward_to_go(&rewards, 0.25), [1.0, 1.25]);
        assert!(token_rewards(1.0, 0.5, &[], &[]).is_empty());
    }
}
