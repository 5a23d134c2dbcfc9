//! Names of models on the command line: what is found, what is refused, and what a model is said to take.

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{folder_with, foveate, last_checkpoint, refuse, succeed, text};

const RECIPE: &str = r#"
[data]
train = { task = "counting", rows = 8 }
[[stage]]
name = "examples"
rule = { kind = "sft" }
questions_per_step = 4
steps = 1
"#;

fn model(here: &Path) -> std::path::PathBuf {
    succeed(&["train", "r.toml", "--out", "run"], here);
    last_checkpoint(&here.join("run"))
}

#[test]
fn hub_ids_are_found_in_the_hubs_cache_and_nowhere_else() {
    let folder = folder_with(RECIPE);
    let here = folder.path();
    let from = model(here);
    let home = here.join("cache/models--org--tiny");
    fs::create_dir_all(home.join("refs")).unwrap();
    fs::write(home.join("refs/main"), "0123abcd").unwrap();
    fs::create_dir_all(home.join("snapshots")).unwrap();
    fs::rename(&from, home.join("snapshots/0123abcd")).unwrap();
    let with_cache = |args: &[&str]| {
        let output = foveate(args, here).env("HF_HUB_CACHE", here.join("cache")).output().unwrap();
        (output.status.code(), text(&output))
    };
    let (code, told) = with_cache(&["model", "inspect", "org/tiny"]);
    assert!(code == Some(0) && told.contains("smolvlm") && told.contains("all to learn"), "{told}");
    let (code, told) = with_cache(&["model", "inspect", "org/tiny@0123abcd"]);
    assert!(code == Some(0) && told.contains("smolvlm"), "{told}");
    let (code, told) = with_cache(&["model", "inspect", "org/other"]);
    assert!(code == Some(2) && told.contains("HF_HUB_OFFLINE") && told.contains("hf download org/other"), "{told}");
    assert!(told.contains("cache"), "{told}");

    // A run on the id, an adapter on top, and the adapter found again through the id.
    let recipe = RECIPE.replace("[data]", "model = \"org/tiny\"\n[lora]\nrank = 2\n[data]");
    fs::write(here.join("a.toml"), format!("name = \"a\"\n{recipe}")).unwrap();
    let (code, told) = with_cache(&["train", "a.toml", "--out", "adapted"]);
    assert_eq!(code, Some(0), "{told}");
    let adapter = last_checkpoint(&here.join("adapted"));
    let config: Value = serde_json::from_slice(&fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/tiny");
    let (code, told) = with_cache(&["model", "inspect", &adapter.to_string_lossy()]);
    assert_eq!(code, Some(0), "{told}");
    let output = foveate(&["model", "inspect", &adapter.to_string_lossy()], here)
        .env("HF_HUB_CACHE", here.join("nothing"))
        .output()
        .unwrap();
    assert!(text(&output).contains("belongs to the model \"org/tiny\""), "{}", text(&output));
}

#[test]
fn a_tokenizer_that_knows_more_than_the_model_is_refused() {
    let folder = folder_with(RECIPE);
    let here = folder.path();
    let path = model(here).join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut token = added[0].clone();
    token["id"] = 9999.into();
    token["content"] = "<|more|>".into();
    added.push(token);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let told = refuse(&["model", "inspect", &path.parent().unwrap().to_string_lossy()], here);
    assert!(told.contains("tokenizer") && told.contains("rows"), "{told}");

    // And one that only Python reads.
    fs::rename(&path, path.with_file_name("tokenizer.model")).unwrap();
    let told = refuse(&["model", "inspect", &path.parent().unwrap().to_string_lossy()], here);
    assert!(told.contains("slow tokenizer") && told.contains("save_pretrained"), "{told}");
}

#[test]
fn a_chat_in_a_pipe_gives_answers_and_nothing_else() {
    use std::io::Write;
    use std::process::Stdio;

    let folder = folder_with(RECIPE);
    let here = folder.path();
    succeed(&["data", "make", "{ task = \"counting\", rows = 1 }", "--out", "d"], here);
    let talk = |lines: &str| {
        let mut chat = foveate(&["chat", "minnow", "--precision", "f32", "--max-new-tokens", "24"], here);
        let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = talk("/image 'd/images/000000.png'\nHow many circles are there?\n\n");
    assert!(output.status.success(), "{}", text(&output));
    let part =
        r#"{"type": "image", "image": "d/images/000000.png"}, {"type": "text", "text": "How many circles are there?"}"#;
    fs::write(here.join("q.jsonl"), format!(r#"{{"messages": [{{"role": "user", "content": [{part}]}}]}}"#)).unwrap();
    let words = ["generate", "--model", "minnow", "--input", "q.jsonl", "--output", "a.jsonl", "--greedy"];
    succeed(&[&words[..], &["--max-new-tokens", "24"]].concat(), here);
    let row: Value = serde_json::from_str(&fs::read_to_string(here.join("a.jsonl")).unwrap()).unwrap();
    let answer = row["text"].as_str().unwrap().trim();
    assert!(!answer.is_empty());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), answer);

    for (lines, told) in [("/image none.png\n", "none.png"), ("/nothing\n", "/image PATH"), ("a <image>\n", "<image>")]
    {
        let output = talk(lines);
        assert!(output.status.code() == Some(2) && text(&output).contains(told), "{}", text(&output));
        assert!(output.stdout.is_empty(), "{}", text(&output));
    }
}

#[test]
fn plans_are_told_for_models_and_recipes() {
    let folder = folder_with(RECIPE);
    let here = folder.path();
    let path = model(here);
    let told = succeed(&["plan", &path.to_string_lossy(), "--precision", "f32"], here);
    for line in ["parameters", "weights", "moments", "keys and values", "all to learn"] {
        assert!(told.contains(line), "{line}: {told}");
    }
    // For a GPU, in a machine without one too.
    let told = succeed(&["plan", &path.to_string_lossy(), "--device", "cuda:0"], here);
    for line in ["weights", "moments", "head", "all to learn", "cuda:0 "] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let recipe = format!("name = \"a\"\nmodel = \"{}\"\n{RECIPE}", path.display());
    fs::write(here.join("a.toml"), recipe).unwrap();
    let told = succeed(&["plan", "a.toml"], here);
    assert!(told.contains("stage examples") && told.contains("peak"), "{told}");
    let told = succeed(&["plan", "a.toml", "--device", "cuda:0", "--set", "memory.recompute=true"], here);
    assert!(told.contains("stage examples") && told.contains("peak"), "{told}");
    // A recipe that makes a new model is planned from its numbers.
    let told = succeed(&["plan", "r.toml"], here);
    assert!(told.contains("stage examples") && told.contains("peak"), "{told}");
}

#[test]
fn a_model_larger_than_the_memory_is_refused_before_it_is_loaded() {
    let folder = folder_with(RECIPE);
    let here = folder.path();
    let path = model(here).join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["text_config"]["intermediate_size"] = 16_000_000.into();
    config["text_config"]["hidden_size"] = 9_600_000.into();
    fs::write(&path, config.to_string()).unwrap();
    let told = refuse(&["chat", &path.parent().unwrap().to_string_lossy(), "--ask", "hi"], here);
    assert!(told.contains("GiB") && told.contains("foveate plan"), "{told}");
}
