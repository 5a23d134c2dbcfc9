//! The update rules and advantages against TRL: its own losses, gradients and advantages on made-up batches
//! (`tools/fixture_trl.py`), from sampled answers to derivatives the way a run goes. One micro-batch, so that both ways
//! of counting denominators agree.

use std::sync::Arc;

use foveate_model::{FinishReason, HeadOutput, PromptInput, Sampled};
use foveate_train::reward::Scored;
use foveate_train::update::advantage::advantages;
use foveate_train::update::assemble::{StepGroup, Temperatures, assemble};
use foveate_train::update::{AdvantageSpec, GroupPlan, GroupRewards, Mode, PackOptions, RuleSpec, derivatives, pack};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct Losses {
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
    sampler_logprob: Vec<f32>,
    ref_logprob: Vec<f32>,
    entropy: Vec<f32>,
    advantage: f64,
}

#[derive(Deserialize)]
struct Advantages {
    cases: Vec<AdvantageCase>,
}

#[derive(Deserialize)]
struct AdvantageCase {
    name: String,
    /// The same as an advantage of ours.
    advantage: String,
    /// Answers per question.
    size: usize,
    /// Weights of the rewards.
    weights: Vec<f64>,
    /// By answer and reward; nothing where no reward is known.
    rewards: Vec<Vec<Option<f64>>>,
    advantages: Vec<f64>,
}

fn fixture<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/../../fixtures/trl/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("the fixture")).expect("JSON")
}

#[test]
fn rules_have_the_losses_and_gradients_of_trl() {
    let fixture: Losses = fixture("losses.json");
    assert!(fixture.cases.len() >= 23);
    let mut moved = 0;
    for case in &fixture.cases {
        let rule: RuleSpec = toml::from_str(&case.rule).expect("a rule");
        let rule = rule.resolve().expect("a rule");
        let sampled: Vec<Sampled> = case
            .rows
            .iter()
            .map(|row| Sampled {
                ids: vec![7; row.logprob.len()],
                logprob: row.old_logprob.clone(),
                entropy: row.entropy.clone(),
                drawn_logprob: row.sampler_logprob.clone(),
                finish: FinishReason::Stop,
            })
            .collect();
        let scored = vec![Scored { total: Some(0.0), ..Scored::default() }; sampled.len()];
        let plan = GroupPlan {
            mode: Mode::Explore,
            advantages: case.rows.iter().map(|row| row.advantage).collect(),
            target_slot: None,
            queue_target: false,
        };
        let prompt = PromptInput { ids: vec![1], ..PromptInput::default() };
        let group = StepGroup {
            prompt: &prompt,
            sampled: sampled.iter().collect(),
            scored: &scored,
            plan: &plan,
            target: None,
        };
        let groups = assemble(&[group], &rule, Temperatures { sampled: 1.0, target: 1.0 }).expect("assembles");
        let options = PackOptions::new(&rule, fixture.max_len, 1000, Arc::new([]));
        let mut batches = pack::pack(&groups, &pack::count(&groups, rule.count), &options).expect("packs");
        let mut batch = batches.remove(0);
        assert!(batches.is_empty() && batch.sequences.len() == case.rows.len(), "{}", case.name);
        let column = |of: fn(&Row) -> &Vec<f32>| case.rows.iter().flat_map(of).copied().collect::<Vec<f32>>();
        if rule.has_kl_loss() {
            batch.ref_logprob = column(|row| &row.ref_logprob);
        }
        let head = HeadOutput { logprob: column(|row| &row.logprob), entropy: column(|row| &row.entropy) };
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
    assert!(moved > 180, "the fixture holds gradients: {moved}");
}

#[test]
fn advantages_are_those_of_trl() {
    let fixture: Advantages = fixture("advantages.json");
    assert!(fixture.cases.len() >= 5);
    for case in &fixture.cases {
        let spec: AdvantageSpec = toml::from_str(&case.advantage).expect("an advantage");
        let groups: Vec<GroupRewards> = case
            .rewards
            .chunks(case.size)
            .map(|rewards| {
                let total = |parts: &Vec<Option<f64>>| -> Option<f64> {
                    parts.iter().zip(&case.weights).map(|(part, weight)| part.map(|part| weight * part)).sum()
                };
                GroupRewards {
                    totals: rewards.iter().map(total).collect(),
                    parts: rewards.to_vec(),
                    num_tokens: vec![1; rewards.len()],
                    ..GroupRewards::default()
                }
            })
            .collect();
        let got = advantages(&groups, &case.weights, &spec).concat();
        assert_eq!(got.len(), case.advantages.len());
        for (got, want) in got.iter().zip(&case.advantages) {
            assert!((got - want).abs() < 1e-7, "{}: {got} for {want}", case.name);
        }
    }
}
