//! What the tests of the program share: a tiny model, and running commands.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The head of a recipe: a new model that learns a step in milliseconds.
pub const MODEL: &str = r#"
name = "test"
seed = 3
precision = "f32"

[model.new]
image_size = 64
patch_size = 16
vision_width = 32
vision_layers = 1
vision_heads = 2
vision_hidden = 64
text_width = 32
text_layers = 2
text_heads = 2
text_kv_heads = 1
text_hidden = 64
vocabulary = 320
max_positions = 512
"#;

pub fn foveate(args: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foveate"));
    // No test reaches the network; those that fetch ask a server of their own.
    command.env("HF_HUB_OFFLINE", "1");
    command.args(args).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(args: &[&str], folder: &Path) -> Output {
    foveate(args, folder).output().expect("the program starts")
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub fn succeed(args: &[&str], folder: &Path) -> String {
    let output = run(args, folder);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// Runs what must be refused: exit code 2 and a hint.
pub fn refuse(args: &[&str], folder: &Path) -> String {
    let output = run(args, folder);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
    assert!(told.contains("error: ") && told.contains("hint: "), "{told}");
    assert!(!told.contains("panicked"), "{told}");
    told
}

/// A folder with the recipe `r.toml`.
pub fn folder_with(recipe: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("r.toml"), format!("{MODEL}{recipe}")).expect("written");
    folder
}

pub fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Waits until a run has written `count` steps, or has ended.
pub fn wait_for_steps(child: &mut Child, run: &Path, count: usize) {
    let began = Instant::now();
    while lines(&run.join("metrics.jsonl")) < count && child.try_wait().expect("a child").is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "no {count} steps within two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn last_checkpoint(run: &Path) -> PathBuf {
    let entries = fs::read_dir(run.join("checkpoints")).expect("checkpoints");
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    names.pop().expect("a checkpoint")
}

/// Metrics without times.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines()
        .map(|line| {
            let mut record: serde_json::Value = serde_json::from_str(line).expect("JSON");
            record.as_object_mut().expect("an object").retain(|name, _| !name.starts_with("time/"));
            record
        })
        .collect()
}

/// Two runs must have left the same bytes, times aside.
pub fn assert_same(a: &Path, b: &Path) {
    let (last_a, last_b) = (last_checkpoint(a), last_checkpoint(b));
    assert_eq!(last_a.file_name(), last_b.file_name());
    for file in ["model.safetensors", "optimizer.safetensors", "config.json"] {
        assert!(fs::read(last_a.join(file)).unwrap() == fs::read(last_b.join(file)).unwrap(), "{file} differs");
    }
    assert_eq!(metrics(a), metrics(b));
    for file in ["samples.jsonl", "eval.json", "recipe.toml"] {
        assert_eq!(fs::read_to_string(a.join(file)).unwrap(), fs::read_to_string(b.join(file)).unwrap(), "{file}");
    }
}
