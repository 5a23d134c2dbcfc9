//! A whole model on a device gives what the CPU gives: log-probabilities, entropy, every gradient, answers; in f32 and
//! bf16, with adapters, stored and recomputed, memory given back. The device is the host emulating a GPU, and a GPU where
//! there is one.
//! Cost: some seconds emulated; what cannot run says so.

#[path = "../../kernels/tests/emulator/mod.rs"]
mod emulator;
mod support;

use std::sync::Arc;

use foveate_kernels::cpu::adamw::{self, Numbers};
use foveate_kernels::cuda::Device;
use foveate_model::plan_device::{DevicePlan, Load, Manner};
use foveate_model::{
    AdapterSpec, Derivatives, HeadOutput, Policy, Precision, PromptInput, SampleJob, SamplingSpec, Segment, TokenBatch,
    Trainable,
};
use support::{FAMILIES, Parity, fixtures, gap, pack};

/// Devices that there are, the emulated one first.
fn devices() -> Vec<Device> {
    let emulated = emulator::library().map(|library| Device::emulated(&library, 0).expect("it was just made"));
    let gpu = Device::cuda(0).inspect_err(|error| eprintln!("nothing runs on a GPU: {error}; {}", error.hint())).ok();
    emulated.into_iter().chain(gpu).collect()
}

fn policy(name: &str, precision: Precision) -> Policy {
    Policy::load(&fixtures().join("models").join(name), precision).expect("the fixture loads")
}

fn on(device: &Device, name: &str, precision: Precision) -> Policy {
    let mut policy = policy(name, precision);
    policy.use_device(device.clone(), precision);
    policy
}

/// Devices with the arena that a GPU has.
fn with_arena() -> Vec<Device> {
    let emulated = emulator::library().map(|library| Device::emulated_with_arena(&library).expect("it was just made"));
    emulated.into_iter().chain(Device::cuda(0).ok()).collect()
}

/// The shortest conversation with a picture if there is one, answered thrice behind one prompt.
fn batch(parity: &Parity) -> (PromptInput, TokenBatch) {
    let prompts = parity.conversations().into_iter().map(|c| (parity.prompt(&c), parity.completion(&c)));
    let (prompt, answer) =
        prompts.min_by_key(|(prompt, _)| (prompt.tiles.is_empty(), prompt.ids.len())).expect("there are some");
    let short = answer[..3.min(answer.len())].to_vec();
    let turned: Vec<u32> = answer.iter().rev().copied().collect();
    let mut batch = pack(&[(&prompt, vec![answer, short, turned])], true);
    batch.banned = Arc::from([0u32, 7].map(|id| id + 1).as_slice());
    batch.inv_temperature.iter_mut().enumerate().for_each(|(at, t)| *t = 0.8 + at as f32 * 0.05);
    let banned = batch.banned.clone();
    batch.target.iter_mut().filter(|id| banned.contains(id)).for_each(|id| *id = 3);
    (prompt, batch)
}

fn uneven(output: &HeadOutput) -> Derivatives {
    let by = |factor: f32| (0..output.logprob.len()).map(|at| factor * (at as f32 * 0.7).sin() - 0.1).collect();
    Derivatives { by_logprob: by(0.3), by_entropy: by(0.05) }
}

fn gradients(policy: &mut Policy, batch: &TokenBatch) -> (HeadOutput, Vec<f32>) {
    let mut gradients = policy.new_gradients();
    let output = policy.accumulate_gradients(batch, &mut gradients, &mut uneven).expect("runs");
    gradients.collect();
    (output, gradients.flat.to_vec())
}

/// Largest difference of each tensor, relative to its largest value; tensors that are small noise count by the largest
/// of all.
fn worst_gradient(policy: &Policy, have: &[f32], want: &[f32]) -> (f32, String) {
    let all = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut worst = (0.0, String::new());
    for info in policy.parameters() {
        let range = info.offset..info.offset + info.len;
        let scale = want[range.clone()].iter().fold(all * 1e-3, |m, v| m.max(v.abs()));
        let gap = have[range.clone()].iter().zip(&want[range]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale;
        assert!(gap.is_finite(), "{}: not a number", info.name);
        if gap > worst.0 {
            worst = (gap, info.name.clone());
        }
    }
    worst
}

#[test]
fn every_family_scores_and_learns_as_on_the_cpu() {
    for device in devices() {
        for name in FAMILIES {
            let (_, batch) = batch(&Parity::open(name));
            let mut cpu = policy(name, Precision::F32);
            let mut gpu = on(&device, name, Precision::F32);
            let (output, want) = gradients(&mut cpu, &batch);
            let (ours, have) = gradients(&mut gpu, &batch);
            let gaps = [gap(&ours.logprob, &output.logprob), gap(&ours.entropy, &output.entropy)];
            assert!(gaps.iter().all(|gap| *gap < 1e-5), "{name} on {}: {gaps:?}", device.name());
            let (worst, tensor) = worst_gradient(&cpu, &have, &want);
            assert!(worst < 2e-4, "{name} on {}: {tensor} differs by {worst}", device.name());
            if name == "smolvlm" {
                gpu.set_recompute(true);
                let (_, again) = gradients(&mut gpu, &batch);
                assert!(again == have, "{name} on {}: recomputed is not stored", device.name());
            }
            println!("{name}: log-probabilities within {:.1e}, gradients within {worst:.1e} ({tensor})", gaps[0]);
        }
    }
}

#[test]
fn bf16_is_near_the_cpu_and_memory_comes_back() {
    for device in devices() {
        for name in ["smolvlm", "qwen3"] {
            let (_, batch) = batch(&Parity::open(name));
            let mut cpu = policy(name, Precision::Bf16);
            let mut gpu = on(&device, name, Precision::Bf16);
            let (output, want) = gradients(&mut cpu, &batch);
            let (ours, have) = gradients(&mut gpu, &batch);
            assert!(gap(&ours.logprob, &output.logprob) < 2e-2, "{name}: {:?} {:?}", ours.logprob, output.logprob);
            let (worst, tensor) = worst_gradient(&cpu, &have, &want);
            assert!(worst < 0.1, "{name} on {}: {tensor} differs by {worst}", device.name());
            let before = device.memory_used()[0];
            // Emulated, one more pass tells; a GPU is asked for a thousand, as a long run would.
            let passes = if device.name().contains("emulating") { 1 } else { 1000 };
            for _ in 0..passes {
                gradients(&mut gpu, &batch);
                assert_eq!(device.memory_used()[0], before, "{name}: a pass keeps memory");
            }
        }
    }
}

#[test]
fn answers_are_those_of_the_cpu_and_of_the_trainer() {
    let spec = SamplingSpec {
        temperature: 0.9,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        logprob_temperature: None,
        max_new_tokens: 5,
        end_ids: vec![],
        banned: Arc::from([1u32, 8]),
    };
    let specs = [
        spec.clone(),
        SamplingSpec { temperature: 0.0, banned: Arc::from([]), ..spec.clone() },
        SamplingSpec { top_k: 5, top_p: 0.9, ..spec.clone() },
        SamplingSpec { logprob_temperature: Some(1.0), ..spec },
    ];
    for device in devices() {
        for name in ["smolvlm", "qwen2_vl"] {
            let (prompt, _) = batch(&Parity::open(name));
            let job = |question, num_answers| SampleJob {
                prompt: &prompt,
                num_answers,
                seed: 5,
                step: 1,
                question,
                first_answer: 0,
            };
            let jobs = [job(0, 2), job(1, 1)];
            let mut cpu = policy(name, Precision::F32);
            let mut gpu = on(&device, name, Precision::F32);
            for spec in &specs {
                let want = cpu.sample(&jobs, spec, &mut |_| {}).expect("runs");
                let have = gpu.sample(&jobs, spec, &mut |_| {}).expect("runs");
                for (have, want) in have.iter().flatten().zip(want.iter().flatten()) {
                    assert_eq!(have.ids, want.ids, "{name} on {}: {spec:?}", device.name());
                    assert!(gap(&have.logprob, &want.logprob) < 1e-4 && gap(&have.entropy, &want.entropy) < 1e-4);
                }
                if *spec != specs[0] {
                    continue;
                }
                // Alone, an answer is the same; and the trainer sees the same log-probabilities.
                let alone = gpu.sample(&jobs[1..], spec, &mut |_| {}).expect("runs");
                assert_eq!(alone[0][0], have[1][0], "{name} on {}: neighbours matter", device.name());
                let mut batch = pack(&[(&prompt, vec![have[0][0].ids.clone(), have[0][1].ids.clone()])], true);
                batch.inv_temperature.fill(spec.inv_logprob_temperature());
                batch.banned = spec.banned.clone();
                let scored = gpu.score(&batch).expect("runs");
                let sampled: Vec<f32> = have[0].iter().flat_map(|answer| answer.logprob.iter().copied()).collect();
                assert!(gap(&scored.logprob, &sampled) < 1e-4, "{name} on {}: trainer and sampler", device.name());
            }
        }
    }
}

#[test]
fn adapters_learn_with_dropout() {
    let spec = AdapterSpec {
        rank: 3,
        alpha: 6.0,
        rank_stabilised: false,
        dropout: 0.2,
        targets: vec![],
        parts: Trainable::ALL,
    };
    for device in devices() {
        let (_, batch) = batch(&Parity::open("smolvlm"));
        let [mut cpu, mut gpu] = [false, true].map(|on_device| {
            let mut policy = policy("smolvlm", Precision::F32);
            if on_device {
                policy.use_device(device.clone(), Precision::F32);
            }
            let mut policy = policy.with_adapters(&spec, 3).expect("fits");
            policy.set_trainable(Trainable::ALL);
            // B begins at zero, which would hide A.
            policy.weights_mut().fill_adapters(4);
            let range = policy.weights().adapter_range();
            policy.weights_mut().range_mut(range).iter_mut().enumerate().for_each(|(at, w)| {
                *w += (at as f32 * 0.37).sin() * 0.05;
            });
            let dropout = foveate_model::Dropout { rate: 0.2, seed: 1, step: 2, batch: 3 };
            policy.weights_mut().set_dropout(Some(dropout));
            policy
        });
        let (_, want) = gradients(&mut cpu, &batch);
        let (_, have) = gradients(&mut gpu, &batch);
        let (worst, tensor) = worst_gradient(&cpu, &have, &want);
        assert!(worst < 2e-4, "on {}: {tensor} differs by {worst}", device.name());
        assert!(want.iter().any(|g| *g != 0.0));
    }
}

#[test]
fn weights_move_on_the_device_and_come_back_when_they_are_read() {
    let numbers = |step| Numbers::new(1e-2, 0.9, 0.999, 1e-8, 0.01, step, 0.5);
    // Fenced memory with f32, the arena with bf16.
    let fenced = devices().into_iter().map(|device| (device, Precision::F32));
    for (device, precision) in fenced.chain(with_arena().into_iter().map(|device| (device, Precision::Bf16))) {
        let parity = Parity::open("smolvlm");
        let (prompt, batch) = batch(&parity);
        let mut gpu = on(&device, "smolvlm", precision);
        // Only the decoder learns: gradients and moments begin in the middle of the flat buffer.
        gpu.set_trainable(Trainable { vision: false, connector: false, language: true });
        let (mut sums, moments) = (gpu.new_gradients(), gpu.new_device_moments().expect("it is on a device"));
        let active = sums.active.clone();
        assert!(0 < active.start && active.end <= gpu.num_values());
        let mut want = gpu.master().to_vec();
        let [mut m, mut v] = [(); 2].map(|()| vec![0f32; want.len()]);
        for step in 1..=3 {
            // The gradients of a device on the host, once more.
            let mut on_host = gpu.new_gradients();
            gpu.accumulate_gradients(&batch, &mut on_host, &mut uneven).expect("runs");
            on_host.collect();
            sums.clear();
            let before = device.traffic();
            gpu.accumulate_gradients(&batch, &mut sums, &mut uneven).expect("runs");
            let norm = gpu.sum_of_squares_on_device(&mut sums).expect("runs");
            assert!((norm / adamw::sum_of_squares(&on_host.flat) - 1.0).abs() < 1e-12);
            gpu.step_on_device(active.clone(), &sums, &moments, &numbers(step));
            let moved = device.traffic();
            // Down: ids, rows, pictures. Up: two numbers per trained token and the norm.
            let small = [1 << 17, 1 << 12];
            assert!(
                moved.iter().zip(before).zip(small).all(|((now, then), most)| now - then < most),
                "{moved:?} {before:?}"
            );
            let part = active.clone();
            adamw::adamw_step(
                &mut want[part.clone()],
                &on_host.flat[part.clone()],
                &mut m[part.clone()],
                &mut v[part],
                1e-2,
                0.9,
                0.999,
                1e-8,
                0.01,
                step,
                0.5,
            );
        }
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let [have_m, have_v] = moments.fetch(&gpu).expect("comes up");
        assert!(bits(&have_m) == bits(&m) && bits(&have_v) == bits(&v), "moments on {}", device.name());
        // What the device works with is what the host reads: another model with these weights says the same.
        let ours = gpu.score(&batch).expect("runs");
        let before = device.traffic()[1];
        assert!(bits(gpu.master()) == bits(&want), "weights on {}", device.name());
        gpu.fetch().expect("nothing failed");
        assert_eq!(device.traffic()[1] - before, 4 * active.len() as u64, "they come up once");
        let mut other = on(&device, "smolvlm", precision);
        other.master_mut().copy_from_slice(&want);
        assert_eq!(other.score(&batch).expect("runs"), ours);
        // A change on the host after that goes down, and only that.
        let down = device.traffic()[0];
        let range = gpu.parameters()[3].offset..gpu.parameters()[3].offset + 1;
        gpu.weights_mut().range_mut(range)[0] += 0.5;
        assert_ne!(gpu.score(&batch).expect("runs"), ours, "the change is seen");
        assert!(device.traffic()[0] - down < 1 << 17);
        // Off the device and back again.
        let before = gpu.score(&batch).expect("runs");
        let used = device.memory_used()[0];
        gpu.leave_device();
        assert!(device.memory_used()[0] < used);
        assert_eq!(gpu.score(&batch).expect("runs"), before);
        let spec = SamplingSpec {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            logprob_temperature: None,
            max_new_tokens: 3,
            end_ids: vec![],
            banned: Arc::from([]),
        };
        let job = SampleJob { prompt: &prompt, num_answers: 2, seed: 1, step: 0, question: 0, first_answer: 0 };
        assert_eq!(gpu.sample(&[job], &spec, &mut |_| {}).expect("runs")[0].len(), 2);
    }
}

/// Tokens behind one another, all but the first trained.
fn long_text(len: u32, vocabulary: u32) -> TokenBatch {
    let ids: Vec<u32> = (0..len).map(|at| 3 + at * 7 % (vocabulary - 3)).collect();
    let num = ids.len() - 1;
    TokenBatch {
        positions: (0..len).collect(),
        segments: vec![Segment { start: 0, len, parent: None }],
        source: (0..num as u32).collect(),
        target: ids[1..].to_vec(),
        inv_temperature: vec![1.0; num],
        ids,
        ..TokenBatch::default()
    }
}

#[test]
fn a_plan_counts_what_a_device_is_asked_for() {
    let Some(library) = emulator::library() else { return };
    let cases = [
        ("llama", Precision::F32, false),
        ("llama", Precision::F32, true),
        ("qwen3", Precision::Bf16, false),
        ("smolvlm", Precision::F32, false),
    ];
    for (name, precision, recompute) in cases {
        let device = Device::emulated(&library, 0).expect("it was just made");
        let mut gpu = on(&device, name, precision);
        gpu.set_recompute(recompute);
        let pictures = name == "smolvlm";
        let batch = if pictures { batch(&Parity::open(name)).1 } else { long_text(120, 60) };
        let manner = Manner { recompute, moments_on_host: false };
        let plan = gpu.device_plan(manner);
        let load = Load {
            tokens: batch.num_tokens(),
            patches: gpu.num_patches(batch.tiles.iter().map(AsRef::as_ref)),
            trained: batch.num_trained(),
            stored: 0,
        };
        assert_eq!(load.patches > 0, pictures);
        let moments = gpu.new_device_moments().expect("it is on a device");
        gradients(&mut gpu, &batch);
        // What a GPU's own library takes is not here.
        let planned = plan.to_learn(load) - plan.kept() + plan.weights + plan.gradients + plan.moments;
        let taken = device.memory_used()[2];
        let (bytes, resting) = (plan.weights + plan.gradients + plan.moments, device.memory_used()[0]);
        let [by_plan, really] = [planned - bytes, taken - bytes].map(|bytes| bytes as f64);
        println!(
            "{name} {precision:?} recompute {recompute}: planned {planned}, taken {taken}, beyond weights {by_plan} {really}"
        );
        // Sums were collected, so the gradients' memory is back.
        assert!((resting as f64 / (plan.weights + plan.moments) as f64 - 1.0).abs() < 0.02, "{name}: {resting}");
        assert!(planned as f64 > 0.9 * taken as f64 && by_plan < 2.0 * really, "{name}: {planned} for {taken}");
        drop(moments);
        // The same from a folder alone.
        let folder = fixtures().join("models").join(name);
        let read = DevicePlan::new(&folder, precision, Trainable::ALL, None, manner).expect("a model");
        assert_eq!(read, plan);
        let frozen = DevicePlan::new(&folder, precision, Trainable::NONE, None, manner).expect("a model");
        assert_eq!((frozen.gradients, frozen.moments, frozen.activations), (0, 0, [0, 0]));
        let spec = AdapterSpec {
            rank: 2,
            alpha: 4.0,
            rank_stabilised: false,
            dropout: 0.0,
            targets: vec![],
            parts: Trainable::ALL,
        };
        let adapted = DevicePlan::new(&folder, precision, Trainable::ALL, Some(&spec), manner).expect("a model");
        assert!(0 < adapted.moments && adapted.moments < plan.moments / 2);
    }
}

#[test]
fn moments_go_down_and_come_up() {
    for device in devices() {
        let gpu = on(&device, "llama", Precision::F32);
        let moments = gpu.new_device_moments().expect("it is on a device");
        let values = [1.0, 2.0].map(|factor| (0..gpu.num_values()).map(|at| factor * at as f32).collect::<Vec<f32>>());
        moments.send(values.each_ref().map(Vec::as_slice));
        let active = gpu.new_gradients().active;
        for (have, want) in moments.fetch(&gpu).expect("comes up").iter().zip(&values) {
            assert_eq!(have[active.clone()], want[active.clone()]);
            assert!(have[active.end..].iter().all(|value| *value == 0.0), "what does not learn has none");
        }
    }
}

#[test]
fn weights_that_change_reach_the_device() {
    for device in devices() {
        let (_, batch) = batch(&Parity::open("llama"));
        let mut cpu = policy("llama", Precision::F32);
        let mut gpu = on(&device, "llama", Precision::F32);
        let before = gpu.score(&batch).expect("runs");
        for policy in [&mut cpu, &mut gpu] {
            policy.master_mut().iter_mut().enumerate().for_each(|(at, w)| *w += (at as f32).sin() * 0.01);
        }
        let (want, have) = (cpu.score(&batch).expect("runs"), gpu.score(&batch).expect("runs"));
        assert!(gap(&have.logprob, &want.logprob) < 1e-5 && gap(&have.logprob, &before.logprob) > 1e-4);
    }
}
