//! Low-rank adapters: nothing changes until they learn, they alone learn, their gradients are right, and merged they
//! say the same as beside.

mod support;

use foveate_kernels::rng::{Purpose, Stream};
use foveate_model::{AdapterSpec, Derivatives, HeadOutput, Policy, Precision, Trainable};
use support::{Parity, fixtures, gap, pack};

fn base(precision: Precision) -> Policy {
    Policy::load(&fixtures().join("models/smolvlm"), precision).unwrap()
}

fn spec(targets: &[&str]) -> AdapterSpec {
    AdapterSpec {
        rank: 4,
        alpha: 8.0,
        rank_stabilised: false,
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
}
