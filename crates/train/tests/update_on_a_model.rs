//! The room `update` against a real, tiny model: whatever the split, the sharing and the order, the gradient is the
//! same; at the first update the trainer's log-probabilities have the sampler's bits; targets are learned.

use std::path::PathBuf;
use std::sync::Arc;

use foveate_kernels::cpu::adamw::adamw_step;
use foveate_model::{Gradients, Policy, Precision, PromptInput, SampleJob, Sampled, SamplingSpec, Tile, TokenBatch};
use foveate_train::reward::Scored;
use foveate_train::update::assemble::{StepGroup, Temperatures, assemble, group_rewards};
use foveate_train::update::pack::{SupervisedRow, count, count_supervised, pack, pack_supervised};
use foveate_train::update::selector::select;
use foveate_train::update::{
    AdvantageSpec, GroupPlan, Mode, PackOptions, Rule, RuleSpec, RuleStats, SelectorSpec, derivatives,
};

fn policy(precision: Precision) -> Policy {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/smolvlm");
    Policy::load(&dir, precision).expect("the fixture loads")
}

fn rule(text: &str) -> Rule {
    toml::from_str::<RuleSpec>(text).expect("syntax").resolve().expect("rule")
}

/// One question with a picture, two of text; the first token of the picture's features is an ordinary id.
fn prompts(policy: &Policy) -> Vec<PromptInput> {
    let about = policy.description();
    let side = about.tile_side.expect("the fixture sees");
    let pixels = (0..3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let tile = Arc::new(Tile::new(side as u32, side as u32, pixels));
    let features = about.features_per_tile as u32;
    let with_picture = PromptInput {
        ids: (0..features + 6).map(|i| 20 + i % 50).collect(),
        tiles: vec![tile],
        placements: (2..2 + features).collect(),
    };
    let text = |from: u32, len: u32| PromptInput { ids: (from..from + len).collect(), ..Default::default() };
    vec![with_picture, text(30, 9), text(60, 5)]
}

fn sample(policy: &mut Policy, prompts: &[PromptInput]) -> Vec<Vec<Sampled>> {
    sample_scored_at(policy, prompts, None)
}

fn sample_scored_at(
    policy: &mut Policy,
    prompts: &[PromptInput],
    logprob_temperature: Option<f32>,
) -> Vec<Vec<Sampled>> {
    let spec = SamplingSpec {
        temperature: 0.9,
        logprob_temperature,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        max_new_tokens: 7,
        end_ids: vec![5],
        banned: Arc::from([1u32]),
    };
    let job = |question| SampleJob {
        prompt: &prompts[question],
        num_answers: 4,
        seed: 11,
        step: 0,
        question: question as u32,
        first_answer: 0,
    };
    let jobs: Vec<SampleJob> = (0..prompts.len()).map(job).collect();
    policy.sample(&jobs, &spec, &mut |_| {}).expect("samples")
}

/// One group explores, one memorises, one is skipped.
fn plans(sampled: &[Vec<Sampled>], rule: &Rule) -> (Vec<Vec<Scored>>, Vec<GroupPlan>) {
    let right = [[0.0, 1.0, 0.0, 1.0], [0.0; 4], [1.0; 4]];
    let scored: Vec<Vec<Scored>> = right
        .iter()
        .map(|group| {
            let score =
                |a: &f32| Scored { parts: vec![Some(*a)], total: Some(*a), accuracy: Some(*a), ..Default::default() };
            group.iter().map(score).collect()
        })
        .collect();
    let rewards: Vec<_> =
        scored.iter().zip(sampled).map(|(s, a)| group_rewards(s, &a.iter().collect::<Vec<_>>(), rule)).collect();
    let selector: SelectorSpec = toml::from_str("kind = 'any_correct'").expect("selector");
    let plans = select(&rewards, &[1.0], &AdvantageSpec::default(), &selector.resolve(), 0.0);
    assert_eq!(plans.iter().map(|p| p.mode).collect::<Vec<_>>(), [Mode::Explore, Mode::Memorise, Mode::Skip]);
    (scored, plans)
}

fn gradients(policy: &mut Policy, rule: &Rule, batches: &mut [TokenBatch]) -> (Gradients, RuleStats) {
    let mut gradients = policy.new_gradients();
    let mut total = RuleStats::default();
    for batch in batches {
        if rule.has_kl_loss() {
            batch.ref_logprob = batch.old_logprob.iter().map(|l| l - 0.05).collect();
        }
        let mut answer = |output: &foveate_model::HeadOutput| {
            let (derivatives, stats) = derivatives(rule, batch, output).expect("columns fit");
            total.merge(&stats);
            derivatives
        };
        policy.accumulate_gradients(batch, &mut gradients, &mut answer).expect("runs");
    }
    (gradients, total)
}

fn apart(a: &Gradients, b: &Gradients) -> f32 {
    let size = a.flat.iter().fold(0f32, |m, g| m.max(g.abs()));
    assert!(size > 0.0, "there is a gradient");
    a.flat.iter().zip(&b.flat).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / size
}

#[test]
fn the_gradient_does_not_depend_on_the_layout() {
    let mut policy = policy(Precision::F32);
    let prompts = prompts(&policy);
    let sampled = sample(&mut policy, &prompts);
    let target = [40u32, 41, 42, 5];
    for text in ["kind = 'grpo'\ncount = 'all'", "kind = 'dapo'\nkl = 0.1\nentropy = 0.01", "kind = 'gspo'"] {
        let rule = rule(text);
        let (scored, plans) = plans(&sampled, &rule);
        let groups: Vec<StepGroup> = (0..3)
            .map(|g| StepGroup {
                prompt: &prompts[g],
                sampled: sampled[g].iter().collect(),
                scored: &scored[g],
                plan: &plans[g],
                target: Some(&target),
            })
            .collect();
        let temperatures = Temperatures { sampled: 0.9, target: 1.0 };
        let mut groups = assemble(&groups, &rule, temperatures).expect("assembles");
        let counts = count(&groups, rule.count);
        let options = PackOptions::new(&rule, 7, 100_000, Arc::from([1u32]));
        let mut whole = pack(&groups, &counts, &options).expect("packs");
        assert_eq!(whole.len(), 1);
        let (want, stats) = gradients(&mut policy, &rule, &mut whole);
        assert_eq!(stats.gap.max_abs, 0.0, "sampler and trainer agree bit for bit");

        let small = PackOptions { token_budget: 12, ..options.clone() };
        let mut pieces = pack(&groups, &counts, &small).expect("packs");
        assert!(pieces.len() > 2);
        let (got, split) = gradients(&mut policy, &rule, &mut pieces);
        assert!(apart(&want, &got) < 1e-5, "{text}: split by {}", apart(&want, &got));
        assert!((stats.loss() - split.loss()).abs() < 1e-6 && stats.gap.count == split.gap.count);

        let separate = PackOptions { share_prefix: false, ..options.clone() };
        let (got, _) = gradients(&mut policy, &rule, &mut pack(&groups, &counts, &separate).expect("packs"));
        assert!(apart(&want, &got) < 1e-5, "{text}: separate by {}", apart(&want, &got));

        groups.reverse();
        let (got, _) = gradients(&mut policy, &rule, &mut pack(&groups, &counts, &options).expect("packs"));
        assert!(apart(&want, &got) < 1e-5, "{text}: order by {}", apart(&want, &got));
    }
}

#[test]
fn bf16_agrees_with_its_sampler_too() {
    let mut policy = policy(Precision::Bf16);
    let prompts = prompts(&policy);
    let sampled = sample(&mut policy, &prompts);
    let rule = rule("kind = 'grpo'\nkl = 0.01");
    let (scored, plans) = plans(&sampled, &rule);
    let groups: Vec<StepGroup> = (0..3)
        .map(|g| StepGroup {
            prompt: &prompts[g],
            sampled: sampled[g].iter().collect(),
            scored: &scored[g],
            plan: &plans[g],
            target: Some(&[40, 5]),
        })
        .collect();
    let groups = assemble(&groups, &rule, Temperatures { sampled: 0.9, target: 1.0 }).expect("assembles");
    let options = PackOptions::new(&rule, 7, 60, Arc::from([1u32]));
    let mut batches = pack(&groups, &count(&groups, rule.count), &options).expect("packs");
    let (_, stats) = gradients(&mut policy, &rule, &mut batches);
    assert!(stats.gap.count > 20 && stats.gap.max_abs == 0.0, "{:?}", stats.gap);
}

#[test]
fn supervised_rows_share_and_are_learned() {
    let mut policy = policy(Precision::F32);
    let first = prompts(&policy).remove(0);
    let mut second = first.clone();
    *second.ids.last_mut().expect("not empty") = 77;
    second.ids.push(78);
    let targets = [vec![40u32, 41, 5], vec![42, 5], vec![43, 44, 45, 5]];
    let rows: Vec<SupervisedRow> = [&first, &second, &first]
        .iter()
        .zip(&targets)
        .map(|(prompt, target)| SupervisedRow { prompt, target, weight: 1.0, inv_temperature: 1.0 })
        .collect();
    let rule = rule("kind = 'sft'");
    let counts = count_supervised(&rows, rule.count);
    let options = PackOptions::new(&rule, 16, 100_000, Arc::from([]));
    let mut shared = pack_supervised(&rows, &counts, &options).expect("packs");
    assert_eq!(shared[0].tiles.len(), 1, "the picture is encoded once");
    let separate = PackOptions { share_prefix: false, ..options };
    let mut apart_rows = pack_supervised(&rows, &counts, &separate).expect("packs");
    assert_eq!(apart_rows[0].tiles.len(), 3);
    let (want, before) = gradients(&mut policy, &rule, &mut apart_rows);
    let (got, stats) = gradients(&mut policy, &rule, &mut shared);
    assert!(apart(&want, &got) < 1e-5 && (before.loss() - stats.loss()).abs() < 1e-6);

    let num = policy.master().len();
    let (mut m, mut v) = (vec![0.0; num], vec![0.0; num]);
    let mut losses = vec![before.loss()];
    for step in 1..=8 {
        let (g, stats) = gradients(&mut policy, &rule, &mut shared);
        losses.push(stats.loss());
        adamw_step(policy.master_mut(), &g.flat, &mut m, &mut v, 3e-3, 0.9, 0.999, 1e-8, 0.0, step, 1.0);
    }
    assert!(losses[8] < 0.6 * losses[0], "{losses:?}");
}

/// Groups of one rule, packed as they are trained.
fn packed(
    prompts: &[PromptInput],
    sampled: &[Vec<Sampled>],
    rule: &Rule,
    temperatures: Temperatures,
) -> Vec<TokenBatch> {
    let (scored, plans) = plans(sampled, rule);
    let groups: Vec<StepGroup> = (0..3)
        .map(|g| StepGroup {
            prompt: &prompts[g],
            sampled: sampled[g].iter().collect(),
            scored: &scored[g],
            plan: &plans[g],
            target: Some(&[40, 41, 5]),
        })
        .collect();
    let groups = assemble(&groups, rule, temperatures).expect("assembles");
    let options = PackOptions::new(rule, 7, 100_000, Arc::from([1u32]));
    pack(&groups, &count(&groups, rule.count), &options).expect("packs")
}

/// Slope of the reported loss along the gradient, by central differences of all weights at once, over that gradient's
/// own length squared: 1 if the gradient is that of the loss.
fn slope_over_gradient(policy: &mut Policy, rule: &Rule, batches: &mut [TokenBatch]) -> f64 {
    let (direction, _) = gradients(policy, rule, batches);
    let size: f64 = direction.flat.iter().map(|g| f64::from(*g).powi(2)).sum();
    assert!(size > 0.0);
    let step = 1e-3 / size.sqrt();
    let moved = |policy: &mut Policy, by: f64| {
        for (weight, slope) in policy.master_mut().iter_mut().zip(&direction.flat) {
            *weight += (by * f64::from(*slope)) as f32;
        }
    };
    let kept = policy.master().to_vec();
    moved(policy, step);
    let up = gradients(policy, rule, batches).1.loss();
    policy.master_mut().copy_from_slice(&kept);
    moved(policy, -step);
    let down = gradients(policy, rule, batches).1.loss();
    policy.master_mut().copy_from_slice(&kept);
    (up - down) / (2.0 * step) / size
}

#[test]
fn answers_may_be_scored_at_another_temperature_than_they_are_drawn_at() {
    let mut policy = policy(Precision::F32);
    let prompts = prompts(&policy);
    let plain = sample(&mut policy, &prompts);
    let sampled = sample_scored_at(&mut policy, &prompts, Some(1.0));
    for (a, b) in plain.iter().flatten().zip(sampled.iter().flatten()) {
        assert_eq!((&a.ids, &a.logprob), (&b.ids, &b.drawn_logprob), "the draw is the same");
        assert_ne!(b.logprob, b.drawn_logprob);
    }
    let off = rule("kind = 'grpo'\nclip = [0.9, 9.0]");
    let at_one = Temperatures { sampled: 1.0, target: 1.0 };
    let mut batches = packed(&prompts, &sampled, &off, at_one);
    let (at_start, stats) = gradients(&mut policy, &off, &mut batches);
    assert_eq!(stats.gap.max_abs, 0.0, "recorded at 1, trained at 1");
    assert!((slope_over_gradient(&mut policy, &off, &mut batches) - 1.0).abs() < 0.02);
    let mut wrong = packed(&prompts, &sampled, &off, Temperatures { sampled: 0.9, target: 1.0 });
    assert!(gradients(&mut policy, &off, &mut wrong).1.gap.max_abs > 1e-3);

    // Corrected: every token counts by what it is worth at 1 over how it was drawn at 0.9.
    let corrected = rule("kind = 'grpo'\nclip = [0.9, 9.0]\nmismatch = { mode = 'token_truncate' }");
    let mut weighted = packed(&prompts, &sampled, &corrected, at_one);
    let of_sampled = |batches: &[TokenBatch]| -> Vec<f32> {
        batches.iter().flat_map(|b| b.weight.iter().zip(&b.injected).filter(|(_, i)| !**i).map(|(w, _)| *w)).collect()
    };
    let drawn: Vec<&Sampled> = [0, 1, 2, 3].map(|i| &sampled[0][i]).to_vec();
    let ratios = drawn.iter().flat_map(|s| s.logprob.iter().zip(&s.drawn_logprob).map(|(l, d)| (l - d).exp().min(2.0)));
    for ((with, without), ratio) in of_sampled(&weighted).iter().zip(of_sampled(&batches)).zip(ratios) {
        assert!((with - without * ratio).abs() < 1e-6 * without, "{with} for {without} times {ratio}");
    }
    let (got, _) = gradients(&mut policy, &corrected, &mut weighted);
    assert!(apart(&at_start, &got) > 1e-3);
    assert!((slope_over_gradient(&mut policy, &corrected, &mut weighted) - 1.0).abs() < 0.02);
}

#[test]
fn targets_have_a_temperature_of_their_own() {
    let mut policy = policy(Precision::F32);
    let prompts = prompts(&policy);
    let target = [40u32, 41, 5];
    let rule = rule("kind = 'sft'");
    let loss_at = |policy: &mut Policy, inv_temperature: f32| {
        let rows = [SupervisedRow { prompt: &prompts[1], target: &target, weight: 1.0, inv_temperature }];
        let options = PackOptions::new(&rule, 16, 100_000, Arc::from([]));
        let mut batches = pack_supervised(&rows, &count_supervised(&rows, rule.count), &options).expect("packs");
        let slope = slope_over_gradient(policy, &rule, &mut batches);
        (gradients(policy, &rule, &mut batches).1.loss(), slope)
    };
    let (at_one, slope) = loss_at(&mut policy, 1.0);
    assert!((slope - 1.0).abs() < 0.02, "{slope}");
    let (at_half, slope) = loss_at(&mut policy, 2.0);
    assert!((slope - 1.0).abs() < 0.02, "{slope}");
    assert!((at_one - at_half).abs() > 1e-3, "{at_one} and {at_half}");
}
