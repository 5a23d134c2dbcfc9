//! From a conversation to what the model reads, and to the tokens that it is taught or scored on.
//! Knows how template, processor and tokenizer fit together; knows nothing of models or rewards.
//! Cost: decoding and resizing of the pictures dominates; nothing is cached.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use foveate_model::batch::{PromptInput, Tile};
use serde_json::Value as Json;

use super::conversation::{Conversation, Part, Role, Turn, messages};
use super::error::PromptError;
use super::processor::ImageProcessor;
use super::template::ChatTemplate;
use super::tokenizer::TextCodec;
use super::{files, image};

/// Everything between a conversation and token ids, loaded once from a checkpoint folder. Shared between threads.
#[derive(Debug)]
pub struct Prompter {
    codec: TextCodec,
    template: ChatTemplate,
    processor: ImageProcessor,
    image_token_id: Option<u32>,
    /// Special tokens that give prompts their structure; text of a conversation must not hold them.
    control: BTreeSet<u32>,
    banned: Vec<u32>,
    max_tokens: usize,
}

/// A conversation with all its answers, for training on every one of them at once.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedInput {
    /// The whole conversation.
    pub input: PromptInput,
    /// Tokens of `input.ids` that the model is taught: each answer with its end token.
    pub trained: Vec<Range<u32>>,
}

/// Llama's default where `config.json` says nothing.
const DEFAULT_MAX_TOKENS: u64 = 2048;

impl Prompter {
    /// Loads tokenizer, template and image settings of a Hugging Face folder.
    pub fn load(dir: &Path) -> Result<Prompter, PromptError> {
        let config_path = dir.join("config.json");
        let config = files::read_json(&config_path)?;
        let codec = TextCodec::load(dir, &config)?;
        let template = ChatTemplate::load(dir, codec.token_names().clone())?;
        let processor = ImageProcessor::load(dir, &config)?;
        let image_token_id = match processor.template_token() {
            None => None,
            Some(token) => {
                let id = codec.id(token).ok_or_else(|| PromptError::Settings {
                    path: dir.join("tokenizer.json"),
                    problem: format!("holds no {token} token"),
                })?;
                // LLaVA's configurations call it an index.
                let stated = ["image_token_id", "image_token_index"].iter().find_map(|key| config.get(key)?.as_u64());
                if let Some(stated) = stated.filter(|&stated| stated != id as u64) {
                    let problem = format!("image_token_id is {stated}, but {token} is token {id}");
                    return Err(PromptError::Settings { path: config_path, problem });
                }
                Some(id)
            }
        };
        let control = control_tokens(&codec, &template, &processor);
        let text_config = config.get("text_config").unwrap_or(&config);
        let max_tokens = text_config.get("max_position_embeddings").and_then(Json::as_u64);
        Ok(Prompter {
            banned: codec.banned_ids(),
            max_tokens: max_tokens.unwrap_or(DEFAULT_MAX_TOKENS) as usize,
            codec,
            template,
            processor,
            image_token_id,
            control,
        })
    }

    /// What the model reads before it answers: the conversation and the beginning of the answer's turn.
    pub fn prompt(&self, conversation: &Conversation) -> Result<PromptInput, PromptError> {
        self.check(&conversation.turns)?;
        let text = self.render(&conversation.turns, true)?;
        let images = self.images(conversation)?;
        let mut input = PromptInput { tiles: images.tiles, ..PromptInput::default() };
        let text = self.expand(&text, &mut images.texts.into_iter(), true)?;
        // The template writes BOS where the model wants one; the tokenizer must not add a second.
        let bos_written = self.codec.named("bos_token").is_some_and(|bos| text.starts_with(bos));
        input.ids = self.codec.encode(&text, !bos_written)?;
        self.place(&mut input, images.num_features)?;
        Ok(input)
    }

    /// The tokens of an answer, end token included, as the model would have to sample them: encoded on their own.
    pub fn completion(&self, conversation: &Conversation, answer: &str) -> Result<Vec<u32>, PromptError> {
        self.answer_ids(&conversation.turns, &Turn::text(Role::Assistant, answer))
    }

    /// Prompt and completion of a conversation whose last turn is the model's.
    pub fn scored(&self, conversation: &Conversation) -> Result<(PromptInput, Vec<u32>), PromptError> {
        let Some((answer, before)) = conversation.turns.split_last() else {
            return Err(PromptError::Conversation { problem: "the conversation is empty".into() });
        };
        let completion = self.answer_ids(before, answer)?;
        let prompt = self.prompt(&Conversation { turns: before.to_vec() })?;
        Ok((prompt, completion))
    }

    /// The whole conversation with a mask over all answers: what the model reads before the last answer, with the
    /// answers before it found where the template wrote them, and then the last one as it would be sampled.
    pub fn masked(&self, conversation: &Conversation) -> Result<MaskedInput, PromptError> {
        let turns = &conversation.turns;
        self.check(turns)?;
        // What follows the last answer would not be trained on, but its pictures would be encoded.
        let Some((last, before)) = turns.split_last().filter(|(last, _)| last.role == Role::Assistant) else {
            let problem = "the last turn is not the assistant's".into();
            return Err(PromptError::Conversation { problem });
        };
        let images = self.images(conversation)?;
        let mut texts = images.texts.into_iter();
        let mut result =
            MaskedInput { input: PromptInput { tiles: images.tiles, ..PromptInput::default() }, trained: Vec::new() };
        let whole = self.render(before, true)?;
        let mut answers = Vec::new();
        for (index, answer) in before.iter().enumerate().filter(|(_, turn)| turn.role == Role::Assistant) {
            answers.push((self.find_answer(&whole, before, index)?, answer));
        }
        answers.push((whole.len()..whole.len(), last));
        let mut done = 0;
        for (range, answer) in answers {
            let question = whole.get(done..range.start).ok_or(PromptError::NotAPrefix { turn: before.len() })?;
            let question = self.expand(question, &mut texts, false)?;
            let bos_written = self.codec.named("bos_token").is_some_and(|bos| question.starts_with(bos));
            let ids = &mut result.input.ids;
            ids.extend(self.codec.encode(&question, done == 0 && !bos_written)?);
            let start = ids.len() as u32;
            if range.is_empty() {
                ids.extend(self.answer_ids(before, last)?);
            } else {
                ids.extend(self.target_ids(&whole[range.clone()], answer)?);
            }
            result.trained.push(start..ids.len() as u32);
            done = range.end;
        }
        self.place(&mut result.input, images.num_features)?;
        Ok(result)
    }

    /// Where `whole`, the text of `turns`, holds the answer in turn `index`, its end token included. Templates differ:
    /// most write it behind what prompts for it; LLaVA-OneVision's begins answers in another way than it prompts for
    /// them; Qwen3's leaves the reasoning out once a question follows.
    fn find_answer(&self, whole: &str, turns: &[Turn], index: usize) -> Result<Range<usize>, PromptError> {
        let refused = || PromptError::NotAPrefix { turn: index + 1 };
        let text = plain_text(&turns[index]);
        let text = text.trim();
        let start = match whole.strip_prefix(self.render(&turns[..index], true)?.as_str()) {
            Some(rest) => whole.len() - rest.len(),
            None => {
                let rest = whole.strip_prefix(self.render(&turns[..index], false)?.as_str()).ok_or_else(refused)?;
                let at = rest.find(text).filter(|_| !text.is_empty()).ok_or_else(refused)?;
                whole.len() - rest.len() + at
            }
        };
        let rest = &whole[start..];
        let ends = self.end_ids().iter().filter_map(|&id| self.codec.token(id));
        let found = ends.filter_map(|end| rest.find(&end).map(|at| (at, at + end.len()))).min();
        // No text of a turn holds an end token, so the first one is this answer's.
        let (written, end) = found.ok_or_else(refused)?;
        let written = rest[..written].trim();
        let is_it = !written.is_empty() && (written.contains(text) || text.ends_with(written));
        if is_it { Ok(start..start + end) } else { Err(refused()) }
    }

    /// Text of some ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.codec.decode(ids, skip_special)
    }

    /// Ids that end an answer.
    pub fn end_ids(&self) -> &[u32] {
        self.codec.end_ids()
    }

    /// Sorted ids that an answer never holds: image placeholders, padding, every other special token that does not end
    /// it, and table rows without a token.
    pub fn banned_ids(&self) -> &[u32] {
        &self.banned
    }

    /// Rows of the embedding table.
    pub fn vocab_size(&self) -> usize {
        self.codec.vocab_size()
    }

    /// The token that one image feature takes the place of; `None` for models that see no pictures.
    pub fn image_token_id(&self) -> Option<u32> {
        self.image_token_id
    }

    /// The tokenizer.
    pub fn codec(&self) -> &TextCodec {
        &self.codec
    }

    /// How pictures are cut.
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// How pictures are cut, to be changed by a recipe.
    pub fn processor_mut(&mut self) -> &mut ImageProcessor {
        &mut self.processor
    }

    /// Most tokens of a prompt; from `max_position_embeddings` unless changed.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Changes the limit of [`Prompter::max_tokens`].
    pub fn set_max_tokens(&mut self, limit: usize) {
        self.max_tokens = limit;
    }

    fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, PromptError> {
        // Templates of text models print `content` as it is.
        let with_parts = self.image_token_id.is_some();
        self.template.render(&messages(turns, with_parts), add_generation_prompt)
    }

    fn answer_ids(&self, before: &[Turn], answer: &Turn) -> Result<Vec<u32>, PromptError> {
        self.check_answer(answer)?;
        self.check(before)?;
        let mut all = before.to_vec();
        all.push(answer.clone());
        let prompt = self.render(before, true)?;
        let full = self.render(&all, false)?;
        let completion = match full.strip_prefix(prompt.as_str()) {
            Some(rest) => self.cut_after_end(rest),
            // LLaVA-OneVision's template writes answers and generation prompts differently: the bare text counts.
            None => plain_text(answer) + &self.end_token_in(&full),
        };
        self.target_ids(&completion, answer)
    }

    /// What the template wrote of the answer, up to and including the end token. One is added if there is none.
    fn cut_after_end(&self, rest: &str) -> String {
        let ends = self.end_ids().iter().filter_map(|&id| self.codec.token(id));
        let cut = ends.filter_map(|end| rest.find(&end).map(|at| at + end.len())).min();
        match cut {
            Some(cut) => rest[..cut].to_string(),
            None => rest.to_string() + &self.end_token_in(rest),
        }
    }

    /// The end token that occurs last in a text, or the first one of the model.
    fn end_token_in(&self, text: &str) -> String {
        let ends = || self.end_ids().iter().filter_map(|&id| self.codec.token(id));
        ends().max_by_key(|end| text.rfind(end.as_str()).map_or(0, |at| at + 1)).or(ends().next()).unwrap_or_default()
    }

    /// Encodes a completion on its own and checks that prompt and completion decode to what was meant: a tokenizer that
    /// adds a BOS or drops a space at the start of a text would teach something else.
    fn target_ids(&self, completion: &str, answer: &Turn) -> Result<Vec<u32>, PromptError> {
        let ids = self.codec.encode(completion, false)?;
        // A colon stands for the prompt: decoders treat the start of a text specially, and the middle is meant here.
        let mut joint = self.codec.encode(":", false)?;
        let before = self.codec.decode(&joint, false);
        joint.extend(&ids);
        let decoded = self.codec.decode(&joint, false);
        let wanted = before.clone() + &self.codec.normalized(completion);
        if decoded == wanted {
            Ok(ids)
        } else {
            let decoded = decoded.strip_prefix(&before).unwrap_or(&decoded).to_string();
            Err(PromptError::JointDecode { text: plain_text(answer), decoded })
        }
    }

    fn check_answer(&self, answer: &Turn) -> Result<(), PromptError> {
        let problem = if answer.role != Role::Assistant {
            format!("the last turn is the {}'s, not the assistant's", answer.role.name())
        } else if answer.parts.iter().any(|part| matches!(part, Part::Image(_))) {
            "the assistant's last turn holds a picture; answers are text".into()
        } else {
            return self.check(std::slice::from_ref(answer));
        };
        Err(PromptError::Conversation { problem })
    }

    /// No turn may be empty, and no text may hold a token that gives prompts their structure. Neighbouring texts are
    /// looked at together: the template may join them.
    fn check(&self, turns: &[Turn]) -> Result<(), PromptError> {
        if turns.is_empty() {
            return Err(PromptError::Conversation { problem: "the conversation is empty".into() });
        }
        for (index, turn) in turns.iter().enumerate() {
            if turn.parts.is_empty() {
                let problem = format!("turn {} ({}) is empty", index + 1, turn.role.name());
                return Err(PromptError::Conversation { problem });
            }
            let texts = turn.parts.split(|part| matches!(part, Part::Image(_)));
            for text in texts.map(|parts| parts.iter().filter_map(Part::as_text).collect::<String>()) {
                // Encoding finds what searching would miss, such as tokens that appear only after normalising.
                let found = self.codec.encode(&text, false)?.into_iter().find(|id| self.control.contains(id));
                if let Some(id) = found {
                    let token = self.codec.token(id).unwrap_or_default();
                    return Err(PromptError::ControlToken { role: turn.role.name(), token });
                }
            }
        }
        Ok(())
    }

    fn images(&self, conversation: &Conversation) -> Result<Images, PromptError> {
        let loaded = conversation.images().map(image::load).collect::<Result<Vec<_>, _>>()?;
        let mut images = Images::default();
        for processed in self.processor.process(&loaded)? {
            images.tiles.extend(processed.tiles);
            images.texts.push(processed.text);
            images.num_features += processed.num_features;
        }
        Ok(images)
    }

    /// Puts the processor's text in the place of each placeholder. `all`: every picture must find one.
    fn expand(&self, text: &str, images: &mut std::vec::IntoIter<String>, all: bool) -> Result<String, PromptError> {
        let Some(token) = self.processor.template_token() else { return Ok(text.to_string()) };
        let have = text.matches(token).count();
        let need = images.len();
        if have > need || (all && have < need) {
            return Err(PromptError::PlaceholderMismatch { need, have });
        }
        let mut pieces = text.split(token);
        let mut expanded = pieces.next().unwrap_or_default().to_string();
        for piece in pieces {
            expanded += &images.next().expect("counted above");
            expanded += piece;
        }
        Ok(expanded)
    }

    /// Finds the image tokens; there must be exactly one per feature.
    fn place(&self, input: &mut PromptInput, num_features: usize) -> Result<(), PromptError> {
        let is_image = |&(_, &id): &(usize, &u32)| Some(id) == self.image_token_id;
        input.placements = input.ids.iter().enumerate().filter(is_image).map(|(index, _)| index as u32).collect();
        let (tokens, image_tokens) = (input.ids.len(), input.placements.len());
        if image_tokens != num_features {
            return Err(PromptError::PlaceholderMismatch { need: num_features, have: image_tokens });
        }
        if tokens > self.max_tokens {
            return Err(PromptError::TooLong { tokens, image_tokens, limit: self.max_tokens });
        }
        Ok(())
    }
}

/// The pictures of a conversation.
#[derive(Default)]
struct Images {
    tiles: Vec<Arc<Tile>>,
    /// One text per picture.
    texts: Vec<String>,
    num_features: usize,
}

fn plain_text(turn: &Turn) -> String {
    turn.parts.iter().filter_map(Part::as_text).collect()
}

/// Image markers, end tokens, the named tokens (beginning, padding, ..) and whatever the template spells out.
/// Other special tokens, such as `<filename>`, are left to the data.
fn control_tokens(codec: &TextCodec, template: &ChatTemplate, processor: &ImageProcessor) -> BTreeSet<u32> {
    let names = ["bos_token", "eos_token", "pad_token"];
    let is_control = |id: u32, token: &str| {
        processor.is_marker(token)
            || codec.end_ids().contains(&id)
            || names.iter().any(|name| codec.named(name) == Some(token))
            || template.mentions(token)
    };
    codec.specials().iter().filter(|(id, token)| is_control(**id, token)).map(|(id, _)| *id).collect()
}
