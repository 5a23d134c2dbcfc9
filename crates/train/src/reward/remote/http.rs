//! HTTP to helpers: one POST of JSON with time limit, retries and back-off, and rewards that an endpoint gives.
//! Knows URLs and status codes.
//! Cost: the helper's; a few requests at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use ureq::Agent;

use super::super::spec::HttpSpec;
use super::{Asked, Failure, FailureKind, Scores, SetupError, all_failed, read_scores, request};
use crate::net;

/// How a request is made.
#[derive(Clone, Debug)]
pub struct Caller {
    agent: Agent,
    url: String,
    /// Sent as `Authorization: Bearer ...`.
    key: Option<String>,
    attempts: u32,
    backoff: Duration,
}

/// Replies beyond this are not read.
const MAX_REPLY: u64 = 4 << 20;

impl Caller {
    /// Refuses URLs that this build cannot reach.
    pub fn new(
        name: &str,
        url: &str,
        key_variable: Option<&str>,
        timeout_secs: f64,
        attempts: u32,
        backoff_secs: f64,
    ) -> Result<Self, SetupError> {
        let refuse =
            |problem: String, hint: &str| Err(SetupError { name: name.to_string(), problem, hint: hint.to_string() });
        if let Some((problem, hint)) = net::unreachable(url) {
            return refuse(problem, hint);
        }
        let key = match key_variable {
            None => None,
            Some(variable) => match std::env::var(variable) {
                Ok(key) => Some(key),
                Err(_) => {
                    return refuse(format!("the environment has no {variable}"), "set it, or leave key_variable out");
                }
            },
        };
        let settings = Agent::config_builder()
            .timeout_global(Some(Duration::from_secs_f64(timeout_secs)))
            .http_status_as_error(false)
            .proxy(None);
        let backoff = Duration::from_secs_f64(backoff_secs);
        Ok(Self { agent: net::agent(settings), url: url.to_string(), key, attempts, backoff })
    }

    /// Posts `body` and reads JSON back. Overload, server errors and broken connections are tried again, with twice the
    /// wait each time; an answer that says no is not.
    pub fn post(&self, body: &Value) -> Result<Value, Failure> {
        let text = body.to_string();
        let mut wait = self.backoff;
        let mut attempt = 1;
        loop {
            match self.once(&text) {
                Err((failure, true)) if attempt < self.attempts => {
                    tracing::debug!("attempt {attempt}: {}", failure.detail);
                    std::thread::sleep(wait);
                    wait *= 2;
                    attempt += 1;
                }
                Err((failure, _)) => return Err(failure),
                Ok(reply) => return Ok(reply),
            }
        }
    }

    /// One attempt; the flag says whether another one may help.
    fn once(&self, text: &str) -> Result<Value, (Failure, bool)> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let broken = |error: ureq::Error| {
            let kind = match &error {
                ureq::Error::Timeout(_) => FailureKind::Timeout,
                ureq::Error::Protocol(_) | ureq::Error::BodyExceedsLimit(_) => FailureKind::Garbage,
                _ => FailureKind::Unreachable,
            };
            (Failure::new(kind, format!("{}: {error}", self.url)), true)
        };
        let mut response = request.send(text).map_err(broken)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_REPLY).read_to_string().map_err(broken)?;
        if status != 200 {
            let again = status == 429 || status == 408 || status >= 500;
            return Err((Failure::new(FailureKind::Refused, format!("{}: status {status}: {body}", self.url)), again));
        }
        serde_json::from_str(&body).map_err(|_| (Failure::new(FailureKind::Garbage, format!("{body:?}")), false))
    }
}

/// Runs `work` on every index below `count`, at most `concurrency` at a time; results in order.
pub fn at_most<T: Send>(concurrency: usize, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    std::thread::scope(|scope| {
        // Threads of their own: they wait for the network, and rayon's would wait with them.
        let workers: Vec<_> = (0..concurrency.clamp(1, count.max(1)))
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count {
                            return done;
                        }
                        done.push((index, work(index)));
                    }
                })
            })
            .collect();
        for worker in workers {
            for (index, result) in worker.join().expect("a worker never panics") {
                results[index] = Some(result);
            }
        }
    });
    results.into_iter().map(|result| result.expect("every index was taken once")).collect()
}

/// A reward that an HTTP endpoint gives: what a plug-in reads, as the body of a POST.
pub struct Endpoint {
    name: String,
    caller: Caller,
    concurrency: usize,
}

impl Endpoint {
    /// Nothing is asked yet.
    pub fn new(spec: &HttpSpec) -> Result<Self, SetupError> {
        let key = spec.key_variable.as_deref();
        let caller = Caller::new(&spec.name, &spec.url, key, spec.timeout_secs, spec.attempts, spec.backoff_secs)?;
        Ok(Self { name: spec.name.clone(), caller, concurrency: spec.concurrency })
    }

    /// Scores all groups, a few at a time.
    pub fn score(&self, groups: &[Asked<'_>]) -> Vec<Scores> {
        at_most(self.concurrency, groups.len(), |index| {
            let asked = &groups[index];
            let mut body = request(asked);
            body["reward"] = json!(self.name);
            match self.caller.post(&body) {
                Ok(reply) => read_scores(&reply, asked),
                Err(failure) => all_failed(asked, &failure),
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use foveate_tasks::row::Answer;

    use super::super::super::tests::row;
    use super::*;

    /// What the server has been asked so far.
    pub type Log = Arc<Mutex<Vec<Value>>>;

    /// A real HTTP server on a port of its own. `answer` gets the number of the request and its body, and gives a status
    /// and a body; no answer at all closes the connection.
    pub fn server(answer: impl Fn(usize, &Value) -> Option<(u16, String)> + Send + Sync + 'static) -> (String, Log) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/score", listener.local_addr().expect("an address"));
        let log: Log = Arc::default();
        let (answer, kept) = (Arc::new(answer), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), answer, kept) = (stream, answer.clone(), kept.clone()) else { return };
                std::thread::spawn(move || serve(stream, &*answer, &kept));
            }
        });
        (url, log)
    }

    /// Status and body of a reply, from the number of the request and its body.
    type Reply = dyn Fn(usize, &Value) -> Option<(u16, String)>;

    fn serve(stream: TcpStream, answer: &Reply, log: &Log) {
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        loop {
            let (mut length, mut line) = (0, String::new());
            while reader.read_line(&mut line).is_ok_and(|count| count > 2) {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if length == 0 || reader.read_exact(&mut body).is_err() {
                return;
            }
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let number = {
                let mut log = log.lock().expect("not poisoned");
                log.push(body.clone());
                log.len() - 1
            };
            let Some((status, text)) = answer(number, &body) else { return };
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", text.len());
            if (&stream).write_all((head + &text).as_bytes()).is_err() {
                return;
            }
        }
    }

    fn endpoint(url: &str, timeout_secs: f64) -> Endpoint {
        let spec = HttpSpec {
            name: "mine".into(),
            url: url.into(),
            timeout_secs,
            attempts: 3,
            backoff_secs: 0.01,
            concurrency: 4,
            ..HttpSpec::default()
        };
        Endpoint::new(&spec).expect("a plain url")
    }

    #[test]
    fn an_endpoint_scores_groups_and_overload_is_waited_for() {
        // Every first attempt fails; the scores depend on the completion, so that mixed up groups would show.
        let (url, log) = server(|number, body| match number {
            0 => Some((503, "busy".into())),
            1 => None,
            _ => {
                let scores: Vec<f64> = body["completions"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|text| text.as_str().expect("text").len() as f64)
                    .collect();
                Some((200, json!({ "scores": scores }).to_string()))
            }
        });
        let row = row(Answer::Number("5".into()));
        let texts: Vec<String> = (0..20).map(|i| "x".repeat(i)).collect();
        let groups: Vec<Asked> = texts.iter().map(|text| Asked { row: &row, texts: vec![text, "ab"] }).collect();
        let scores = endpoint(&url, 20.0).score(&groups);
        for (index, scores) in scores.iter().enumerate() {
            assert_eq!(scores, &[Ok(index as f32), Ok(2.0)]);
        }
        assert_eq!(log.lock().expect("not poisoned").len(), 22);
    }

    #[test]
    fn failures_are_told_apart() {
        let row = row(Answer::Number("5".into()));
        let asked = [Asked { row: &row, texts: vec!["a"] }];
        let kind = |url: &str, timeout: f64| match endpoint(url, timeout).score(&asked).remove(0).remove(0) {
            Err(failure) => failure.kind,
            Ok(score) => panic!("{score}"),
        };
        let (refuses, log) = server(|_, _| Some((401, "no key".into())));
        assert_eq!(kind(&refuses, 20.0), FailureKind::Refused);
        assert_eq!(log.lock().expect("not poisoned").len(), 1, "a plain no is not asked again");
        let (overloaded, log) = server(|_, _| Some((429, "slow down".into())));
        assert_eq!(kind(&overloaded, 20.0), FailureKind::Refused);
        assert_eq!(log.lock().expect("not poisoned").len(), 3);
        let (garbage, _) = server(|_, _| Some((200, "<html>".into())));
        assert_eq!(kind(&garbage, 20.0), FailureKind::Garbage);
        let (hangs, _) = server(|_, _| {
            std::thread::sleep(Duration::from_secs(3));
            None
        });
        assert_eq!(kind(&hangs, 0.1), FailureKind::Timeout);
        // A port that was free a moment ago.
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
        assert_eq!(kind(&format!("http://{free}/"), 20.0), FailureKind::Unreachable);
        let other = HttpSpec { name: "x".into(), url: "ftp://example.org".into(), ..HttpSpec::default() };
        assert!(Endpoint::new(&other).err().expect("refused").to_string().contains("https"));
        let no_key = HttpSpec { url: "http://x".into(), key_variable: Some("FOVEATE_NO_SUCH_KEY".into()), ..other };
        assert!(Endpoint::new(&no_key).err().expect("refused").to_string().contains("FOVEATE_NO_SUCH_KEY"));
    }
}
