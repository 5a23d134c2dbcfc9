//! The frozen model of a KL term: a second model, or, where adapters learn, the same model with its adapters off or as
//! they were. It may follow the model that learns as a running mean.
//! Knows policies and batches. Cost: with adapters, no second copy of the weights; one pass over them where it follows.

use foveate_model::{ModelError, Policy, TokenBatch};
use rayon::prelude::*;

use crate::checkpoint::tensor_file::Named;
use crate::kept::kept_tensors;
use crate::memory::Waits;

/// A model that does not learn.
pub enum Frozen {
    /// Weights of its own.
    Model {
        /// The model.
        model: Box<Policy>,
        /// Where its weights are while nobody asks it.
        waits: Waits,
    },
    /// The learning model with its adapters off.
    Underneath,
    /// The learning model with other values in its adapters.
    Adapters(Vec<f32>),
}

impl Frozen {
    /// Log-probabilities of the batch's trained tokens. `policy` is the model that learns; it is left as it was.
    pub fn logprob(&mut self, policy: &mut Policy, batch: &TokenBatch) -> Result<Vec<f32>, ModelError> {
        let output = match self {
            Frozen::Model { model, waits } => {
                let output = model.score(batch);
                if *waits == Waits::Host {
                    model.leave_device();
                }
                output
            }
            Frozen::Underneath => {
                policy.weights_mut().set_adapters_on(false);
                let output = policy.score(batch);
                policy.weights_mut().set_adapters_on(true);
                output
            }
            Frozen::Adapters(values) => {
                policy.weights_mut().swap_adapters(values);
                let output = policy.score(batch);
                policy.weights_mut().swap_adapters(values);
                output
            }
        };
        Ok(output?.logprob)
    }

    /// Moves towards the weights that learn: `keep` of its own and the rest of theirs. What has no values of its own stays.
    pub fn follow(&mut self, policy: &Policy, keep: f64) -> Result<(), ModelError> {
        policy.fetch()?;
        match self {
            Frozen::Model { model, .. } => mix(model.master_mut(), policy.master(), keep),
            Frozen::Adapters(values) => mix(values, &policy.master()[policy.weights().adapter_range()], keep),
            Frozen::Underneath => {}
        }
        Ok(())
    }

    /// Its values under the names that they have in `policy`, to be kept in a checkpoint.
    pub fn tensors(&self, policy: &Policy) -> Vec<Named<'_>> {
        match self {
            Frozen::Model { model, .. } => kept_tensors(model, model.master(), ""),
            Frozen::Adapters(values) => {
                let first = policy.weights().adapter_range().start;
                let own = policy.parameters().iter().filter(|info| info.offset >= first);
                own.map(|info| Named {
                    name: info.name.clone(),
                    shape: info.shape.clone(),
                    values: &values[info.offset - first..info.offset - first + info.len],
                })
                .collect()
            }
            Frozen::Underneath => Vec::new(),
        }
    }
}

/// Value by value, so that threads do not matter.
fn mix(own: &mut [f32], theirs: &[f32], keep: f64) {
    let rest = (1.0 - keep) as f32;
    own.par_iter_mut().zip(theirs).for_each(|(own, theirs)| *own += rest * (theirs - *own));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_forgets_where_it_began() {
        let mut own = vec![1.0, 0.0];
        for _ in 0..2 {
            mix(&mut own, &[0.0, 4.0], 0.75);
        }
        assert_eq!(own, [0.5625, 1.75]);
        mix(&mut own, &[3.0, 3.0], 0.0);
        assert_eq!(own, [3.0, 3.0]);
    }
}
