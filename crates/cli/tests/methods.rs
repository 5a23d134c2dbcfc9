//! Stages, samplers and helpers as runs: what a recipe can ask for is done, resumes exactly, does not depend on threads,
//! and is refused where it cannot work.

mod support;

use std::fs;
use std::path::Path;

use support::*;

/// What all stages share. The answers of so small a model are numbers at
/// best, so they are read generously: some are right by chance.
const SHARED: &str = r#"
questions_per_step = 4
answers_per_question = 4
sampling = { temperature = 1.0, max_new_tokens = 6 }
rewards = [ { kind = "overlong", buffer = 5 }, { kind = "accuracy", extract = "last_number" } ]
optim = { lr = 2e-3 }
target = { template = "bare" }
"#;

/// Data, and a stage that learns to answer with a number at all.
const EXAMPLES: &str = r#"
[data]
train = { task = "counting", rows = 60, levels = [1], filter = { answers = ["number"] } }
test = { id = { task = "counting", split = "id", rows = 4, levels = [1] } }

[eval]
sampling = { temperature = 0.0, max_new_tokens = 6 }

[checkpoint]
every = 3

[[stage]]
name = "examples"
rule = { kind = "sft" }
steps = 30
until = { at_most = 4.6, window = 4, min_steps = 8 }
"#;

/// The stages behind it.
const STAGES: &str = r#"
[[stage]]
name = "dynamic"
steps = 4
take = "first:50%"
dynamic = { max_tries = 3 }
pools = { weights = [0.5, 1.0, 0.5] }

[[stage]]
name = "replay"
steps = 4
start = "examples"
replay = { kind = "ssr", capacity = 2.0, target = 1.5 }
rule = { kind = "dapo", kl = 0.02 }

[[stage]]
name = "mixed"
steps = 4
updates = 2
mix = { kind = "chord", peak = 0.6, valley = 0.2, decay = 3, phi = true, rows = 3 }
start_state = { kind = "mixed", split = "sentence" }
target = { template = "cot" }

[[stage]]
name = "queue"
steps = 4
selector = { kind = "replay", budget = 6 }
refiner = { template = "{facts}" }
target = { template = "cot" }
"#;

/// A folder with a recipe of these parts.
fn folder_of(parts: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("r.toml"), format!("{SHARED}{MODEL}{}", parts.concat())).expect("written");
    folder
}

/// A metric of the steps of a stage.
fn column(run: &Path, stage: &str, metric: &str) -> Vec<f64> {
    let of_stage = |record: &serde_json::Value| record["stage"] == stage;
    metrics(run).iter().filter(|record| of_stage(record)).filter_map(|record| record[metric].as_f64()).collect()
}

#[test]
fn stages_with_state_run_and_resume_exactly() {
    let folder = folder_of(&[EXAMPLES, STAGES]);
    let here = folder.path();
    let told = succeed(&["train", "r.toml", "--out", "whole"], here);
    let whole = here.join("whole");
    let examples = column(&whole, "examples", "update/loss_sft").len();
    assert!((8..30).contains(&examples) && told.contains("is over after"), "{examples} steps: {told}");

    let tries = column(&whole, "dynamic", "dynamic/tries");
    assert!(tries.iter().any(|tries| *tries > 1.0) && tries.iter().all(|tries| *tries <= 3.0), "{tries:?}");
    let dead = column(&whole, "dynamic", "group/dead_fraction");
    assert!(dead.iter().all(|share| *share == 0.0), "failed groups never reach the step: {dead:?}");
    let hard = column(&whole, "dynamic", "pools/num_hard");
    assert!(hard.last() > hard.first(), "{hard:?}");

    let replayed = column(&whole, "replay", "replay/num_replayed");
    assert!(replayed[0] == 0.0 && replayed[1..].iter().any(|count| *count > 0.0), "{replayed:?}");
    assert!(column(&whole, "replay", "update/kl_k3").len() > 1, "the reference is the start of this stage");

    let shares = column(&whole, "mixed", "mix/supervised_share");
    assert!(shares[0] == 0.6 && shares[3] == 0.2, "{shares:?}");
    let losses = column(&whole, "mixed", "update/loss_sft");
    assert!(losses.iter().all(|loss| *loss > 0.0), "{losses:?}");

    let learned = column(&whole, "queue", "mode/num_learned_from_queue");
    assert!(learned.contains(&6.0) && learned.contains(&0.0), "{learned:?}");

    // Killed inside every stage, once several times.
    let first = examples;
    for (index, kills) in [vec![first + 2], vec![first + 6], vec![first + 10, first + 14]].iter().enumerate() {
        let out = format!("killed-{index}");
        for (attempt, &step) in kills.iter().enumerate() {
            let mut args = vec!["train", "r.toml", "--out", &out];
            if attempt > 0 {
                args.push("--resume");
            }
            let mut child = foveate(&args, here).spawn().expect("the program starts");
            wait_for_steps(&mut child, &here.join(&out), step);
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
        succeed(&["train", "r.toml", "--out", &out, "--resume"], here);
        assert_same(&whole, &here.join(&out));
    }

    let one =
        foveate(&["train", "r.toml", "--out", "one"], here).env("RAYON_NUM_THREADS", "1").output().expect("starts");
    assert!(one.status.success(), "{}", text(&one));
    assert_same(&whole, &here.join("one"));
}

/// Stages that are held close to other models than the one they start from.
const HELD: &str = r#"
[[stage]]
name = "followed"
steps = 5
rule = { kl = 0.05 }
reference = { ema = 0.5 }

[[stage]]
name = "named"
steps = 3
rule = { kl = { beta = 0.05, where = "reward", estimator = "k1", schedule = "adaptive", target = 0.001, horizon = 60 } }
reference = "examples"
"#;

#[test]
fn references_follow_or_are_named_and_resume_exactly() {
    let folder = folder_of(&[EXAMPLES, HELD]);
    let here = folder.path();
    let each = ["--set", "checkpoint.every=1"];
    succeed(&[&["train", "r.toml", "--out", "whole"], &each[..]].concat(), here);
    let whole = here.join("whole");
    let distance = column(&whole, "followed", "update/kl_k3");
    assert!(
        distance[0] < 1e-9 && distance[1..].iter().all(|kl| *kl > 0.0),
        "it begins where the stage does: {distance:?}"
    );
    let distance = column(&whole, "named", "update/kl_k3");
    assert!(distance[0] > 0.0, "two stages back: {distance:?}");
    let beta = column(&whole, "named", "update/kl_beta");
    assert!(beta[0] == 0.05 && beta[1] > 0.05 && beta[2] > beta[1], "it steers by what the reward saw: {beta:?}");

    // Killed where the mean is neither the model's start nor the model.
    let examples = column(&whole, "examples", "update/loss_sft").len();
    let args = [&["train", "r.toml", "--out", "killed"], &each[..]].concat();
    let mut child = foveate(&args, here).spawn().expect("the program starts");
    wait_for_steps(&mut child, &here.join("killed"), examples + 3);
    child.kill().expect("killed");
    child.wait().expect("ended");
    succeed(&[&args[..], &["--resume"]].concat(), here);
    assert_same(&whole, &here.join("killed"));

    // A slower mean lags further behind, and a folder is as good as a stage's name.
    let slower = ["--set", "stage.followed.reference.ema=0.9", "--set", "stage.named.steps=1"];
    succeed(&[&["train", "r.toml", "--out", "slower"], &slower[..]].concat(), here);
    let (fast, slow) =
        (column(&whole, "followed", "update/kl_k3"), column(&here.join("slower"), "followed", "update/kl_k3"));
    assert!(fast[1] < slow[1] || fast[2] < slow[2], "{fast:?} {slow:?}");
    let model = format!("stage.followed.reference={:?}", last_checkpoint(&whole).display().to_string());
    let named = ["--set", &model, "--set", "stage.named.steps=1"];
    succeed(&[&["train", "r.toml", "--out", "folder"], &named[..]].concat(), here);
    assert!(column(&here.join("folder"), "followed", "update/kl_k3")[0] > 0.0);
    let other = [&named[..], &["--set", "model.new.text_hidden=48", "--set", "stage.examples.steps=1"]].concat();
    let told = refuse(&[&["train", "r.toml", "--out", "other"], &other[..]].concat(), here);
    assert!(told.contains("other tensors than the run's"), "{told}");
}

/// One stage of sampled answers with these settings.
fn one_stage(data: &str, settings: &str) -> String {
    format!(
        "{MODEL}[data]\ntrain = {data}\n[eval]\nbefore = false\nafter = false\n[[stage]]\nname = \"only\"\nsteps = 2\n\
         questions_per_step = 2\nanswers_per_question = 3\nsampling = {{ max_new_tokens = 6 }}\n{settings}\n"
    )
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let open = "{ task = \"counting\", rows = 20 }";
    let judge = "{ task = \"counting\", rows = 20, format = \"judge\" }";
    let bare = "{ task = \"counting\", rows = 20, rationale = \"none\" }";
    let accuracy = "rewards = [ { kind = \"accuracy\" } ]";
    for (data, settings, told) in [
        // The detection format in a stage that asks yes or no: published as a constant zero.
        (judge, "rewards = [ { kind = \"format_box\" }, { kind = \"accuracy\" } ]", "asks for a box"),
        (open, "rewards = [ { kind = \"accuracy\", verify = { box = { threshold = 0.7 } } } ]", "of type number"),
        (
            open,
            "rewards = [ { kind = \"accuracy\", extract = \"tag\" } ]\nselector = { kind = \"any_correct\" }",
            "scored as wrong",
        ),
        (
            open,
            "target = { template = \"tags\" }\nrewards = [ { kind = \"format_flag\" }, { kind = \"accuracy\", extract = \"tag\" } ]\nselector = { kind = \"any_correct\" }",
            "no target has the form",
        ),
        (
            bare,
            "rewards = [ { kind = \"accuracy\" } ]\nselector = { kind = \"any_correct\" }",
            "no row has any rationale",
        ),
        (bare, "rewards = [ { kind = \"thinking_f1\" }, { kind = \"accuracy\" } ]", "no row has any rationale"),
        (bare, "rewards = [ { kind = \"accuracy\" } ]\nstart_state = { kind = \"mixed\" }", "no row has any rationale"),
        (open, "rewards = [ { kind = \"steps\" } ]\nselector = { kind = \"any_correct\" }", "there is no such reward"),
        (open, "rewards = [ { kind = \"steps\" } ]\ndynamic = {}", "there is no such reward"),
        (open, &format!("{accuracy}\ndynamic = {{}}\nselector = {{ kind = \"any_correct\" }}"), "would memorise"),
        (
            open,
            &format!("{accuracy}\nreplay = {{}}\nselector = {{ kind = \"any_correct\" }}"),
            "replay learns from answers",
        ),
        (open, &format!("{accuracy}\nrefiner = {{}}"), "uses none"),
        (open, &format!("{accuracy}\nreference = \"none\"\nrule = {{ kl = 0.1 }}"), "has a KL term"),
        (open, &format!("{accuracy}\nstart = \"nowhere\""), "an earlier stage"),
        (open, &format!("{accuracy}\nreference = \"nowhere\""), "an earlier stage nor a model"),
        (open, &format!("{accuracy}\nreference = {{ ema = 1.0 }}"), "outside of 0 to 1"),
        (open, &format!("{accuracy}\nreference = {{ mean = 0.9 }}"), "unknown key `mean`"),
        (open, &format!("{accuracy}\nreference = \"adapter_off\""), "learns no adapters"),
        (
            open,
            "rewards = [ { kind = \"thinking_f1\", against = \"refined\" }, { kind = \"accuracy\" } ]",
            "nothing is refined before",
        ),
        (open, &format!("{accuracy}\nuntil = {{ window = 3 }}"), "no condition"),
        (open, &format!("{accuracy}\nuntil = {{ at_last = 3 }}"), "did you mean `at_least`?"),
        (open, &format!("{accuracy}\nskip = \"100%\""), "no usable rows"),
        (open, &format!("{accuracy}\nmix = {{ kind = \"batch\", share = 2.0 }}"), "between 0 and 1"),
        (open, &format!("{accuracy}\ndynamic = {{ lo = 0.9, hi = 0.1 }}"), "below dynamic.hi"),
        (open, "rule = { kind = \"sft\" }\ndynamic = {}", "this stage is supervised"),
        (open, "rewards = [ { kind = \"process\", command = [\"/no/such/program\"] } ]", "/no/such/program"),
        (
            open,
            "rewards = [ { kind = \"judge\", chat = { url = \"ftp://x\", model = \"m\" } } ]",
            "neither http:// nor",
        ),
        ("{ task = \"counting\", rows = 20, filter = { answers = [\"box\"] } }", accuracy, "no usable rows"),
        // A format of other tags than those of the targets.
        (
            open,
            "target = { template = \"tags\" }\nrewards = [ { kind = \"format_tags\", form = \"caption\" }, { kind = \"accuracy\", extract = \"tag\" } ]\nselector = { kind = \"any_correct\" }",
            "no target has the form",
        ),
        (open, "rewards = [ { kind = \"parsable\" } ]", "needs accuracy"),
        (open, "rewards = [ { kind = \"checker\", elements = true } ]", "`elements` are listed by a language model"),
        (
            open,
            &format!("{accuracy}\nselector = {{ kind = \"any_correct\" }}\nrefiner = {{ elements = true }}"),
            "refiner.elements are listed",
        ),
        (open, &format!("{accuracy}\nrule = {{ mismatch = {{ mode = \"token_mask\" }} }}"), "another distribution"),
        (open, &format!("{accuracy}\ntarget = {{ temperature = 0.0 }}"), "must be above 0"),
        (open, &format!("{accuracy}\ntarget = {{ temperature = \"its\" }}"), "a number or \"same\""),
        (
            open,
            "target = { template = \"caption\" }\nrewards = [ { kind = \"accuracy\", extract = \"tag\" } ]\nstart_state = { kind = \"mixed\" }",
            "begins with other parts",
        ),
    ] {
        fs::write(here.join("r.toml"), one_stage(data, settings)).expect("written");
        let found = refuse(&["train", "r.toml", "--out", "run"], here);
        assert!(found.contains(told), "expected {told:?} in: {found}");
        assert!(!here.join("run").exists(), "{told}");
    }
}

#[test]
fn several_drawn_answers_are_scored_beside_the_greedy_one() {
    let folder = folder_of(&[EXAMPLES]);
    let here = folder.path();
    let set =
        ["--set", "eval.sampled={ answers = 4, pass_at = [1, 3, 4] }", "--set", "eval.accuracy.extract=last_number"];
    succeed(&[&["train", "r.toml", "--out", "run", "--set", "stage.0.until.at_most=4.0"], &set[..]].concat(), here);
    let run = here.join("run");
    let scores: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(run.join("eval.json")).expect("scores")).expect("JSON");
    let after = &scores["evaluations"][1]["suites"]["id"];
    let text = fs::read_to_string(run.join("predictions/sampled/after-id.jsonl")).expect("drawn answers");
    let drawn: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((drawn.len(), after["num_rows"].as_u64()), (16, Some(4)), "four answers to four questions");
    assert_eq!(drawn.iter().take(4).map(|d| d["answer"].as_u64().expect("a number")).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let right = |question: &[serde_json::Value]| question.iter().filter(|d| d["correct"] == true).count();
    let any = drawn.chunks(4).filter(|question| right(question) > 0).count() as f64 / 4.0;
    let mean = right(&drawn) as f64 / 16.0;
    let pass = |k: &str| after["sampled"]["pass_at"][k]["mean"].as_f64().expect("a mean");
    assert!((pass("1") - mean).abs() < 1e-9 && (pass("4") - any).abs() < 1e-9, "{after}");
    assert!(pass("1") <= pass("3") && pass("3") <= pass("4"));
    assert!(fs::read_to_string(run.join("report.html")).expect("a page").contains("answers drawn at temperature 1"));
    let told = refuse(&["train", "r.toml", "--out", "x", "--set", "eval.sampled={ answers = 2, pass_at = [3] }"], here);
    assert!(told.contains("more than its 2 answers"), "{told}");

    let model = last_checkpoint(&run);
    let eval = ["eval", model.to_str().expect("a path"), "--max-new-tokens", "6", "--answers", "4", "--pass-at", "1,4"];
    let data = ["--data", "{ task = \"counting\", rows = 5 }", "--data", "{ task = \"charts\", rows = 5 }"];
    let told = succeed(&[&eval[..], &data, &["--output", "all.jsonl"]].concat(), here);
    assert!(told.contains("pass@4: ") && told.contains("mean over tasks"), "{told}");
    assert_eq!(lines(&here.join("all.jsonl")), 50, "greedy and drawn");
    let told = refuse(&[&eval[..6], &["--pass-at", "9"], &data].concat(), here);
    assert!(told.contains("more than its 4 answers"), "{told}");
}

#[test]
fn boxes_are_written_and_read_in_the_coordinates_of_the_recipe() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let data = "{ task = \"location\", rows = 20, filter = { answers = [\"box\"] } }";
    let settings = |target: &str, reward: &str| {
        one_stage(
            data,
            &format!(
                "target = {{ template = \"answer\", coords = \"{target}\" }}\nselector = {{ kind = \"always\" }}\n\
                 rewards = [ {{ kind = \"accuracy\", verify = {{ box = {{ coords = \"{reward}\" }} }} }} ]"
            ),
        )
    };
    fs::write(here.join("r.toml"), settings("per_mille", "unit")).expect("written");
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("scored as wrong") && told.contains("target.coords"), "{told}");
    for coords in ["original_pixels", "unit", "per_mille", "shown_pixels"] {
        fs::write(here.join("r.toml"), settings(coords, coords)).expect("written");
        succeed(&["train", "r.toml", "--out", coords], here);
        let samples = fs::read_to_string(here.join(coords).join("samples.jsonl")).expect("samples");
        let sample: serde_json::Value = serde_json::from_str(samples.lines().next().expect("one")).expect("JSON");
        let numbers = |text: &str| -> Vec<f64> {
            let list = text.split_once('[').expect("a list").1.trim_end_matches(']');
            list.split(',').map(|n| n.trim().parse().expect("a number")).collect()
        };
        let target = numbers(sample["target"].as_str().expect("a target"));
        let gold = numbers(sample["gold"].as_str().expect("a gold"));
        // Pictures of 128 pixels, shown to a model of 64.
        let scale = match coords {
            "unit" => 1.0 / 128.0,
            "per_mille" => 1000.0 / 128.0,
            "shown_pixels" => 0.5,
            _ => 1.0,
        };
        for (target, gold) in target.iter().zip(gold) {
            assert!((target - gold * scale).abs() <= if coords == "unit" { 0.001 } else { 0.51 }, "{coords}: {target}");
        }
    }
}

#[test]
fn test_rows_that_are_trained_on_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    succeed(&["data", "make", "{ task = \"charts\", rows = 6 }", "--out", "mine"], here);
    let recipe = one_stage("\"mine/rows.jsonl\"", "rewards = [ { kind = \"accuracy\" } ]");
    let suite = |rows: &str| recipe.replace("[eval]", &format!("test = {{ mine = {rows} }}\n[eval]"));
    // Asked as a choice it is still the same question about the same picture.
    let hidden = "{ path = \"mine/rows.jsonl\", format = \"choice\", take = \"end:2\" }";
    fs::write(here.join("r.toml"), suite(hidden)).expect("written");
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("2 rows of the test suite \"mine\"") && told.contains("allow_overlap"), "{told}");
    assert!(!here.join("run").exists());
    succeed(&["train", "r.toml", "--out", "run", "--set", "data.allow_overlap=true"], here);
    fs::write(here.join("r.toml"), suite("{ task = \"charts\", split = \"id\", rows = 3 }")).expect("written");
    succeed(&["train", "r.toml", "--out", "apart"], here);
    // The worked examples of a mixture are learned as well.
    let settings =
        "rewards = [ { kind = \"accuracy\" } ]\nmix = { kind = \"batch\", share = 0.5, data = \"mine/rows.jsonl\" }";
    let mixed = one_stage("{ task = \"counting\", rows = 20 }", settings);
    fs::write(here.join("r.toml"), mixed.replace("[eval]", &format!("test = {{ mine = {hidden} }}\n[eval]")))
        .expect("written");
    let told = refuse(&["train", "r.toml", "--out", "mixed"], here);
    assert!(told.contains("2 rows of the test suite \"mine\""), "{told}");
}

#[test]
fn a_reward_that_never_varies_is_mentioned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    // What so small a model writes never ends in time and has no box in it.
    let rewards = "rewards = [ { kind = \"steps\" }, { kind = \"length\", scale = 1.0, unit = \"characters\" }, { kind = \"accuracy\" } ]";
    let recipe = one_stage("{ task = \"counting\", rows = 40 }", rewards).replace("steps = 2", "steps = 11");
    fs::write(here.join("r.toml"), recipe).expect("written");
    let told = succeed(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("the reward `steps` was the same for all answers"), "{told}");
    assert!(told.contains("look at the answers in samples.jsonl") && !told.contains("`length` was the same"), "{told}");
}

#[test]
fn answers_drawn_elsewhere_are_scored_here() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let settings = "rewards = [ { kind = \"length\", scale = 1.0 }, { kind = \"accuracy\" } ]\nselector = { kind = \"anneal\" }\n\
                    target = { template = \"answer\", temperature = \"same\" }\nrule = { kl = 0.01 }";
    let recipe = one_stage("{ task = \"counting\", rows = 20 }", settings)
        .replace("max_new_tokens = 6", "max_new_tokens = 6, temperature = 0.7, logprob_temperature = 1.0, top_k = 40");
    fs::write(here.join("r.toml"), &recipe).expect("written");
    let told = succeed(&["train", "r.toml", "--out", "plain"], here);
    assert!(told.contains("another distribution"), "{told}");
    let plain = here.join("plain");
    assert_eq!(column(&plain, "only", "rollout/logprob_gap_max"), [0.0; 2], "recorded at 1, trained at 1");
    for metric in ["rollout/sampler_gap_mean", "rollout/sampler_kl"] {
        assert!(column(&plain, "only", metric).iter().all(|gap| *gap > 0.0), "{metric}");
    }
    assert!(column(&plain, "only", "rollout/sampler_ess").iter().all(|share| (0.0..1.0).contains(share)));
    let set = ["--set", "stage.0.rule.mismatch={ mode = \"token_truncate\" }"];
    succeed(&[&["train", "r.toml", "--out", "corrected"], &set[..]].concat(), here);
    let corrected = here.join("corrected");
    assert_ne!(column(&corrected, "only", "optim/gradient_norm"), column(&plain, "only", "optim/gradient_norm"));
    let told = refuse(&["train", "r.toml", "--out", "x", "--set", "stage.0.sampling.logprob_temperature=0.0"], here);
    assert!(told.contains("logprob_temperature must be above 0"), "{told}");
}

/// A plug-in in shell that reads a line, finds its id and says what `reply` says with `$id`.
fn plugin(reply: &str) -> String {
    format!(
        "#!/bin/sh\nwhile read -r line; do\n  id=$(printf '%s' \"$line\" | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/')\n  {reply}\ndone\n"
    )
}

#[test]
#[cfg(unix)]
fn plugins_score_and_their_failures_are_unknown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let rewards = "rewards = [ { kind = \"accuracy\" }, { kind = \"process\", name = \"mine\", command = [\"sh\", \"p.sh\"], timeout_secs = 5.0 } ]";
    let recipe = one_stage("{ task = \"counting\", rows = 20 }", rewards);
    fs::write(here.join("r.toml"), &recipe).expect("written");

    let good = plugin(r#"echo "{\"id\": $id, \"scores\": [0.5, $((id % 2)), null]}"; echo "seen $id" >&2"#);
    fs::write(here.join("p.sh"), good).expect("written");
    succeed(&["train", "r.toml", "--out", "good"], here);
    assert_eq!(column(&here.join("good"), "only", "reward/unknown_fraction"), [1.0 / 3.0; 2]);
    assert_eq!(column(&here.join("good"), "only", "helper/declined"), [2.0; 2]);
    assert_eq!(column(&here.join("good"), "only", "reward/mine/mean"), [0.5; 2]);
    let log = fs::read_to_string(here.join("good/plugin-mine.log")).expect("what it printed to stderr");
    assert!(log.contains("seen 3"), "{log}");

    // Everything unknown: the run stops after a few steps, says why, and can go on when the plug-in is mended.
    fs::write(here.join("p.sh"), plugin("echo loading")).expect("written");
    let told = refuse(&["train", "r.toml", "--out", "garbage", "--set", "stage.0.steps=9"], here);
    assert!(
        told.contains("100 % of the rewards") && told.contains("loading") && told.contains("standard output"),
        "{told}"
    );
    assert_eq!(lines(&here.join("garbage/metrics.jsonl")), 4, "the fifth step is not written down");
    fs::write(here.join("p.sh"), "exit 7\n").expect("written");
    let told = refuse(&["train", "r.toml", "--out", "dead", "--set", "stage.0.steps=9"], here);
    assert!(told.contains("died") && told.contains("by hand"), "{told}");
    fs::write(here.join("p.sh"), "sleep 1000\n").expect("written");
    let quick = ["--set", "stage.0.rewards.1.timeout_secs=0.2", "--set", "stage.0.rewards.1.restarts=1"];
    let told = refuse(&[&["train", "r.toml", "--out", "hung", "--set", "stage.0.steps=9"], &quick[..]].concat(), here);
    assert!(told.contains("hint: "), "{told}");
    let first = column(&here.join("hung"), "only", "helper/timeout")[0];
    assert_eq!(first, 6.0, "two questions of three answers each");
}

#[test]
fn python_plugins_of_the_examples_score() {
    // The protocol itself is tested with shell scripts; where there is no Python there is nothing more to see.
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/plugins");
    for name in ["trl_reward.py", "my_rewards.py", "short_answers.py", "similarity.py"] {
        fs::copy(examples.join(name), here.join(name)).expect("copied");
    }
    let rewards = "rewards = [ { kind = \"process\", name = \"short\", command = [\"python3\", \"short_answers.py\"] },\n\
                   { kind = \"process\", name = \"trl\", command = [\"python3\", \"trl_reward.py\", \"my_rewards.py:only_numbers\"] },\n\
                   { kind = \"process\", name = \"similar\", command = [\"python3\", \"similarity.py\", \"0.95\", \"0.9\"] } ]";
    let numbers = "{ task = \"counting\", rows = 20, filter = { answers = [\"number\"] } }";
    fs::write(here.join("r.toml"), one_stage(numbers, rewards)).expect("written");
    succeed(&["train", "r.toml", "--out", "run"], here);
    let run = here.join("run");
    assert_eq!(column(&run, "only", "reward/unknown_fraction"), [0.0; 2]);
    assert!(column(&run, "only", "reward/short/mean").iter().all(|mean| *mean > 0.5));
    assert_eq!(column(&run, "only", "reward/similar/mean"), [0.0; 2], "what so small a model writes is like nothing");
    let log = fs::read_to_string(run.join("plugin-trl.log")).expect("what the function printed");
    assert!(log.contains("does no harm"), "{log}");
}

#[test]
fn good_answers_become_rows_and_teach() {
    let folder = folder_of(&[EXAMPLES]);
    let here = folder.path();
    let longer = ["--set", "stage.0.steps=150", "--set", "stage.0.until.at_most=0.0"];
    succeed(&[&["train", "r.toml", "--out", "run"], &longer[..]].concat(), here);
    let model = last_checkpoint(&here.join("run"));
    let settings = "data = { task = \"counting\", rows = 40, levels = [1], filter = { answers = [\"number\"] } }\nanswers_per_question = 24\n\
                    sampling = { max_new_tokens = 6 }\naccuracy = { extract = \"last_number\" }\nquotas = { counting = 2 }\n";
    fs::write(here.join("s.toml"), settings).expect("written");
    let ask = ["sample", "s.toml", "--model", model.to_str().expect("a path"), "--out", "mine"];
    let told = succeed(&ask, here);
    let rows: Vec<serde_json::Value> = fs::read_to_string(here.join("mine/rows.jsonl"))
        .expect("rows")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(rows.len(), 2, "{told}");
    assert!(rows.iter().all(|row| row["meta"]["completion"].is_string() && row["meta"]["score"] == 100.0), "{rows:?}");
    assert!(refuse(&ask, here).contains("there already"));
    let sets = [
        "data.train=\"mine\"",
        "target={ template = \"completion\" }",
        "stage.0.steps=3",
        "stage.0.questions_per_step=2",
    ];
    let mut args = vec!["train", "r.toml", "--out", "next"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    succeed(&args, here);
    let told = refuse(
        &["sample", "s.toml", "--model", model.to_str().expect("a path"), "--out", "x", "--set", "threshold=101"],
        here,
    );
    assert!(told.contains("between 0 and 100"), "{told}");
}

#[test]
fn rationales_are_refined_into_new_rows() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let source = "{ task = \"charts\", rows = 5, rationale = \"low\" }";
    let template = "Seen: {facts}";
    succeed(&["data", "refine", source, "--out", "fine", "--template", template], here);
    let text = fs::read_to_string(here.join("fine/rows.jsonl")).expect("rows");
    assert_eq!(text.lines().count(), 5);
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let facts = row["facts"].as_str().expect("facts").trim().to_string();
        assert_eq!(row["rationale"].as_str().expect("a rationale"), format!("Seen: {facts}"));
    }
    let nobody = "{ url = \"http://127.0.0.1:9/v1\", model = \"m\", attempts = 1, timeout_secs = 2.0 }";
    let told = refuse(&["data", "refine", source, "--out", "none", "--writer", nobody], here);
    assert!(told.contains("nothing could be refined") && !here.join("none").exists(), "{told}");
}

#[test]
fn a_study_compares_cells_and_goes_on_where_it_was() {
    let folder = folder_of(&[EXAMPLES]);
    let here = folder.path();
    fs::write(here.join("c.toml"), "data = { task = \"counting\", rows = 40, levels = [1], filter = { answers = [\"number\"] } }\nanswers_per_question = 24\nsampling = { max_new_tokens = 6 }\naccuracy = { extract = \"last_number\" }\n").expect("written");
    let study = r#"
name = "tiny"
title = "More steps"
recipe = "r.toml"
seeds = [1, 2]
set = ["data.test.id.seed=5"]
[[cell]]
name = "base"
of_nothing = true
"#;
    fs::write(here.join("s.toml"), study).expect("written");
    assert!(refuse(&["study", "s.toml"], here).contains("unknown key `of_nothing`"));
    let study = study.replace(
        "name = \"base\"\nof_nothing = true\n",
        "name = \"short\"\nset = [\"stage.0.steps=150\", \"stage.0.until.at_most=0.0\"]\n",
    ) + r#"
[[cell]]
name = "untrained"
of = "short"
at = "before"
[[cell]]
name = "improved"
after = "short"
sample = "c.toml"
set = ["stage.0.steps=3", "stage.0.questions_per_step=1", "target={ template = \"completion\" }"]
[[claim]]
text = "own answers help"
better = "improved"
than = "short"
suite = "id"
"#;
    fs::write(here.join("s.toml"), &study).expect("written");
    let told = succeed(&["study", "s.toml", "--out", "out"], here);
    assert!(told.contains("run 4 of 4") && told.contains("own answers help"), "{told}");
    let table = fs::read_to_string(here.join("out/study.md")).expect("a table");
    assert!(table.contains("runs/improved/seed-2") && here.join("out/study.html").is_file(), "{table}");
    for seed in ["seed-1", "seed-2"] {
        assert!(here.join("out/runs/improved").join(seed).join("report.html").is_file());
    }
    // Done cells are not done again; a lost one is, and gives the same table.
    fs::remove_dir_all(here.join("out/runs/improved/seed-1")).expect("removed");
    let again = succeed(&["study", "s.toml", "--out", "out"], here);
    assert!(again.matches("run ").count() < told.matches("run ").count(), "{again}");
    let shares = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.starts_with("| improved"))
            .map(|line| line.split('|').take(4).collect())
            .collect()
    };
    assert_eq!(shares(&fs::read_to_string(here.join("out/study.md")).expect("a table")), shares(&table));
    // Runs in several processes, too.
    let crowd = succeed(&["study", "s.toml", "--out", "crowd", "--jobs", "2"], here);
    assert!(crowd.matches("done: ").count() == 4, "{crowd}");
    assert_eq!(shares(&fs::read_to_string(here.join("crowd/study.md")).expect("a table")), shares(&table));
    assert!(refuse(&["study", "s.toml", "--cells", "shrot"], here).contains("no cell \"shrot\""));
    let broken = study.replace("\"stage.0.steps=150\"", "\"stage.0.steps=150\", \"model='nowhere'\"");
    fs::write(here.join("s.toml"), broken).expect("written");
    let told = refuse(&["study", "s.toml", "--out", "broken", "--jobs", "2"], here);
    assert!(told.contains("nowhere") && told.contains("the run short, seed 1 failed"), "{told}");
    fs::write(here.join("s.toml"), study.replace("stage.0.steps=150", "stage.0.steps=151")).expect("written");
    assert!(refuse(&["study", "s.toml", "--out", "out"], here).contains("other settings"));
}
