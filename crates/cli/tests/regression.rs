//! One test for each bug that was found and mended, named after it.

mod support;

use std::fs;
use std::io::Read;
use std::process::Stdio;

use support::{folder_with, foveate, succeed, text};

#[test]
fn a_closed_pipe_ends_printing_without_a_panic() {
    let folder = folder_with("");
    for command in [&["doctor"][..], &["data", "audit", "{ task = \"counting\", rows = 200 }"]] {
        // As `head` does once it has seen enough; closed before the program starts, so that it cannot be faster.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = foveate(command, folder.path()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!((child.wait().unwrap().code(), told.as_str()), (Some(141), ""), "{command:?}");
    }
}

#[test]
fn limits_on_pictures_reach_what_is_saved_and_are_refused_where_they_mean_nothing() {
    let stage = "[data]\ntrain = { task = \"counting\", rows = 8, size = 64 }\n[[stage]]\nname = \"examples\"\n\
                 rule = { kind = \"sft\" }\nquestions_per_step = 4\nsteps = 1\n";
    let folder = folder_with(&format!("[images]\nlongest_edge = 48\n{stage}"));
    let here = folder.path();
    succeed(&["train", "r.toml", "--out", "run"], here);
    let saved = support::last_checkpoint(&here.join("run"));
    let config = fs::read_to_string(saved.join("preprocessor_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["size"]["longest_edge"], 48);
    let name = saved.to_string_lossy();
    let refused = foveate(&["chat", &name, "--ask", "hi", "--max-pixels", "5000"], here).output().unwrap();
    assert!(text(&refused).contains("no max_pixels") && text(&refused).contains("longest_edge"), "{}", text(&refused));
    fs::write(here.join("b.toml"), format!("name = \"b\"\nmodel = \"{name}\"\n[images]\nmax_tiles = 3\n{stage}"))
        .unwrap();
    let refused = foveate(&["train", "b.toml", "--out", "never"], here).output().unwrap();
    assert!(text(&refused).contains("no max_tiles") && !here.join("never").exists(), "{}", text(&refused));
}
