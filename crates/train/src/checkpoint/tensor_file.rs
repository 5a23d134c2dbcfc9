//! f32 tensors to and from a safetensors file, streamed: no second copy of the state is made for writing.
//! Knows names, shapes and numbers. Cost: one pass; a file that is read stays mapped, and one tensor at a time is copied out of it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use foveate_kernels::map::FileMap;
use safetensors::{Dtype, SafeTensors};

use super::CheckpointError;
use super::durable::FileError;

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

/// The tensors of a file that stays mapped: values are copied out one tensor at a time.
pub struct Tensors {
    map: FileMap,
    places: BTreeMap<String, Range<usize>>,
}

/// Opens the tensors of a file; anything but f32 is refused.
pub fn read(path: &Path) -> Result<Tensors, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_path_buf(), reason };
    let map = FileMap::open(path).map_err(|error| damaged(error.to_string()))?;
    let file = SafeTensors::deserialize(&map).map_err(|error| damaged(error.to_string()))?;
    let mut places = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(damaged(format!("tensor {name} is {:?}, not F32", view.dtype())));
        }
        let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
        places.insert(name, start..start + view.data().len());
    }
    Ok(Tensors { map, places })
}

/// Copies the tensor `name` of what [`read`] gave over `into`.
pub fn restore(tensors: &Tensors, name: &str, into: &mut [f32], path: &Path) -> Result<(), CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_path_buf(), reason };
    let place = tensors.places.get(name).ok_or_else(|| damaged(format!("tensor {name} is missing")))?;
    let found = &tensors.map[place.clone()];
    if found.len() != into.len() * 4 {
        let problem = format!("tensor {name} has {} values, the model needs {}", found.len() / 4, into.len());
        return Err(damaged(problem));
    }
    for (value, bytes) in into.iter_mut().zip(found.chunks_exact(4)) {
        *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
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
        let mut four = [0.0; 4];
        restore(&back, "b", &mut four, &path).unwrap();
        assert_eq!(four.map(f32::to_bits), values.map(f32::to_bits));
        let mut one = [0.0];
        restore(&back, "a", &mut one, &path).unwrap();
        assert_eq!(one, [7.0]);
        assert!(restore(&back, "b", &mut one, &path).unwrap_err().to_string().contains("4 values"));
        assert!(restore(&back, "c", &mut one, &path).unwrap_err().to_string().contains("missing"));
    }
}
