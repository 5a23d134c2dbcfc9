//! Low-rank adapters: nothing changes until they learn, they alone learn, their gradients are right, and merged they
//! say the same as beside.

mod support;

use foveate_kernels::rng::{Purpose, Stream};
use foveate_model::{AdapterSpec, Derivatives, Dropout, HeadOutput, Policy, Precision, Trainable, peft};
use support::{MODELS, Parity, fixtures, gap, pack};

fn base(precision: Precision) -> Policy {
    Policy::load(&fixtures().join("models/smolvlm"), precision).unwrap()
}

fn spec(targets: &[&str]) -> AdapterSpec {
    AdapterSpec {
        rank: 4,
        alpha: 8.0,
        rank_stabilised: false,
        dropout: 0.0,
        targets: targets.iter().map(|name| name.to_string()).collect(),
        parts: Trainable::ALL,
    }
}

fn weigh(output: &HeadOutput) -> Derivatives {
    Derivatives {
        by_logprob: (0..output.logprob.len()).map(|i| -0.2 + 0.03 * (i % 5) as f32).collect(),
        by_entropy: vec![0.0; output.logprob.len()],
    }
}

/// Moves every adapter away from zero.
fn stir(policy: &mut Policy) {
    let infos = policy.parameters().to_vec();
    for (index, info) in infos.iter().enumerate().filter(|(_, info)| info.name.contains(".lora_")) {
        let stream = Stream::new(1, Purpose::Test, index as u32, 0, 0);
        for i in 0..info.len {
            policy.master_mut()[info.offset + i] = 0.1 * stream.normal(i as u32);
        }
    }
}

#[test]
fn adapters_start_as_nothing_learn_alone_and_merge_exactly() {
    for precision in [Precision::F32, Precision::Bf16] {
        let parity = Parity::open("smolvlm");
        let prompt = parity.prompt("one_image");
        let batch = pack(&[(&prompt, vec![vec![5, 9, 70, 3], vec![8, 4]])], true);
        let before = base(precision).score(&batch).unwrap();
        let mut policy = base(precision).with_adapters(&spec(&[]), 3).unwrap();
        policy.set_trainable(Trainable::ALL);
        assert_eq!(policy.score(&batch).unwrap(), before);

        stir(&mut policy);
        let beside = policy.score(&batch).unwrap();
        assert!(gap(&beside.logprob, &before.logprob) > 1e-3);
        let mut gradients = policy.new_gradients();
        policy.accumulate_gradients(&batch, &mut gradients, &mut weigh).unwrap();
        for info in policy.parameters() {
            let any = gradients.flat[info.offset..info.offset + info.len].iter().any(|g| *g != 0.0);
            // A key's adapter acts through the scores, as the key does; all of them receive something.
            assert_eq!(any, info.name.contains(".lora_"), "{}", info.name);
        }
        policy.weights_mut().set_adapters_on(false);
        assert_eq!(policy.score(&batch).unwrap(), before, "adapters off is the model underneath");
        policy.weights_mut().set_adapters_on(true);

        policy.weights_mut().merge_adapters();
        let merged = policy.score(&batch).unwrap();
        let tolerance = if precision == Precision::F32 { 1e-5 } else { 5e-2 };
        assert!(gap(&merged.logprob, &beside.logprob) < tolerance, "{precision:?}");
    }
}

#[test]
fn adapter_gradients_follow_differences() {
    let parity = Parity::open("smolvlm");
    let prompt = parity.prompt("one_image");
    let batch = pack(&[(&prompt, vec![vec![5, 9, 70, 3]])], true);
    let mut policy = base(Precision::F32).with_adapters(&spec(&["q_proj", "down_proj", "fc1", "proj"]), 3).unwrap();
    policy.set_trainable(Trainable::ALL);
    stir(&mut policy);
    let mut gradients = policy.new_gradients();
    policy.accumulate_gradients(&batch, &mut gradients, &mut weigh).unwrap();
    let loss = |policy: &mut Policy| -> f64 {
        let output = policy.score(&batch).unwrap();
        let weights = weigh(&output).by_logprob;
        output.logprob.iter().zip(weights).map(|(l, w)| f64::from(*l) * f64::from(w)).sum()
    };
    for info in policy.parameters().to_vec().iter().filter(|info| info.name.contains(".lora_")) {
        // Along the gradient itself the difference is largest against f32 rounding.
        let direction = gradients.flat[info.offset..info.offset + info.len].to_vec();
        let square: f64 = direction.iter().map(|g| f64::from(*g).powi(2)).sum();
        let step = 2e-3 / square.sqrt();
        let mut shifted = [0.0; 2];
        for (sign, value) in [1.0, -1.0].into_iter().zip(&mut shifted) {
            let old = policy.master()[info.offset..info.offset + info.len].to_vec();
            for (i, g) in direction.iter().enumerate() {
                policy.master_mut()[info.offset + i] += (sign * step * f64::from(*g)) as f32;
            }
            *value = loss(&mut policy);
            policy.master_mut()[info.offset..info.offset + info.len].copy_from_slice(&old);
        }
        let slope = (shifted[0] - shifted[1]) / (2.0 * step);
        assert!((slope - square).abs() < 0.05 * square + 1e-6, "{}: {slope} against {square}", info.name);
    }
}

#[test]
fn names_that_nothing_has_are_refused() {
    let error = base(Precision::F32).with_adapters(&spec(&["query"]), 0).err().unwrap();
    assert!(error.hint().contains("q_proj"), "{error}");
    // The head is not part of the tape, and a table is not a product.
    for target in ["lm_head", "embed_tokens", "patch_embedding"] {
        assert!(base(Precision::F32).with_adapters(&spec(&["q_proj", target]), 0).is_err(), "{target}");
    }
}

#[test]
fn saved_adapters_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let spec = AdapterSpec { rank_stabilised: true, dropout: 0.1, ..spec(&["text_model.layers.1.mlp.up_proj", "fc2"]) };
    let mut policy = base(Precision::F32).with_adapters(&spec, 3).unwrap();
    stir(&mut policy);
    policy.save_adapter(folder.path(), "some/base").unwrap();
    let file = peft::read_config(folder.path()).unwrap().unwrap();
    assert_eq!(file.base.as_deref(), Some("some/base"));
    assert_eq!(file.spec, AdapterSpec { targets: Vec::new(), ..spec });
    let back = base(Precision::F32).with_adapter_from(folder.path()).unwrap();
    assert_eq!(back.adapted_modules(), policy.adapted_modules());
    assert_eq!(back.master(), policy.master());
    assert_eq!(back.adapters().unwrap().scale(), 8.0 / 2.0);

    // A merged model is a plain one again.
    let merged = back.merged().unwrap();
    assert!(merged.adapters().is_none());
    assert_eq!(merged.master().len(), base(Precision::F32).master().len());
    assert_ne!(merged.master(), base(Precision::F32).master());
}

#[test]
fn foreign_kinds_of_adapters_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let problem = |text: &str| {
        std::fs::write(folder.path().join(peft::CONFIG_FILE), text).unwrap();
        base(Precision::F32).with_adapter_from(folder.path()).err().unwrap().to_string()
    };
    assert!(problem(r#"{"peft_type": "IA3"}"#).contains("IA3"));
    assert!(problem(r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": true}"#).contains("use_dora"));
    assert!(problem(r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "all"}"#).contains("bias"));
    assert!(problem(r#"{"peft_type": "LORA", "r": -1, "lora_alpha": 8}"#).contains("r is -1"));
    let fine = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {}}"#;
    std::fs::write(folder.path().join("adapter_model.bin"), b"pickle").unwrap();
    assert!(problem(fine).contains("pickle"));
    std::fs::write(folder.path().join(peft::WEIGHTS_FILE), [255; 64]).unwrap();
    assert!(problem(fine).contains("adapter_model.safetensors"));
}

#[test]
fn dropout_leaves_inputs_out_while_learning_and_its_gradient_follows_differences() {
    let parity = Parity::open("smolvlm");
    let prompt = parity.prompt("one_image");
    let batch = pack(&[(&prompt, vec![vec![5, 9, 70, 3]])], true);
    let mut policy = base(Precision::F32).with_adapters(&spec(&["q_proj", "down_proj", "fc1"]), 3).unwrap();
    policy.set_trainable(Trainable::ALL);
    stir(&mut policy);
    let whole = policy.score(&batch).unwrap();
    let draw = |rate: f32, batch: u32| Some(Dropout { rate, seed: 1, step: 2, batch });
    policy.weights_mut().set_dropout(draw(0.3, 0));
    let thinned = policy.score(&batch).unwrap();
    assert!(gap(&whole.logprob, &thinned.logprob) > 1e-4);
    assert_eq!(policy.score(&batch).unwrap(), thinned, "a draw can be repeated");
    policy.weights_mut().set_dropout(draw(0.3, 1));
    assert_ne!(policy.score(&batch).unwrap(), thinned, "another batch leaves others out");

    policy.weights_mut().set_dropout(draw(0.3, 0));
    for recompute in [false, true] {
        policy.set_recompute(recompute);
        let mut gradients = policy.new_gradients();
        policy.accumulate_gradients(&batch, &mut gradients, &mut weigh).unwrap();
        let range = policy.weights().adapter_range();
        let direction = gradients.flat[range.clone()].to_vec();
        let square: f64 = direction.iter().map(|g| f64::from(*g).powi(2)).sum();
        let step = 2e-3 / square.sqrt();
        let mut loss = |sign: f64| -> f64 {
            let mut moved: Vec<f32> = policy.master()[range.clone()].to_vec();
            moved.iter_mut().zip(&direction).for_each(|(w, g)| *w += (sign * step * f64::from(*g)) as f32);
            policy.weights_mut().swap_adapters(&mut moved);
            let output = policy.score(&batch).unwrap();
            policy.weights_mut().swap_adapters(&mut moved);
            let weights = weigh(&output).by_logprob;
            output.logprob.iter().zip(weights).map(|(l, w)| f64::from(*l) * f64::from(w)).sum()
        };
        let slope = (loss(1.0) - loss(-1.0)) / (2.0 * step);
        assert!((slope - square).abs() < 0.05 * square, "{slope} against {square}");
    }
    policy.weights_mut().set_dropout(draw(0.0, 0));
    assert_eq!(policy.score(&batch).unwrap(), whole, "a rate of 0 is no dropout");
}

/// `fixtures/peft/modules.json` lists what PEFT finds in each checkpoint (`tools/fixture_peft.py`).
#[test]
fn adapters_stand_where_peft_would_put_them_in_every_family() {
    let text = std::fs::read_to_string(fixtures().join("peft/modules.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    for name in MODELS {
        let policy = Policy::load(&fixtures().join("models").join(name), Precision::F32).unwrap();
        let unread: Vec<String> =
            policy.parameters().iter().filter(|info| info.unread).map(|info| info.name.clone()).collect();
        let policy = policy.with_adapters(&spec(&[]), 3).unwrap();
        let ours = policy.adapted_modules();
        let theirs: Vec<&str> = all[name].as_array().unwrap().iter().map(|module| module.as_str().unwrap()).collect();
        for module in &ours {
            assert!(theirs.contains(module), "{name}: PEFT knows no {module}");
        }
        for module in theirs {
            // The head is no part of the tape; some checkpoints hold blocks that no forward pass reads.
            let skipped = module == "lm_head" || unread.contains(&format!("{module}.weight"));
            assert_eq!(ours.contains(&module), !skipped, "{name}: {module}");
        }
    }
}

#[test]
fn adapters_of_every_family_learn_and_nothing_else_does() {
    for name in MODELS {
        let parity = Parity::open(name);
        let conversation = parity.json["gradient"]["of"].as_str().unwrap().to_string();
        let prompt = parity.prompt(&conversation);
        let batch = pack(&[(&prompt, vec![parity.completion(&conversation)])], true);
        let policy = Policy::load(&fixtures().join("models").join(name), Precision::F32).unwrap();
        let mut policy = policy.with_adapters(&spec(&[]), 3).unwrap();
        policy.set_trainable(Trainable::ALL);
        stir(&mut policy);
        let mut gradients = policy.new_gradients();
        policy.accumulate_gradients(&batch, &mut gradients, &mut weigh).unwrap();
        for info in policy.parameters() {
            let any = gradients.flat[info.offset..info.offset + info.len].iter().any(|g| *g != 0.0);
            assert_eq!(any, info.name.contains(".lora_"), "{name}: {}", info.name);
        }
    }
}

#[test]
fn adapters_beside_blocks_that_nothing_reads_are_passed_over() {
    let load = || Policy::load(&fixtures().join("models/llava_onevision_v5"), Precision::F32).unwrap();
    let unread = load().parameters().iter().find(|info| info.unread && info.name.ends_with("q_proj.weight")).cloned();
    let unread = unread.expect("a block behind vision_feature_layer");
    let folder = tempfile::tempdir().unwrap();
    let mut policy = load().with_adapters(&spec(&["language_model.layers.0.self_attn.q_proj"]), 3).unwrap();
    stir(&mut policy);
    policy.save_adapter(folder.path(), "base").unwrap();
    // As PEFT writes it for `target_modules=["q_proj"]`.
    let path = folder.path().join(peft::WEIGHTS_FILE);
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let module = unread.name.trim_end_matches(".weight");
    let values = vec![0u8; 4 * 4 * unread.shape[0].max(unread.shape[1])];
    let view = |shape: [usize; 2]| {
        let data = &values[..4 * shape[0] * shape[1]];
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data).unwrap()
    };
    let mut tensors = file.tensors();
    tensors.push((format!("base_model.model.{module}.lora_A.weight"), view([4, unread.shape[1]])));
    tensors.push((format!("base_model.model.{module}.lora_B.weight"), view([unread.shape[0], 4])));
    let both = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(&path, both).unwrap();
    let back = load().with_adapter_from(folder.path()).unwrap();
    assert_eq!(back.adapted_modules(), policy.adapted_modules());
    assert_eq!(back.master(), policy.master());
}
