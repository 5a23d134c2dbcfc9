//! The update rules against TRL: its own loss and gradients on made-up batches (`tools/fixture_trl.py`).
//! One micro-batch, so that both ways of counting denominators agree.

use foveate_model::{HeadOutput, TokenBatch};
use foveate_train::update::reduction::Counts;
use foveate_train::update::{RuleSpec, derivatives};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    max_len: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    /// The same loss as a rule of ours.
    rule: String,
    rows: Vec<Row>,
    loss: f64,
    by_logprob: Vec<Vec<f64>>,
    by_entropy: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Row {
    logprob: Vec<f32>,
    old_logprob: Vec<f32>,
    ref_logprob: Vec<f32>,
    entropy: Vec<f32>,
    advantage: f32,
}

#[test]
fn rules_have_the_losses_and_gradients_of_trl() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/trl/losses.json");
    let fixture: Fixture = serde_json::from_str(&std::fs::read_to_string(path).expect("the fixture")).expect("JSON");
    assert!(fixture.cases.len() >= 14);
    let mut moved = 0;
    for case in &fixture.cases {
        let rule: RuleSpec = toml::from_str(&case.rule).expect("a rule");
        let rule = rule.resolve().expect("a rule");
        let mut counts = Counts::default();
        case.rows.iter().for_each(|row| counts.add_sequence(rule.count, row.logprob.len(), true, false));
        let (mut batch, mut head) = (TokenBatch::default(), HeadOutput::default());
        for row in &case.rows {
            let n = row.logprob.len();
            let start = batch.target.len() as u32;
            batch.source.extend(std::iter::repeat_n(0, n));
            batch.target.extend(std::iter::repeat_n(0, n));
            batch.inv_temperature.extend(std::iter::repeat_n(1.0, n));
            batch.injected.extend(std::iter::repeat_n(false, n));
            batch.old_logprob.extend(&row.old_logprob);
            batch.advantage.extend(std::iter::repeat_n(row.advantage, n));
            if rule.has_kl_loss() {
                batch.ref_logprob.extend(&row.ref_logprob);
            }
            let weight = counts.weight(rule.reduction, n, fixture.max_len) as f32;
            batch.weight.extend(std::iter::repeat_n(weight, n));
            let kl_weight = counts.kl_weight(rule.reduction, n, fixture.max_len) as f32;
            batch.kl_weight.extend(std::iter::repeat_n(kl_weight, n));
            batch.entropy_weight.extend(std::iter::repeat_n(counts.entropy_weight() as f32, n));
            batch.sequences.push(start..start + n as u32);
            head.logprob.extend(&row.logprob);
            head.entropy.extend(&row.entropy);
        }
        let (out, stats) = derivatives(&rule, &batch, &head).expect("columns fit");
        let near = |got: f64, want: f64| (got - want).abs() <= 2e-6 * want.abs().max(1e-2);
        assert!(near(stats.loss(), case.loss), "{}: loss {} for {}", case.name, stats.loss(), case.loss);
        for (got, want) in out.by_logprob.iter().zip(case.by_logprob.iter().flatten()) {
            assert!(near(f64::from(*got), *want), "{}: d/dlogprob {got} for {want}", case.name);
            moved += usize::from(*want != 0.0);
        }
        for (got, want) in out.by_entropy.iter().zip(case.by_entropy.iter().flatten()) {
            assert!(near(f64::from(*got), *want), "{}: d/dentropy {got} for {want}", case.name);
        }
    }
    assert!(moved > 100, "the fixture holds gradients");
}
