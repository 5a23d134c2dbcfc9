//! Adapters on disk as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.
//! Knows file names and keys of PEFT 0.10 and later; the arithmetic lives in `linear`. What says that another
//! arithmetic is meant (DoRA, patterns of ranks, trained biases) is refused by name.
//! Cost: two small files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::adapters::AdapterSpec;
use crate::error::ModelError;
use crate::policy::Policy;
use crate::safetensors_io::{Stored, damaged, widen, write_tensors};
use crate::weights::Trainable;

/// File that says what the adapter is.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File that holds its numbers.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// PEFT wraps a model twice; its names say so.
const PREFIX: &str = "base_model.model.";

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFile {
    /// Rank, scale and dropout; the targets are those of the file and may be a pattern, so the tensors decide which
    /// modules have adapters.
    pub spec: AdapterSpec,
    /// The model underneath, as the file names it.
    pub base: Option<String>,
}

/// Reads the settings of an adapter folder; none if it is not one.
pub fn read_config(dir: &Path) -> Result<Option<AdapterFile>, ModelError> {
    let path = dir.join(CONFIG_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
    let wrong = |problem: String| ModelError::Config {
        path: path.clone(),
        problem,
        hint: "plain LoRA adapters of PEFT are read: one rank and alpha for all modules, no trained biases".into(),
    };
    let config: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let kind = config["peft_type"].as_str().unwrap_or("");
    if kind != "LORA" {
        return Err(wrong(format!("peft_type is {:?}, not LORA", kind)));
    }
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let foreign = [
        "use_dora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "trainable_token_indices",
        "lora_bias",
        "layer_replication",
        "megatron_config",
        "use_qalora",
        "target_parameters",
    ];
    if let Some(key) = foreign.into_iter().find(|key| !empty(&config[*key])) {
        return Err(wrong(format!("{key} is {}", config[key])));
    }
    if !["", "none"].contains(&config["bias"].as_str().unwrap_or("")) {
        return Err(wrong(format!("bias is {}, not \"none\"", config["bias"])));
    }
    let rank = config["r"].as_u64().filter(|rank| (1..1 << 16).contains(rank));
    let rank = rank.ok_or_else(|| wrong(format!("r is {}, not a rank", config["r"])))?;
    let alpha = config["lora_alpha"].as_f64().filter(|alpha| alpha.is_finite());
    let alpha = alpha.ok_or_else(|| wrong(format!("lora_alpha is {}, not a number", config["lora_alpha"])))?;
    let dropout = config["lora_dropout"].as_f64().unwrap_or(0.0);
    if !(0.0..1.0).contains(&dropout) {
        return Err(wrong(format!("lora_dropout is {dropout}")));
    }
    let spec = AdapterSpec {
        rank: rank as usize,
        alpha: alpha as f32,
        rank_stabilised: config["use_rslora"].as_bool().unwrap_or(false),
        dropout: dropout as f32,
        targets: Vec::new(),
        parts: Trainable::ALL,
    };
    let base = config["base_model_name_or_path"].as_str().filter(|base| !base.is_empty());
    Ok(Some(AdapterFile { spec, base: base.map(str::to_string) }))
}

impl Policy {
    /// Writes the adapters into `dir` so that PEFT loads them; `base` names the model underneath.
    pub fn save_adapter(&self, dir: &Path, base: &str) -> Result<(), ModelError> {
        let spec = self.adapters().expect("only a model with adapters is asked to save them");
        let config = json!({
            "peft_type": "LORA",
            "task_type": Value::Null,
            "base_model_name_or_path": base,
            "inference_mode": true,
            "r": spec.rank,
            "lora_alpha": spec.alpha,
            "use_rslora": spec.rank_stabilised,
            "lora_dropout": spec.dropout,
            // Whole names: the same last name may stand in the tower and in the decoder.
            "target_modules": self.adapted_modules(),
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "modules_to_save": Value::Null,
        });
        let path = dir.join(CONFIG_FILE);
        let text = serde_json::to_string_pretty(&config).expect("plain data always serialises");
        std::fs::write(&path, text).map_err(|source| ModelError::File { path, source })?;
        let adapters = self.parameters().iter().filter(|info| is_adapter(&info.name));
        let tensors = adapters.map(|info| {
            let values = &self.master()[info.offset..info.offset + info.len];
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (format!("{PREFIX}{}", info.name), Stored { dtype: Dtype::F32, shape: info.shape.clone(), bytes })
        });
        write_tensors(tensors, &dir.join(WEIGHTS_FILE))
    }

    /// The same model with the adapters in `dir` beside its matrices.
    pub fn with_adapter_from(mut self, dir: &Path) -> Result<Policy, ModelError> {
        let mut spec = read_spec(dir)?;
        spec.targets.retain(|module| !self.is_unread(module));
        self = self.with_adapters(&spec, 0)?;
        self.load_adapter(dir)?;
        Ok(self)
    }

    /// Whether no forward pass reads a module: PEFT puts adapters beside such blocks as well, where they do nothing.
    fn is_unread(&self, module: &str) -> bool {
        let named = |name: &str| name.strip_suffix(".weight") == Some(module);
        self.parameters().iter().any(|info| info.unread && named(&info.name))
    }

    /// Fills the adapters that the model has from `dir`; they must be on the same modules, with the same settings.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<(), ModelError> {
        let mismatch =
            |problems: Vec<String>| ModelError::Mismatch { path: dir.to_path_buf(), problems: problems.join("; ") };
        let spec = read_spec(dir)?;
        let own = self.adapters().expect("only a model with adapters is asked to load them");
        if (own.rank, own.scale()) != (spec.rank, spec.scale()) {
            let told = |spec: &AdapterSpec| format!("rank {} and scale {}", spec.rank, spec.scale());
            return Err(mismatch(vec![format!("the file has {}, the model {}", told(&spec), told(own))]));
        }
        let (path, bytes) = read_bytes(dir)?;
        let mut by_name = parse(&path, &bytes)?;
        by_name.retain(|name, _| !name.rsplit_once(".lora_").is_some_and(|(module, _)| self.is_unread(module)));
        let infos: Vec<_> = self.parameters().iter().filter(|info| is_adapter(&info.name)).cloned().collect();
        let mut problems = Vec::new();
        for info in &infos {
            match by_name.remove(&info.name) {
                Some(view) if view.shape() == info.shape => {
                    let into = self.weights_mut().range_mut(info.offset..info.offset + info.len);
                    widen(view.dtype(), view.data(), into);
                }
                Some(view) => {
                    problems.push(format!("{} has shape {:?}, expected {:?}", info.name, view.shape(), info.shape))
                }
                None => problems.push(format!("missing tensor {}", info.name)),
            }
        }
        problems.extend(by_name.keys().map(|name| format!("unexpected tensor {name}")));
        if problems.is_empty() {
            return Ok(());
        }
        problems.truncate(12);
        Err(mismatch(problems))
    }
}

/// The settings in `dir`, with the modules that its tensors name as targets.
fn read_spec(dir: &Path) -> Result<AdapterSpec, ModelError> {
    let Some(file) = read_config(dir)? else {
        let path = dir.join(CONFIG_FILE);
        return Err(ModelError::File { path, source: std::io::ErrorKind::NotFound.into() });
    };
    let (path, bytes) = read_bytes(dir)?;
    let by_name = parse(&path, &bytes)?;
    let modules = by_name.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")).map(str::to_string);
    let spec = AdapterSpec { targets: modules.collect(), ..file.spec };
    if spec.targets.is_empty() { Err(damaged(&path, "it holds no adapters")) } else { Ok(spec) }
}

fn read_bytes(dir: &Path) -> Result<(PathBuf, Vec<u8>), ModelError> {
    let path = dir.join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).map_err(|source| match dir.join("adapter_model.bin").is_file() {
        true => damaged(&path, "the adapter is a pickle file, which is not read; save it as safetensors"),
        false => ModelError::File { path: path.clone(), source },
    })?;
    Ok((path, bytes))
}

/// The tensors of an adapter file under the names that this model gives them.
fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<BTreeMap<String, TensorView<'a>>, ModelError> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| damaged(path, error))?;
    let mut by_name = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        let plain = name.strip_prefix(PREFIX).unwrap_or(&name).replace(".default.weight", ".weight");
        if !is_adapter(&plain) {
            return Err(damaged(path, format!("{name} is no lora_A or lora_B matrix")));
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(damaged(path, format!("{name} is stored as {:?}", view.dtype())));
        }
        by_name.insert(plain, view);
    }
    Ok(by_name)
}

fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

/// The folder of a local base model that an adapter in `dir` names: as it stands, or seen from `dir`.
pub fn local_base(dir: &Path, base: &str) -> Option<PathBuf> {
    [PathBuf::from(base), dir.join(base)].into_iter().find(|path| path.join("config.json").is_file())
}
