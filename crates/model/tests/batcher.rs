//! Requests that join and leave while others are decoded say what they would have said alone.

mod support;

use std::sync::Arc;

use foveate_model::batcher::{Batcher, Request};
use foveate_model::{Policy, Precision, SampleJob, Sampled, SamplingSpec};
use support::{Parity, fixtures};

fn spec(temperature: f32, max_new_tokens: u32) -> SamplingSpec {
    SamplingSpec {
        temperature,
        logprob_temperature: None,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        max_new_tokens,
        end_ids: vec![7],
        banned: Arc::from([]),
    }
}

#[test]
fn who_joins_late_says_the_same_as_alone() {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut policy = Policy::load(&fixtures().join("models/smolvlm"), precision).unwrap();
        let parity = Parity::open("smolvlm");
        let mut prompts: Vec<_> = parity.conversations().iter().take(3).map(|name| parity.prompt(name)).collect();
        prompts.sort_by_key(|prompt| std::cmp::Reverse(prompt.ids.len()));
        let requests: Vec<Request> = prompts
            .into_iter()
            .enumerate()
            .map(|(index, prompt)| Request {
                prompt,
                num_answers: 1 + index as u32,
                sampling: spec([0.0, 1.0, 0.7][index], [60, 14, 6][index]),
                seed: 5 + index as u64,
            })
            .collect();
        let alone: Vec<Vec<Sampled>> = requests
            .iter()
            .map(|request| {
                let job = SampleJob {
                    prompt: &request.prompt,
                    num_answers: request.num_answers,
                    seed: request.seed,
                    step: 0,
                    question: 0,
                    first_answer: 0,
                };
                policy.sample(&[job], &request.sampling, &mut |_| {}).unwrap().remove(0)
            })
            .collect();

        assert!(requests[0].num_rows() >= requests[2].num_rows());
        // Room for two at a time: the third joins in the rows that the first has left.
        let rows = requests[0].num_rows() + requests[1].num_rows();
        let mut batcher = Batcher::new(&mut policy, rows);
        let first = batcher.join(&mut policy, &requests[0]).unwrap();
        batcher.step(&mut policy).unwrap();
        batcher.step(&mut policy).unwrap();
        let second = batcher.join(&mut policy, &requests[1]).unwrap();
        assert!(!batcher.has_room(requests[2].num_rows()));
        assert!(batcher.join(&mut policy, &requests[2]).is_err());
        while !batcher.answers(first).1[0] {
            batcher.step(&mut policy).unwrap();
        }
        assert_eq!(batcher.answers(first).0, alone[0].iter().collect::<Vec<_>>(), "{precision:?}");
        batcher.leave(first);
        let third = batcher.join(&mut policy, &requests[2]).unwrap();
        while batcher.num_unfinished() > 0 {
            batcher.step(&mut policy).unwrap();
        }
        assert_eq!(batcher.answers(second).0, alone[1].iter().collect::<Vec<_>>(), "{precision:?}");
        assert_eq!(batcher.answers(third).0, alone[2].iter().collect::<Vec<_>>(), "{precision:?}");
        batcher.leave(third);
        batcher.leave(second);
        assert!(batcher.is_empty() && batcher.has_room(rows));
    }
}

#[test]
fn a_prompt_that_does_not_fit_the_model_takes_no_room() {
    let mut policy = Policy::load(&fixtures().join("models/smolvlm"), Precision::F32).unwrap();
    let mut prompt = Parity::open("smolvlm").prompt("one_image");
    prompt.tiles.clear();
    let request = Request { prompt, num_answers: 1, sampling: spec(0.0, 4), seed: 0 };
    let rows = request.num_rows();
    let mut batcher = Batcher::new(&mut policy, rows);
    assert!(batcher.join(&mut policy, &request).is_err());
    assert!(batcher.is_empty() && batcher.has_room(rows));
}
