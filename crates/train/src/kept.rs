//! What of a model a run writes down and reads back: a folder that other programs load, and the f32 values and moments
//! that exact resume needs. Where adapters learn, only they are kept.
//! Knows policies and tensor files; knows nothing of steps. Cost: one pass over what is kept.

use std::path::Path;

use foveate_kernels::memory;
use foveate_model::{Policy, SaveType};

use crate::adamw::AdamW;
use crate::checkpoint::crc32c::crc32c;
use crate::checkpoint::durable::{FileError, read_file, write_file};
use crate::checkpoint::tensor_file::{self, Named};
use crate::checkpoint::{CheckpointError, Found, hugging_face};
use crate::error::TrainError;
use crate::source::ModelSource;

/// File of a checkpoint of adapters that says beside which weights they were learned.
const BASE_MARK: &str = "base-mark.txt";

/// A checksum over samples of the weights beside which adapters learn: enough to notice another model.
pub fn base_mark(policy: &Policy) -> Option<u32> {
    policy.adapters()?;
    let base = &policy.master()[..policy.weights().adapter_range().start];
    let samples: Vec<u8> = base.iter().step_by(61).flat_map(|value| value.to_le_bytes()).collect();
    Some(crc32c(&samples))
}

/// Notes beside which weights a checkpoint's adapters were learned.
pub fn write_mark(folder: &Path, mark: Option<u32>) -> Result<(), FileError> {
    mark.map_or(Ok(()), |mark| write_file(&folder.join(BASE_MARK), format!("{mark:08x}\n").as_bytes()))
}

/// Writes a complete Hugging Face folder, or a PEFT adapter with what is needed to ask it.
pub fn write_model(policy: &Policy, home: &ModelSource, folder: &Path, dtype: SaveType) -> Result<(), CheckpointError> {
    if policy.adapters().is_some() {
        policy.save_adapter(folder, &home.name).map_err(|error| CheckpointError::Weights(error.to_string()))?;
        hugging_face::copy_prompt_files(&home.folder, folder)?;
        return write_limits(home, folder);
    }
    policy.save_weights(folder, dtype).map_err(|error| CheckpointError::Weights(error.to_string()))?;
    let word = match dtype {
        SaveType::F32 => "float32",
        SaveType::Bf16 => "bfloat16",
        SaveType::F16 => "float16",
    };
    hugging_face::copy_side_files(&home.folder, folder, word)?;
    write_limits(home, folder)
}

/// A model is asked with the pictures that it was taught with.
fn write_limits(home: &ModelSource, folder: &Path) -> Result<(), CheckpointError> {
    let saved = home.images.save(&home.folder).map_err(|error| CheckpointError::Weights(error.to_string()))?;
    Ok(saved.map_or(Ok(()), |(name, bytes)| write_file(&folder.join(name), &bytes))?)
}

/// The parameters of a flat buffer that a run must keep, by name: all, or the adapters where only those can learn.
pub fn kept_tensors<'t>(policy: &Policy, flat: &'t [f32], prefix: &str) -> Vec<Named<'t>> {
    let named = |info: &foveate_model::ParamInfo| Named {
        name: format!("{prefix}{}", info.name),
        shape: info.shape.clone(),
        values: &flat[info.offset..info.offset + info.len],
    };
    let first = if policy.adapters().is_some() { policy.weights().adapter_range().start } else { 0 };
    policy.parameters().iter().filter(|info| info.offset >= first).map(named).collect()
}

/// The same without parameters that do not learn.
pub fn trained_tensors<'t>(policy: &Policy, flat: &'t [f32], prefix: &str) -> Vec<Named<'t>> {
    let kept = kept_tensors(policy, flat, prefix);
    let first = policy.parameters().len() - kept.len();
    let learns = |(index, _): &(usize, Named)| policy.is_trainable(first + index);
    kept.into_iter().enumerate().filter(learns).map(|(_, named)| named).collect()
}

/// Reads back what [`kept_tensors`] gave: the weights of a moment of the run.
pub fn restore_kept(policy: &mut Policy, path: &Path) -> Result<(), TrainError> {
    let tensors = tensor_file::read(path)?;
    let first = if policy.adapters().is_some() { policy.weights().adapter_range().start } else { 0 };
    let infos: Vec<_> = policy.parameters().iter().filter(|info| info.offset >= first).cloned().collect();
    for info in infos {
        let range = info.offset..info.offset + info.len;
        tensor_file::restore(&tensors, &info.name, policy.weights_mut().range_mut(range), path)?;
    }
    Ok(())
}

/// Puts master weights, moments and counts of a checkpoint back.
pub fn restore(
    found: &Found,
    policy: &mut Policy,
    optim: &mut AdamW,
    home: &ModelSource,
    underneath: Option<u32>,
) -> Result<(), TrainError> {
    if let Some(mark) = underneath
        && String::from_utf8_lossy(&read_file(&found.path.join(BASE_MARK))?).trim() != format!("{mark:08x}")
    {
        return Err(TrainError::OtherBase(home.folder.clone()));
    }
    let path = found.path.join("optimizer.safetensors");
    let tensors = tensor_file::read(&path)?;
    let infos: Vec<_> = policy.parameters().to_vec();
    let learns: Vec<bool> = (0..infos.len()).map(|index| policy.is_trainable(index)).collect();
    let first = underneath.map_or(0, |_| policy.weights().adapter_range().start);
    let [mut m, mut v] = [(); 2].map(|()| memory::zeroed(policy.num_values()));
    for (info, learns) in infos.iter().zip(learns).filter(|(info, _)| info.offset >= first) {
        let range = info.offset..info.offset + info.len;
        let name = |prefix: &str| format!("{prefix}{}", info.name);
        tensor_file::restore(&tensors, &name("master/"), policy.weights_mut().range_mut(range.clone()), &path)?;
        if learns {
            tensor_file::restore(&tensors, &name("m/"), &mut m[range.clone()], &path)?;
            tensor_file::restore(&tensors, &name("v/"), &mut v[range], &path)?;
        }
    }
    optim.restore([m, v], found.state.optimizer_step);
    Ok(())
}
