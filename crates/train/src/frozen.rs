//! The frozen model of a KL term: a second model, or, where adapters learn, the same model with its adapters off or as
//! they were. Knows policies and batches. Cost: with adapters, no second copy of the weights.

use foveate_model::{ModelError, Policy, TokenBatch};

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
}
