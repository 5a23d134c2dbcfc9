//! The optimiser's state and its step: two moments per weight, the global norm, clipping, decoupled weight decay.
//! Knows parameters and numbers; knows no losses. Cost: one pass over weights, gradients and moments.

use std::ops::Range;

use foveate_kernels::cpu::adamw::{adamw_step, sum_of_squares};
use foveate_kernels::memory;
use foveate_model::{Gradients, Part, Policy};

use crate::optim::OptimSpec;

/// AdamW (arXiv 1711.05101) over the trainable parameters of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// First moments, at the places of the weights; 0 where nothing learns.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Steps made.
    pub step: u64,
}

/// Neighbouring parameters that are treated alike.
struct Run {
    range: Range<usize>,
    part: Part,
    decay: bool,
}

impl AdamW {
    /// Before the first step.
    pub fn new(policy: &Policy) -> Self {
        let len = policy.master().len();
        Self { m: memory::zeroed(len), v: memory::zeroed(len), step: 0 }
    }

    /// Norm of the gradient over everything that learns.
    pub fn norm(&self, policy: &Policy, gradients: &Gradients) -> f64 {
        // One sum per parameter, added in their order: the value does not depend on which parameters are neighbours.
        let parameters = policy.parameters().iter().enumerate().filter(|(index, _)| policy.is_trainable(*index));
        let squares = parameters.map(|(_, info)| sum_of_squares(&gradients.flat[info.offset..info.offset + info.len]));
        squares.sum::<f64>().sqrt()
    }

    /// Moves the weights. `factor` scales the gradient, for clipping.
    pub fn step(&mut self, policy: &mut Policy, gradients: &Gradients, spec: &OptimSpec, lr: f64, factor: f64) {
        self.step += 1;
        for Run { range, part, decay } in runs(policy) {
            let rate = match part {
                Part::Vision => spec.lr_of.vision,
                Part::Connector => spec.lr_of.connector,
                Part::Language => spec.lr_of.language,
            };
            adamw_step(
                policy.weights_mut().range_mut(range.clone()),
                &gradients.flat[range.clone()],
                &mut self.m[range.clone()],
                &mut self.v[range],
                (lr * rate) as f32,
                spec.betas[0] as f32,
                spec.betas[1] as f32,
                spec.eps as f32,
                if decay { spec.weight_decay as f32 } else { 0.0 },
                self.step,
                factor as f32,
            );
        }
    }
}

/// The trainable parameters, neighbours of one kind joined: fewer and longer passes.
fn runs(policy: &Policy) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, info) in policy.parameters().iter().enumerate() {
        if !policy.is_trainable(index) {
            continue;
        }
        let range = info.offset..info.offset + info.len;
        match runs.last_mut() {
            Some(run) if run.range.end == range.start && run.part == info.part && run.decay == info.decay => {
                run.range.end = range.end;
            }
            _ => runs.push(Run { range, part: info.part, decay: info.decay }),
        }
    }
    runs
}
