//! Reads and writes `model.safetensors`, one file or several behind an index.
//! Knows types and shapes; knows no architecture. Cost: one pass over the bytes, tensors converted in parallel.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use foveate_kernels::element::{Element, bf16};
use foveate_kernels::map::{FileMap, MapError};
use half::f16;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::error::ModelError;
use crate::weights::{Naming, Weights, stored_name};

/// Number type of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveType {
    /// Four bytes, exact.
    F32,
    /// Two bytes, eight bits of precision; what the field publishes.
    Bf16,
    /// Two bytes, eleven bits of precision, small range.
    F16,
}

pub(crate) fn damaged(path: &Path, problem: impl ToString) -> ModelError {
    ModelError::Weights { path: path.to_path_buf(), problem: problem.to_string() }
}

/// Weights in forms that are not read.
const PICKLED: [&str; 5] =
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5", "flax_model.msgpack"];

/// The file seen as bytes.
fn map(path: &Path) -> Result<FileMap, ModelError> {
    FileMap::open(path).map_err(|error| match error {
        MapError::Open { path, source } | MapError::Map { path, source } => ModelError::File { path, source },
        MapError::NotAFile { path } => damaged(&path, "it is not a file"),
    })
}

/// The files that hold a folder's weights.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file()
        && let Some(name) = PICKLED.iter().find(|name| dir.join(name).exists())
    {
        return Err(ModelError::Pickled { path: dir.join(name) });
    }
    let text = std::fs::read_to_string(&index).map_err(|source| ModelError::File { path: single.clone(), source })?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| damaged(&index, error))?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| damaged(&index, "the key weight_map is missing"))?;
    let mut names: Vec<&str> = map.values().filter_map(|value| value.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if let Some(name) = names.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        return Err(damaged(&index, format!("shard name \"{name}\" leaves the folder")));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Whether a folder stores a head that differs from the embedding. Both are compared in place; nothing is copied.
pub fn has_own_head(dir: &Path) -> Result<bool, ModelError> {
    let ends = ["lm_head.weight", "embed_tokens.weight"];
    let is = |name: &str, end: &str| name == end || name.strip_suffix(end).is_some_and(|before| before.ends_with('.'));
    let maps = weight_files(dir)?
        .into_iter()
        .map(|path| map(&path).map(|map| (map, path.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    let files = maps
        .iter()
        .map(|(bytes, path)| SafeTensors::deserialize(bytes).map_err(|error| damaged(path, error)))
        .collect::<Result<Vec<_>, _>>()?;
    let find = |end: &str| files.iter().flat_map(|file| file.tensors()).find(|(name, _)| is(name, end));
    let [Some((_, head)), Some((_, embedding))] = ends.map(find) else { return Ok(false) };
    Ok(head.dtype() != embedding.dtype() || head.data() != embedding.data())
}

/// Buffers that old versions of `transformers` stored and every version computes.
const COMPUTED: [&str; 2] = ["rotary_emb.inv_freq", "embeddings.position_ids"];

/// Fills `weights` from a folder, whose names are spelled in one of `namings`; gives the one. A tied head may be stored
/// as well and is then left.
pub fn load(weights: &mut Weights, dir: &Path, namings: &[Naming]) -> Result<Naming, ModelError> {
    let mut problems: Vec<String> = Vec::new();
    let spelled: Vec<BTreeMap<String, usize>> = namings
        .iter()
        .map(|naming| {
            weights.infos().iter().enumerate().map(|(i, info)| (stored_name(&info.name, naming), i)).collect()
        })
        .collect();
    let mut hits = vec![0; namings.len()];
    let mut seen = vec![false; weights.infos().len()];
    for path in weight_files(dir)? {
        // Mapped for its header alone: values are read piece by piece, so that no second copy of them is in memory.
        let map = map(&path)?;
        let file = SafeTensors::deserialize(&map).map_err(|error| damaged(&path, error))?;
        let open = File::open(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        let mut jobs = Vec::new();
        for (name, view) in file.tensors() {
            let found: Vec<Option<usize>> = spelled.iter().map(|names| names.get(&name).copied()).collect();
            hits.iter_mut().zip(&found).for_each(|(hits, found)| *hits += usize::from(found.is_some()));
            let Some(index) = found.into_iter().flatten().next() else {
                if !name.ends_with("lm_head.weight") && !COMPUTED.iter().any(|tail| name.ends_with(tail)) {
                    problems.push(format!("unexpected tensor {name} {:?}", view.shape()));
                }
                continue;
            };
            let info = &weights.infos()[index];
            if view.shape() != info.shape {
                problems.push(format!("{name} has shape {:?}, expected {:?}", view.shape(), info.shape));
                seen[index] = true;
                continue;
            }
            if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                return Err(damaged(
                    &path,
                    format!("{name} is stored as {:?}; quantised checkpoints are not read", view.dtype()),
                ));
            }
            if jobs.iter().any(|job: &(usize, usize, Dtype, u64)| job.0 == info.offset) {
                problems.push(format!("{name} is stored under two names"));
                continue;
            }
            seen[index] = true;
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            jobs.push((info.offset, info.len, view.dtype(), start as u64));
        }
        jobs.sort_by_key(|job| job.0);
        // Cut the flat buffer at the tensors' places so that they can be filled in parallel.
        let mut rest = weights.master_mut();
        let mut at = 0;
        let mut slices = Vec::with_capacity(jobs.len());
        for (offset, len, dtype, start) in jobs {
            let (_, tail) = rest.split_at_mut(offset - at);
            let (slice, tail) = tail.split_at_mut(len);
            let size = dtype.bitsize() as u64 / 8;
            let pieces = slice.chunks_mut(PIECE).enumerate();
            slices.extend(pieces.map(|(i, piece)| (piece, dtype, start + (i * PIECE) as u64 * size)));
            rest = tail;
            at = offset + len;
        }
        slices
            .into_par_iter()
            .try_for_each_init(Vec::new, |bytes, (piece, dtype, start)| read_piece(&open, dtype, start, bytes, piece))
            .map_err(|source| ModelError::File { path: path.clone(), source })?;
    }
    for (index, info) in weights.infos().iter().enumerate() {
        if !seen[index] {
            problems.push(format!("missing tensor {} {:?}", info.name, info.shape));
        }
    }
    if problems.is_empty() {
        let best = hits.iter().max().copied().unwrap_or(0);
        let chosen = hits.iter().position(|hits| *hits == best);
        return Ok(chosen.and_then(|chosen| namings.get(chosen)).copied().unwrap_or(&[]));
    }
    let more = problems.len().saturating_sub(12);
    problems.truncate(12);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Err(ModelError::Mismatch { path: dir.to_path_buf(), problems: problems.join("; ") })
}

/// Values that are read at a time.
const PIECE: usize = 1 << 18;

/// Reads values from place `start` of a file on; `bytes` is room that is used again and again.
fn read_piece(file: &File, dtype: Dtype, start: u64, bytes: &mut Vec<u8>, out: &mut [f32]) -> std::io::Result<()> {
    bytes.resize(out.len() * dtype.bitsize() / 8, 0);
    file.read_exact_at(bytes, start)?;
    widen(dtype, bytes, out);
    Ok(())
}

/// Values of any stored type as f32.
pub(crate) fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes(bytes.try_into().expect("chunks of four"));
            }
        }
        Dtype::BF16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = Element::to_f32(bf16::from_le_bytes(bytes.try_into().expect("chunks of two")));
            }
        }
        _ => {
            for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f16::from_le_bytes(bytes.try_into().expect("chunks of two")).to_f32();
            }
        }
    }
}

/// One tensor to be written.
pub(crate) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A tensor of the flat buffer, turned into the stored type when it is written: no second copy of a model is in memory.
struct Written<'a> {
    values: &'a [f32],
    dtype: Dtype,
    shape: &'a [usize],
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let size = self.dtype.bitsize() / 8;
        let mut bytes = vec![0; self.data_len()];
        bytes.par_chunks_mut(PIECE * size).zip(self.values.par_chunks(PIECE)).for_each(|(bytes, values)| {
            for (bytes, value) in bytes.chunks_exact_mut(size).zip(values) {
                match self.dtype {
                    Dtype::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
                    Dtype::BF16 => bytes.copy_from_slice(&<bf16 as Element>::from_f32(*value).to_le_bytes()),
                    _ => bytes.copy_from_slice(&f16::from_f32(*value).to_le_bytes()),
                }
            }
        });
        bytes.into()
    }
    fn data_len(&self) -> usize {
        self.values.len() * self.dtype.bitsize() / 8
    }
}

/// Writes all parameters to one file, their names spelled as in `naming`. The caller chooses a fresh path and renames.
pub fn save(weights: &Weights, naming: Naming, path: &Path, dtype: SaveType) -> Result<(), ModelError> {
    let dtype = match dtype {
        SaveType::F32 => Dtype::F32,
        SaveType::Bf16 => Dtype::BF16,
        SaveType::F16 => Dtype::F16,
    };
    let tensors = weights.infos().iter().map(|info| {
        let values = &weights.master()[info.offset..info.offset + info.len];
        (stored_name(&info.name, naming), Written { values, dtype, shape: &info.shape })
    });
    write_tensors(tensors, path)
}

/// Writes tensors with the mark that PyTorch's side looks for.
pub(crate) fn write_tensors<T: View>(
    tensors: impl IntoIterator<Item = (String, T)>,
    path: &Path,
) -> Result<(), ModelError> {
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    safetensors::serialize_to_file(tensors, metadata, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => ModelError::File { path: path.to_path_buf(), source },
        other => damaged(path, other),
    })
}
