//! Files that lie: damaged headers, hostile sizes, wrong shapes, shards that leave their folder, models too large for
//! any machine. Each is refused with the file's name; none is believed.

mod support;

use std::fs;
use std::path::Path;

use foveate_model::{Policy, Precision, Trainable, plan};
use serde_json::{Value, json};
use support::fixtures;

/// A copy of a fixture model.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join("models/smolvlm_nosplit").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn refused(folder: &Path) -> String {
    let error = Policy::load(folder, Precision::F32).err().expect("it must be refused");
    assert!(!error.hint().is_empty());
    error.to_string()
}

/// Header and data of the weights.
fn parts(folder: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
}

fn write(folder: &Path, header: &str, data: &[u8]) {
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn damaged_headers_are_refused() {
    let folder = copy();
    let path = folder.path();
    let whole = fs::read(path.join("model.safetensors")).unwrap();
    let cases: [Vec<u8>; 6] = [
        vec![],
        whole[..7].to_vec(),
        whole[..200].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat(),
        [&whole[..8], &[b'x'; 64][..], &whole[72..]].concat(),
    ];
    for bytes in cases {
        fs::write(path.join("model.safetensors"), &bytes).unwrap();
        let told = refused(path);
        assert!(told.contains("model.safetensors"), "{} bytes: {told}", bytes.len());
    }
}

#[test]
fn hostile_sizes_are_refused_before_anything_is_allocated() {
    let folder = copy();
    let path = folder.path();
    let (header, data) = parts(path);
    let name = header.as_object().unwrap().keys().find(|name| name.ends_with("q_proj.weight")).unwrap().clone();
    for (shape, offsets) in [
        (json!([u64::MAX, 2]), json!([0, 16])),
        (json!([1u64 << 40, 1u64 << 40]), json!([0, 16])),
        (json!([4, 4]), json!([64, 0])),
        (json!([4, 4]), json!([0, 1u64 << 60])),
    ] {
        let mut hostile = header.clone();
        hostile[&name]["shape"] = shape.clone();
        hostile[&name]["data_offsets"] = offsets;
        write(path, &hostile.to_string(), &data);
        let told = refused(path);
        assert!(told.contains("model.safetensors"), "{shape}: {told}");
    }
    // Sizes in the configuration that no machine has memory for.
    let mut config: Value = serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
    config["text_config"]["intermediate_size"] = json!(16_000_000);
    config["text_config"]["hidden_size"] = json!(9_600_000);
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    let error = plan::check_fits(path, Precision::F32).unwrap_err();
    assert!(error.to_string().contains("GiB") && error.hint().contains("foveate plan"), "{error}");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let folder = copy();
    let path = folder.path();
    let (header, data) = parts(path);
    let name = header.as_object().unwrap().keys().find(|name| name.ends_with("norm.weight")).unwrap().clone();
    let mut renamed = header.as_object().unwrap().clone();
    let entry = renamed.remove(&name).unwrap();
    renamed.insert("stranger".into(), entry);
    write(path, &Value::Object(renamed).to_string(), &data);
    let told = refused(path);
    assert!(told.contains("stranger") && told.contains(&name), "{told}");

    // One tensor under the names of two versions of transformers.
    let naming = ["model.text_model.embed_tokens.weight", "model.language_model.embed_tokens.weight"];
    let embedding = header.as_object().unwrap().keys().find(|name| name.ends_with("embed_tokens.weight")).unwrap();
    let mut twice = header.as_object().unwrap().clone();
    for name in naming.iter().filter(|name| *name != embedding) {
        let mut entry = header[embedding].clone();
        let [from, to] = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap());
        entry["data_offsets"] = json!([data.len(), data.len() as u64 + to - from]);
        twice.insert(name.to_string(), entry);
        let more = [&data[..], &data[from as usize..to as usize]].concat();
        write(path, &Value::Object(twice.clone()).to_string(), &more);
        let told = refused(path);
        assert!(told.contains(name) || told.contains("two names"), "{told}");
        twice.remove(*name);
    }

    fs::remove_file(path.join("model.safetensors")).unwrap();
    fs::write(path.join("pytorch_model.bin"), "pickle").unwrap();
    assert!(refused(path).contains("pytorch_model.bin"));
    let index = json!({"weight_map": {"a": "gone.safetensors"}});
    fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let told = refused(path);
    assert!(told.contains("gone.safetensors") && !told.contains("hint"), "{told}");
    let index = json!({"weight_map": {"a": "../../etc/passwd"}});
    fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(refused(path).contains("leaves the folder"));
}

#[test]
fn a_plan_counts_what_a_loaded_model_has() {
    for name in support::MODELS {
        let folder = fixtures().join("models").join(name);
        let policy = Policy::load(&folder, Precision::F32).unwrap();
        let about = policy.description();
        let plan = plan::plan(&folder, Precision::F32, Trainable::ALL, None).unwrap();
        let all: usize = about.num_parameters.iter().sum();
        assert_eq!(plan.num_parameters, about.num_parameters);
        assert_eq!((plan.weights, plan.gradients, plan.moments), (4 * all, 4 * all, 8 * all));
        assert_eq!((plan.packed, plan.cache_per_token), (0, about.cache_bytes_per_token));
        let half = plan::plan(&folder, Precision::Bf16, Trainable::NONE, None).unwrap();
        assert_eq!((half.gradients, 2 * half.cache_per_token), (0, plan.cache_per_token));
        assert!(half.packed > all && half.packed <= 2 * 2 * all);
    }
}

#[test]
fn a_plan_with_adapters_trains_the_adapters_alone() {
    let folder = fixtures().join("models/smolvlm");
    let spec = foveate_model::AdapterSpec {
        rank: 4,
        alpha: 8.0,
        rank_stabilised: false,
        dropout: 0.0,
        targets: Vec::new(),
        parts: Trainable::ALL,
    };
    let plan = plan::plan(&folder, Precision::F32, Trainable::ALL, Some(&spec)).unwrap();
    let policy = Policy::load(&folder, Precision::F32).unwrap().with_adapters(&spec, 0).unwrap();
    let adapters: usize =
        policy.parameters().iter().filter(|info| info.name.contains(".lora_")).map(|info| info.len).sum();
    assert_eq!((plan.num_trained, plan.gradients, plan.moments), (adapters, 4 * adapters, 8 * adapters));
}
