//! A policy on a GPU: which device, the head's two passes, and the choice of tokens.
//! What crosses between host and device: ids, rows and pictures down; log-probabilities up, two derivatives per trained
//! token down; drawn tokens up. The optimiser is on the device too (`moments.rs`).
//! Knows the head and the sampler; knows no rules. Cost: waits for the device once per pass.

use foveate_kernels::cuda::ops::head::{self, Columns, Draw};
use foveate_kernels::cuda::{Device, DeviceBuffer, Number};
use foveate_kernels::rng::Stream;

use crate::arena::Buffer;
use crate::batch::{Derivatives, HeadOutput, TokenBatch};
use crate::error::ModelError;
use crate::gradients::Gradients;
use crate::on_device::DeviceWeights;
use crate::plan_device::on_device;
use crate::policy::{Policy, Precision};
use crate::sampling::{Picked, SamplingSpec, pick};

/// Rows of logits that exist at once while sampling.
pub(crate) const LOGIT_ROWS: usize = 256;

/// Whether a device can choose for all of them: whole distributions, one temperature each, the same bans.
pub(crate) fn are_picked_there(specs: &[&SamplingSpec]) -> bool {
    specs.iter().all(|spec| {
        let whole = spec.top_k == 0 && spec.top_p >= 1.0 && spec.min_p <= 0.0;
        let one_temperature = spec.inv_logprob_temperature() == spec.inv_temperature();
        whole && one_temperature && spec.banned == specs[0].banned
    })
}

/// How a device makes the pick of one answer from row `row` of the logits.
pub(crate) fn draw_of(spec: &SamplingSpec, row: u32, (stream, position): (Stream, u32)) -> Draw {
    Draw { row, greedy: spec.temperature <= 0.0, inv_temperature: spec.inv_temperature(), stream, position }
}

impl Policy {
    /// Works on a device from now on. `Precision::Auto` is bf16 there.
    pub fn use_device(&mut self, device: Device, precision: Precision) {
        let operand = on_device(precision);
        self.set_operand(operand);
        self.weights_mut().set_device_weights(Some(DeviceWeights::new(device, operand)));
    }

    /// The device that it works on; none is the CPU.
    pub fn device(&self) -> Option<&Device> {
        self.weights().device_weights().map(|weights| &weights.device)
    }

    /// The first error since the last question; waits for the device. Nothing to ask on the CPU.
    pub fn check_device(&self) -> Result<(), ModelError> {
        self.device().map_or(Ok(()), Device::check).map_err(ModelError::Gpu)
    }

    /// Log-probability and entropy of the trained tokens from their hidden states.
    pub(crate) fn head_on_device(
        &self,
        x: &DeviceBuffer,
        batch: &TokenBatch,
    ) -> Result<(Columns, HeadOutput), ModelError> {
        let columns = Columns::new(x.device(), &batch.target, &batch.inv_temperature, &batch.banned);
        head::head_logprob(x.all(), self.weights().matrix_on_device(self.decoder().head), &columns);
        let (logprob, entropy) = columns.results();
        self.check_device()?;
        Ok((columns, HeadOutput { logprob, entropy }))
    }

    /// Gradient of the hidden states; the head's weight adds its own to `gradients`.
    pub(crate) fn head_backward_on_device(
        &self,
        x: &DeviceBuffer,
        columns: &Columns,
        derivatives: &Derivatives,
        gradients: &mut Gradients,
    ) -> Buffer {
        let device = x.device();
        gradients.make_on_device(device);
        let weights = self.weights();
        let id = self.decoder().head;
        let linear = weights.linear(id);
        let sum = weights
            .linear_is_trainable(id)
            .then(|| gradients.on_device(linear.offset..linear.offset + linear.n * linear.k));
        let d_x = device.take(x.number(), x.len());
        let Derivatives { by_logprob, by_entropy } = derivatives;
        let matrix = weights.matrix_on_device(id);
        head::head_logprob_backward(x.all(), matrix, columns, by_logprob, by_entropy, d_x.all(), sum);
        Buffer::Device(d_x)
    }

    /// One pick for each `(rows[i], specs[i], streams[i])` from hidden states of `num_rows` rows. Plain and greedy draws
    /// are made on the device; where tokens are cut off by rank or mass, log-probabilities have a temperature of their
    /// own, or answers bans of their own, the logits come to the host.
    pub(crate) fn pick_on_device(
        &self,
        x: &DeviceBuffer,
        num_rows: usize,
        specs: &[&SamplingSpec],
        rows: &[u32],
        streams: &[(Stream, u32)],
    ) -> Result<Vec<Picked>, ModelError> {
        let config = &self.decoder().config;
        let (vocabulary, width) = (config.vocabulary, config.width);
        let weight = self.weights().matrix_on_device(self.decoder().head);
        let Some(first_spec) = specs.first() else { return Ok(Vec::new()) };
        let here = are_picked_there(specs);
        let banned: &[u32] = if here { &first_spec.banned } else { &[] };
        let mut picked = vec![None; rows.len()];
        let logits = x.device().take(Number::F32, num_rows.min(LOGIT_ROWS) * vocabulary);
        for first in (0..num_rows).step_by(LOGIT_ROWS) {
            let last = (first + LOGIT_ROWS).min(num_rows);
            let block = logits.part(0..(last - first) * vocabulary);
            head::head_logits(x.part(first * width..last * width), weight, width, banned, block);
            let asked: Vec<usize> =
                (0..rows.len()).filter(|index| (first..last).contains(&(rows[*index] as usize))).collect();
            if here {
                let draw = |index: &usize| draw_of(specs[*index], rows[*index] - first as u32, streams[*index]);
                let draws: Vec<Draw> = asked.iter().map(draw).collect();
                for (index, (id, logprob, entropy)) in asked.into_iter().zip(head::pick(block, vocabulary, &draws)) {
                    picked[index] = Some(Picked { id, logprob, entropy, drawn_logprob: logprob });
                }
            } else {
                let values = block.download::<f32>();
                for index in asked {
                    let row = &values[(rows[index] as usize - first) * vocabulary..][..vocabulary];
                    let (stream, position) = &streams[index];
                    picked[index] = Some(pick(row, specs[index], stream, *position));
                }
            }
        }
        self.check_device()?;
        Ok(picked.into_iter().map(|picked| picked.expect("every row was visited")).collect())
    }
}
