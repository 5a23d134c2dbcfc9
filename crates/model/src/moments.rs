//! The optimiser on a GPU: gradients stay there, moments live there, weights move there; what comes up is one sum of squares
//! a step. A run that wants its moments on the host (`memory.optimiser`) has them in `foveate_train::adamw` instead.
//! Knows ranges of the flat buffer; knows no schedules. Cost: 8 bytes a parameter that learns, on the device.

use std::ops::Range;

use foveate_kernels::cpu::adamw::Numbers;
use foveate_kernels::cuda::{DeviceBuffer, Number, ops};
use foveate_kernels::memory;

use crate::error::ModelError;
use crate::gradients::Gradients;
use crate::policy::Policy;

/// AdamW's two moments of what learns, on a device.
#[derive(Debug)]
pub struct DeviceMoments {
    /// First and second.
    moments: [DeviceBuffer; 2],
    /// Where in the flat buffer they belong.
    active: Range<usize>,
}

impl DeviceMoments {
    /// Both moments on the host, at the places of the weights; zero where nothing learns.
    pub fn fetch(&self, policy: &Policy) -> Result<[Vec<f32>; 2], ModelError> {
        let fetched = self.moments.each_ref().map(|moment| {
            let mut values = memory::zeroed(policy.num_values());
            moment.all().read(&mut values[self.active.clone()]);
            values
        });
        policy.check_device()?;
        Ok(fetched)
    }

    /// Overwrites them with those of a checkpoint.
    pub fn send(&self, values: [&[f32]; 2]) {
        for (moment, values) in self.moments.iter().zip(values) {
            moment.all().write(&values[self.active.clone()]);
        }
    }

    fn part(&self, range: &Range<usize>) -> [foveate_kernels::cuda::View<'_>; 2] {
        let first = self.active.start;
        self.moments.each_ref().map(|moment| moment.part(range.start - first..range.end - first))
    }
}

impl Policy {
    /// Moments of zero where the model is on a device; none on the CPU.
    pub fn new_device_moments(&self) -> Option<DeviceMoments> {
        let (device, active) = (self.device()?, self.active());
        let moments = [(); 2].map(|()| device.zeroed(Number::F32, active.len()));
        Some(DeviceMoments { moments, active })
    }

    /// Sum of squares of what a device has added up, in f64. Waits for the device.
    pub fn sum_of_squares_on_device(&self, gradients: &mut Gradients) -> Result<f64, ModelError> {
        let device = self.device().expect("asked of a model on a device only");
        let sum = ops::optimiser::sum_of_squares(gradients.make_on_device(device).all());
        self.check_device()?;
        Ok(sum)
    }

    /// One step of AdamW for the weights in `range`, with the gradients that the device has added up.
    pub fn step_on_device(
        &mut self,
        range: Range<usize>,
        gradients: &Gradients,
        moments: &DeviceMoments,
        numbers: &Numbers,
    ) {
        let parts = moments.part(&range);
        self.weights_mut().step_on_device(range.clone(), gradients.on_device(range), parts, numbers);
    }

    /// Brings the weights to the host, where a device has moved on with them. What reads them does so by itself, but
    /// cannot say what went wrong.
    pub fn fetch(&self) -> Result<(), ModelError> {
        self.master();
        self.check_device()
    }

    /// Gives the weights' memory on the device back until they are next used.
    pub fn leave_device(&mut self) {
        self.weights_mut().forget_on_device();
    }
}
