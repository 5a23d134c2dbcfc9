//! The language-model head in f64: log-probability and entropy of given tokens, and their gradients.
//! Cost: the full logits of one row at a time.

/// What the head computes for one row.
#[derive(Clone, Copy, Debug)]
pub struct HeadRow {
    /// Log-probability of the target.
    pub logprob: f64,
    /// Entropy of the distribution, in nats.
    pub entropy: f64,
    /// Log-sum-exp of the scaled logits.
    pub lse: f64,
}

/// Scaled logits of one row; banned tokens get negative infinity.
pub fn head_logits(x_d: &[f64], w_vd: &[f64], v: usize, inv_temperature: f64, banned: &[u32]) -> Vec<f64> {
    let d = x_d.len();
    (0..v)
        .map(|token| {
            if banned.contains(&(token as u32)) {
                return f64::NEG_INFINITY;
            }
            let row = &w_vd[token * d..][..d];
            inv_temperature * x_d.iter().zip(row).map(|(x, w)| x * w).sum::<f64>()
        })
        .collect()
}

/// Log-probability, entropy and log-sum-exp of one row.
pub fn head_row(x_d: &[f64], w_vd: &[f64], v: usize, target: u32, inv_temperature: f64, banned: &[u32]) -> HeadRow {
    let z = head_logits(x_d, w_vd, v, inv_temperature, banned);
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
    let entropy = z.iter().filter(|z| z.is_finite()).map(|z| (z - lse).exp() * (lse - z)).sum();
    HeadRow { logprob: z[target as usize] - lse, entropy, lse }
}

/// Gradient of `by_logprob * logprob + by_entropy * entropy` by the logits before scaling, for one row.
pub fn head_row_backward(
    x_d: &[f64],
    w_vd: &[f64],
    v: usize,
    target: u32,
    inv_temperature: f64,
    banned: &[u32],
    by_logprob: f64,
    by_entropy: f64,
) -> Vec<f64> {
    let row = head_row(x_d, w_vd, v, target, inv_temperature, banned);
    head_logits(x_d, w_vd, v, inv_temperature, banned)
        .iter()
        .enumerate()
        .map(|(token, z)| {
            if !z.is_finite() {
                return 0.0;
            }
            let (p, logp) = ((z - row.lse).exp(), z - row.lse);
            let chosen = if token == target as usize { 1.0 } else { 0.0 };
            inv_temperature * (by_logprob * (chosen - p) - by_entropy * p * (logp + row.entropy))
        })
        .collect()
}
