//! The copy of a model's weights that a GPU works with: all of them in f32, and in bf16 mode once more rounded. What the host
//! changes is sent before it is next used; what the device's optimiser moves comes back when the host next reads.
//! Knows buffers; knows no architecture. Cost: 4 or 6 bytes a parameter on the device.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use foveate_kernels::cpu::adamw::Numbers;
use foveate_kernels::cuda::{Device, DeviceBuffer, Number, View, ops};

use crate::arena::Kind;
use crate::master::joined;
use crate::weights::{LinearId, ParamId, Weights};

/// The number type of a kind of buffer.
pub(crate) fn number(kind: Kind) -> Number {
    match kind {
        Kind::F32 => Number::F32,
        Kind::Bf16 => Number::Bf16,
    }
}

/// Weights on a device.
pub(crate) struct DeviceWeights {
    pub device: Device,
    operand: Kind,
    copies: OnceLock<Copies>,
    /// What the host has changed since it was sent.
    stale: Mutex<Vec<Range<usize>>>,
}

struct Copies {
    master: DeviceBuffer,
    rounded: Option<DeviceBuffer>,
}

impl Copies {
    fn new(device: &Device, operand: Kind, len: usize) -> Self {
        let rounded = (operand == Kind::Bf16).then(|| device.take(Number::Bf16, len));
        Copies { master: device.take(Number::F32, len), rounded }
    }

    fn send(&self, values: &[f32], range: Range<usize>) {
        let part = self.master.part(range.clone());
        part.write(&values[range.clone()]);
        if let Some(rounded) = &self.rounded {
            ops::elementwise::convert(part, rounded.part(range));
        }
    }
}

impl DeviceWeights {
    pub fn new(device: Device, operand: Kind) -> Self {
        DeviceWeights { device, operand, copies: OnceLock::new(), stale: Mutex::default() }
    }

    /// The same device, nothing sent yet.
    pub fn empty(&self) -> Self {
        Self::new(self.device.clone(), self.operand)
    }

    /// The host has changed these values.
    pub fn changed(&mut self, range: Range<usize>) {
        if self.copies.get().is_some() {
            self.stale.get_mut().unwrap_or_else(PoisonError::into_inner).push(range);
        }
    }

    /// Gives the memory on the device back; everything is sent anew when it is next used.
    pub fn forget(&mut self) {
        *self = self.empty();
    }

    /// Overwrites values of the host that the device has moved.
    pub fn fetch(&self, range: Range<usize>, values: &mut [f32]) {
        let copies = self.copies.get().expect("only a copy that is there can have moved");
        copies.master.part(range).read(values);
    }

    /// The copies, with everything that `host` has newer.
    fn copies<'h>(&self, host: impl Fn() -> &'h [f32]) -> &Copies {
        let copies = self.copies.get_or_init(|| {
            let values = host();
            let copies = Copies::new(&self.device, self.operand, values.len());
            copies.send(values, 0..values.len());
            copies
        });
        let stale = std::mem::take(&mut *self.stale.lock().unwrap_or_else(PoisonError::into_inner));
        for range in joined(stale) {
            copies.send(host(), range);
        }
        copies
    }
}

impl Weights {
    fn copies(&self) -> &Copies {
        self.device_weights().expect("asked of a model on a device only").copies(|| self.master())
    }

    /// One parameter in f32, on the device.
    pub(crate) fn tensor_on_device(&self, id: ParamId) -> View<'_> {
        let info = &self.infos()[id.0];
        self.copies().master.part(info.offset..info.offset + info.len)
    }

    /// A matrix `[n, k]` as operand, on the device.
    pub(crate) fn matrix_on_device(&self, id: LinearId) -> View<'_> {
        let linear = self.linear(id);
        let copies = self.copies();
        copies.rounded.as_ref().unwrap_or(&copies.master).part(linear.offset..linear.offset + linear.n * linear.k)
    }

    /// The stacked bias in f32, on the device.
    pub(crate) fn bias_on_device(&self, id: LinearId) -> Option<View<'_>> {
        let linear = self.linear(id);
        linear.bias.map(|offset| self.copies().master.part(offset..offset + linear.n))
    }

    /// One step of AdamW for part of the flat buffer, on the device; the host is behind from then on.
    pub(crate) fn step_on_device(&mut self, range: Range<usize>, g: View, [m, v]: [View; 2], numbers: &Numbers) {
        let copies = self.copies();
        let rounded = copies.rounded.as_ref().map(|rounded| rounded.part(range.clone()));
        ops::optimiser::adamw_step(copies.master.part(range.clone()), g, m, v, numbers, rounded);
        self.fall_behind(range);
    }
}
