//! The same tiny random checkpoints in `transformers` and here: log-probabilities, entropy, gradients, greedy answers
//! and ten AdamW steps. What is saved again has the names and the bytes that were loaded. Fixtures by
//! tools/make_fixtures.py.

mod support;

use std::sync::Arc;

use foveate_kernels::cpu::adamw;
use foveate_model::safetensors_io::weight_files;
use foveate_model::{Derivatives, ModelError, Policy, Precision, SampleJob, SamplingSpec, SaveType};
use safetensors::{Dtype, SafeTensors};
use support::{MODELS, Parity, fixtures, floats, gap, ids, measured, pack};

fn policy(name: &str) -> Policy {
    Policy::load(&fixtures().join("models").join(name), Precision::F32).unwrap()
}

#[test]
fn logprobs_and_entropy_agree() {
    for name in MODELS {
        let parity = Parity::open(name);
        let mut policy = policy(name);
        let mut largest = [0f32; 2];
        for conversation in parity.conversations() {
            let prompt = parity.prompt(&conversation);
            let batch = pack(&[(&prompt, vec![parity.completion(&conversation)])], true);
            let output = policy.score(&batch).unwrap();
            let entry = &parity.json["conversations"][&conversation];
            let (logprob, entropy) = (floats(&entry["logprobs"]), floats(&entry["entropy"]));
            let worst = output.logprob.iter().zip(&logprob).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name} {conversation}: log-probabilities differ by {worst}");
            largest[0] = largest[0].max(worst);
            let worst = output.entropy.iter().zip(&entropy).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{name} {conversation}: entropy differs by {worst}");
            largest[1] = largest[1].max(worst);
        }
        measured("log-probabilities", name, format!("{:.0e}", largest[0]));
        measured("entropy", name, format!("{:.0e}", largest[1]));
    }
}

#[test]
fn greedy_answers_agree() {
    for name in MODELS {
        let parity = Parity::open(name);
        let mut policy = policy(name);
        let spec = SamplingSpec {
            temperature: 0.0,
            logprob_temperature: None,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_new_tokens: 20,
            end_ids: parity.end_ids(),
            banned: Arc::from([]),
        };
        let conversations = parity.conversations();
        let prompts: Vec<_> = conversations.iter().map(|c| parity.prompt(c)).collect();
        let jobs: Vec<_> = prompts
            .iter()
            .map(|prompt| SampleJob { prompt, num_answers: 1, seed: 0, step: 0, question: 0, first_answer: 0 })
            .collect();
        let answers = policy.sample(&jobs, &spec, &mut |_| {}).unwrap();
        for (conversation, answer) in conversations.iter().zip(answers) {
            let want = ids(&parity.json["conversations"][conversation]["greedy_ids"]);
            assert_eq!(answer[0].ids, want, "{name} {conversation}");
        }
        measured("greedy answers", name, format!("{} of {0}", conversations.len()));
    }
}

#[test]
fn gradients_of_every_tensor_agree() {
    for name in MODELS {
        let parity = Parity::open(name);
        let mut policy = policy(name);
        let conversation = parity.json["gradient"]["of"].as_str().unwrap().to_string();
        let prompt = parity.prompt(&conversation);
        let batch = pack(&[(&prompt, vec![parity.completion(&conversation)])], true);
        let mut largest = 0f32;
        for recompute in [false, true] {
            policy.set_recompute(recompute);
            let mut gradients = policy.new_gradients();
            let weight = -1.0 / batch.target.len() as f32;
            policy
                .accumulate_gradients(&batch, &mut gradients, &mut |output| Derivatives {
                    by_logprob: vec![weight; output.logprob.len()],
                    by_entropy: vec![0.0; output.logprob.len()],
                })
                .unwrap();
            let norm = parity.json["gradient"]["norm"].as_f64().unwrap();
            let ours = adamw::sum_of_squares(&gradients.flat).sqrt();
            assert!((ours - norm).abs() < 1e-3 * norm, "{name}: gradient norm {ours}, expected {norm}");
            for info in policy.parameters() {
                let want = parity.f32(&format!("gradient.{}", info.name));
                let ours = &gradients.flat[info.offset..info.offset + info.len];
                let scale = want.iter().fold(1e-4f32, |m, v| m.max(v.abs()));
                let worst = ours.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3 * scale, "{name} {}: differs by {worst}, largest is {scale}", info.name);
                largest = largest.max(worst / scale);
            }
        }
        measured("gradients", name, format!("{largest:.0e} in {} tensors", policy.parameters().len()));
    }
}

#[test]
fn ten_training_steps_agree() {
    for name in MODELS {
        let parity = Parity::open(name);
        let mut policy = policy(name);
        let conversations = parity.conversations();
        let prompts: Vec<_> = conversations.iter().map(|c| parity.prompt(c)).collect();
        let groups: Vec<_> =
            conversations.iter().zip(&prompts).map(|(c, prompt)| (prompt, vec![parity.completion(c)])).collect();
        let batch = pack(&groups, true);
        let settings = &parity.json["adamw"];
        let number = |key: &str| settings[key].as_f64().unwrap() as f32;
        let (mut m, mut v) = (vec![0.0; policy.master().len()], vec![0.0; policy.master().len()]);
        let losses = floats(&settings["losses"]);
        let mut largest = 0f32;
        let weight = -1.0 / batch.target.len() as f32;
        for (step, want) in losses.iter().enumerate() {
            let mut gradients = policy.new_gradients();
            let output = policy
                .accumulate_gradients(&batch, &mut gradients, &mut |output| Derivatives {
                    by_logprob: vec![weight; output.logprob.len()],
                    by_entropy: vec![0.0; output.logprob.len()],
                })
                .unwrap();
            let loss = output.logprob.iter().map(|l| l * weight).sum::<f32>();
            assert!((loss - want).abs() < 5e-3, "{name}, step {step}: loss {loss}, expected {want}");
            largest = largest.max((loss - want).abs());
            adamw::adamw_step(
                policy.master_mut(),
                &gradients.flat,
                &mut m,
                &mut v,
                number("lr"),
                0.9,
                0.999,
                number("eps"),
                number("weight_decay"),
                step as u64 + 1,
                1.0,
            );
        }
        assert!(gap(&[losses[0]], &[losses[10]]) > 0.1, "{name}: the fixture's loss should fall");
        measured("ten AdamW steps", name, format!("{largest:.0e}"));
    }
}

#[test]
fn saved_weights_have_the_names_and_bytes_that_were_loaded() {
    for name in MODELS {
        let folder = fixtures().join("models").join(name);
        let mut stored = std::collections::BTreeMap::new();
        for file in weight_files(&folder).unwrap() {
            let bytes = std::fs::read(file).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                stored.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        }
        let dtype = match stored.values().next().unwrap().0 {
            Dtype::F32 => SaveType::F32,
            Dtype::F16 => SaveType::F16,
            _ => SaveType::Bf16,
        };
        let target = tempfile::tempdir().unwrap();
        policy(name).save_weights(target.path(), dtype).unwrap();
        let bytes = std::fs::read(target.path().join("model.safetensors")).unwrap();
        let saved = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(saved.len(), stored.len(), "{name}");
        for (tensor, view) in saved.tensors() {
            let same = stored.get(&tensor).is_some_and(|(dtype, shape, bytes)| {
                view.dtype() == *dtype && view.shape() == shape && view.data() == bytes
            });
            assert!(same, "{name}: {tensor} has another name, shape or content");
        }
        measured("saved again", name, format!("{} equal", stored.len()));
    }
}

#[test]
fn nested_configurations_and_new_names_load_as_old_ones_do() {
    let old = fixtures().join("models/qwen2_vl");
    let text = std::fs::read_to_string(old.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    // As transformers 5 writes it: the decoder's keys in a part of their own, one object for all of rotary.
    let keep = ["architectures", "model_type", "vision_config", "image_token_id", "tie_word_embeddings"];
    let root = config.as_object_mut().unwrap();
    let mut text_config = serde_json::Map::new();
    for key in root.keys().filter(|key| !keep.contains(&key.as_str())).cloned().collect::<Vec<_>>() {
        text_config.insert(key.clone(), root.remove(&key).unwrap());
    }
    let mut rotary = text_config.remove("rope_scaling").unwrap();
    rotary["rope_type"] = "default".into();
    rotary["rope_theta"] = text_config.remove("rope_theta").unwrap();
    text_config.insert("rope_parameters".into(), rotary);
    root.insert("text_config".into(), text_config.into());
    let new = tempfile::tempdir().unwrap();
    std::fs::write(new.path().join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(old.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = file.tensors().into_iter().map(|(name, view)| {
        let name = match name.strip_prefix("model.") {
            Some(tail) => format!("model.language_model.{tail}"),
            None => format!("model.{name}"),
        };
        (name, view)
    });
    let renamed: Vec<_> = renamed.collect();
    let names: std::collections::BTreeSet<String> = renamed.iter().map(|(name, _)| name.clone()).collect();
    safetensors::serialize_to_file(renamed, None, &new.path().join("model.safetensors")).unwrap();

    let mut policies = [policy("qwen2_vl"), Policy::load(new.path(), Precision::F32).unwrap()];
    let parity = Parity::open("qwen2_vl");
    let prompt = parity.prompt("two_images");
    let batch = pack(&[(&prompt, vec![parity.completion("two_images")])], true);
    let [first, second] = policies.each_mut().map(|policy| policy.score(&batch).unwrap());
    assert_eq!(first, second);
    let target = tempfile::tempdir().unwrap();
    policies[1].save_weights(target.path(), SaveType::Bf16).unwrap();
    let bytes = std::fs::read(target.path().join("model.safetensors")).unwrap();
    let saved = SafeTensors::deserialize(&bytes).unwrap();
    assert!(saved.names().into_iter().all(|name| names.contains(name)) && saved.len() == names.len());
    assert_eq!(policies[0].stored_name("model.language_model.norm.weight"), "model.norm.weight");
    assert_eq!(policies[1].stored_name("model.language_model.norm.weight"), "model.language_model.norm.weight");
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let load = |config: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Policy::load(folder.path(), Precision::F32).err().unwrap()
    };
    let error = load(serde_json::json!({"model_type": "qwen3_moe"}));
    assert!(matches!(&error, ModelError::UnknownFamily { found } if found == "qwen3_moe"), "{error}");
    assert!(error.hint().contains("nearest is qwen3;") && error.hint().contains("smolvlm"), "{}", error.hint());
    let error = load(serde_json::json!({"model_type": "qwen2", "quantization_config": {"quant_method": "awq"}}));
    assert!(error.to_string().contains("quantised") && error.to_string().contains("awq"), "{error}");
    let error = load(serde_json::json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 64}));
    assert!(error.to_string().contains("sliding"), "{error}");
    let error = load(serde_json::json!({"model_type": "qwen2_vl", "vision_config": {}}));
    assert!(error.to_string().contains("mrope_section"), "{error}");
    let error = load(serde_json::json!({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}));
    assert!(error.to_string().contains("yarn") && error.hint().contains("llama3"), "{error}");
}
