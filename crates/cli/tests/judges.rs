//! Language models as helpers over real HTTP: a judge, a checker with its lists of elements, and a refiner with its
//! template; their budget over the stages of a run; what happens when the server goes away in the middle; and another
//! `foveate serve` process as the judge.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::*;

/// A server that answers like a well-behaved language model, knowing from the instructions what is asked, and that
/// closes its door after a number of requests.
struct Model {
    url: String,
    /// Requests by what was asked.
    asked: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Model {
    fn start(most: usize) -> Model {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(most) {
                let mut stream = stream.expect("a connection");
                let mut reader = BufReader::new(stream.try_clone().expect("the same socket"));
                let (mut line, mut length) = (String::new(), 0);
                while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
                    let lower = line.to_lowercase();
                    length = lower.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().expect("n"));
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("the whole body");
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                let (what, says) = reply(body["messages"][0]["content"].as_str().expect("instructions"));
                *log.lock().expect("not poisoned").entry(what).or_default() += 1;
                let reply = json!({ "choices": [{ "message": { "content": says } }] }).to_string();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length:";
                let _ = write!(stream, "{head} {}\r\n\r\n{reply}", reply.len());
            }
            // The listener is dropped here: whoever comes later is refused.
        });
        Model { url, asked }
    }

    fn count(&self, what: &str) -> usize {
        self.asked.lock().expect("not poisoned").get(what).copied().unwrap_or(0)
    }
}

fn reply(system: &str) -> (&'static str, &'static str) {
    let known = [
        ("You mark replies", "marks", r#"{"accuracy": 60, "logic": 80, "format": 40, "fluency": 20}"#),
        ("You check whether", "grade", "high"),
        ("You list what", "elements", "- red discs: 2\n- blue squares: 3"),
        ("You write short", "rewrite", "Goal: count. Observation: two and three. Reasoning: add. Conclusion: five."),
        ("You find the general form", "form", "Goal: what is asked\nSteps: one by one"),
        ("You compare two", "compare", "YES"),
    ];
    let found = known.iter().find(|(start, _, _)| system.starts_with(start));
    found.map_or(("other", "what?"), |(_, what, says)| (what, says))
}

fn recipe(stages: &str) -> String {
    format!(
        "questions_per_step = 2\nanswers_per_question = 3\nsampling = {{ max_new_tokens = 12 }}\n{MODEL}\
         [data]\ntrain = {{ task = \"counting\", rows = 2 }}\n[eval]\nbefore = false\nafter = false\n{stages}"
    )
}

fn column(run: &Path, metric: &str) -> Vec<f64> {
    metrics(run).iter().filter_map(|record| record[metric].as_f64()).collect()
}

#[test]
fn checker_and_refiner_share_lists_and_templates_are_learned() {
    let model = Model::start(usize::MAX);
    let chat = format!("{{ url = \"{}\", model = \"m\", attempts = 1 }}", model.url);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    // Two rows, met in every step; so small a model is never right.
    let stages = format!(
        "[[stage]]\nname = \"switch\"\nsteps = 6\ntarget = {{ template = \"cot\" }}\nselector = {{ kind = \"any_correct\" }}\n\
         rewards = [ {{ kind = \"checker\", judge = {chat}, elements = true }},\n\
         {{ kind = \"accuracy\" }},\n\
         {{ kind = \"judge\", chat = {chat} }} ]\n\
         refiner = {{ writer = {chat}, elements = true, learn_template = true }}\n"
    );
    fs::write(here.join("r.toml"), recipe(&stages)).expect("written");
    succeed(&["train", "r.toml", "--out", "run"], here);
    let run = here.join("run");
    assert_eq!(column(&run, "reward/judge/mean"), [0.5; 6]);
    assert_eq!(column(&run, "reward/unknown_fraction"), [0.0; 6]);
    assert_eq!(model.count("elements"), 2, "one list per row, whoever asks and however often");
    assert!(run.join("cache-elements").is_dir() && run.join("cache-checker").is_dir());
    let written = column(&run, "refiner/num_written");
    assert!(written.iter().sum::<f64>() > 0.0, "{written:?}");
    assert_eq!(model.count("rewrite"), 2, "the same two targets under the same template: {written:?}");
    assert_eq!(column(&run, "refiner/num_failed"), [0.0; 6]);
    let samples = fs::read_to_string(run.join("samples.jsonl")).expect("samples");
    assert!(samples.contains("Goal: count. Observation: two and three."), "{samples}");
    assert_eq!(column(&run, "templates/num_proposed").len(), 6);
    // A killed run hears again what it heard, and asks nothing twice.
    let before = model.asked.lock().expect("not poisoned").clone();
    fs::remove_dir_all(run.join("checkpoints")).expect("removed");
    succeed(&["train", "r.toml", "--out", "run", "--resume"], here);
    assert_eq!(*model.asked.lock().expect("not poisoned"), before);
}

#[test]
fn a_budget_is_that_of_the_run() {
    let model = Model::start(usize::MAX);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let stage = |name: &str, start: &str| {
        format!(
            "[[stage]]\nname = \"{name}\"\nsteps = 2\n{start}rewards = [ {{ kind = \"judge\", chat = {{ url = \"{}\", \
             model = \"m\", max_calls = 15, cache = false }} }} ]\n",
            model.url
        )
    };
    let stages = stage("first", "") + &stage("second", "start = \"base\"\n");
    fs::write(here.join("r.toml"), recipe(&stages)).expect("written");
    succeed(&["train", "r.toml", "--out", "run"], here);
    let run = here.join("run");
    assert_eq!(column(&run, "helper/budget"), [0.0, 0.0, 3.0, 6.0], "6 answers a step, 15 of them paid for");
    assert_eq!(column(&run, "reward/unknown_fraction"), [0.0, 0.0, 0.5, 1.0]);
    assert_eq!(model.count("marks"), 15);
}

#[test]
fn a_judge_that_goes_away_is_unknown_counted_and_ends_the_run_with_a_hint() {
    let model = Model::start(12);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let stage = format!(
        "[[stage]]\nname = \"only\"\nsteps = 9\nmax_unknown = {{ share = 0.2, steps = 4 }}\nrewards = [ {{ kind = \
         \"judge\", chat = {{ url = \"{}\", model = \"m\", attempts = 2, backoff_secs = 0.01, cache = false }} }} ]\n",
        model.url
    );
    fs::write(here.join("r.toml"), recipe(&stage)).expect("written");
    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("50 % of the rewards of the last steps are unknown"), "{told}");
    assert!(told.contains("`judge` (unreachable)") && told.contains("start the server"), "{told}");
    let run = here.join("run");
    assert_eq!(column(&run, "reward/unknown_fraction"), [0.0, 0.0, 1.0]);
    assert_eq!(column(&run, "helper/unreachable"), [0.0, 0.0, 6.0]);
    // Answers without a reward have no advantage: nothing was learned from them.
    assert_eq!(column(&run, "update/num_effective_sequences")[2], 0.0);
}

#[test]
fn a_refiner_that_goes_away_ends_the_run_too() {
    let model = Model::start(5);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let chat = format!("{{ url = \"{}\", model = \"m\", attempts = 1, cache = false }}", model.url);
    let stage = format!(
        "[[stage]]\nname = \"only\"\nsteps = 9\nmax_unknown = {{ share = 0.2, steps = 4 }}\ntarget = {{ template = \"cot\" }}\n\
         selector = {{ kind = \"any_correct\" }}\nrewards = [ {{ kind = \"accuracy\" }} ]\nrefiner = {{ writer = {chat} }}\n"
    );
    fs::write(here.join("r.toml"), recipe(&stage)).expect("written");
    // What the language model writes becomes a data set as well.
    let source = "{ task = \"counting\", rows = 1 }";
    succeed(&["data", "refine", source, "--out", "fine", "--writer", &chat], here);
    assert!(fs::read_to_string(here.join("fine/rows.jsonl")).expect("rows").contains("Goal: count. Observation"));

    let told = refuse(&["train", "r.toml", "--out", "run"], here);
    assert!(told.contains("50 % of the targets of the last steps could not be written anew"), "{told}");
    assert!(told.contains("unreachable: ") && told.contains("start the server"), "{told}");
    let run = here.join("run");
    assert_eq!(column(&run, "refiner/num_failed"), [0.0, 0.0, 2.0], "two targets a step, and the fourth ends it");
}

#[test]
fn another_foveate_is_a_judge() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = folder.path();
    let examples = "[data]\ntrain = { task = \"counting\", rows = 8 }\n[[stage]]\nname = \"examples\"\nrule = { kind = \"sft\" }\n\
                    questions_per_step = 4\nsteps = 2\n";
    // What a judge is told is longer than the questions it learned from.
    let model = MODEL.replace("max_positions = 512", "max_positions = 8192");
    fs::write(here.join("r.toml"), format!("{model}{examples}")).expect("written");
    succeed(&["train", "r.toml", "--out", "judge"], here);
    let mut server = Command::new(env!("CARGO_BIN_EXE_foveate"))
        .args(["serve", "judge/checkpoints/step-000002", "--port", "0", "--name", "tiny"])
        .current_dir(here)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let line = lines.next().expect("a first line").expect("text");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address").to_string();
    std::thread::spawn(move || lines.for_each(drop));
    let chat = format!("{{ url = \"http://{address}/v1\", model = \"tiny\", attempts = 1, max_reply_tokens = 8 }}");
    let stage = format!(
        "[[stage]]\nname = \"only\"\nsteps = 2\nrewards = [ {{ kind = \"checker\", judge = {chat}, fallback = \"local\" }},\n\
         {{ kind = \"judge\", chat = {chat} }} ]\n"
    );
    fs::write(here.join("r.toml"), recipe(&stage)).expect("written");
    // It mumbles: the judge's marks are unknown and counted as garbage, the checker falls back to shared words.
    succeed(&["train", "r.toml", "--out", "run"], here);
    let run = here.join("run");
    assert_eq!(column(&run, "helper/garbage"), [6.0; 2], "{:?}", metrics(&run));
    assert_eq!(column(&run, "reward/unknown_fraction"), [1.0; 2]);
    assert_eq!(column(&run, "reward/checker/mean").len(), 2);
    server.kill().expect("killed");
    server.wait().expect("ended");
    let told = refuse(&["train", "r.toml", "--out", "dead", "--set", "stage.0.steps=9"], here);
    assert!(told.contains("unreachable") && told.contains("start the server"), "{told}");
}
