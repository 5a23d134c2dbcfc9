//! `foveate serve`: a model behind OpenAI's chat completions, for one machine.
//! HTTP stands here; requests, batching and text are `foveate_train::serve`. It binds to this machine alone unless told
//! otherwise. Cost: one thread for the model, one for the clients, a few for reading pictures.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use foveate_kernels::interrupt;
use foveate_model::{Precision, batcher};
use foveate_train::prompt::{Conversation, Prompter};
use foveate_train::serve::protocol::{self, ApiError, ChatRequest, Choice, Envelope, Limits};
use foveate_train::serve::worker::{self, Job, Room, Told};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::failure::failure;
use crate::load::{self, ModelArgs};

/// Arguments of `foveate serve`.
#[derive(clap::Args)]
pub struct Args {
    /// A folder in Hugging Face layout, a folder with a PEFT adapter, or the name of a built-in model
    model: String,
    /// Address to listen at; 0.0.0.0 lets other machines in
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen at; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Name that clients call the model by [default: the last part of its folder]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    compute: load::ComputeArgs,
    #[command(flatten)]
    images: load::ImageArgs,
    /// Longest answer in tokens, and its length where a request names none
    #[arg(long, default_value_t = 512)]
    max_new_tokens: u32,
    /// Answers that are decoded together
    #[arg(long, default_value_t = 32)]
    batch: u32,
    /// Tokens whose keys and values are kept at once [default: what 1 GiB holds]
    #[arg(long)]
    cache_tokens: Option<usize>,
    /// Requests that may be waiting or answered at once; more are told to come again
    #[arg(long, default_value_t = 64)]
    queue: usize,
    /// Largest request in MiB, pictures included
    #[arg(long, default_value_t = 32)]
    max_body_mib: usize,
    /// Let requests name pictures in this folder and below
    #[arg(long, value_name = "FOLDER")]
    images_from: Option<PathBuf>,
    /// Key that requests must carry
    #[arg(long, env = "FOVEATE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Seconds that running answers get after Ctrl-C
    #[arg(long, default_value_t = 30)]
    grace_secs: u64,
}

/// What handlers share.
struct Server {
    name: String,
    created: u64,
    prompter: Arc<Prompter>,
    limits: Limits,
    room: Room,
    inbox: Sender<Job>,
    /// Requests that are not answered yet.
    active: AtomicUsize,
    queue: usize,
    max_body: usize,
    api_key: Option<String>,
    /// Requests so far: names answers and draws.
    count: AtomicUsize,
}

/// Keys and values that are kept if nobody says otherwise.
const CACHE_BYTES: usize = 1 << 30;
/// Longest time that a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(60);

/// Loads the model, listens, and answers until Ctrl-C.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.max_new_tokens == 0 || args.batch == 0 || args.queue == 0 || args.max_body_mib == 0 {
        return Err(failure("a limit is 0", "--max-new-tokens, --batch, --queue and --max-body-mib are at least 1"));
    }
    if let Some(folder) = args.images_from.as_ref().filter(|folder| !folder.is_dir()) {
        return Err(failure(format!("{} is no folder", folder.display()), "--images-from names a folder of pictures"));
    }
    let model = ModelArgs { model: args.model.clone(), compute: args.compute, images: args.images.clone() };
    let (inbox, jobs) = channel();
    let (ready, opened) = channel();
    let (num_answers, cache_tokens) = (args.batch as usize, args.cache_tokens);
    // The model lives and dies in one thread: what it shares inside is not made for several.
    std::thread::spawn(move || {
        let opened = load::open(&model, Precision::Auto).map(|(policy, prompter)| {
            let fits = CACHE_BYTES / policy.description().cache_bytes_per_token;
            let usual = fits.max(prompter.max_tokens()).min(num_answers * prompter.max_tokens());
            let room = Room { num_rows: cache_tokens.unwrap_or(usual), num_answers };
            (policy, Arc::new(prompter), room)
        });
        match opened {
            Ok((policy, prompter, room)) => {
                if ready.send(Ok((prompter.clone(), room))).is_ok() {
                    worker::run(policy, &prompter, room, &jobs);
                }
            }
            // Nobody listens only if the program is ending.
            Err(error) => drop(ready.send(Err(error))),
        }
    });
    let (prompter, room) = opened.recv().context("the thread of the model ended")??;
    let now = seconds();
    let server = Arc::new(Server {
        name: args.name.clone().unwrap_or_else(|| last_part(&args.model)),
        created: now,
        prompter,
        limits: Limits {
            max_new_tokens: args.max_new_tokens,
            max_answers: args.batch,
            images_from: args.images_from.clone(),
        },
        room,
        inbox,
        active: AtomicUsize::new(0),
        queue: args.queue,
        max_body: args.max_body_mib << 20,
        api_key: args.api_key.clone(),
        count: AtomicUsize::new(0),
    });
    interrupt::install();
    // One thread is enough for sockets: the model's threads do the work.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(listen(server, SocketAddr::new(args.host, args.port), args.grace_secs));
    // Rendering that nobody waits for any more must not hold the program back.
    runtime.shutdown_background();
    outcome
}

async fn listen(server: Arc<Server>, address: SocketAddr, grace_secs: u64) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|error| failure(format!("cannot listen at {address}: {error}"), "choose another one with --port"))?;
    println!("{} answers at http://{}/v1 · Ctrl-C ends", server.name, listener.local_addr()?);
    let app = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/health", get(async || answer(StatusCode::OK, &json!({"status": "ok"}))))
        .fallback(async || refuse(&not_found("there is nothing at this address; see /v1/models".to_string())))
        .method_not_allowed_fallback(async || {
            refuse(&ApiError { status: 405, ..ApiError::invalid("this address takes another method", None) })
        })
        .with_state(server.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(
        axum::serve(listener, app).with_graceful_shutdown(async { stopped.await.unwrap_or(()) }).into_future(),
    );
    while !interrupt::requested() && !serving.is_finished() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = server.active.load(Ordering::Relaxed);
    println!("stopping · {left} requests are still answered, a second Ctrl-C ends at once");
    // The other end is gone only if serving has ended by itself.
    let _ = stop.send(());
    match tokio::time::timeout(Duration::from_secs(grace_secs), serving).await {
        Ok(Ok(outcome)) => Ok(outcome?),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(failure(
            format!("some answers were not finished within {grace_secs} seconds"),
            "give them longer with --grace-secs",
        )),
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn last_part(model: &str) -> String {
    let path = std::path::Path::new(model);
    path.file_name().map_or_else(|| model.to_string(), |name| name.to_string_lossy().into_owned())
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn refuse(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = answer(status, &error.body());
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

fn not_found(message: String) -> ApiError {
    ApiError { status: 404, ..ApiError::invalid(message, None) }
}

async fn models(State(server): State<Arc<Server>>, request: Request) -> Response {
    match server.check_key(&request) {
        Ok(()) => answer(StatusCode::OK, &json!({"object": "list", "data": [server.card()]})),
        Err(error) => refuse(&error),
    }
}

async fn model(State(server): State<Arc<Server>>, Path(name): Path<String>, request: Request) -> Response {
    match server.check_key(&request).and_then(|()| server.check_name(&name)) {
        Ok(()) => answer(StatusCode::OK, &server.card()),
        Err(error) => refuse(&error),
    }
}

async fn chat(State(server): State<Arc<Server>>, request: Request) -> Response {
    server.chat(request).await.unwrap_or_else(|error| refuse(&error))
}

/// Counts a request for as long as it lives.
struct Active(Arc<Server>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    fn card(&self) -> Value {
        json!({"id": self.name, "object": "model", "created": self.created, "owned_by": "foveate"})
    }

    fn check_name(&self, name: &str) -> Result<(), ApiError> {
        if name == self.name {
            return Ok(());
        }
        let message = format!("the model {name:?} is not served here; this is {:?}", self.name);
        Err(ApiError { code: Some("model_not_found"), param: Some("model".to_string()), ..not_found(message) })
    }

    fn check_key(&self, request: &Request) -> Result<(), ApiError> {
        let Some(key) = &self.api_key else { return Ok(()) };
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("").as_bytes();
        // All bytes are compared whatever differs first: the time says nothing about the key.
        let differs = key.bytes().zip(given).fold(key.len() ^ given.len(), |all, (a, b)| all | usize::from(a ^ b));
        if differs == 0 {
            return Ok(());
        }
        let message = "the key is missing or wrong; send Authorization: Bearer KEY";
        let invalid = ApiError::invalid(message, None);
        Err(ApiError { status: 401, kind: "authentication_error", code: Some("invalid_api_key"), ..invalid })
    }

    async fn chat(self: Arc<Self>, request: Request) -> Result<Response, ApiError> {
        self.check_key(&request)?;
        let active = self.clone().enter()?;
        let body = self.body(request.into_body()).await?;
        let limits = self.limits.clone();
        let parsed = tokio::task::spawn_blocking(move || protocol::parse(&body, &limits)).await;
        let asked = parsed.map_err(|_| ApiError::server(500, "the request could not be read"))??;
        self.check_name(&asked.model)?;
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let request = self.render(&asked, number as u64).await?;
        let num_prompt = request.prompt.ids.len();
        let envelope = Envelope {
            id: format!("chatcmpl-{:x}{number:06x}", self.created),
            created: seconds(),
            model: self.name.clone(),
        };
        let (tell, told) = unbounded_channel();
        let job = Job {
            request,
            stop: asked.stop.clone(),
            logprobs: asked.logprobs,
            tell: Box::new(move |piece| tell.send(piece).is_ok()),
        };
        self.inbox.send(job).map_err(|_| ApiError::server(503, "the model has stopped; start the server anew"))?;
        let pieces = Pieces { told, asked, envelope, num_prompt, _active: active };
        if pieces.asked.stream { Ok(pieces.stream()) } else { pieces.gather().await }
    }

    /// Counts a request in, unless too many are there.
    fn enter(self: Arc<Self>) -> Result<Active, ApiError> {
        let before = self.active.fetch_add(1, Ordering::Relaxed);
        let active = Active(self);
        if before < active.0.queue {
            return Ok(active);
        }
        let message = format!("{before} requests are waiting already; come again in a moment");
        let invalid = ApiError::invalid(message, None);
        Err(ApiError { status: 429, kind: "rate_limit_error", code: Some("rate_limit_exceeded"), ..invalid })
    }

    async fn body(&self, body: Body) -> Result<Bytes, ApiError> {
        let too_large = || {
            let message = format!("the request is larger than {} MiB", self.max_body >> 20);
            ApiError { status: 413, ..ApiError::invalid(message, None) }
        };
        match tokio::time::timeout(ARRIVAL, to_bytes(body, self.max_body)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            // The reader gives one error for "too long" and for "broken off"; who broke off reads no answer.
            Ok(Err(_)) => Err(too_large()),
            Err(_) => Err(ApiError { status: 408, ..ApiError::invalid("the request did not arrive in time", None) }),
        }
    }

    /// Reads pictures and writes tokens, away from the thread of the sockets.
    async fn render(&self, asked: &ChatRequest, number: u64) -> Result<batcher::Request, ApiError> {
        let (prompter, conversation): (_, Conversation) = (self.prompter.clone(), asked.conversation.clone());
        let rendered = tokio::task::spawn_blocking(move || {
            prompter
                .prompt(&conversation)
                .map_err(|error| ApiError::invalid(format!("{error}; {}", error.hint()), "messages".to_string()))
        });
        let prompt = rendered.await.map_err(|_| ApiError::server(500, "the prompt could not be rendered"))??;
        let too_long = |message: String| ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::invalid(message, "messages".to_string())
        };
        let (len, limit) = (prompt.ids.len(), self.prompter.max_tokens());
        if len >= limit {
            let images = prompt.placements.len();
            return Err(too_long(format!(
                "the prompt has {len} tokens ({images} of them for images), this model reads {limit}"
            )));
        }
        let mut sampling = asked.sampling.spec(&self.prompter);
        sampling.max_new_tokens = sampling.max_new_tokens.min((limit - len) as u32);
        let seed = asked.seed.unwrap_or(self.created.wrapping_mul(1_000_003).wrapping_add(number));
        let request = batcher::Request { prompt, num_answers: asked.num_answers, sampling, seed };
        if request.num_rows() > self.room.num_rows {
            return Err(too_long(format!(
                "prompt and answers may take {} tokens, this server keeps {}; ask for fewer or shorter answers",
                request.num_rows(),
                self.room.num_rows
            )));
        }
        Ok(request)
    }
}

/// What the worker tells about one request.
struct Pieces {
    told: UnboundedReceiver<Told>,
    asked: ChatRequest,
    envelope: Envelope,
    num_prompt: usize,
    _active: Active,
}

const GONE: &str = "the model stopped while it answered";

impl Pieces {
    /// The whole answer in one body.
    async fn gather(mut self) -> Result<Response, ApiError> {
        let empty = Choice { logprobs: self.asked.logprobs.then(Vec::new), ..Choice::default() };
        let mut choices = vec![empty; self.asked.num_answers as usize];
        let mut num_tokens = 0;
        let mut open = choices.len();
        while open > 0 {
            match self.told.recv().await.unwrap_or_else(|| Told::Failed(GONE.to_string())) {
                Told::Piece { answer, text, logprobs } => {
                    choices[answer].text.push_str(&text);
                    if let Some(all) = &mut choices[answer].logprobs {
                        all.extend(logprobs);
                    }
                }
                Told::End { answer, finish, num_tokens: count } => {
                    choices[answer].finish = finish;
                    num_tokens += count;
                    open -= 1;
                }
                Told::Failed(message) => return Err(ApiError::server(500, message)),
            }
        }
        let usage = protocol::usage(self.num_prompt, num_tokens);
        Ok(answer(StatusCode::OK, &self.envelope.completion(&choices, usage)))
    }

    /// Server-sent events, one for each new piece.
    fn stream(self) -> Response {
        let answers = self.asked.num_answers as usize;
        let start = json!({"role": "assistant", "content": "", "refusal": null});
        let first = (0..answers).map(|index| self.envelope.chunk(index, start.clone(), None, None));
        let state = Flow { waiting: first.collect(), open: answers, num_tokens: 0, ended: false, pieces: self };
        let events = stream::unfold(state, |mut flow| async move {
            let text = flow.next().await?;
            Some((Ok::<Event, Infallible>(Event::default().data(text)), flow))
        });
        Sse::new(events).into_response()
    }
}

/// A streamed answer in progress.
struct Flow {
    pieces: Pieces,
    waiting: VecDeque<Value>,
    open: usize,
    num_tokens: usize,
    ended: bool,
}

impl Flow {
    /// The next event's text; none after the last.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(chunk) = self.waiting.pop_front() {
                return Some(chunk.to_string());
            }
            if self.ended {
                return None;
            }
            if self.open == 0 {
                self.ended = true;
                return Some("[DONE]".to_string());
            }
            match self.pieces.told.recv().await.unwrap_or_else(|| Told::Failed(GONE.to_string())) {
                Told::Piece { answer, text, logprobs } => {
                    if !text.is_empty() || !logprobs.is_empty() {
                        let logprobs = self.pieces.asked.logprobs.then_some(&logprobs[..]);
                        let chunk = self.pieces.envelope.chunk(answer, json!({"content": text}), None, logprobs);
                        self.waiting.push_back(chunk);
                    }
                }
                Told::End { answer, finish, num_tokens } => {
                    self.num_tokens += num_tokens;
                    self.open -= 1;
                    let envelope = &self.pieces.envelope;
                    self.waiting.push_back(envelope.chunk(answer, json!({}), Some(finish), None));
                    if self.open == 0 && self.pieces.asked.include_usage {
                        let usage = protocol::usage(self.pieces.num_prompt, self.num_tokens);
                        self.waiting.push_back(envelope.last_chunk(usage));
                    }
                }
                Told::Failed(message) => {
                    self.ended = true;
                    return Some(ApiError::server(500, message).body().to_string());
                }
            }
        }
    }
}
