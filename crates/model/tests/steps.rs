//! Steps of decoding that are recorded and repeated give what steps give that are launched afresh: the same tokens and the
//! same bits, whoever ends when, in families of several kinds, with adapters, in f32 and bf16. The device is the host
//! emulating a GPU (a recording is the list of launches with their arguments by value), and a GPU where there is one.
//! Cost: some seconds emulated; what cannot run says so.

#[path = "../../kernels/tests/emulator/mod.rs"]
mod emulator;
mod support;

use std::sync::Arc;

use foveate_kernels::cuda::{Device, Repeats};
use foveate_model::batcher::{Batcher, Request};
use foveate_model::{AdapterSpec, Policy, Precision, PromptInput, SampleJob, Sampled, SamplingSpec, Trainable};
use support::{Parity, fixtures, gap};

/// Devices that there are, each with the type that it is asked in: emulated ones without and with an arena, and a GPU.
fn devices() -> Vec<(Device, Precision)> {
    let mut all = Vec::new();
    if let Some(library) = emulator::library() {
        all.push((Device::emulated(&library, 0).expect("it was just made"), Precision::F32));
        all.push((Device::emulated_with_arena(&library).expect("it was just made"), Precision::Bf16));
    }
    match Device::cuda(0) {
        Ok(device) => all.extend([(device.clone(), Precision::F32), (device, Precision::Bf16)]),
        Err(error) => eprintln!("nothing runs on a GPU: {error}; {}", error.hint()),
    }
    all
}

fn on(device: &Device, name: &str, precision: Precision) -> Policy {
    let mut policy = Policy::load(&fixtures().join("models").join(name), precision).expect("the fixture loads");
    policy.use_device(device.clone(), precision);
    policy
}

/// Two prompts, the shorter ones, with pictures before without.
fn prompts(name: &str) -> [PromptInput; 2] {
    let parity = Parity::open(name);
    let mut all: Vec<PromptInput> = parity.conversations().iter().map(|name| parity.prompt(name)).collect();
    all.sort_by_key(|prompt| (prompt.tiles.is_empty(), prompt.ids.len()));
    let last = all.pop().expect("there are some");
    [all.swap_remove(0), last]
}

fn spec() -> SamplingSpec {
    SamplingSpec {
        temperature: 0.9,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        logprob_temperature: None,
        max_new_tokens: 9,
        end_ids: vec![],
        banned: Arc::from([1u32, 8]),
    }
}

fn answers(policy: &mut Policy, prompts: &[PromptInput; 2], spec: &SamplingSpec, repeats: Repeats) -> Vec<Sampled> {
    policy.device().expect("it is on one").set_repeats(repeats);
    let job = |question: usize, num_answers| SampleJob {
        prompt: &prompts[question],
        num_answers,
        seed: 5,
        step: 1,
        question: question as u32,
        first_answer: 0,
    };
    policy.sample(&[job(0, 3), job(1, 2)], spec, &mut |_| {}).expect("runs").concat()
}

/// On a GPU, products of other numbers of rows may round otherwise: there, what was launched afresh is only near.
fn check_near(have: &[Sampled], want: &[Sampled], device: &Device, precision: Precision, what: &str) {
    if device.name().contains("emulating") {
        assert_eq!(have, want, "{what} on {}", device.name());
    } else if precision == Precision::F32 {
        for (have, want) in have.iter().zip(want) {
            assert_eq!(have.ids, want.ids, "{what} on {}", device.name());
            assert!(gap(&have.logprob, &want.logprob) < 1e-4, "{what} on {}", device.name());
        }
    }
}

#[test]
fn recorded_steps_say_what_fresh_ones_say() {
    for (device, precision) in devices() {
        for name in ["llama", "qwen3", "smolvlm", "qwen2_vl"] {
            let prompts = prompts(name);
            let mut policy = on(&device, name, precision);
            let endless = answers(&mut policy, &prompts, &spec(), Repeats::Afresh);
            // Tokens that were drawn at different places end answers from now on.
            let end_ids = vec![endless[0].ids[1], endless[1].ids[3], endless[3].ids[5]];
            let drawn = SamplingSpec { end_ids, ..spec() };
            let greedy = answers(&mut policy, &prompts, &SamplingSpec { temperature: 0.0, ..spec() }, Repeats::Afresh);
            let specs = [
                drawn.clone(),
                SamplingSpec { temperature: 0.0, end_ids: vec![greedy[4].ids[4]], banned: Arc::from([]), ..spec() },
                SamplingSpec { top_k: 5, top_p: 0.9, ..drawn.clone() },
                SamplingSpec { logprob_temperature: Some(1.0), ..drawn },
            ];
            // What is chosen on the host does not depend on the family: two of them will do.
            let count = if ["llama", "qwen2_vl"].contains(&name) { specs.len() } else { 2 };
            for (index, spec) in specs[..count].iter().enumerate() {
                let what = format!("{name} {precision:?} spec {index}");
                let want = answers(&mut policy, &prompts, spec, Repeats::Afresh);
                let before = device.counts();
                let fixed = answers(&mut policy, &prompts, spec, Repeats::Fixed);
                assert_eq!((device.counts().recordings, device.counts().replays), (before.recordings, before.replays));
                let recorded = answers(&mut policy, &prompts, spec, Repeats::Recorded);
                assert_eq!(device.repeats(), Repeats::Recorded, "{what}: recording was refused");
                assert!(device.counts().recordings > before.recordings && device.counts().replays > before.replays);
                assert_eq!(recorded, fixed, "{what} on {}: a repetition differs", device.name());
                check_near(&fixed, &want, &device, precision, &what);
                if index == 0 {
                    let lengths: Vec<usize> = want.iter().map(|answer| answer.ids.len()).collect();
                    assert!(lengths.iter().any(|len| *len != lengths[0]), "{what}: all end together, {lengths:?}");
                }
            }
        }
    }
}

#[test]
fn few_launches_remain_and_memory_comes_back() {
    for (device, precision) in devices() {
        let prompts = prompts("smolvlm");
        let mut policy = on(&device, "smolvlm", precision);
        let spec = SamplingSpec { max_new_tokens: 24, ..spec() };
        let want = answers(&mut policy, &prompts, &spec, Repeats::Afresh);
        let resting = device.memory_used()[0];
        let mut launches = [0; 2];
        for (slot, repeats) in [Repeats::Afresh, Repeats::Recorded].into_iter().enumerate() {
            let before = device.counts();
            let traffic = device.traffic();
            let have = answers(&mut policy, &prompts, &spec, repeats);
            check_near(&have, &want, &device, precision, "once more");
            launches[slot] = device.counts().launches - before.launches;
            assert_eq!(device.memory_used()[0], resting, "memory on {}", device.name());
            println!(
                "{repeats:?}: {} launches, {:?} bytes",
                launches[slot],
                [0, 1].map(|i| device.traffic()[i] - traffic[i])
            );
        }
        // 23 steps, of which one runs as it is and one is recorded; the prompts take their launches either way.
        assert!(launches[1] * 2 < launches[0], "{launches:?}");
        // Weights that the host changes are seen by the next answers, in their own recordings.
        policy.master_mut().iter_mut().enumerate().for_each(|(at, w)| *w += (at as f32).sin() * 0.02);
        let moved = answers(&mut policy, &prompts, &spec, Repeats::Afresh);
        assert_ne!(moved, want);
        check_near(&answers(&mut policy, &prompts, &spec, Repeats::Recorded), &moved, &device, precision, "moved");
    }
}

#[test]
fn adapters_are_recorded_too() {
    let adapters = AdapterSpec {
        rank: 3,
        alpha: 6.0,
        rank_stabilised: false,
        dropout: 0.0,
        targets: vec![],
        parts: Trainable::ALL,
    };
    for (device, precision) in devices() {
        let prompts = prompts("smolvlm");
        let plain = answers(&mut on(&device, "smolvlm", precision), &prompts, &spec(), Repeats::Afresh);
        let mut policy = on(&device, "smolvlm", precision).with_adapters(&adapters, 3).expect("fits");
        policy.weights_mut().fill_adapters(4);
        let range = policy.weights().adapter_range();
        // B begins at zero, which would change nothing.
        policy.weights_mut().range_mut(range).iter_mut().enumerate().for_each(|(at, w)| {
            *w += (at as f32 * 0.37).sin() * 0.05;
        });
        let want = answers(&mut policy, &prompts, &spec(), Repeats::Afresh);
        assert_ne!(want, plain, "the adapters do something");
        let fixed = answers(&mut policy, &prompts, &spec(), Repeats::Fixed);
        assert_eq!(answers(&mut policy, &prompts, &spec(), Repeats::Recorded), fixed);
        check_near(&fixed, &want, &device, precision, "adapters");
    }
}

#[test]
fn a_device_that_records_nothing_decodes_all_the_same() {
    let Some(library) = emulator::library() else { return };
    let device = Device::emulated_without_recordings(&library).expect("it was just made");
    let prompts = prompts("llama");
    let mut policy = on(&device, "llama", Precision::F32);
    let want = answers(&mut policy, &prompts, &spec(), Repeats::Afresh);
    assert_eq!(answers(&mut policy, &prompts, &spec(), Repeats::Recorded), want);
    assert_eq!(device.repeats(), Repeats::Fixed, "it is not asked again");
    assert_eq!(answers(&mut policy, &prompts, &spec(), Repeats::Fixed), want);
    assert_eq!((device.counts().recordings, device.counts().replays), (0, 0));
}

#[test]
fn requests_that_come_and_go_are_recorded() {
    for (device, precision) in devices() {
        let [long, short] = prompts("smolvlm");
        let request = |prompt: &PromptInput, num_answers, sampling: SamplingSpec, seed| Request {
            prompt: prompt.clone(),
            num_answers,
            sampling,
            seed,
        };
        // The second is chosen from on the host, the third has other bans and later positions.
        let requests = [
            request(&long, 2, SamplingSpec { max_new_tokens: 14, ..spec() }, 5),
            request(&short, 1, SamplingSpec { top_k: 4, max_new_tokens: 4, ..spec() }, 6),
            request(&long, 1, SamplingSpec { banned: Arc::from([2u32]), max_new_tokens: 300, ..spec() }, 7),
        ];
        let said: Vec<Vec<Vec<Sampled>>> = [Repeats::Afresh, Repeats::Fixed, Repeats::Recorded]
            .into_iter()
            .map(|repeats| {
                device.set_repeats(repeats);
                let mut policy = on(&device, "smolvlm", precision);
                let before = device.counts();
                let mut batcher = Batcher::new(&mut policy, requests.iter().map(Request::num_rows).sum());
                let first = batcher.join(&mut policy, &requests[0]).expect("there is room");
                (0..4).for_each(|_| batcher.step(&mut policy).expect("runs"));
                let second = batcher.join(&mut policy, &requests[1]).expect("there is room");
                (0..3).for_each(|_| batcher.step(&mut policy).expect("runs"));
                let answers = |batcher: &Batcher, ticket| -> Vec<Sampled> {
                    batcher.answers(ticket).0.into_iter().cloned().collect()
                };
                let middle = answers(&batcher, second);
                assert!(batcher.answers(second).1[0]);
                batcher.leave(second);
                (0..3).for_each(|_| batcher.step(&mut policy).expect("runs"));
                let third = batcher.join(&mut policy, &requests[2]).expect("there is room");
                (0..6).for_each(|_| batcher.step(&mut policy).expect("runs"));
                let made = device.counts().recordings - before.recordings;
                assert_eq!(made > 0, repeats == Repeats::Recorded);
                vec![answers(&batcher, first), middle, answers(&batcher, third)]
            })
            .collect();
        assert_eq!(said[2], said[1], "a repetition differs on {}", device.name());
        check_near(&said[1].concat(), &said[0].concat(), &device, precision, "requests");
    }
}
