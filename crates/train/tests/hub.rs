//! Models fetched from a hub: a real HTTP server on this machine plays the hub and the place it redirects to.
//! The cache that comes out is the one the hub's own programs write; what fails is told, resumed or refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foveate_model::{Policy, Precision};
use foveate_train::hub::sha256::Sha256;
use foveate_train::hub::{Hub, HubError, HubId};
use serde_json::{Value, json};

/// A request: path with query, and headers in lower case.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    headers: BTreeMap<String, String>,
}

/// What is answered: status, headers, body, and after how many bytes the connection breaks.
struct Reply(u16, Vec<(&'static str, String)>, Vec<u8>, Option<usize>);

type Log = Arc<Mutex<Vec<Asked>>>;

fn server(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let log = Log::default();
    let (answer, kept) = (Arc::new(answer), log.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), answer, kept) = (stream, answer.clone(), kept.clone()) else { return };
            std::thread::spawn(move || serve(stream, &*answer, &kept));
        }
    });
    (url, log)
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&Asked, usize) -> Reply, log: &Log) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_string();
    let headers = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string())))
        .collect();
    let asked = Asked { path, headers };
    let times = {
        let mut log = log.lock().unwrap();
        log.push(asked.clone());
        log.iter().filter(|other| other.path == asked.path).count()
    };
    let Reply(status, headers, body, breaks) = answer(&asked, times);
    let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let _ = stream.write_all((head + "\r\n").as_bytes());
    let _ = stream.write_all(&body[..breaks.unwrap_or(body.len())]);
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn sum(bytes: &[u8]) -> String {
    let mut sum = Sha256::default();
    sum.add(bytes);
    sum.finish()
}

fn fixture(name: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    let entry = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
    fs::read_dir(folder).unwrap().map(|found| entry(found.unwrap().path())).collect()
}

/// The hub's list of a model's files: weights by SHA-256, others by a checksum of another kind.
fn list(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let listed = |(name, bytes): (&String, &Vec<u8>)| {
        let mut entry = json!({"rfilename": name, "size": bytes.len(), "blobId": &sum(name.as_bytes())[..40]});
        if name.ends_with(".safetensors") {
            entry["lfs"] = json!({"sha256": sum(bytes), "size": bytes.len(), "pointerSize": 134});
        }
        entry
    };
    let mut siblings: Vec<Value> = files.iter().map(listed).collect();
    // What is of no use, and what is hostile.
    for name in ["README.md", "onnx/model.onnx", "../../evil.json", "pytorch_model.bin", ".gitattributes"] {
        siblings.push(json!({"rfilename": name, "size": 5, "blobId": "00"}));
    }
    json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes()
}

/// A hub that holds `org/tiny`; weights are redirected to `storage`.
fn hub_of(files: BTreeMap<String, Vec<u8>>, storage: String) -> (String, Log) {
    server(move |asked, _| {
        if asked.path == "/api/models/org/tiny/revision/main?blobs=true" {
            return Reply(200, vec![], list(&files), None);
        }
        let Some(name) = asked.path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")) else {
            return Reply(404, vec![("x-error-code", "RepoNotFound".into())], vec![], None);
        };
        if name.ends_with(".safetensors") {
            return Reply(302, vec![("location", format!("{storage}/{name}?signed=1"))], vec![], None);
        }
        Reply(200, vec![], files[name].clone(), None)
    })
}

fn open(url: &str, token: Option<&str>, root: &Path) -> Hub {
    Hub::new(url, token.map(str::to_string), root, Duration::from_millis(1))
}

fn tiny() -> HubId {
    HubId::parse("org/tiny").unwrap()
}

#[test]
fn a_model_is_fetched_into_the_layout_of_the_hubs_own_cache() {
    let files = fixture("qwen2_5_vl");
    assert!(files.keys().filter(|name| name.ends_with(".safetensors")).count() > 1, "a model in shards");
    let stored = files.clone();
    let (storage, storage_log) = server(move |asked, _| {
        let name = asked.path.trim_start_matches('/').split('?').next().unwrap();
        Reply(200, vec![], stored[name].clone(), None)
    });
    let (url, log) = hub_of(files.clone(), storage);
    let root = tempfile::tempdir().unwrap();
    let hub = open(&format!("{url}/"), Some("secret"), root.path());
    assert_eq!(tiny().cached(root.path()), None);
    let folder = hub.download(&tiny()).unwrap();

    let home = root.path().join("models--org--tiny");
    assert_eq!(folder, home.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(home.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(tiny().cached(root.path()), Some(folder.clone()));
    for (name, bytes) in &files {
        assert_eq!(&fs::read(folder.join(name)).unwrap(), bytes, "{name}");
        let link = fs::read_link(folder.join(name)).unwrap();
        assert!(link.starts_with("../../blobs"), "{link:?}");
        if name.ends_with(".safetensors") {
            assert_eq!(link.file_name().unwrap().to_str().unwrap(), sum(bytes));
        }
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), files.len(), "nothing else was fetched");
    assert!(!root.path().parent().unwrap().join("evil.json").exists());
    Policy::load(&folder, Precision::F32).unwrap();

    // The key goes to the hub, and to nobody else.
    assert!(log.lock().unwrap().iter().all(|asked| asked.headers["authorization"] == "Bearer secret"));
    assert!(storage_log.lock().unwrap().iter().all(|asked| !asked.headers.contains_key("authorization")));
    // Everything is there: a second call asks for the list alone.
    let before = log.lock().unwrap().len();
    hub.download(&tiny()).unwrap();
    assert_eq!(log.lock().unwrap().len(), before + 1);
}

#[test]
fn what_breaks_off_goes_on_where_it_was() {
    let files = fixture("llama");
    let weights = files["model.safetensors"].clone();
    let total = weights.len();
    let (storage, storage_log) = server(move |asked, times| {
        let from = asked
            .headers
            .get("range")
            .map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
        let status = if from > 0 { 206 } else { 200 };
        match times {
            1 => Reply(200, vec![], weights.clone(), Some(total / 3)),
            2 => Reply(503, vec![], b"busy".to_vec(), None),
            3 => Reply(status, vec![], weights[from..].to_vec(), Some(total / 3)),
            _ => Reply(status, vec![], weights[from..].to_vec(), None),
        }
    });
    let (url, _) = hub_of(files.clone(), storage);
    let root = tempfile::tempdir().unwrap();
    let folder = open(&url, None, root.path()).download(&tiny()).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), files["model.safetensors"]);
    let log = storage_log.lock().unwrap();
    let ranges: Vec<Option<&str>> = log.iter().map(|asked| asked.headers.get("range").map(String::as_str)).collect();
    let third = |n: usize| format!("bytes={}-", n * (total / 3));
    assert_eq!(ranges, [None, Some(&*third(1)), Some(&*third(1)), Some(&*third(2))]);
}

#[test]
fn wrong_bytes_are_thrown_away_and_never_become_a_model() {
    let files = fixture("llama");
    let mut wrong = files["model.safetensors"].clone();
    *wrong.last_mut().unwrap() ^= 1;
    let (storage, _) = server(move |_, _| Reply(200, vec![], wrong.clone(), None));
    let (url, _) = hub_of(files, storage);
    let root = tempfile::tempdir().unwrap();
    let error = open(&url, None, root.path()).download(&tiny()).unwrap_err();
    assert!(matches!(&error, HubError::Damaged { file, .. } if file == "model.safetensors"), "{error}");
    assert_eq!(tiny().cached(root.path()), None);
    let left = fs::read_dir(root.path().join("models--org--tiny/blobs")).unwrap();
    assert!(left.map(|entry| entry.unwrap().path()).all(|path| path.extension().is_none()), "a partial file is left");
    // A server that never gives anything is given up, and what to do is told.
    let (storage, log) = server(|_, _| Reply(500, vec![], vec![], None));
    let (url, _) = hub_of(fixture("llama"), storage);
    let error = open(&url, None, root.path()).download(&tiny()).unwrap_err();
    assert!(error.to_string().contains("status 500") && error.hint().unwrap().contains("goes on"), "{error}");
    assert_eq!(log.lock().unwrap().len(), 4);
}

#[test]
fn refusals_are_told_apart() {
    let said = |status: u16, code: &'static str, token: Option<&str>| {
        let (url, _) = server(move |_, _| Reply(status, vec![("x-error-code", code.into())], vec![], None));
        let root = tempfile::tempdir().unwrap();
        let error = open(&url, token, root.path()).download(&tiny()).unwrap_err();
        format!("{error} | {}", error.hint().unwrap())
    };
    assert!(said(401, "RepoNotFound", None).contains("HF_TOKEN"));
    assert!(said(404, "RepoNotFound", Some("key")).contains("your token"));
    assert!(said(404, "RevisionNotFound", None).contains("no revision \"main\""));
    assert!(said(403, "GatedRepo", Some("key")).contains("access to it must be granted"));
    assert!(said(500, "", None).contains("overloaded"));
    let (url, _) = server(|_, _| Reply(200, vec![], b"<html>log in</html>".to_vec(), None));
    let root = tempfile::tempdir().unwrap();
    let error = open(&url, None, root.path()).download(&tiny()).unwrap_err();
    assert!(error.to_string().contains("no list of files"), "{error}");
    let (url, _) =
        server(|_, _| Reply(200, vec![], json!({"sha": "../../x", "siblings": []}).to_string().into_bytes(), None));
    let error = open(&url, None, root.path()).download(&tiny()).unwrap_err();
    assert!(error.to_string().contains("names no commit"), "{error}");
    let mut files = fixture("llama");
    files.remove("model.safetensors");
    let (url, _) = hub_of(files, String::new());
    let error = open(&url, None, root.path()).download(&tiny()).unwrap_err();
    assert!(error.to_string().contains("no weights as safetensors"), "{error}");
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = open(&format!("http://{free}"), None, root.path()).download(&tiny()).unwrap_err();
    assert!(error.hint().unwrap().contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn a_model_too_large_for_this_machine_is_refused_before_its_weights_are_fetched() {
    let mut files = fixture("llama");
    let mut config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    for (key, size) in [("hidden_size", 65536), ("intermediate_size", 262144), ("num_hidden_layers", 400)] {
        config[key] = size.into();
    }
    config["num_attention_heads"] = 64.into();
    config["num_key_value_heads"] = 64.into();
    config["head_dim"] = 1024.into();
    files.insert("config.json".into(), config.to_string().into_bytes());
    let (storage, log) = server(|_, _| Reply(500, vec![], vec![], None));
    let (url, _) = hub_of(files, storage);
    let root = tempfile::tempdir().unwrap();
    let error = open(&url, None, root.path()).download(&tiny()).unwrap_err();
    assert!(matches!(error, HubError::Model(foveate_model::ModelError::TooLarge { .. })), "{error}");
    assert!(log.lock().unwrap().is_empty());
}
