//! Runs as processes: what a person types, what comes back, what lies on the disk afterwards.
//! Every model here is new and tiny, so that a whole run takes about a second.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::{
    assert_same, folder_with, foveate, last_checkpoint, lines, metrics, refuse, succeed, text, wait_for_steps,
};

/// Worked examples, then reinforcement with a reference and two updates a step.
const TWO_STAGES: &str = r#"
[data]
train = { task = "counting", rows = 40 }
test = { id = { task = "counting", split = "id", rows = 4, levels = [1] } }

[eval]
sampling = { temperature = 0.0, max_new_tokens = 8 }

[checkpoint]
every = 2

[[stage]]
name = "examples"
rule = { kind = "sft" }
questions_per_step = 4
steps = 5
optim = { lr = 1e-3 }

[[stage]]
name = "switch"
questions_per_step = 4
answers_per_question = 3
updates = 2
steps = 7
sampling = { temperature = 1.0, max_new_tokens = 8 }
rewards = [ { kind = "format_flag" }, { kind = "accuracy" } ]
selector = { kind = "any_correct" }
rule = { kind = "grpo", kl = 0.04 }
optim = { lr = 1e-3 }
"#;

#[test]
fn killed_at_any_moment_and_resumed_equals_never_stopped() {
    let folder = folder_with(TWO_STAGES);
    let here = folder.path();
    succeed(&["train", "r.toml", "--out", "whole"], here);
    assert_eq!(metrics(&here.join("whole")).len(), 12);
    // Before the first checkpoint; inside each stage; and once more in the same run.
    for kills in [vec![0], vec![1], vec![3, 6], vec![5, 8, 11]] {
        let out = format!("killed-{}", kills.len() * 100 + kills[0]);
        for (attempt, &step) in kills.iter().enumerate() {
            let mut args = vec!["train", "r.toml", "--out", &out];
            if attempt > 0 {
                args.push("--resume");
            }
            let mut child = foveate(&args, here).spawn().expect("the program starts");
            wait_for_steps(&mut child, &here.join(&out), step);
            while !here.join(&out).join("recipe.toml").is_file() {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
        succeed(&["train", "r.toml", "--out", &out, "--resume"], here);
        assert_same(&here.join("whole"), &here.join(&out));
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let folder = folder_with(TWO_STAGES);
    for threads in ["1", "3"] {
        let out = format!("threads-{threads}");
        let output = foveate(&["train", "r.toml", "--out", &out], folder.path())
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_same(&folder.path().join("threads-1"), &folder.path().join("threads-3"));
}

#[test]
#[cfg(unix)]
fn ctrl_c_finishes_the_step_and_says_how_to_go_on() {
    let folder = folder_with(TWO_STAGES);
    let here = folder.path();
    succeed(&["train", "r.toml", "--out", "whole"], here);
    let mut child = foveate(&["train", "r.toml", "--out", "stopped"], here).spawn().expect("the program starts");
    wait_for_steps(&mut child, &here.join("stopped"), 3);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill exists");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("go on with: foveate train r.toml --out stopped --resume"), "{}", text(&output));
    let done = lines(&here.join("stopped/metrics.jsonl"));
    assert!(done < 12, "the run was over before it could be stopped");
    assert!(last_checkpoint(&here.join("stopped")).ends_with(format!("step-{done:06}")));
    succeed(&["train", "r.toml", "--out", "stopped", "--resume"], here);
    assert_same(&here.join("whole"), &here.join("stopped"));
}

#[test]
fn a_folder_with_a_run_is_not_touched() {
    let folder = folder_with(TWO_STAGES);
    let here = folder.path();
    succeed(&["train", "r.toml", "--out", "run", "--set", "stage.switch.steps=1"], here);
    let before = fs::read(here.join("run/metrics.jsonl")).unwrap();
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("already holds a run") && told.contains("--resume"), "{told}");
    let told = refuse(&["train", "r.toml", "--out", "run", "--resume"], here);
    assert!(told.contains("stage.1.steps was 1, it is 7 now"), "{told}");
    let told = refuse(&["train", "r.toml", "--out", "elsewhere", "--resume"], here);
    assert!(told.contains("no run to resume"), "{told}");
    assert!(!here.join("elsewhere").exists());
    assert_eq!(fs::read(here.join("run/metrics.jsonl")).unwrap(), before);
}

#[test]
fn recipes_with_mistakes_are_refused_before_anything_is_written() {
    let stage = |text: &str| TWO_STAGES.replace("name = \"switch\"", &format!("name = \"switch\"\n{text}"));
    for (recipe, told) in [
        (stage("questons_per_step = 4"), "did you mean `questions_per_step`?"),
        (stage("rewrds = []"), "did you mean `rewards`?"),
        (TWO_STAGES.replace("\"accuracy\"", "\"acuracy\""), "did you mean `accuracy`?"),
        (TWO_STAGES.replace("kl = 0.04", "lk = 0.04"), "unknown key `lk`"),
        (TWO_STAGES.replace("steps = 7", "steps = \"many\""), "r.toml:"),
        (TWO_STAGES.replace("steps = 7", ""), "neither steps nor epochs"),
        (TWO_STAGES.replace("answers_per_question = 3", "answers_per_question = 1"), "at least 2"),
        (TWO_STAGES.replace("updates = 2", "updates = 9"), "cannot split 4 questions"),
        (TWO_STAGES.replace("task = \"counting\", rows = 40", "path = \"none.jsonl\""), "none.jsonl"),
        (TWO_STAGES.replace("rows = 40", "rows = 0"), "no usable rows"),
        (TWO_STAGES.replace("kind = \"grpo\"", "kind = \"grpo\", clip = [2.0, 0.1]"), "clip"),
        (TWO_STAGES.replace("temperature = 1.0", "temperature = 0.0"), "temperature is 0"),
        (TWO_STAGES.replace("lr = 1e-3", "lr = -1.0"), "optim.lr"),
    ] {
        let folder = folder_with(&recipe);
        let found = refuse(&["train", "r.toml", "--out", "run"], folder.path());
        assert!(found.contains(told), "expected {told:?} in: {found}");
        assert!(!folder.path().join("run").exists(), "{told}");
    }
    let folder = folder_with(TWO_STAGES);
    let impossible = ["train", "r.toml", "--out", "run", "--set", "model.new.vision_heads=3"];
    assert!(refuse(&impossible, folder.path()).contains("vision_heads = 3 does not divide"));
    let known = refuse(&["train", "r.toml", "--set", "model=\"goldfish\""], folder.path());
    assert!(known.contains("goldfish: neither a built-in model nor a folder"), "{known}");
}

#[test]
fn bad_rows_and_pictures_are_named() {
    let recipe = TWO_STAGES.replace("train = { task = \"counting\", rows = 40 }", "train = { path = \"rows.jsonl\" }");
    let folder = folder_with(&recipe);
    let here = folder.path();
    let row = |image: &str| {
        format!(
            "{{\"id\": \"x7\", \"image\": \"{image}\", \"question\": \"How many?\", \"answer\": 3, \
             \"rationale\": \"I see 3.\"}}\n"
        )
    };
    fs::write(here.join("rows.jsonl"), row("gone.png")).unwrap();
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("rows.jsonl:1") && told.contains("gone.png"), "{told}");
    assert!(!here.join("run").exists());

    fs::write(here.join("rows.jsonl"), "{\"question\": 5, \"answer\": 3}\n").unwrap();
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("rows.jsonl:1") && told.contains("`question`"), "{told}");

    fs::write(here.join("rows.jsonl"), "").unwrap();
    assert!(refuse(&["train", "r.toml", "--out", "run"], here).contains("no usable rows"));

    // A header that promises a picture, and nothing behind it.
    fs::write(here.join("cut.png"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x10\0\0\0\x10\x08\x02\0\0\0").unwrap();
    fs::write(here.join("rows.jsonl"), row("cut.png")).unwrap();
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("rows.jsonl:1") && told.contains("cut.png"), "{told}");

    // A picture whose damage shows only when it is decoded: the run has begun by then, and leaves nothing.
    succeed(&["data", "make", "{ task = \"charts\", rows = 1 }", "--out", "mine"], here);
    let image = fs::read_dir(here.join("mine/images")).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&image).unwrap();
    fs::write(here.join("cut.png"), &bytes[..bytes.len() / 2]).unwrap();
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("row x7") && told.contains("cut.png"), "{told}");
    assert!(!here.join("run").exists(), "nothing is left of a run that never began");
}

#[test]
fn own_rows_and_pictures_train() {
    let folder = folder_with(&TWO_STAGES.replace("task = \"counting\", rows = 40", "path = \"mine/rows.jsonl\""));
    let here = folder.path();
    succeed(&["data", "make", "{ task = \"charts\", rows = 12 }", "--out", "mine"], here);
    succeed(&["data", "audit", "mine/rows.jsonl"], here);
    succeed(&["data", "show", "mine/rows.jsonl", "--rows", "4"], here);
    assert!(here.join("contact-sheet.png").is_file());
    let told = succeed(&["train", "r.toml"], here);
    assert!(told.contains("report: runs/test/report.html"), "{told}");
    let page = fs::read_to_string(here.join("runs/test/report.html")).unwrap();
    assert!(page.contains("data:image/png;base64,") && page.contains("<svg"), "the page shows pictures and curves");
}

#[test]
#[cfg(unix)]
fn a_full_disk_leaves_the_checkpoint_before() {
    let folder = folder_with(TWO_STAGES);
    let here = folder.path();
    // Files of this run may not grow beyond a limit, as on a disk that is full; the metrics reach it after a few
    // checkpoints (the limit counts blocks of 512 bytes).
    let script = format!(
        "ulimit -f 4000; trap '' XFSZ; exec {} train r.toml --out run --set checkpoint.every=1",
        env!("CARGO_BIN_EXE_foveate")
    );
    let whole = Command::new("sh").args(["-c", &script]).current_dir(here).output().expect("sh exists");
    assert!(whole.status.success(), "the limit must let a small run pass: {}", text(&whole));
    let largest = fs::metadata(last_checkpoint(&here.join("run")).join("optimizer.safetensors")).unwrap().len();
    fs::remove_dir_all(here.join("run")).unwrap();

    // Now the limit lies below the optimiser's file once the second stage has begun to... the first save fails.
    let script = script.replace("4000", &(largest / 512 - 8).to_string());
    let full = Command::new("sh").args(["-c", &script]).current_dir(here).output().expect("sh exists");
    assert_eq!(full.status.code(), Some(2), "{}", text(&full));
    assert!(text(&full).contains("optimizer.safetensors") && text(&full).contains("hint: "), "{}", text(&full));
    let left: Vec<_> = fs::read_dir(here.join("run/checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "nothing half-written: {left:?}");
    // With room again the run goes on from where it can.
    succeed(&["train", "r.toml", "--out", "run", "--set", "checkpoint.every=1", "--resume"], here);
}

#[test]
fn checkpoints_can_be_asked() {
    let folder = folder_with(TWO_STAGES);
    let here = folder.path();
    succeed(&["train", "r.toml", "--out", "run", "--set", "stage.switch.steps=1"], here);
    let model = last_checkpoint(&here.join("run"));
    let model = model.to_str().unwrap();
    succeed(&["data", "make", "{ task = \"counting\", rows = 3 }", "--out", "mine"], here);
    let rows: Vec<serde_json::Value> = fs::read_to_string(here.join("mine/rows.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let messages: String = rows
        .iter()
        .map(|row| {
            let image = row["images"][0].as_str().unwrap();
            let user = serde_json::json!([{"type": "image", "image": format!("mine/{image}")}, {"type": "text", "text": row["question"]}]);
            let line = serde_json::json!({"messages": [
                {"role": "user", "content": user},
                {"role": "assistant", "content": [{"type": "text", "text": "Answer: 3"}]}
            ]});
            format!("{line}\n")
        })
        .collect();
    fs::write(here.join("rows.jsonl"), messages).unwrap();
    succeed(&["score", "--model", model, "--input", "rows.jsonl", "--output", "scores.jsonl"], here);
    let scores = fs::read_to_string(here.join("scores.jsonl")).unwrap();
    for line in scores.lines() {
        let score: serde_json::Value = serde_json::from_str(line).unwrap();
        let logprobs = score["logprobs"].as_array().unwrap();
        assert_eq!(logprobs.len(), score["completion_ids"].as_array().unwrap().len());
        let mean = -logprobs.iter().map(|p| p.as_f64().unwrap()).sum::<f64>() / logprobs.len() as f64;
        assert!((mean - score["mean_nll"].as_f64().unwrap()).abs() < 1e-6 && mean > 0.0);
    }
    assert_eq!(scores.lines().count(), 3);
    let greedy = [
        "generate",
        "--model",
        model,
        "--input",
        "rows.jsonl",
        "--output",
        "said.jsonl",
        "--greedy",
        "--max-new-tokens",
        "5",
    ];
    succeed(&greedy, here);
    assert_eq!(lines(&here.join("said.jsonl")), 3);
    succeed(&["eval", model, "--data", "mine/rows.jsonl", "--max-new-tokens", "5"], here);
    succeed(&["chat", model, "--ask", "How many?", "--max-new-tokens", "5"], here);
    succeed(&["model", "inspect", model, "--tensors"], here);
    succeed(&["report", "run"], here);
    succeed(&["compare", "run", "run"], here);
    succeed(&["doctor"], here);
    assert!(refuse(&["report", "mine"], here).contains("not a run"));
    fs::write(here.join("rows.jsonl"), "{\"messages\": 3}\n").unwrap();
    let told = refuse(&["score", "--model", model, "--input", "rows.jsonl", "--output", "new.jsonl"], here);
    assert!(told.contains("rows.jsonl:1") && !here.join("new.jsonl").exists(), "{told}");
}

#[test]
fn recipes_for_continuous_integration_run() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/ci");
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut count = 0;
    for entry in fs::read_dir(recipes).expect("recipes/ci") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let run = out.path().join(path.file_stem().unwrap());
            succeed(&["train", path.to_str().unwrap(), "--out", run.to_str().unwrap()], out.path());
            // What a run resolved to is a recipe again, and resolves to itself.
            let text = fs::read_to_string(run.join("recipe.toml")).unwrap();
            assert!(run.join("report.html").is_file() && !text.is_empty());
            count += 1;
        }
    }
    assert!(count >= 5, "{count} recipes");
}
