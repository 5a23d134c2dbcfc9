//! Adapters as a person uses them: a recipe that learns them, a run that is killed and goes on, a folder that other
//! commands take, a merge.

mod support;

use std::fs;
use std::path::Path;

use support::{MODEL, folder_with, foveate, last_checkpoint, metrics, refuse, succeed, wait_for_steps};

/// A model to learn beside.
const BASE: &str = r#"
[data]
train = { task = "counting", rows = 40 }

[[stage]]
name = "examples"
rule = { kind = "sft" }
questions_per_step = 4
steps = 3
optim = { lr = 1e-3 }
"#;

/// Supervised with dropout, then reinforcement against what the first stage left.
const ADAPTED: &str = r#"
name = "adapted"
seed = 5
precision = "f32"
model = "base/checkpoints/step-000003"

[lora]
rank = 4
alpha = 8.0
dropout = 0.1
vision = true

[data]
train = { task = "counting", rows = 40 }
test = { id = { task = "counting", split = "id", rows = 4, levels = [1] } }

[eval]
sampling = { temperature = 0.0, max_new_tokens = 8 }

[checkpoint]
every = 2

[[stage]]
name = "examples"
rule = { kind = "sft" }
questions_per_step = 4
steps = 4
optim = { lr = 1e-2 }

[[stage]]
name = "switch"
questions_per_step = 4
answers_per_question = 3
steps = 5
sampling = { temperature = 1.0, max_new_tokens = 8 }
rewards = [ { kind = "format_flag" }, { kind = "accuracy" } ]
selector = { kind = "any_correct" }
rule = { kind = "grpo", kl = 0.04 }
optim = { lr = 1e-2 }
"#;

fn folder() -> tempfile::TempDir {
    let folder = folder_with(BASE);
    succeed(&["train", "r.toml", "--out", "base"], folder.path());
    fs::write(folder.path().join("a.toml"), ADAPTED).unwrap();
    folder
}

fn answers(model: &str, here: &Path) -> String {
    let out = format!("{}.jsonl", model.replace('/', "-"));
    let source = "{ task = \"counting\", split = \"id\", rows = 6 }";
    let shape = ["--max-new-tokens", "12", "--precision", "f32"];
    succeed(&[&["eval", model, "--data", source, "--output", &out][..], &shape].concat(), here);
    fs::read_to_string(here.join(out)).unwrap()
}

#[test]
fn adapters_learn_resume_exactly_and_merge() {
    let folder = folder();
    let here = folder.path();
    let told = succeed(&["train", "a.toml", "--out", "whole"], here);
    assert!(told.contains("adapters on"), "{told}");
    let last = last_checkpoint(&here.join("whole"));
    assert!(!last.join("model.safetensors").exists() && !last.join("config.json").exists());

    for step in [1, 3, 6] {
        let out = format!("killed-{step}");
        let mut child = foveate(&["train", "a.toml", "--out", &out], here).spawn().expect("the program starts");
        wait_for_steps(&mut child, &here.join(&out), step);
        child.kill().expect("killed");
        child.wait().expect("ended");
        succeed(&["train", "a.toml", "--out", &out, "--resume"], here);
        let other = last_checkpoint(&here.join(&out));
        for file in ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"] {
            assert!(fs::read(last.join(file)).unwrap() == fs::read(other.join(file)).unwrap(), "{file} differs");
        }
        assert_eq!(metrics(&here.join("whole")), metrics(&here.join(&out)));
    }

    // The folder is a model to every command; merged it answers the same.
    let adapter = "whole/checkpoints/step-000009";
    let beside = answers(adapter, here);
    assert_ne!(beside, answers("base/checkpoints/step-000003", here), "nothing was learned");
    succeed(&["model", "merge", adapter, "--out", "merged"], here);
    assert_eq!(answers("merged", here), beside);
    let told = refuse(&["model", "merge", adapter, "--out", "merged"], here);
    assert!(told.contains("merged exists"), "{told}");
    assert!(succeed(&["model", "inspect", adapter], here).contains("smolvlm"));

    // Another run goes on with the adapter, or with the merged weights.
    let set = |model: &str| format!("model=\"{model}\"");
    succeed(&["train", "a.toml", "--out", "on", "--set", &set(adapter), "--set", "eval.before=false"], here);
    let told = refuse(&["train", "a.toml", "--out", "no", "--set", &set(adapter), "--set", "lora.rank=8"], here);
    assert!(told.contains("rank 4") && told.contains("rank 8"), "{told}");
    succeed(&["train", "r.toml", "--out", "full", "--set", &set(adapter)], here);
    assert!(last_checkpoint(&here.join("full")).join("model.safetensors").is_file());
}

/// What the stages of a model and of its adapters share: answers are numbers, read generously.
const SHARED: &str = r#"
questions_per_step = 4
answers_per_question = 4
sampling = { temperature = 1.0, max_new_tokens = 6 }
rewards = [ { kind = "overlong", buffer = 5 }, { kind = "accuracy", extract = "last_number" } ]
target = { template = "bare" }
"#;

/// Data of both.
const NUMBERS: &str = r#"
[data]
train = { task = "counting", rows = 40, levels = [1], filter = { answers = ["number"] } }

[eval]
before = false
after = false

[checkpoint]
every = 2
"#;

/// Adapters beside that model.
const BESIDE: &str = r#"
name = "every-way"
seed = 6
precision = "f32"
model = "numbers/checkpoints/step-000060"
lora = { rank = 4, alpha = 8.0 }
optim = { lr = 1e-2 }
"#;

/// Stages that sample in every way there is, some of them from an adapter in a folder.
const EVERY_WAY: &str = r#"
[[stage]]
name = "dynamic"
start = "first/checkpoints/step-000003"
steps = 3
dynamic = { max_tries = 2 }
pools = {}
rule = { kind = "dapo" }

[[stage]]
name = "replay"
steps = 3
replay = { kind = "ssr", capacity = 2.0, target = 1.5 }
rule = { kind = "grpo", kl = 0.02 }

[[stage]]
name = "parts"
start = "first/checkpoints/step-000003"
steps = 3
target = { template = "cot" }
start_state = { kind = "mixed", split = "sentence" }
mix = { kind = "chord", peak = 0.6, valley = 0.2, decay = 2, rows = 2 }
rule = { kind = "grpo", kl = { where = "reward", estimator = "k1", beta = 0.05 } }

[[stage]]
name = "switch"
start = "dynamic"
steps = 2
target = { template = "bare" }
selector = { kind = "any_correct" }
updates = 2
rule = { kl = 0.02 }
reference = { ema = 0.5 }

[[stage]]
name = "anneal"
start = "base"
steps = 2
target = { template = "bare" }
selector = { kind = "anneal" }
rule = { kind = "gspo", kl = { where = "tokens", estimator = "k1", beta = 0.02 } }

[[stage]]
name = "threshold"
steps = 2
target = { template = "bare" }
selector = { kind = "threshold" }
refiner = {}
rule = { kl = 0.02 }
reference = "first/checkpoints/step-000003"

[[stage]]
name = "queue"
steps = 3
target = { template = "bare" }
selector = { kind = "replay", budget = 5 }
rule = { kl = 0.02 }
reference = "adapter_off"

[[stage]]
name = "always"
steps = 2
target = { template = "cot" }
selector = { kind = "always" }
"#;

#[test]
fn adapters_learn_under_every_selector_and_sampler() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let examples = |steps: u32| {
        format!(
            "[[stage]]\nname = \"examples\"\nrule = {{ kind = \"sft\" }}\noptim = {{ lr = 2e-3 }}\nsteps = {steps}\n"
        )
    };
    fs::write(here.join("r.toml"), format!("{SHARED}{MODEL}{NUMBERS}{}", examples(60))).unwrap();
    succeed(&["train", "r.toml", "--out", "numbers"], here);
    fs::write(here.join("f.toml"), format!("{BESIDE}{SHARED}{NUMBERS}{}", examples(3))).unwrap();
    succeed(&["train", "f.toml", "--out", "first"], here);
    fs::write(here.join("e.toml"), format!("{BESIDE}{SHARED}{NUMBERS}{EVERY_WAY}")).unwrap();
    succeed(&["train", "e.toml", "--out", "whole"], here);
    let whole = here.join("whole");
    let of = |stage: &str, metric: &str| -> Vec<f64> {
        let records = metrics(&whole);
        records.iter().filter(|r| r["stage"] == stage).filter_map(|r| r[metric].as_f64()).collect()
    };
    // What each stage is there for was seen to happen.
    assert!(!of("dynamic", "dynamic/tries").is_empty());
    assert!(of("replay", "replay/num_kept").iter().any(|kept| *kept > 0.0));
    assert!(of("replay", "update/kl_k3").len() == 3, "against the start of the stage, an adapter");
    // The start of the stage, a mean of the adapters, a folder, the model underneath.
    for stage in ["parts", "switch", "threshold", "queue"] {
        let apart = of(stage, "update/kl_k3");
        assert!(!apart.is_empty() && apart.iter().skip(1).all(|kl| *kl > 0.0), "{stage}: {apart:?}");
    }
    assert_eq!(of("parts", "mix/supervised_share")[0], 0.6);
    assert!(of("parts", "update/loss_sft").iter().all(|loss| *loss > 0.0));
    assert!(of("switch", "mode/memorise_fraction").iter().sum::<f64>() > 0.0);
    assert!(of("queue", "mode/num_learned_from_queue").contains(&5.0));
    assert_eq!(of("always", "mode/memorise_fraction"), [1.0; 2]);
    for stage in ["switch", "anneal", "threshold", "always", "parts"] {
        assert!(of(stage, "optim/gradient_norm").iter().all(|norm| *norm > 0.0), "{stage}");
    }
    let last = last_checkpoint(&whole);
    for steps in [[2, 5], [8, 13], [10, 16]] {
        let out = format!("killed-{}", steps[0]);
        for (attempt, step) in steps.into_iter().enumerate() {
            let mut args = vec!["train", "e.toml", "--out", &out];
            args.extend((attempt > 0).then_some("--resume"));
            let mut child = foveate(&args, here).spawn().expect("the program starts");
            wait_for_steps(&mut child, &here.join(&out), step);
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
        succeed(&["train", "e.toml", "--out", &out, "--resume"], here);
        let other = last_checkpoint(&here.join(&out));
        for file in ["adapter_model.safetensors", "optimizer.safetensors"] {
            assert!(fs::read(last.join(file)).unwrap() == fs::read(other.join(file)).unwrap(), "{file} differs");
        }
        assert_eq!(metrics(&whole), metrics(&here.join(&out)));
    }
}

#[test]
fn adapters_of_other_weights_are_not_resumed() {
    let folder = folder();
    let here = folder.path();
    let mut child = foveate(&["train", "a.toml", "--out", "run"], here).spawn().expect("the program starts");
    wait_for_steps(&mut child, &here.join("run"), 3);
    child.kill().expect("killed");
    child.wait().expect("ended");
    succeed(&["train", "r.toml", "--out", "other", "--set", "seed=9"], here);
    let weights = "checkpoints/step-000003/model.safetensors";
    fs::copy(here.join("other").join(weights), here.join("base").join(weights)).unwrap();
    let told = refuse(&["train", "a.toml", "--out", "run", "--resume"], here);
    assert!(told.contains("beside other weights"), "{told}");
}

#[test]
fn settings_that_adapt_nothing_are_refused() {
    let folder = folder();
    let here = folder.path();
    for (set, told) in [
        ("lora.rank=0", "lora.rank = 0"),
        ("lora.dropout=1.0", "lora.dropout = 1"),
        ("lora.targets=[\"query\"]", "no matrix is called \"query\""),
        ("lora={ language = false }", "adapts nothing"),
        ("train={ vision = false, connector = true, language = false }", "none of the parts that have adapters"),
        ("stage.1.start=\"base/checkpoints/step-000003\"", "is a whole model"),
        ("stage.1.reference=\"base/checkpoints/step-000003\"", "is a whole model"),
        ("lora.ranks=4", "unknown key `ranks`"),
    ] {
        let found = refuse(&["train", "a.toml", "--out", "run", "--set", set], here);
        assert!(found.contains(told), "expected {told:?} in: {found}");
        assert!(!here.join("run").exists(), "{told}");
    }
}

#[test]
fn models_are_averaged_and_others_refused() {
    let folder = folder();
    let here = folder.path();
    let base = "base/checkpoints/step-000003";
    succeed(&["train", "r.toml", "--out", "other", "--set", "seed=9"], here);
    succeed(&["model", "merge", base, base, "--out", "same"], here);
    assert_eq!(answers("same", here), answers(base, here), "half of it twice is the whole");
    let other = "other/checkpoints/step-000003";
    // Exact: one times a value plus zero times another.
    succeed(&["model", "merge", base, other, "--weights", "0,1", "--dtype", "f32", "--out", "second"], here);
    let read = |path: &str| fs::read(here.join(path).join("model.safetensors")).unwrap();
    assert!(read("second") == read(other));
    for (args, told) in [
        (vec![base, other, "--weights", "0.5"], "1 weights for 2 models"),
        (vec![base, other, "--weights", "0.5,0.6"], "add up to 1.1"),
        (vec![base], "nothing to merge"),
        (vec![base, "minnow"], "the first model has"),
    ] {
        let args = [&["model", "merge", "--out", "no"][..], &args].concat();
        let found = refuse(&args, here);
        assert!(found.contains(told), "expected {told:?} in: {found}");
        assert!(!here.join("no").exists());
    }
}
