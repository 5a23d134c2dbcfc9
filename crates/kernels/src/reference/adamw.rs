//! One AdamW step on one number.
//! Cost: as slow as it looks.

/// The knobs of a step.
#[derive(Clone, Copy, Debug)]
pub struct Knobs {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// New weight and moments after step `step` (from 1) with gradient `g`.
pub fn adamw_step(p: f64, g: f64, m: f64, v: f64, step: u64, knobs: Knobs) -> (f64, f64, f64) {
    let Knobs { lr, beta1, beta2, eps, weight_decay } = knobs;
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let m_hat = m / (1.0 - beta1.powf(step as f64));
    let v_hat = v / (1.0 - beta2.powf(step as f64));
    (p - lr * weight_decay * p - lr * m_hat / (v_hat.sqrt() + eps), m, v)
}
