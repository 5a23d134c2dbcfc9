//! The copy of a model's weights that a GPU works with: all of them in f32, and in bf16 mode once more rounded. The flat
//! buffer of the host stays the truth; the copy is made anew when it has changed.
//! Knows buffers; knows no architecture. Cost: 4 or 6 bytes a parameter on the device, sent once an optimiser step.

use std::sync::{Mutex, OnceLock, PoisonError};

use foveate_kernels::cuda::{Device, DeviceBuffer, Number, View, ops};

use crate::arena::Kind;
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
    current: OnceLock<Copies>,
    /// Memory of copies that are out of date.
    old: Mutex<Option<Copies>>,
}

struct Copies {
    master: DeviceBuffer,
    rounded: Option<DeviceBuffer>,
}

impl DeviceWeights {
    pub fn new(device: Device, operand: Kind) -> Self {
        DeviceWeights { device, operand, current: OnceLock::new(), old: Mutex::default() }
    }

    /// The same device, nothing sent yet.
    pub fn empty(&self) -> Self {
        Self::new(self.device.clone(), self.operand)
    }

    /// The host's values have changed.
    pub fn forget(&mut self) {
        if let Some(copies) = self.current.take() {
            *self.old.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(copies);
        }
    }

    fn copies(&self, master: &[f32]) -> &Copies {
        self.current.get_or_init(|| {
            let old = self.old.lock().unwrap_or_else(PoisonError::into_inner).take();
            let copies = old.filter(|old| old.master.len() == master.len()).unwrap_or_else(|| Copies {
                master: self.device.take(Number::F32, master.len()),
                rounded: (self.operand == Kind::Bf16).then(|| self.device.take(Number::Bf16, master.len())),
            });
            copies.master.all().write(master);
            if let Some(rounded) = &copies.rounded {
                ops::elementwise::convert(copies.master.all(), rounded.all());
            }
            copies
        })
    }
}

impl Weights {
    fn copies(&self) -> &Copies {
        self.device_weights().expect("asked of a model on a device only").copies(self.master())
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
}
