//! `foveate chat`: a conversation in the terminal, with a picture if you like.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use foveate_model::{Precision, SampleJob};
use foveate_tasks::row::ImageData;
use foveate_train::prompt::{Conversation, Part, Role, Turn};
use foveate_train::rollout::SamplingConfig;

use crate::load::{self, ModelArgs};

/// Arguments of `foveate chat`.
#[derive(clap::Args)]
pub struct Args {
    /// A folder in Hugging Face layout, a folder with a PEFT adapter, or the name of a built-in model
    model: String,
    /// A picture that the first question is about
    #[arg(long)]
    image: Option<PathBuf>,
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
    images: load::ImageArgs,
}

/// Reads questions, writes answers, until the input ends.
pub fn run(args: Args) -> anyhow::Result<()> {
    let model = ModelArgs { images: args.images.clone(), ..ModelArgs::named(args.model.clone()) };
    let (mut policy, prompter) = load::open(&model, Precision::Auto)?;
    let sampling = SamplingConfig {
        temperature: args.temperature,
        max_new_tokens: args.max_new_tokens,
        ..SamplingConfig::default()
    };
    let spec = sampling.spec(&prompter);
    let mut conversation = Conversation::default();
    let mut image = args.image.map(ImageData::Path);
    let mut lines: Box<dyn Iterator<Item = std::io::Result<String>>> = match args.ask {
        Some(question) => Box::new(std::iter::once(Ok(question))),
        None => {
            println!("Ask something. /image PATH shows another picture, /new starts anew, Ctrl-D ends.");
            Box::new(std::io::stdin().lock().lines())
        }
    };
    loop {
        print!("> ");
        std::io::stdout().flush()?;
        let Some(line) = lines.next().transpose()? else { break };
        let line = line.trim();
        if let Some(path) = line.strip_prefix("/image ") {
            image = Some(ImageData::Path(PathBuf::from(path.trim())));
            continue;
        }
        if line == "/new" {
            conversation.turns.clear();
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let picture = image.take();
        let mut parts: Vec<Part> = picture.iter().cloned().map(Part::Image).collect();
        parts.push(Part::Text(line.to_string()));
        conversation.turns.push(Turn { role: Role::User, parts });
        let prompt = match prompter.prompt(&conversation) {
            Ok(prompt) => prompt,
            Err(error) => {
                // The picture or the question is at fault, not the conversation: it goes on without them.
                println!("error: {error}\nhint: {}", error.hint());
                conversation.turns.pop();
                continue;
            }
        };
        let job = SampleJob {
            prompt: &prompt,
            num_answers: 1,
            seed: args.seed,
            step: 0,
            question: conversation.turns.len() as u32,
            first_answer: 0,
        };
        let answer = policy.sample(&[job], &spec, &mut |_| {})?.remove(0).remove(0);
        let text = prompter.decode(&answer.ids, true).trim().to_string();
        println!("{text}");
        conversation.turns.push(Turn::text(Role::Assistant, text));
    }
    println!();
    Ok(())
}
