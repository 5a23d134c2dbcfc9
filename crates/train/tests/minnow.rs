//! The built-in model gives in `transformers` what it gives here: prompt ids, log-probabilities, entropy and greedy
//! answers. Fixture by tools/minnow_fixture.py.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use foveate_model::{Policy, Precision, PromptInput, SampleJob, SamplingSpec};
use foveate_train::builtin;
use foveate_train::prompt::Prompter;
use foveate_train::score::score_file;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/minnow")
}

fn open() -> (Policy, Prompter, Vec<Value>) {
    let folder = builtin::unpack("minnow").unwrap().expect("minnow is built in");
    let text = std::fs::read_to_string(fixtures().join("parity.json")).unwrap();
    (
        Policy::load(&folder, Precision::F32).unwrap(),
        Prompter::load(&folder).unwrap(),
        serde_json::from_str(&text).unwrap(),
    )
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn scores_equal_those_of_transformers() {
    let (mut policy, prompter, golden) = open();
    let scored = score_file(&mut policy, &prompter, &fixtures().join("rows.jsonl")).unwrap();
    assert_eq!(scored.len(), golden.len());
    for (row, golden) in scored.iter().zip(&golden) {
        assert_eq!(row.prompt_ids, ids(&golden["prompt_ids"]));
        assert_eq!(row.completion_ids, ids(&golden["completion_ids"]));
        for (name, ours) in [("logprobs", &row.logprobs), ("entropy", &row.entropy)] {
            let theirs = golden[name].as_array().unwrap();
            let worst =
                ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - b.as_f64().unwrap()).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-4, "{name} differ by {worst}");
        }
    }
}

#[test]
fn greedy_answers_equal_those_of_transformers() {
    let (mut policy, prompter, golden) = open();
    let scored = score_file(&mut policy, &prompter, &fixtures().join("rows.jsonl")).unwrap();
    let conversations = foveate_train::messages::read(&fixtures().join("rows.jsonl")).unwrap();
    let prompts: Vec<PromptInput> =
        conversations.iter().map(|(_, conversation)| prompter.scored(conversation).unwrap().0).collect();
    let jobs: Vec<SampleJob> = prompts
        .iter()
        .map(|prompt| SampleJob { prompt, num_answers: 1, seed: 0, step: 0, question: 0, first_answer: 0 })
        .collect();
    let spec = SamplingSpec {
        temperature: 0.0,
        logprob_temperature: None,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        max_new_tokens: 20,
        end_ids: prompter.end_ids().to_vec(),
        banned: Arc::from([]),
    };
    let answers = policy.sample(&jobs, &spec, &mut |_| {}).unwrap();
    assert_eq!(scored.len(), answers.len());
    for (answer, golden) in answers.iter().zip(&golden) {
        assert_eq!(answer[0].ids, ids(&golden["greedy_ids"]));
    }
}
