//! The one owner of the model: gathers what waits, decodes all of it together, and tells every client what is new after
//! each token. Who goes away takes their rows along. Knows requests and text; knows no sockets.
//! Cost: one forward pass a token over all unfinished answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use foveate_model::batcher::{Batcher, Request, Ticket};
use foveate_model::{FinishReason, Policy, Sampled};

use super::protocol::TokenLogprob;
use super::stream::TextStream;
use crate::prompt::Prompter;

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// More of an answer.
    Piece {
        /// Which answer.
        answer: usize,
        /// New text, maybe empty.
        text: String,
        /// The new tokens, if they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// An answer is at its end.
    End {
        /// Which answer.
        answer: usize,
        /// `stop` or `length`.
        finish: &'static str,
        /// Tokens that were drawn for it.
        num_tokens: usize,
    },
    /// The model failed; nothing more will come.
    Failed(String),
}

/// A client's question.
pub struct Job {
    /// What the model reads and how it answers.
    pub request: Request,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Whether tokens are told with their log-probabilities.
    pub logprobs: bool,
    /// Told what is new; answers `false` once nobody listens any more.
    pub tell: Box<dyn FnMut(Told) -> bool + Send>,
}

struct Client {
    ticket: Ticket,
    job: Job,
    /// One for each answer.
    texts: Vec<TextStream>,
    /// Tokens of each answer that were told.
    told: Vec<usize>,
    ended: Vec<bool>,
}

/// Room of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Tokens whose keys and values fit.
    pub num_rows: usize,
    /// Answers that are decoded together.
    pub num_answers: usize,
}

/// Answers whatever comes through `inbox`, until its other end is gone and everybody has been answered.
pub fn run(mut policy: Policy, prompter: &Arc<Prompter>, room: Room, inbox: &Receiver<Job>) {
    let mut batcher = Batcher::new(&mut policy, room.num_rows);
    let mut waiting: VecDeque<Job> = VecDeque::new();
    let mut clients: Vec<Client> = Vec::new();
    let mut open = true;
    loop {
        if clients.is_empty() && waiting.is_empty() {
            // Nothing to do: sleep until somebody asks.
            match inbox.recv() {
                Ok(job) => waiting.push_back(job),
                Err(_) => return,
            }
        }
        while open {
            match inbox.try_recv() {
                Ok(job) => waiting.push_back(job),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => open = false,
            }
        }
        // In the order of arrival: a long request is not overtaken for ever by short ones.
        while let Some(job) = waiting.front() {
            let answers = batcher.num_unfinished() + job.request.num_answers as usize;
            let fits = batcher.has_room(job.request.num_rows()) && answers <= room.num_answers;
            if !fits && !clients.is_empty() {
                break;
            }
            let job = waiting.pop_front().expect("it was just looked at");
            clients.extend(admit(&mut batcher, &mut policy, job));
        }
        tell_all(&mut batcher, prompter, &mut clients);
        if let Err(error) = batcher.step(&mut policy) {
            for mut client in clients.drain(..) {
                batcher.leave(client.ticket);
                (client.job.tell)(Told::Failed(error.to_string()));
            }
        }
        tell_all(&mut batcher, prompter, &mut clients);
    }
}

fn admit(batcher: &mut Batcher, policy: &mut Policy, mut job: Job) -> Option<Client> {
    // A client that went away while waiting costs no forward pass.
    if !(job.tell)(Told::Piece { answer: 0, text: String::new(), logprobs: Vec::new() }) {
        return None;
    }
    match batcher.join(policy, &job.request) {
        Ok(ticket) => {
            let count = job.request.num_answers as usize;
            let texts = vec![TextStream::new(job.stop.clone()); count];
            Some(Client { ticket, job, texts, told: vec![0; count], ended: vec![false; count] })
        }
        Err(error) => {
            (job.tell)(Told::Failed(error.to_string()));
            None
        }
    }
}

/// Tells every client what is new; takes out who is answered or gone.
fn tell_all(batcher: &mut Batcher, prompter: &Prompter, clients: &mut Vec<Client>) {
    clients.retain_mut(|client| {
        let mut listens = true;
        let mut stopped = Vec::new();
        let (answers, done) = batcher.answers(client.ticket);
        for (index, (sampled, done)) in answers.into_iter().zip(done).enumerate() {
            if !client.ended[index] && (sampled.ids.len() > client.told[index] || done) {
                let end = client.advance(index, sampled, done, prompter, &mut listens);
                if end && !done {
                    stopped.push(index);
                }
            }
        }
        for index in stopped {
            batcher.end(client.ticket, index);
        }
        let stays = listens && client.ended.contains(&false);
        if !stays {
            batcher.leave(client.ticket);
        }
        stays
    });
}

impl Client {
    /// Tells what is new of one answer; says whether it has come to its end.
    fn advance(
        &mut self,
        index: usize,
        sampled: &Sampled,
        done: bool,
        prompter: &Prompter,
        listens: &mut bool,
    ) -> bool {
        let whole = prompter.decode(&sampled.ids, true);
        let piece = self.texts[index].advance(&whole, done);
        let new = self.told[index]..sampled.ids.len();
        self.told[index] = new.end;
        let logprobs: Vec<TokenLogprob> = match self.job.logprobs {
            true => new.map(|place| token_logprob(prompter, sampled, place)).collect(),
            false => Vec::new(),
        };
        if !piece.text.is_empty() || !logprobs.is_empty() {
            *listens &= (self.job.tell)(Told::Piece { answer: index, text: piece.text, logprobs });
        }
        let end = done || piece.stopped;
        if end {
            let by_itself = piece.stopped || sampled.finish == FinishReason::Stop;
            let finish = if by_itself { "stop" } else { "length" };
            *listens &= (self.job.tell)(Told::End { answer: index, finish, num_tokens: sampled.ids.len() });
            self.ended[index] = true;
        }
        end
    }
}

fn token_logprob(prompter: &Prompter, sampled: &Sampled, place: usize) -> TokenLogprob {
    let token = prompter.decode(&sampled.ids[place..=place], false);
    TokenLogprob { bytes: token.as_bytes().to_vec(), token, logprob: sampled.logprob[place], top_logprobs: [] }
}
