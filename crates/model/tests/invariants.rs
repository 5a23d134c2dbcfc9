//! What must always hold: sampler and trainer agree bit for bit, sharing a prefix and packing change no gradient,
//! neither recomputing nor the number of threads changes a bit, the optimiser leaves packed copies of its new weights. In
//! every family.

mod support;

use foveate_kernels::cpu::adamw::{Numbers, adamw_step};
use foveate_model::{
    Derivatives, Gradients, HeadOutput, Policy, Precision, PromptInput, SampleJob, SamplingSpec, Trainable,
};
use support::{FAMILIES, Parity, fixtures, pack};

fn policy(name: &str, precision: Precision) -> Policy {
    Policy::load(&fixtures().join("models").join(name), precision).unwrap()
}

fn spec(name: &str) -> SamplingSpec {
    let parity = Parity::open(name);
    let image = parity.json["tokens"]["image"].as_u64().map(|id| id as u32);
    SamplingSpec {
        temperature: 0.8,
        logprob_temperature: None,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        max_new_tokens: 12,
        end_ids: parity.end_ids(),
        banned: [1].into_iter().chain(image).collect(),
    }
}

/// Every family in both number types.
fn cases() -> impl Iterator<Item = (&'static str, Precision)> {
    FAMILIES.into_iter().flat_map(|name| [(name, Precision::F32), (name, Precision::Bf16)])
}

fn job(prompt: &PromptInput, question: u32, num_answers: u32) -> SampleJob<'_> {
    SampleJob { prompt, num_answers, seed: 5, step: 3, question, first_answer: 0 }
}

fn prompts(name: &str) -> Vec<PromptInput> {
    let parity = Parity::open(name);
    let seeing = ["one_image", "text_only", "line", "two_images"];
    let reading = ["question", "system", "multi_turn", "composed"];
    let names = if parity.json["tokens"]["image"].is_null() { reading } else { seeing };
    names.iter().map(|c| parity.prompt(c)).collect()
}

/// A rule with different numbers for every token, as a real one has.
fn uneven(output: &HeadOutput) -> Derivatives {
    Derivatives {
        by_logprob: (0..output.logprob.len()).map(|i| 0.1 - 0.03 * (i % 7) as f32).collect(),
        by_entropy: (0..output.logprob.len()).map(|i| 0.01 * (i % 3) as f32).collect(),
    }
}

#[test]
fn sampler_and_trainer_agree_bit_for_bit() {
    for (name, precision) in cases() {
        let mut policy = policy(name, precision);
        let prompts = prompts(name);
        let jobs: Vec<_> = prompts.iter().enumerate().map(|(i, prompt)| job(prompt, i as u32, 5)).collect();
        let answers = policy.sample(&jobs, &spec(name), &mut |_| {}).unwrap();
        let groups: Vec<_> = prompts
            .iter()
            .zip(&answers)
            .map(|(prompt, answers)| (prompt, answers.iter().map(|a| a.ids.clone()).collect::<Vec<_>>()))
            .collect();
        for share in [true, false] {
            let mut batch = pack(&groups, share);
            batch.inv_temperature.fill(1.0 / 0.8);
            batch.banned = spec(name).banned;
            let output = policy.score(&batch).unwrap();
            let sampled: Vec<f32> = answers.iter().flatten().flat_map(|a| a.logprob.clone()).collect();
            let entropy: Vec<f32> = answers.iter().flatten().flat_map(|a| a.entropy.clone()).collect();
            assert!(output.logprob.len() > 100);
            assert_eq!(output.logprob, sampled, "{name} {precision:?}, shared prefix {share}");
            assert_eq!(output.entropy, entropy, "{name} {precision:?}, shared prefix {share}");
        }
        assert!(answers.iter().flatten().flat_map(|a| &a.ids).all(|id| !spec(name).banned.contains(id)));
    }
}

#[test]
fn an_answer_does_not_depend_on_its_neighbours() {
    for (name, precision) in cases() {
        let mut policy = policy(name, precision);
        let prompts = prompts(name);
        let jobs: Vec<_> = prompts.iter().enumerate().map(|(i, prompt)| job(prompt, i as u32, 4)).collect();
        let together = policy.sample(&jobs, &spec(name), &mut |_| {}).unwrap();
        for (index, want) in together.iter().enumerate() {
            let alone = policy.sample(&jobs[index..index + 1], &spec(name), &mut |_| {}).unwrap();
            assert_eq!(&alone[0], want);
            let third = SampleJob { first_answer: 2, num_answers: 1, ..jobs[index].clone() };
            assert_eq!(policy.sample(&[third], &spec(name), &mut |_| {}).unwrap()[0][0], want[2]);
        }
    }
}

fn gradients(policy: &mut Policy, batches: &[foveate_model::TokenBatch]) -> (Vec<f32>, Gradients) {
    let mut gradients = policy.new_gradients();
    let mut logprob = Vec::new();
    for batch in batches {
        let output = policy.accumulate_gradients(batch, &mut gradients, &mut uneven_by_target).unwrap();
        logprob.extend(output.logprob);
    }
    (logprob, gradients)
}

/// The same numbers for the same token wherever it is packed.
fn uneven_by_target(output: &HeadOutput) -> Derivatives {
    Derivatives {
        by_logprob: output.logprob.iter().map(|l| 0.1 + 0.05 * (l * 3.0).sin()).collect(),
        by_entropy: output.entropy.iter().map(|h| 0.01 * (h * 2.0).cos()).collect(),
    }
}

fn close(a: &Gradients, b: &Gradients, tolerance: f32) {
    let scale = b.flat.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = a.flat.iter().zip(&b.flat).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= tolerance * scale, "gradients differ by {worst}, largest is {scale}");
}

#[test]
fn prefix_sharing_packing_and_splitting_change_no_gradient() {
    for name in FAMILIES {
        let mut policy = policy(name, Precision::F32);
        let prompts = prompts(name);
        let answers = |seed: u32| -> Vec<Vec<u32>> {
            (0..4u32).map(|i| (0..3 + 2 * i).map(|t| 10 + (seed * 37 + i * 11 + t * 5) % 380).collect()).collect()
        };
        let groups: Vec<_> = prompts.iter().enumerate().map(|(i, prompt)| (prompt, answers(i as u32))).collect();
        let shared = gradients(&mut policy, &[pack(&groups, true)]);
        let separate = gradients(&mut policy, &[pack(&groups, false)]);
        assert_eq!(shared.0, separate.0, "log-probabilities do not depend on packing");
        close(&shared.1, &separate.1, 1e-5);
        let split: Vec<_> = groups.iter().map(|group| pack(std::slice::from_ref(group), true)).collect();
        let split = gradients(&mut policy, &split);
        assert_eq!(shared.0, split.0);
        close(&shared.1, &split.1, 1e-5);
    }
}

#[test]
fn recomputing_and_threads_change_no_bit() {
    for (name, precision) in cases() {
        let prompts = prompts(name);
        let groups: Vec<_> = prompts.iter().map(|prompt| (prompt, vec![vec![5, 9, 70, 3], vec![8, 4]])).collect();
        let batch = pack(&groups, true);
        let run = |threads: usize, recompute: bool| {
            foveate_kernels::team::with_threads(threads, || {
                let mut policy = policy(name, precision);
                policy.set_recompute(recompute);
                let mut gradients = policy.new_gradients();
                policy.accumulate_gradients(&batch, &mut gradients, &mut uneven).unwrap();
                let jobs: Vec<_> = prompts.iter().enumerate().map(|(i, prompt)| job(prompt, i as u32, 3)).collect();
                (gradients.flat, policy.sample(&jobs, &spec(name), &mut |_| {}).unwrap())
            })
        };
        let one = run(1, false);
        for (threads, recompute) in [(1, true), (2, false), (5, false)] {
            assert!(one == run(threads, recompute), "{name} {precision:?}: {threads} threads, recompute {recompute}");
        }
    }
}

#[test]
fn a_step_of_the_optimiser_moves_weights_and_their_packed_copies_alike() {
    for (name, precision) in cases() {
        let prompts = prompts(name);
        let groups: Vec<_> = prompts.iter().map(|prompt| (prompt, vec![vec![5, 9, 70, 3], vec![8, 4]])).collect();
        let batch = pack(&groups, true);
        let mut stepped = policy(name, precision);
        let each: Vec<_> = stepped.parameters().iter().map(|info| info.offset..info.offset + info.len).collect();
        let mut want = stepped.master().to_vec();
        let mut moments = [vec![0.0; want.len()], vec![0.0; want.len()]];
        let mut want_moments = moments.clone();
        // All in one piece, each parameter alone (some are parts of matrices), and pieces that begin and end anywhere.
        let all = 0..want.len();
        let anywhere = (0..want.len()).step_by(9973).map(|start| start..(start + 9973).min(want.len())).collect();
        for (step, ranges) in (1..).zip([vec![all], each, anywhere]) {
            let (before, found) = gradients(&mut stepped, std::slice::from_ref(&batch));
            let numbers = Numbers::new(1e-2, 0.9, 0.999, 1e-8, 0.1, step, 0.5);
            let ([m, v], [want_m, want_v]) = (&mut moments, &mut want_moments);
            for range in ranges {
                let g = &found.flat[range.clone()];
                let parts = [&mut m[range.clone()], &mut v[range.clone()]];
                stepped.weights_mut().adamw_step(range.clone(), g, parts, &numbers);
                let (w, m, v) = (&mut want[range.clone()], &mut want_m[range.clone()], &mut want_v[range]);
                adamw_step(w, g, m, v, 1e-2, 0.9, 0.999, 1e-8, 0.1, step, 0.5);
            }
            assert!(stepped.master() == want && moments == want_moments, "{name} {precision:?}, step {step}");
            // The same weights where nothing was packed before.
            let mut fresh = policy(name, precision);
            fresh.master_mut().copy_from_slice(&want);
            let want = gradients(&mut fresh, std::slice::from_ref(&batch));
            let (logprob, found) = gradients(&mut stepped, std::slice::from_ref(&batch));
            assert_ne!(logprob, before, "{name} {precision:?}: step {step} does something");
            assert_eq!(logprob, want.0, "{name} {precision:?}, step {step}: forward copies");
            assert!(found.flat == want.1.flat, "{name} {precision:?}, step {step}: backward copies");
        }
    }
}

#[test]
fn every_trainable_parameter_and_no_other_receives_a_gradient() {
    for name in FAMILIES {
        let mut policy = policy(name, Precision::F32);
        let prompts = prompts(name);
        let groups: Vec<_> = prompts.iter().map(|prompt| (prompt, vec![vec![5, 9, 70, 3], vec![8, 4]])).collect();
        let batch = pack(&groups, true);
        for trainable in [
            Trainable::ALL,
            Trainable { vision: false, connector: true, language: true },
            Trainable { vision: false, connector: false, language: true },
            Trainable { vision: true, connector: false, language: false },
            Trainable { vision: false, connector: true, language: false },
            Trainable::NONE,
        ] {
            policy.set_trainable(trainable);
            let mut gradients = policy.new_gradients();
            policy.accumulate_gradients(&batch, &mut gradients, &mut uneven).unwrap();
            for info in policy.parameters() {
                let any = gradients.flat[info.offset..info.offset + info.len].iter().any(|g| *g != 0.0);
                // A key bias shifts all scores of a query alike, so its gradient is zero up to rounding.
                if !info.name.ends_with("k_proj.bias") {
                    let learns = trainable.includes(info.part) && !info.unread;
                    assert_eq!(any, learns, "{name} {trainable:?}: {}", info.name);
                }
            }
        }
    }
}

#[test]
fn bf16_stays_near_f32() {
    let prompts = prompts("smolvlm");
    let groups: Vec<_> = prompts.iter().map(|prompt| (prompt, vec![vec![5, 9, 70, 3]])).collect();
    let batch = pack(&groups, true);
    let exact = policy("smolvlm", Precision::F32).score(&batch).unwrap();
    let rounded = policy("smolvlm", Precision::Bf16).score(&batch).unwrap();
    let worst = exact.logprob.iter().zip(&rounded.logprob).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst > 0.0 && worst < 0.25, "{worst}");
}

#[test]
fn contradictory_batches_are_refused() {
    let mut policy = policy("smolvlm", Precision::F32);
    let prompt = &prompts("smolvlm")[0];
    let good = pack(&[(prompt, vec![vec![5, 9]])], true);
    policy.score(&good).unwrap();
    let mut bad = good.clone();
    bad.placements.pop();
    assert!(policy.score(&bad).unwrap_err().to_string().contains("placeholders"));
    let mut bad = good.clone();
    bad.ids[3] = 1 << 20;
    assert!(policy.score(&bad).unwrap_err().to_string().contains("vocabulary"));
    let mut bad = good.clone();
    bad.segments[1].len += 1;
    assert!(policy.score(&bad).is_err());
    let mut bad = good;
    bad.target[0] = 1 << 20;
    assert!(policy.score(&bad).is_err());
}
