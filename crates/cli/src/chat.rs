//! `foveate chat`: a conversation in the terminal, with pictures if you like. Answers appear word by word; without a
//! terminal at its input only answers are written, so that it can stand in a pipe.
//! Cost: the whole conversation is read anew for each answer.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use foveate_model::batcher::{Batcher, Request};
use foveate_model::{Policy, Precision, SamplingSpec};
use foveate_tasks::row::ImageData;
use foveate_train::prompt::{self, Conversation, Part, PromptError, Prompter, Role, Turn};
use foveate_train::rollout::SamplingConfig;
use foveate_train::serve::stream::TextStream;

use crate::failure::failure;
use crate::load::{self, ModelArgs};

/// Arguments of `foveate chat`.
#[derive(clap::Args)]
pub struct Args {
    /// A folder in Hugging Face layout, a folder with a PEFT adapter, or the name of a built-in model
    model: String,
    /// A picture that the first question is about; may be given several times
    #[arg(long)]
    image: Vec<PathBuf>,
    /// Ask once and end
    #[arg(long)]
    ask: Option<String>,
    /// Divides the logits; 0 takes the likeliest token always
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 256)]
    max_new_tokens: u32,
    /// Key of the random draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: load::ComputeArgs,
    #[command(flatten)]
    images: load::ImageArgs,
}

/// Reads questions, writes answers, until the input ends.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sampling = SamplingConfig {
        temperature: args.temperature,
        max_new_tokens: args.max_new_tokens,
        ..SamplingConfig::default()
    };
    if let Some(problem) = sampling.problem() {
        return Err(failure(problem, "see foveate chat --help"));
    }
    let model = ModelArgs { model: args.model, compute: args.compute, images: args.images };
    let (policy, prompter) = load::open(&model, Precision::Auto)?;
    let spec = sampling.spec(&prompter);
    let mut chat = Chat { policy, prompter, spec, seed: args.seed, turns: Vec::new(), pictures: Vec::new() };
    for image in args.image {
        chat.show(image)?;
    }
    if let Some(question) = args.ask {
        return chat.ask(&question);
    }
    let by_hand = std::io::stdin().is_terminal();
    if by_hand {
        println!("Ask something. /image PATH shows a picture, /new starts anew, Ctrl-D ends.");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if by_hand {
            print!("> ");
            std::io::stdout().flush()?;
        }
        let Some(line) = lines.next().transpose()? else { break };
        match (chat.obey(line.trim()), by_hand) {
            (Ok(()), _) => {}
            // The picture or the question is at fault, not the conversation: by hand it goes on without them.
            (Err(error), true) => drop(crate::failure::tell(&error)),
            (Err(error), false) => return Err(error),
        }
    }
    if by_hand {
        println!();
    }
    Ok(())
}

/// A conversation so far.
struct Chat {
    policy: Policy,
    prompter: Prompter,
    spec: SamplingSpec,
    seed: u64,
    turns: Vec<Turn>,
    /// What the next question is about.
    pictures: Vec<ImageData>,
}

impl Chat {
    /// A line of the input: a command, or a question.
    fn obey(&mut self, line: &str) -> anyhow::Result<()> {
        match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("", _) => Ok(()),
            ("/new", "") => {
                self.turns.clear();
                self.pictures.clear();
                Ok(())
            }
            ("/image", path) => {
                // Terminals quote the path of a file that is dropped on them.
                let path = path.trim();
                let bare = ['\'', '"'].iter().find_map(|quote| path.strip_prefix(*quote)?.strip_suffix(*quote));
                self.show(PathBuf::from(bare.unwrap_or(path)))
            }
            (word, _) if word.starts_with('/') && word[1..].chars().all(char::is_alphabetic) => {
                Err(failure(format!("there is no command {word}"), "commands are /image PATH and /new; Ctrl-D ends"))
            }
            _ => self.ask(line),
        }
    }

    /// Keeps a picture for the next question.
    fn show(&mut self, path: PathBuf) -> anyhow::Result<()> {
        if self.prompter.image_token_id().is_none() {
            return Err(PromptError::NoImages.into());
        }
        // Decoded once and kept: it is seen anew with every later question.
        self.pictures.push(ImageData::Drawn(prompt::image::load(&ImageData::Path(path))?));
        Ok(())
    }

    /// Answers a question. What cannot be answered leaves no trace in the conversation.
    fn ask(&mut self, question: &str) -> anyhow::Result<()> {
        let mut parts: Vec<Part> = self.pictures.drain(..).map(Part::Image).collect();
        parts.push(Part::Text(question.to_string()));
        self.turns.push(Turn { role: Role::User, parts });
        match self.answer() {
            Ok(text) => {
                self.turns.push(Turn::text(Role::Assistant, text));
                Ok(())
            }
            Err(error) => {
                self.turns.pop();
                Err(error)
            }
        }
    }

    /// Writes the answer to all turns as it comes, and gives it.
    fn answer(&mut self) -> anyhow::Result<String> {
        let conversation = Conversation { turns: self.turns.clone() };
        let prompt = self.prompter.prompt(&conversation)?;
        let (len, limit) = (prompt.ids.len(), self.prompter.max_tokens());
        if len >= limit {
            let message = format!("the conversation has {len} tokens, this model reads {limit}");
            return Err(failure(message, "start anew with /new, or ask something shorter"));
        }
        let mut sampling = self.spec.clone();
        sampling.max_new_tokens = sampling.max_new_tokens.min((limit - len) as u32);
        // Another key for every turn, so that a question asked twice may be answered in two ways.
        let seed = self.seed.wrapping_add(self.turns.len() as u64);
        let request = Request { prompt, num_answers: 1, sampling, seed };
        let mut batcher = Batcher::new(&mut self.policy, request.num_rows());
        let ticket = batcher.join(&mut self.policy, &request)?;
        let mut stream = TextStream::new(Vec::new());
        let mut text = String::new();
        loop {
            let (answers, done) = batcher.answers(ticket);
            let piece = stream.advance(&self.prompter.decode(&answers[0].ids, true), done[0]);
            print!("{}", piece.text);
            std::io::stdout().flush()?;
            text.push_str(&piece.text);
            if done[0] {
                println!();
                return Ok(text.trim_end().to_string());
            }
            batcher.step(&mut self.policy)?;
        }
    }
}
