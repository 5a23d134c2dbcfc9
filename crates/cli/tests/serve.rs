//! The server as clients meet it: a real process on a free port, spoken to in plain HTTP.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{folder_with, succeed};

/// A model that has learned nothing much: what it says does not matter here.
const RECIPE: &str = r#"
[data]
train = { task = "counting", rows = 8 }
[[stage]]
name = "examples"
rule = { kind = "sft" }
questions_per_step = 4
steps = 2
"#;

/// A running server; killed when it goes out of scope.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(here: &Path, more: &[&str]) -> Server {
        let args = [&["serve", "run/checkpoints/step-000002", "--port", "0", "--name", "tiny"][..], more].concat();
        let mut child = Command::new(env!("CARGO_BIN_EXE_foveate"))
            .args(args)
            .current_dir(here)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines.next().expect("a first line").expect("text");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
        let address = address.to_string();
        // Read on, or the server would stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }

    /// Sends bytes as they are and reads until the other side closes.
    fn raw(&self, text: &[u8]) -> String {
        let mut socket = TcpStream::connect(&self.address).expect("it listens");
        socket.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        socket.write_all(text).expect("sent");
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        let answer = self.raw(format!("{head}{body}").as_bytes());
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_string())
    }

    fn chat(&self, body: &Value) -> (u16, Value) {
        let (status, text) = self.request("POST", "/v1/chat/completions", "", &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {error}: {text}")))
    }

    /// The events of a streamed answer.
    fn stream(&self, body: &Value) -> Vec<String> {
        let (status, text) = self.request("POST", "/v1/chat/completions", "", &body.to_string());
        assert_eq!(status, 200, "{text}");
        text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_string).collect()
    }
}

fn folder() -> tempfile::TempDir {
    let folder = folder_with(RECIPE);
    succeed(&["train", "r.toml", "--out", "run"], folder.path());
    folder
}

fn ask(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 12});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// A small red PNG, as base64.
const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg==";

#[test]
fn answers_whole_streamed_and_about_pictures() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let (status, list) = server.request("GET", "/v1/models", "", "");
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((status, &list["data"][0]["id"]), (200, &json!("tiny")));
    assert_eq!(server.request("GET", "/v1/models/tiny", "", "").0, 200);
    assert_eq!(server.request("GET", "/health", "", "").0, 200);

    let greedy = ask("How many?", json!({"temperature": 0}));
    let (status, whole) = server.chat(&greedy);
    assert_eq!(status, 200, "{whole}");
    assert_eq!((&whole["object"], &whole["model"]), (&json!("chat.completion"), &json!("tiny")));
    let usage = &whole["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
    assert!(["stop", "length"].contains(&whole["choices"][0]["finish_reason"].as_str().unwrap()));

    let streaming = json!({"temperature": 0, "stream": true, "stream_options": {"include_usage": true}});
    let events = server.stream(&ask("How many?", streaming));
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let pieces = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), content(&whole));
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert_eq!(chunks.last().unwrap()["usage"], *usage);

    // The same seed says the same; several answers to one question differ.
    let drawn = ask("How many?", json!({"seed": 4, "n": 3, "temperature": 2.0, "logprobs": true}));
    let (first, second) = (server.chat(&drawn).1, server.chat(&drawn).1);
    assert_eq!(first["choices"], second["choices"]);
    assert_eq!(first["choices"].as_array().unwrap().len(), 3);
    let tokens = first["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert!(!tokens.is_empty() && tokens.iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0));

    let url = format!("data:image/png;base64,{PNG}");
    let picture = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "How many?"}]);
    let (status, seen) = server.chat(&json!({"model": "tiny", "max_tokens": 4, "messages": [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": picture}]}));
    assert_eq!(status, 200, "{seen}");
    assert!(seen["usage"]["prompt_tokens"].as_u64() > usage["prompt_tokens"].as_u64(), "the picture takes tokens");
}

#[test]
fn what_cannot_be_answered_is_refused_in_the_protocols_words() {
    let folder = folder();
    let here = folder.path();
    std::fs::write(here.join("a.png"), b"no picture").unwrap();
    let server = Server::start(here, &["--max-body-mib", "1", "--max-new-tokens", "40", "--cache-tokens", "200"]);
    let image = |url: &str| {
        let part = json!([{"type": "image_url", "image_url": {"url": url}}]);
        json!({"model": "tiny", "messages": [{"role": "user", "content": part}]})
    };
    for (body, status, told) in [
        (ask("x", json!({"model": "other"})), 404, "other"),
        (ask("x", json!({"max_tokens": 41})), 400, "40"),
        (ask("x", json!({"n": 6, "max_tokens": 40})), 400, "this server keeps 200"),
        (ask("x", json!({"tools": [{"type": "function"}]})), 400, "tools"),
        (ask("<image>", json!({})), 400, "control token"),
        (ask("<end_of_utterance>", json!({})), 400, "control token"),
        (ask(&"many words ".repeat(400), json!({})), 400, "tokens"),
        (image("a.png"), 400, "not allowed"),
        (image("https://x/a.png"), 400, "fetches nothing"),
        (image("data:image/png;base64,Zm9v"), 400, "image"),
    ] {
        let (found, answer) = server.chat(&body);
        assert_eq!(found, status, "{body}: {answer}");
        let error = &answer["error"];
        assert!(error["message"].as_str().unwrap().contains(told), "{told}: {answer}");
        assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some());
    }
    let (status, text) = server.request("POST", "/v1/chat/completions", "", "{\"model\"");
    assert!(status == 400 && text.contains("no JSON"), "{status} {text}");
    let (status, text) = server.request("GET", "/v1/chat/completions", "", "");
    assert!(status == 405 && text.contains("\"error\""), "{status} {text}");
    let (status, text) = server.request("GET", "/nothing", "", "");
    assert!(status == 404 && text.contains("\"error\""), "{status} {text}");
    let (status, _) = server.request("POST", "/v1/chat/completions", "", &"x".repeat(1 << 20 | 1));
    assert_eq!(status, 413);
    // After all of that it still answers.
    assert_eq!(server.chat(&ask("x", json!({}))).0, 200);
}

#[test]
fn keys_are_asked_for_and_pictures_read_where_that_is_allowed() {
    let folder = folder();
    let here = folder.path();
    let bytes = succeed(&["data", "make", "{ task = \"counting\", rows = 1 }", "--out", "pictures"], here);
    assert!(bytes.contains("rows"), "{bytes}");
    let picture = std::fs::read_dir(here.join("pictures/images")).unwrap().next().unwrap().unwrap().file_name();
    let server = Server::start(here, &["--api-key", "secret", "--images-from", "pictures"]);
    assert_eq!(server.request("GET", "/v1/models", "", "").0, 401);
    assert_eq!(server.request("GET", "/v1/models", "Authorization: Bearer secres\r\n", "").0, 401);
    let key = "Authorization: Bearer secret\r\n";
    assert_eq!(server.request("GET", "/v1/models", key, "").0, 200);
    let ask = |url: &str| {
        let part = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]);
        let body = json!({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": part}]});
        server.request("POST", "/v1/chat/completions", key, &body.to_string())
    };
    let (status, text) = ask(&format!("images/{}", picture.to_string_lossy()));
    assert_eq!(status, 200, "{text}");
    assert_eq!(ask("../r.toml").0, 400);
}

#[test]
fn many_clients_at_once_get_what_each_would_get_alone() {
    let folder = folder();
    let server = Server::start(folder.path(), &["--queue", "12"]);
    let questions: Vec<Value> = (0..8)
        .map(|i| ask(&format!("What is {i}?"), json!({"seed": i, "max_tokens": 20, "temperature": 1.5})))
        .collect();
    let alone: Vec<Value> = questions.iter().map(|question| server.chat(question).1["choices"].clone()).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let server = &server;
        let asked: Vec<_> =
            questions.iter().map(|question| scope.spawn(move || server.chat(question).1["choices"].clone())).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);

    // More than the queue holds: some are sent away, all others are answered, nobody waits for ever.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let server = &server;
        let long = ask("Tell me more.", json!({"max_tokens": 300, "temperature": 2.0}));
        let asked: Vec<_> = (0..30)
            .map(|_| {
                let long = long.clone();
                scope.spawn(move || server.chat(&long).0)
            })
            .collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&200), "{statuses:?}");
    assert_eq!(server.chat(&ask("x", json!({}))).0, 200);
}

#[test]
#[cfg(unix)]
fn ctrl_c_lets_running_answers_finish() {
    let folder = folder();
    let mut server = Server::start(folder.path(), &[]);
    let long = ask("Tell me more.", json!({"max_tokens": 400, "temperature": 2.0, "stream": true}));
    let body = long.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(&server.address).unwrap();
    socket.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 1];
    socket.read_exact(&mut first).expect("the answer has begun");
    Command::new("kill").args(["-INT", &server.child.id().to_string()]).status().expect("kill exists");
    let mut rest = String::new();
    socket.read_to_string(&mut rest).expect("the answer is finished");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let began = Instant::now();
    let status = loop {
        match server.child.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(began.elapsed() < Duration::from_secs(20), "the server does not end"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    assert!(TcpStream::connect(&server.address).is_err(), "nobody listens any more");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let folder = folder();
    let here = folder.path();
    let model = "run/checkpoints/step-000002";
    let told = support::refuse(&["serve", model, "--batch", "0"], here);
    assert!(told.contains("a limit is 0"), "{told}");
    let told = support::refuse(&["serve", model, "--images-from", "none"], here);
    assert!(told.contains("none is no folder"), "{told}");
    let told = support::refuse(&["serve", "none"], here);
    assert!(told.contains("neither a built-in model nor a folder"), "{told}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let told = support::refuse(&["serve", model, "--port", &port], here);
    assert!(told.contains("cannot listen"), "{told}");
}
