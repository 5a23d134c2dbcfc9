//! Where a model computes: what `device` may say in a recipe and on the command line, and the one place that turns it into
//! a device.
//! Knows names of devices; knows no kernels. Cost: opening a GPU takes a second, once per process.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use foveate_kernels::cuda::Device;

use crate::error::ModelError;
use crate::policy::{Policy, Precision};

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, as long as nobody has seen the GPU's results on a GPU (docs/gpu.md); then the first GPU, if there is one.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(DeviceChoice::Cuda).ok_or_else(|| format!("device {text:?} is none of auto, cpu, cuda:0"))
            }
        }
    }
}

/// Devices that have been opened, by number.
static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());

/// Puts a device in the place of GPU `index`, for the rest of the process: how tests of whole runs put the emulator there.
pub fn stand_in(index: usize, device: Device) {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).insert(index, device);
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => write!(out, "auto"),
            DeviceChoice::Cpu => write!(out, "cpu"),
            DeviceChoice::Cuda(index) => write!(out, "cuda:{index}"),
        }
    }
}

impl DeviceChoice {
    /// The device; none is the CPU. All models of a process share one device of a number, and its memory.
    pub fn open(self) -> Result<Option<Device>, ModelError> {
        let DeviceChoice::Cuda(index) = self else { return Ok(None) };
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&index) {
            return Ok(Some(device.clone()));
        }
        let device = Device::cuda(index).map_err(ModelError::Gpu)?;
        open.insert(index, device.clone());
        Ok(Some(device))
    }
}

impl Policy {
    /// The same model on the chosen device.
    pub fn on(mut self, choice: DeviceChoice, precision: Precision) -> Result<Policy, ModelError> {
        if let Some(device) = choice.open()? {
            self.use_device(device, precision);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Cuda(2)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for wrong in ["cuda:", "cuda:x", "gpu", "CPU", ""] {
            assert!(wrong.parse::<DeviceChoice>().unwrap_err().contains("none of"), "{wrong}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_with_a_hint() {
        let error = DeviceChoice::Cuda(900).open().expect_err("nobody has so many");
        assert!(!error.hint().is_empty(), "{error}");
        assert!(DeviceChoice::Auto.open().expect("always works").is_none());
    }
}
