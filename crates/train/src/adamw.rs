//! The optimiser's state and its step: two moments per weight, the global norm, clipping, decoupled weight decay.
//! Knows parameters and numbers; knows no losses. Moments lie where the model computes, or on the host if a run says so.
//! Cost: one pass over weights, gradients and moments, which leaves the packed copies of weights behind as well; with
//! moments on the host and the model on a GPU, gradients come up and weights go down once a step.

use std::borrow::Cow;
use std::ops::Range;

use foveate_kernels::cpu::adamw::{Numbers, sum_of_squares};
use foveate_kernels::memory;
use foveate_model::{DeviceMoments, Gradients, ModelError, Part, Policy};

use crate::optim::OptimSpec;

/// AdamW (arXiv 1711.05101) over the trainable parameters of a policy.
#[derive(Debug)]
pub struct AdamW {
    moments: Moments,
    /// Steps made.
    pub step: u64,
}

/// First and second moments, at the places of the weights; 0 where nothing learns.
#[derive(Debug)]
enum Moments {
    Host([Vec<f32>; 2]),
    Device(DeviceMoments),
}

/// Neighbouring parameters that are treated alike.
struct Run {
    range: Range<usize>,
    part: Part,
    decay: bool,
}

impl AdamW {
    /// Before the first step; the moments lie where the weights are.
    pub fn new(policy: &Policy) -> Self {
        match policy.new_device_moments() {
            Some(moments) => Self { moments: Moments::Device(moments), step: 0 },
            None => Self::on_host(policy),
        }
    }

    /// The same with moments on the host, wherever the weights are.
    pub fn on_host(policy: &Policy) -> Self {
        let moments = [(); 2].map(|()| memory::zeroed(policy.num_values()));
        Self { moments: Moments::Host(moments), step: 0 }
    }

    /// Norm of the gradient over everything that learns.
    pub fn norm(&self, policy: &Policy, gradients: &mut Gradients) -> Result<f64, ModelError> {
        if let Moments::Device(_) = &self.moments {
            return Ok(policy.sum_of_squares_on_device(gradients)?.sqrt());
        }
        gradients.collect();
        // A device that failed has brought up nothing.
        policy.check_device()?;
        // One sum per parameter, added in their order: the value does not depend on which parameters are neighbours.
        let parameters = policy.parameters().iter().enumerate().filter(|(index, _)| policy.is_trainable(*index));
        let squares = parameters.map(|(_, info)| sum_of_squares(&gradients.flat[info.offset..info.offset + info.len]));
        Ok(squares.sum::<f64>().sqrt())
    }

    /// Moves the weights; [`AdamW::norm`] comes first. `factor` scales the gradient, for clipping.
    pub fn step(&mut self, policy: &mut Policy, gradients: &Gradients, spec: &OptimSpec, lr: f64, factor: f64) {
        self.step += 1;
        for Run { range, part, decay } in runs(policy) {
            let rate = match part {
                Part::Vision => spec.lr_of.vision,
                Part::Connector => spec.lr_of.connector,
                Part::Language => spec.lr_of.language,
            };
            let (lr, [beta1, beta2]) = ((lr * rate) as f32, spec.betas.map(|beta| beta as f32));
            let (eps, decay) = (spec.eps as f32, if decay { spec.weight_decay as f32 } else { 0.0 });
            let numbers = Numbers::new(lr, beta1, beta2, eps, decay, self.step, factor as f32);
            match &mut self.moments {
                Moments::Device(moments) => policy.step_on_device(range, gradients, moments, &numbers),
                Moments::Host([m, v]) => {
                    let moments = [&mut m[range.clone()], &mut v[range.clone()]];
                    policy.weights_mut().adamw_step(range.clone(), &gradients.flat[range], moments, &numbers);
                }
            }
        }
    }

    /// Both moments at the places of the weights, for a checkpoint.
    pub fn moments(&self, policy: &Policy) -> Result<[Cow<'_, [f32]>; 2], ModelError> {
        match &self.moments {
            Moments::Host(moments) => Ok(moments.each_ref().map(|moment| Cow::Borrowed(moment.as_slice()))),
            Moments::Device(moments) => Ok(moments.fetch(policy)?.map(Cow::Owned)),
        }
    }

    /// Goes on from a checkpoint, made wherever.
    pub fn restore(&mut self, values: [Vec<f32>; 2], step: u64) {
        match &mut self.moments {
            Moments::Host(moments) => *moments = values,
            Moments::Device(moments) => moments.send(values.each_ref().map(Vec::as_slice)),
        }
        self.step = step;
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
