//! A whole model on a device gives what the CPU gives: log-probabilities, entropy, every gradient, answers; in f32 and
//! bf16, with adapters, stored and recomputed, memory given back. The device is the host emulating a GPU, and a GPU where
//! there is one.
//! Cost: some seconds emulated; what cannot run says so.

#[path = "../../kernels/tests/emulator/mod.rs"]
mod emulator;
mod support;

use std::sync::Arc;

use foveate_kernels::cuda::Device;
use foveate_model::{
    AdapterSpec, Derivatives, HeadOutput, Policy, Precision, PromptInput, SampleJob, SamplingSpec, TokenBatch,
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
    (output, gradients.flat)
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
