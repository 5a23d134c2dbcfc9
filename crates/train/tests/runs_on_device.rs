//! Whole runs on a device: the optimiser there is the host's, a stopped run goes on to the same bytes, one may move between
//! CPU and device, and what is not finite touches nothing. The device is the host emulating a GPU, and a GPU where there
//! is one.
//! Cost: some seconds emulated; what cannot run says so.

#[path = "../../kernels/tests/emulator/mod.rs"]
mod emulator;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foveate_kernels::cuda::{Device, Repeats};
use foveate_model::{Derivatives, DeviceChoice, HeadOutput, Policy, Precision, TokenBatch, device};
use foveate_train::adamw::AdamW;
use foveate_train::optim::OptimSpec;
use foveate_train::recipe;
use foveate_train::run::resolve;
use foveate_train::session::Event;
use foveate_train::speed::{self, Work, shapes};
use foveate_train::train::train;

/// Numbers under which the devices are known here: the emulator in the place of a GPU, and a GPU.
/// The guard is kept as long as the devices are used: a stand-in is the whole process's, its counts and what it records
/// as well.
fn devices() -> (MutexGuard<'static, ()>, Vec<usize>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = Vec::new();
    if let Some(library) = emulator::library() {
        let emulated = Device::emulated_with_arena(&library).expect("it was just made");
        device::stand_in(77, emulated);
        all.push(77);
    }
    match Device::cuda(0) {
        Ok(_) => all.push(0),
        Err(error) => eprintln!("nothing runs on a GPU: {error}; {}", error.hint()),
    }
    (guard, all)
}

const RECIPE: &str = r#"
name = "test"
seed = 3
precision = "f32"
questions_per_step = 2
checkpoint = { every = 1, keep_last = 20 }

[model.new]
image_size = 32
patch_size = 16
scale_factor = 2
vision_width = 16
vision_layers = 1
vision_heads = 2
vision_hidden = 32
text_width = 16
text_layers = 2
text_heads = 2
text_kv_heads = 1
text_hidden = 32
vocabulary = 300
max_positions = 512

[data]
train = { task = "counting", rows = 20, levels = [1] }

[[stage]]
name = "examples"
rule = { kind = "sft" }
steps = 3
# A large eps: of gradients that are zero but for rounding, the sign must not decide.
optim = { lr = 1e-2, max_norm = 0.5, eps = 1e-2 }

[[stage]]
name = "rewards"
answers_per_question = 2
updates = 2
steps = 3
sampling = { temperature = 1.0, max_new_tokens = 4 }
rewards = [ { kind = "accuracy" }, { kind = "format_flag" }, { kind = "length" } ]
rule = { kind = "grpo", kl = 0.04 }
optim = { lr = 1e-3, lr_of = { vision = 0.1 } }
"#;

/// Runs the recipe with changes in `folder`/`out`, or goes on with it; gives the run's folder and what was remarked.
fn run(
    folder: &Path,
    out: &str,
    set: &[String],
    resume: bool,
) -> Result<(PathBuf, Vec<String>), foveate_train::error::TrainError> {
    let file = folder.join("r.toml");
    fs::write(&file, RECIPE).expect("written");
    let run = resolve(&file, recipe::read(&file, set).expect("a recipe"))?;
    let mut remarks = Vec::new();
    let place = folder.join(out);
    train(&run, &place, resume, &mut |event| {
        if let Event::Remark(text) = event {
            remarks.push(text);
        }
    })?;
    Ok((place, remarks))
}

fn on(index: usize) -> String {
    format!("device=\"cuda:{index}\"")
}

/// What a step's checkpoint holds, by file; without the state, which knows how long the logs with their times are.
fn checkpoint(run: &Path, step: usize) -> BTreeMap<String, Vec<u8>> {
    let folder = run.join(format!("checkpoints/step-{step:06}"));
    let files = fs::read_dir(&folder).expect("a checkpoint").map(|entry| entry.expect("an entry").path());
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let files = files.filter(|path| !path.ends_with("state.json"));
    files.map(|path| (name(&path), fs::read(&path).expect("a file"))).collect()
}

/// A copy of a run as it stood after `step`.
fn stopped(run: &Path, out: &str, step: usize) {
    let copy = run.with_file_name(out);
    copy_folder(run, &copy);
    for later in step + 1..=20 {
        let _ = fs::remove_dir_all(copy.join(format!("checkpoints/step-{later:06}")));
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let place = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy_folder(&path, &place) } else { assert!(fs::copy(&path, &place).is_ok()) }
    }
}

/// The largest difference of two checkpoints' f32 values, relative to the largest value of each tensor.
fn apart(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>, prefix: &str) -> f32 {
    let [a, b] =
        [a, b].map(|files| safetensors::SafeTensors::deserialize(&files["optimizer.safetensors"]).expect("tensors"));
    let numbers = |bytes: &[u8]| {
        bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().expect("four"))).collect::<Vec<f32>>()
    };
    let mut worst = 0f32;
    let names: Vec<String> = a.names().into_iter().filter(|name| name.starts_with(prefix)).map(String::from).collect();
    assert!(names.len() > 10, "{prefix}: {names:?}");
    for name in names {
        let [x, y] = [&a, &b].map(|tensors| numbers(tensors.tensor(&name).expect("both have it").data()));
        let most = x.iter().fold(1e-6f32, |most, value| most.max(value.abs()));
        worst = x.iter().zip(&y).fold(worst, |worst, (x, y)| worst.max((x - y).abs() / most));
    }
    worst
}

#[test]
fn a_run_goes_on_to_the_same_bytes_and_moves_between_cpu_and_device() {
    let (_guard, all) = devices();
    for index in all {
        let folder = tempfile::tempdir().expect("a folder");
        let here = folder.path();
        let (whole, _) = run(here, "whole", &[on(index)], false).expect("runs");
        let (cpu, _) = run(here, "cpu", &[], false).expect("runs");
        // In the supervised stage sums have another order and nothing else differs.
        let (ours, theirs) = (checkpoint(&whole, 3), checkpoint(&cpu, 3));
        let gaps = ["master/", "m/", "v/"].map(|prefix| apart(&ours, &theirs, prefix));
        println!("cuda:{index} and CPU after three steps: {gaps:?}");
        assert!(gaps.iter().all(|gap| *gap < 1e-3), "{gaps:?}");
        assert!(apart(&checkpoint(&whole, 1), &ours, "master/") > 1e-2, "it learns");
        // Inside each stage, and between them.
        for step in [1, 3, 5] {
            let out = format!("again-{step}");
            stopped(&whole, &out, step);
            let (again, remarks) = run(here, &out, &[on(index)], true).expect("goes on");
            assert!(checkpoint(&again, 6) == checkpoint(&whole, 6), "resumed after step {step}");
            assert!(!remarks.iter().any(|text| text.contains("computed")), "{remarks:?}");
        }
        // From the CPU to the device and back.
        for (from, to, out, step) in [(&cpu, Some(index), "to-device", 2), (&whole, None, "to-cpu", 2)] {
            stopped(from, out, step);
            let device: Vec<String> = to.map(on).into_iter().collect();
            let (moved, remarks) = run(here, out, &device, true).expect("goes on elsewhere");
            assert!(
                remarks.iter().any(|text| text.contains("computed") && text.contains("from here on")),
                "{remarks:?}"
            );
            let gap = apart(&checkpoint(&moved, 3), &theirs, "master/");
            assert!(gap < 1e-3, "{out}: {gap}");
        }
        // Other settings of memory change nothing, or nothing but the order of the norm's sum.
        let set = [on(index), "memory.recompute=true".into(), "memory.reference=\"host\"".into()];
        let (spared, _) = run(here, "spared", &set, false).expect("runs");
        assert!(checkpoint(&spared, 6)["optimizer.safetensors"] == checkpoint(&whole, 6)["optimizer.safetensors"]);
        // A reference that follows the weights is part of what a run goes on with.
        let set = [on(index), "stage.1.reference={ ema = 0.5 }".into()];
        let (followed, _) = run(here, "followed", &set, false).expect("runs");
        stopped(&followed, "followed-again", 5);
        let (again, _) = run(here, "followed-again", &set, true).expect("goes on");
        assert!(checkpoint(&again, 6) == checkpoint(&followed, 6), "with its reference");
        let [before, after] = [5, 6].map(|step| checkpoint(&followed, step));
        assert!(before["reference.safetensors"] != after["reference.safetensors"], "it follows");
        let set = [on(index), "memory.optimiser=\"host\"".into()];
        let (on_host, _) = run(here, "moments-on-host", &set, false).expect("runs");
        let gap = apart(&checkpoint(&on_host, 3), &ours, "master/");
        assert!(gap < 1e-5, "moments on the host: {gap}");
        stopped(&on_host, "moments-move", 2);
        let (moved, _) = run(here, "moments-move", &[on(index)], true).expect("the moments go down");
        assert!(apart(&checkpoint(&moved, 3), &ours, "master/") < 1e-5);
    }
}

/// A text of some tokens behind one another, all but the first trained.
fn text(ids: &[u32]) -> TokenBatch {
    let num = ids.len() - 1;
    TokenBatch {
        ids: ids.to_vec(),
        positions: (0..ids.len() as u32).collect(),
        segments: vec![foveate_model::Segment { start: 0, len: ids.len() as u32, parent: None }],
        source: (0..num as u32).collect(),
        target: ids[1..].to_vec(),
        inv_temperature: vec![1.0; num],
        ..TokenBatch::default()
    }
}

#[test]
fn steps_on_a_device_have_the_bits_of_the_host() {
    // Away from the sources, where tools/gpu_checks.sh runs it, the fixtures lie elsewhere.
    let fixtures = std::env::var_os("FOVEATE_FIXTURES").map(PathBuf::from);
    let fixtures = fixtures.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures"));
    let fixture = fixtures.join("models/llama");
    let (_guard, all) = devices();
    for index in all {
        let mut policies = [(); 2].map(|()| {
            let policy = Policy::load(&fixture, Precision::F32).expect("the fixture loads");
            policy.on(DeviceChoice::Cuda(index), Precision::F32).expect("it is there")
        });
        let mut optims = [AdamW::new(&policies[0]), AdamW::on_host(&policies[1])];
        let spec = OptimSpec { weight_decay: 0.1, ..OptimSpec::default() };
        let mut norms = Vec::new();
        for (policy, optim) in policies.iter_mut().zip(&mut optims) {
            let mut gradients = policy.new_gradients();
            for step in 0..4 {
                gradients.clear();
                let batch = text(&[3, 9, 4 + step, 20, 7]);
                let mut rule = |head: &HeadOutput| Derivatives {
                    by_logprob: vec![-0.25; head.logprob.len()],
                    by_entropy: vec![0.0; head.logprob.len()],
                };
                policy.accumulate_gradients(&batch, &mut gradients, &mut rule).expect("runs");
                norms.push(optim.norm(policy, &mut gradients).expect("runs"));
                optim.step(policy, &gradients, &spec, 1e-3, 0.5);
            }
        }
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(policies[0].master()) == bits(policies[1].master()), "weights");
        let [ours, theirs] = [0, 1].map(|at| optims[at].moments(&policies[at]).expect("come up"));
        assert!(ours.iter().zip(&theirs).all(|(a, b)| bits(a) == bits(b)), "moments");
        let (ours, theirs) = norms.split_at(4);
        assert!(ours.iter().zip(theirs).all(|(a, b)| (a / b - 1.0).abs() < 1e-12), "{ours:?} {theirs:?}");
        // What is not finite is seen in the norm.
        let [policy, _] = &mut policies;
        let mut gradients = policy.new_gradients();
        let mut rule = |head: &HeadOutput| Derivatives {
            by_logprob: vec![f32::NAN; head.logprob.len()],
            by_entropy: vec![0.0; head.logprob.len()],
        };
        policy.accumulate_gradients(&text(&[3, 9, 4]), &mut gradients, &mut rule).expect("runs");
        assert!(!optims[0].norm(policy, &mut gradients).expect("runs").is_finite());
    }
}

#[test]
fn drawing_is_timed_with_recorded_steps_and_without() {
    let (_guard, all) = devices();
    for index in all {
        let config = shapes::find("minnow-like").expect("a shape").config;
        let policy = Policy::fresh(&config, 1, Precision::F32).expect("a small model");
        let mut policy = policy.on(DeviceChoice::Cuda(index), Precision::F32).expect("it is there");
        let device = policy.device().expect("it is on one").clone();
        device.set_repeats(Repeats::Recorded);
        let work = Work::Sample { sequences: 2, prompt: 3, tokens: 5 };
        let before = device.counts();
        let recorded = speed::time(&mut policy, work, 1).expect("runs");
        let between = device.counts();
        let afresh = speed::time_afresh(&mut policy, work, 1).expect("runs").expect("there is something to compare");
        // Of five tokens the first is the prompt's; of the four steps one runs as it is and one is recorded, then repeated.
        let per_round = |a: u64, b: u64| (b - a) / 2;
        assert_eq!(per_round(before.recordings, between.recordings), 1);
        assert_eq!(per_round(before.replays, between.replays), 3);
        assert_eq!(device.counts().replays, between.replays);
        assert!(device.counts().launches - between.launches > between.launches - before.launches);
        assert_eq!((recorded.tokens, afresh.tokens, device.repeats()), (10, 10, Repeats::Recorded));
        let learning = Work::Train { rows: 1, tokens: 4, rows_together: 1 };
        assert!(speed::time_afresh(&mut policy, learning, 1).expect("nothing to do").is_none());
    }
}

#[test]
fn gradients_that_are_not_finite_end_the_run_as_on_the_cpu() {
    let (_guard, all) = devices();
    for index in all {
        let folder = tempfile::tempdir().expect("a folder");
        // A rate that sends the weights to infinity in the first step: the second one's numbers are not finite.
        let huge = ["stage.0.optim.lr=1e30".to_string(), "stage.0.optim.warmup=0".to_string()];
        let told = [vec![], vec![on(index)]].map(|device| {
            let out = format!("run-{}", device.len());
            let error = run(folder.path(), &out, &[&huge[..], &device].concat(), false).expect_err("it is refused");
            let left: Vec<String> = (1..4).map(|step| format!("checkpoints/step-{step:06}")).collect();
            let left: Vec<bool> = left.iter().map(|name| folder.path().join(&out).join(name).is_dir()).collect();
            (error.to_string(), left)
        });
        assert_eq!(told[0], told[1]);
        assert!(told[0].0.contains("is not finite; the weights were not touched"), "{told:?}");
    }
}
