//! f32 tensors to and from a safetensors file, streamed: no second copy of the state is made for writing.
//! Knows names, shapes and numbers. Cost: one pass; reading holds the file and the tensors once each.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::CheckpointError;
use super::durable::{FileError, read_file};

/// One tensor to be written.
pub struct Named<'a> {
    /// Its key in the file.
    pub name: String,
    /// Its shape; the product is the number of values.
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: &'a [f32],
}

/// Writes the tensors in the order given.
pub fn write(writer: &mut dyn Write, tensors: &[Named]) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.values.len() * 4;
        header.insert(
            tensor.name.clone(),
            serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut text = serde_json::to_string(&header)?;
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    writer.write_all(&(text.len() as u64).to_le_bytes())?;
    writer.write_all(text.as_bytes())?;
    for tensor in tensors {
        for chunk in tensor.values.chunks(1 << 16) {
            if cfg!(target_endian = "little") {
                writer.write_all(bytemuck::cast_slice(chunk))?;
            } else {
                for value in chunk {
                    writer.write_all(&value.to_le_bytes())?;
                }
            }
        }
    }
    Ok(())
}

/// Reads all tensors of a file; anything but f32 is refused.
pub fn read(path: &Path) -> Result<BTreeMap<String, Vec<f32>>, CheckpointError> {
    let bytes = read_file(path)?;
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_path_buf(), reason };
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(damaged(format!("tensor {name} is {:?}, not F32", view.dtype())));
        }
        let values =
            view.data().chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
        tensors.insert(name, values);
    }
    Ok(tensors)
}

/// Takes the tensor `name` out of what [`read`] gave and copies it over `into`.
pub fn restore(
    tensors: &BTreeMap<String, Vec<f32>>,
    name: &str,
    into: &mut [f32],
    path: &Path,
) -> Result<(), CheckpointError> {
    let found = tensors.get(name).ok_or_else(|| CheckpointError::Damaged {
        path: path.to_path_buf(),
        reason: format!("tensor {name} is missing"),
    })?;
    if found.len() != into.len() {
        return Err(CheckpointError::Damaged {
            path: path.to_path_buf(),
            reason: format!("tensor {name} has {} values, the model needs {}", found.len(), into.len()),
        });
    }
    into.copy_from_slice(found);
    Ok(())
}

impl From<FileError> for CheckpointError {
    fn from(error: FileError) -> Self {
        CheckpointError::File(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let values = [1.0f32, -0.0, f32::MIN_POSITIVE / 2.0, 3.4e38];
        super::super::durable::write_with(&path, |writer| {
            write(
                writer,
                &[
                    Named { name: "b".into(), shape: vec![2, 2], values: &values },
                    Named { name: "a".into(), shape: vec![1], values: &[7.0] },
                ],
            )
        })
        .unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back["b"].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), values.map(f32::to_bits));
        let mut one = [0.0];
        restore(&back, "a", &mut one, &path).unwrap();
        assert_eq!(one, [7.0]);
        assert!(restore(&back, "b", &mut one, &path).unwrap_err().to_string().contains("4 values"));
        assert!(restore(&back, "c", &mut one, &path).unwrap_err().to_string().contains("missing"));
    }
}
