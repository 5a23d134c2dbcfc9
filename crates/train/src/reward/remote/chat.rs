//! A language model behind an OpenAI-style endpoint: chat completions with cache, budget, and a limit on how many
//! requests are under way. Knows messages and replies, not what is asked. Cost: the model's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cache::Cache;
use super::http::{Caller, at_most};
use super::{Failure, FailureKind, SetupError, Surroundings, inside};

/// Where the language model is and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatSpec {
    /// Address up to `/v1`, for instance `"http://127.0.0.1:8000/v1"`.
    pub url: String,
    /// Name of the model there.
    pub model: String,
    /// Environment variable that holds the key, if one is needed. The key itself never stands in a recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_variable: Option<String>,
    /// Requests under way at a time. As many as the server batches; more only queue.
    pub concurrency: usize,
    /// Seconds until a request is given up.
    pub timeout_secs: f64,
    /// Attempts per request.
    pub attempts: u32,
    /// Seconds before the second attempt; doubled before each further one.
    pub backoff_secs: f64,
    /// 0 for a judge that says the same thing twice.
    pub temperature: f64,
    /// Seed of the server's sampling, where it honours one.
    pub seed: u64,
    /// Requests of a whole run, over all its stages; what is in the cache costs none. Unlimited unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_calls: Option<u64>,
    /// Most tokens of a reply, where what is asked for would allow more (10 for a grade, 1000 for reasoning, 5000 for
    /// a list of what a picture shows). Set it for servers with a short context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_reply_tokens: Option<u32>,
    /// Whether replies are kept in the run's folder.
    pub cache: bool,
}

impl Default for ChatSpec {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: String::new(),
            key_variable: None,
            concurrency: 4,
            timeout_secs: 60.0,
            attempts: 3,
            backoff_secs: 2.0,
            temperature: 0.0,
            seed: 0,
            max_calls: None,
            max_reply_tokens: None,
            cache: true,
        }
    }
}

impl ChatSpec {
    /// Whether the numbers make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.url.is_empty() || self.model.is_empty() {
            return Err("a judge needs a url and the name of a model");
        }
        if self.max_reply_tokens == Some(0) {
            return Err("max_reply_tokens must be at least 1");
        }
        limits(self.concurrency, self.timeout_secs, self.attempts, self.backoff_secs)
    }
}

/// Limits that every helper over HTTP has.
pub fn limits(concurrency: usize, timeout: f64, attempts: u32, backoff: f64) -> Result<(), &'static str> {
    let seconds = |value: f64| value.is_finite() && (0.0..=86_400.0).contains(&value);
    if concurrency == 0 || concurrency > 256 || attempts == 0 || attempts > 20 {
        return Err("concurrency lies between 1 and 256, attempts between 1 and 20");
    }
    if !seconds(timeout) || timeout == 0.0 || !seconds(backoff) {
        return Err("timeout_secs and backoff_secs are seconds, the first above 0");
    }
    Ok(())
}

/// One thing to be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// What the model is to be.
    pub system: String,
    /// What it is asked.
    pub user: String,
    /// Most tokens of its reply.
    pub max_tokens: u32,
}

/// A language model that can be asked.
#[derive(Debug)]
pub struct Chat {
    caller: Caller,
    spec: ChatSpec,
    cache: Cache,
    calls: Arc<AtomicU64>,
}

impl Chat {
    /// Nothing is asked yet. `name` stands in messages and names the cache.
    pub fn new(name: &str, spec: &ChatSpec, around: &Surroundings) -> Result<Self, SetupError> {
        let url = format!("{}/chat/completions", spec.url.trim_end_matches('/'));
        let key = spec.key_variable.as_deref();
        let caller = Caller::new(name, &url, key, spec.timeout_secs, spec.attempts, spec.backoff_secs)?;
        let cache = cache(name, spec, around);
        Ok(Self { caller, spec: spec.clone(), cache, calls: Arc::new(AtomicU64::new(0)) })
    }

    /// The same model and budget, asked for something else: replies go into the cache of that name.
    pub fn sibling(&self, name: &str, around: &Surroundings) -> Self {
        Self {
            caller: self.caller.clone(),
            spec: self.spec.clone(),
            cache: cache(name, &self.spec, around),
            calls: self.calls.clone(),
        }
    }

    /// The reply to each question, in order; `read` says whether a reply is of use. Only replies of use are kept, so
    /// that a judge that mumbles once is asked again another time.
    pub fn ask_all<T: Send>(
        &self,
        questions: &[Question],
        read: impl Fn(&str) -> Option<T> + Sync,
    ) -> Vec<Result<T, Failure>> {
        at_most(self.spec.concurrency, questions.len(), |index| self.ask(&questions[index], &read))
    }

    fn ask<T>(&self, question: &Question, read: &impl Fn(&str) -> Option<T>) -> Result<T, Failure> {
        let request = json!({
            "model": self.spec.model,
            "messages": [
                { "role": "system", "content": question.system },
                { "role": "user", "content": question.user },
            ],
            "temperature": self.spec.temperature,
            "seed": self.spec.seed,
            "max_tokens": self.spec.max_reply_tokens.map_or(question.max_tokens, |most| most.min(question.max_tokens)),
        });
        if let Some(value) = self.cache.get(&request).and_then(|reply| read(&reply)) {
            return Ok(value);
        }
        let taken = self.calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |calls| {
            self.spec.max_calls.is_none_or(|most| calls < most).then_some(calls + 1)
        });
        if taken.is_err() {
            let detail = format!("all {} calls are spent", self.spec.max_calls.unwrap_or_default());
            return Err(Failure::new(FailureKind::Budget, detail));
        }
        let reply = self.caller.post(&request)?;
        let text = reply.pointer("/choices/0/message/content").and_then(Value::as_str);
        let text = text.ok_or_else(|| Failure::new(FailureKind::Garbage, format!("no message in {reply}")))?;
        let value = read(text).ok_or_else(|| Failure::new(FailureKind::Garbage, format!("it said {text:?}")))?;
        self.cache.put(&request, text);
        Ok(value)
    }

    /// Requests made so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Goes on counting from here.
    pub fn set_calls(&self, calls: u64) {
        self.calls.store(calls, Ordering::Relaxed);
    }
}

fn cache(name: &str, spec: &ChatSpec, around: &Surroundings) -> Cache {
    Cache::new(inside(around, &format!("cache-{name}")).filter(|_| spec.cache))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::http::tests::server;
    use super::*;

    fn says(text: &str) -> Option<(u16, String)> {
        Some((200, json!({"choices": [{"message": {"content": text}}]}).to_string()))
    }

    fn chat(url: &str, change: impl Fn(&mut ChatSpec), folder: Option<&std::path::Path>) -> Chat {
        let mut spec = ChatSpec { url: url.replace("/score", "/v1"), model: "m".into(), ..ChatSpec::default() };
        (spec.backoff_secs, spec.timeout_secs) = (0.01, 20.0);
        change(&mut spec);
        spec.check().expect("a sound spec");
        let around = Surroundings { folder: folder.map(Into::into), ..Surroundings::default() };
        Chat::new("judge", &spec, &around).expect("a plain url")
    }

    fn questions(count: usize) -> Vec<Question> {
        (0..count).map(|i| Question { system: "s".into(), user: format!("q{i}"), max_tokens: 5 }).collect()
    }

    fn number(text: &str) -> Option<usize> {
        text.trim().parse().ok()
    }

    #[test]
    fn replies_are_kept_and_paid_for_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (url, log) = server(|_, body| says(&body["messages"][1]["content"].as_str().expect("text")[1..]));
        let first = chat(&url, |_| {}, Some(folder.path()));
        assert_eq!(first.ask_all(&questions(9), number), (0..9).map(Ok).collect::<Vec<_>>());
        assert_eq!((first.calls(), log.lock().expect("not poisoned").len()), (9, 9));
        assert_eq!(log.lock().expect("not poisoned")[0]["temperature"], 0.0);
        let again = chat(&url, |spec| spec.max_calls = Some(1), Some(folder.path()));
        let replies = again.ask_all(&questions(11), number);
        assert_eq!(replies[..9], (0..9).map(Ok).collect::<Vec<_>>());
        assert_eq!(again.calls(), 1, "nine are known, one more is paid for, one is beyond the budget");
        let kinds: Vec<_> = replies[9..].iter().filter_map(|r| r.as_ref().err().map(|f| f.kind)).collect();
        assert_eq!(kinds, [FailureKind::Budget]);
    }

    #[test]
    fn a_reply_of_no_use_is_a_failure_and_not_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (url, _) = server(|number, _| match number {
            0 => says("I would say seven"),
            1 => Some((200, "{\"choices\": []}".into())),
            _ => says(" 7\n"),
        });
        let judge = chat(&url, |spec| spec.concurrency = 1, Some(folder.path()));
        for want in [Err(FailureKind::Garbage), Err(FailureKind::Garbage), Ok(7), Ok(7)] {
            assert_eq!(judge.ask_all(&questions(1), number).remove(0).map_err(|failure| failure.kind), want);
        }
        assert_eq!(judge.calls(), 3);
    }

    #[test]
    fn no_more_than_allowed_are_under_way() {
        use std::sync::Arc;
        use std::sync::atomic::AtomicUsize;
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counter, peak) = (now.clone(), most.clone());
        let (url, _) = server(move |_, _| {
            peak.fetch_max(counter.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(30));
            counter.fetch_sub(1, Ordering::SeqCst);
            says("1")
        });
        let began = Instant::now();
        chat(&url, |spec| spec.concurrency = 3, None).ask_all(&questions(12), number);
        assert!((2..=3).contains(&most.load(Ordering::SeqCst)));
        assert!(began.elapsed() < Duration::from_millis(12 * 30 + 2000));
    }
}
