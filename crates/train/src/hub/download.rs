//! Fetches a model from the hub into the cache that the hub's own programs use: content in `blobs/`, named by checksum,
//! and links to it in `snapshots/COMMIT/`. What breaks off goes on where it was; what is there is whole.
//! Configuration comes first, so that a model too large for this machine is refused before its weights are fetched.
//! Knows the hub's addresses, headers and layout. Cost: the network's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use foveate_model::{ModelError, Precision, plan};
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::sha256::Sha256;
use super::{HubId, is_whole};
use crate::checkpoint::durable::{FileError, write_file};
use crate::net;

/// How far a file is.
pub struct Progress<'a> {
    /// Its name.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// All bytes, if the hub says so.
    pub total: u64,
}

static WATCH: OnceLock<fn(&Progress)> = OnceLock::new();

/// Whom to tell how far downloads are; the first one that is named stays.
pub fn watch(tell: fn(&Progress)) {
    let _ = WATCH.set(tell);
}

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub says no.
    #[error("{problem}")]
    Refused {
        /// In which words.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// The hub, or what it named, gave no usable answer.
    #[error("{url}: {problem}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What went wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// Other bytes arrived than the hub announced.
    #[error("{file} arrived with the checksum {got}, the hub announced {announced}")]
    Damaged {
        /// The file.
        file: String,
        /// What it should have been.
        announced: String,
        /// What it is.
        got: String,
    },
    /// The configuration cannot be used, or the model does not fit into memory.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The cache cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl HubError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            HubError::Refused { hint, .. } | HubError::Unreachable { hint, .. } => Some(hint.clone()),
            HubError::Damaged { .. } => Some("what arrived was thrown away; try again".into()),
            HubError::Model(error) => Some(error.hint()),
            HubError::File(error) => match error.source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("no room is left in the cache; free some, or put it elsewhere with HF_HOME".into())
                }
                _ => error.hint(),
            },
        }
    }
}

/// Where to ask, with what key, and where files go.
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    root: PathBuf,
    agent: Agent,
    pause: Duration,
}

/// A file of the model, as the hub lists it.
struct Listed {
    name: String,
    size: u64,
    /// Name of its content in the cache.
    blob: String,
    /// Whether that name is the content's SHA-256.
    is_sha256: bool,
}

/// Attempts without any progress before it is given up.
const ATTEMPTS: u32 = 4;
/// Redirections that are followed for one file.
const REDIRECTS: usize = 8;
/// The hub's list of a model's files is not read beyond this.
const MAX_LIST: u64 = 16 << 20;

impl Hub {
    /// As the hub's own programs are set up: `HF_ENDPOINT`, `HF_TOKEN` or the token file of a login. Nothing where
    /// `HF_HUB_OFFLINE` forbids the network.
    pub fn from_environment(root: &Path) -> Option<Hub> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let offline = set("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        if ["1", "ON", "YES", "TRUE"].contains(&offline.trim()) {
            return None;
        }
        let file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(super::home()?.join("token")));
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| fs::read_to_string(file?).ok()).map(|token| token.trim().to_string());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Some(Hub::new(&endpoint, token.filter(|token| !token.is_empty()), root, Duration::from_secs(1)))
    }

    /// `pause` is the wait before a second attempt; it doubles.
    pub fn new(endpoint: &str, token: Option<String>, root: &Path, pause: Duration) -> Hub {
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent("foveate");
        let agent = net::agent(settings);
        Hub { endpoint: endpoint.trim_end_matches('/').to_string(), token, root: root.to_path_buf(), agent, pause }
    }

    /// Fetches what is missing of a model; gives the folder of its files.
    pub fn download(&self, id: &HubId) -> Result<PathBuf, HubError> {
        let (commit, files) = self.list(id)?;
        let home = id.home(&self.root);
        let snapshot = home.join("snapshots").join(&commit);
        let (weights, texts): (Vec<&Listed>, Vec<&Listed>) =
            files.iter().partition(|file| file.name.ends_with(".safetensors"));
        for file in texts {
            self.fetch(id, &commit, file, &home, &snapshot)?;
        }
        let weights = self.wanted_weights(&snapshot, weights)?;
        if snapshot.join("config.json").is_file() {
            plan::check_fits(&snapshot, Precision::Auto)?;
        }
        for file in weights {
            self.fetch(id, &commit, file, &home, &snapshot)?;
        }
        if !is_whole(&snapshot) {
            return Err(HubError::Refused {
                problem: "it holds no model that can be used: config.json and safetensors are missing".into(),
                hint: "take a model in the layout of `transformers`, or an adapter in that of PEFT".into(),
            });
        }
        // Last, so that its presence means that everything is there.
        let reference = home.join("refs").join(&id.revision);
        create(reference.parent().unwrap_or(&home))?;
        write_file(&reference, commit.as_bytes())?;
        Ok(snapshot)
    }

    /// The commit, and the files of the model's own folder that can be of use.
    fn list(&self, id: &HubId) -> Result<(String, Vec<Listed>), HubError> {
        let revision = id.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, id.name);
        let mut response = self.ask_redirected(&url, 0)?;
        self.check(id, &url, &response)?;
        let bad = |problem: &str| HubError::Unreachable {
            url: url.clone(),
            problem: problem.into(),
            hint: "check HF_ENDPOINT, and what stands between this machine and the hub".into(),
        };
        let text = response.body_mut().with_config().limit(MAX_LIST).read_to_string();
        let text = text.map_err(|error| bad(&format!("the list of files breaks off: {error}")))?;
        let list: Value = serde_json::from_str(&text).map_err(|_| bad("the answer is no list of files"))?;
        let is_hex = |text: &str| !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let commit = list["sha"].as_str().filter(|sha| is_hex(sha)).ok_or_else(|| bad("the answer names no commit"))?;
        let mut files = Vec::new();
        for entry in list["siblings"].as_array().ok_or_else(|| bad("the answer is no list of files"))? {
            let Some(name) = entry["rfilename"].as_str().filter(|name| is_useful(name)) else { continue };
            let sha256 = entry.pointer("/lfs/sha256").or(entry.pointer("/lfs/oid")).and_then(Value::as_str);
            let blob = sha256.or(entry["blobId"].as_str()).filter(|blob| is_hex(blob));
            let blob = blob.ok_or_else(|| bad(&format!("the answer names no content for {name}")))?;
            files.push(Listed {
                name: name.to_string(),
                size: entry["size"].as_u64().unwrap_or(0),
                blob: blob.to_string(),
                is_sha256: sha256.is_some(),
            });
        }
        Ok((commit.to_string(), files))
    }

    /// One file of weights, or those that the index names: repositories may hold other copies as well.
    fn wanted_weights<'l>(&self, snapshot: &Path, listed: Vec<&'l Listed>) -> Result<Vec<&'l Listed>, HubError> {
        let named = |name: &str| listed.iter().copied().filter(|file| file.name == name).collect::<Vec<_>>();
        let single = named("model.safetensors");
        let adapter = named("adapter_model.safetensors");
        let index = snapshot.join("model.safetensors.index.json");
        let wanted = match fs::read_to_string(&index).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
            _ if !single.is_empty() => single,
            Some(index) => {
                let shards =
                    index["weight_map"].as_object().map(|map| map.values().filter_map(Value::as_str).collect());
                let shards: std::collections::BTreeSet<&str> = shards.unwrap_or_default();
                listed.iter().copied().filter(|file| shards.contains(file.name.as_str())).collect()
            }
            None => adapter,
        };
        if wanted.is_empty() {
            return Err(HubError::Refused {
                problem: "it has no weights as safetensors".into(),
                hint: "other formats can run code while they are read; take a revision or a copy with safetensors"
                    .into(),
            });
        }
        Ok(wanted)
    }

    /// Brings one file into the cache, unless it is there.
    fn fetch(&self, id: &HubId, commit: &str, file: &Listed, home: &Path, snapshot: &Path) -> Result<(), HubError> {
        let blob = home.join("blobs").join(&file.blob);
        if !blob.is_file() {
            create(&home.join("blobs"))?;
            let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, id.name, file.name);
            let partial = home.join("blobs").join(format!("{}.incomplete", file.blob));
            self.fetch_content(id, &url, file, &partial)?;
            fs::rename(&partial, &blob).map_err(FileError::new("write", &blob))?;
        }
        create(snapshot)?;
        let link = snapshot.join(&file.name);
        if link.is_file() {
            return Ok(());
        }
        // A link that leads nowhere is what a deleted blob leaves behind.
        let _ = fs::remove_file(&link);
        let target = Path::new("../../blobs").join(&file.blob);
        std::os::unix::fs::symlink(&target, &link)
            .or_else(|_| fs::copy(&blob, &link).map(|_| ()))
            .map_err(FileError::new("write", &link))?;
        Ok(())
    }

    /// Fetches into `partial` until all is there, from where an earlier attempt broke off.
    fn fetch_content(&self, id: &HubId, url: &str, file: &Listed, partial: &Path) -> Result<(), HubError> {
        let failed = |error: io::Error| HubError::File(FileError::new("write", partial)(error));
        let mut out = File::options().create(true).append(true).open(partial).map_err(failed)?;
        if out.try_lock().is_err() {
            return Err(HubError::Refused {
                problem: format!("another program is fetching {} right now", file.name),
                hint: "wait for it, then try again".into(),
            });
        }
        let mut failures = 0;
        loop {
            let have = out.metadata().map_err(failed)?.len();
            if have > file.size && file.size > 0 {
                out.set_len(0).map_err(failed)?;
                continue;
            }
            if have == file.size && have > 0 {
                break;
            }
            let problem = match self.ask_redirected(url, have) {
                Ok(response) => {
                    let status = response.status().as_u16();
                    if !matches!(status, 200 | 206 | 408 | 416 | 429 | 500..) {
                        self.check(id, url, &response)?;
                    }
                    match status {
                        200 | 206 => {
                            if status == 200 && have > 0 {
                                // The server does not know ranges: from the start.
                                out.set_len(0).map_err(failed)?;
                            }
                            let before = out.metadata().map_err(failed)?.len();
                            match self.append(response, file, &mut out, before) {
                                Ok(now) if now == file.size || file.size == 0 => break,
                                Ok(now) => {
                                    failures = if now > before { 0 } else { failures };
                                    "it broke off".to_string()
                                }
                                Err(error) if is_disk(&error) => return Err(failed(error)),
                                Err(error) => {
                                    let now = out.metadata().map_err(failed)?.len();
                                    failures = if now > before { 0 } else { failures };
                                    error.to_string()
                                }
                            }
                        }
                        416 => {
                            out.set_len(0).map_err(failed)?;
                            "what was there did not fit".to_string()
                        }
                        status => format!("status {status}"),
                    }
                }
                Err(HubError::Unreachable { problem, .. }) => problem,
                Err(other) => return Err(other),
            };
            failures += 1;
            if failures >= ATTEMPTS {
                return Err(HubError::Unreachable {
                    url: url.to_string(),
                    problem,
                    hint: "what arrived is kept; the same command goes on from there".into(),
                });
            }
            std::thread::sleep(self.pause * 2u32.pow(failures - 1));
        }
        out.sync_all().map_err(failed)?;
        if file.is_sha256 {
            let got = sum(partial).map_err(failed)?;
            if got != file.blob {
                fs::remove_file(partial).map_err(failed)?;
                return Err(HubError::Damaged { file: file.name.clone(), announced: file.blob.clone(), got });
            }
        }
        Ok(())
    }

    /// Writes what arrives behind what is there; gives the length of both.
    fn append(&self, response: Response<Body>, file: &Listed, out: &mut File, have: u64) -> io::Result<u64> {
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 16];
        let mut done = have;
        loop {
            let tell = WATCH.get();
            tell.inspect(|tell| tell(&Progress { file: &file.name, done, total: file.size }));
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(done),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io::Error::other(error.to_string())),
            };
            done += count as u64;
            if file.size > 0 && done > file.size {
                return Err(io::Error::other("more arrives than the hub announced"));
            }
            out.write_all(&buffer[..count])?;
        }
    }

    /// One request; the key goes to the hub alone.
    fn ask(&self, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        if let Some((problem, hint)) = net::unreachable(url) {
            return Err(HubError::Refused { problem, hint: hint.to_string() });
        }
        let mut request = self.agent.get(url);
        let rest = url.strip_prefix(self.endpoint.as_str());
        if let (Some(token), true) = (&self.token, rest.is_some_and(|rest| rest.starts_with('/'))) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let offline = "check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what is in the cache";
        request.call().map_err(|error| HubError::Unreachable {
            url: url.to_string(),
            problem: error.to_string(),
            hint: offline.to_string(),
        })
    }

    /// The same, following redirections.
    fn ask_redirected(&self, url: &str, from: u64) -> Result<Response<Body>, HubError> {
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let response = self.ask(&url, from)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let place = response.headers().get("location").and_then(|place| place.to_str().ok()).unwrap_or_default();
            url = match place {
                whole if whole.contains("://") => whole.to_string(),
                path if path.starts_with('/') => {
                    let host = url.find("://").and_then(|at| url[at + 3..].find('/').map(|end| at + 3 + end));
                    format!("{}{path}", &url[..host.unwrap_or(url.len())])
                }
                _ => break,
            };
        }
        Err(HubError::Unreachable {
            url,
            problem: "it redirects without end".into(),
            hint: "check HF_ENDPOINT, and what stands between this machine and the hub".into(),
        })
    }

    /// What the hub means by a status that is no success.
    fn check(&self, id: &HubId, url: &str, response: &Response<Body>) -> Result<(), HubError> {
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(());
        }
        let header =
            |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let refused = |problem: &str, hint: String| Err(HubError::Refused { problem: problem.to_string(), hint });
        let login = match &self.token {
            None => "check the spelling; for a private or gated model set HF_TOKEN, or log in with `hf auth login`",
            Some(_) => "check the spelling, and whether your token may read it",
        };
        match (status, header("x-error-code")) {
            (_, "RevisionNotFound") => refused(
                &format!("it has no revision {:?}", id.revision),
                "check the branch, tag or commit behind @".into(),
            ),
            (_, "GatedRepo") => refused(
                "access to it must be granted",
                format!("ask for it at {}/{}, then set HF_TOKEN", self.endpoint, id.name),
            ),
            (401 | 403 | 404, _) => {
                refused(&format!("it has no such model for you (status {status})"), login.to_string())
            }
            _ => Err(HubError::Unreachable {
                url: url.to_string(),
                problem: format!("status {status}"),
                hint: "the hub may be overloaded; try again later".into(),
            }),
        }
    }
}

/// Files of a model's own folder that Foveate reads, or that travel with the model.
fn is_useful(name: &str) -> bool {
    let plain =
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) && !name.starts_with('.');
    let ending = [".json", ".jinja", ".safetensors"].iter().any(|end| name.ends_with(end));
    plain && (ending || name == "merges.txt")
}

/// Whether the cache's own disk refused, which no second attempt mends.
fn is_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    [FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull].contains(&error.kind())
}

fn create(folder: &Path) -> Result<(), HubError> {
    Ok(fs::create_dir_all(folder).map_err(FileError::new("create the folder", folder))?)
}

/// SHA-256 of a file.
fn sum(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = Sha256::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum.finish()),
            count => sum.add(&buffer[..count]),
        }
    }
}
