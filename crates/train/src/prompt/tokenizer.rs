//! The tokenizer of a checkpoint and the roles of its special tokens.
//! Knows ids and their meaning; knows nothing of templates or pictures. Cost: as `tokenizers`, which Python uses too.
//!
//! `tokenizer.json` is the truth: transformers rebuilds some tokenizers from their class names and loses steps.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};
use tokenizers::Tokenizer;

use super::error::PromptError;
use super::files;

/// Encodes, decodes, and knows which ids are special and why.
#[derive(Debug)]
pub struct TextCodec {
    tokenizer: Tokenizer,
    /// `bos_token`, `eos_token`, .. as `tokenizer_config.json` spells them; templates see these names.
    token_names: Map<String, Json>,
    /// Id and text of every special token, by id.
    specials: BTreeMap<u32, String>,
    /// Ids that end an answer, in the order of `generation_config.json`.
    end_ids: Vec<u32>,
    /// Rows of the embedding table; at least the tokenizer's size.
    vocab_size: usize,
}

/// Files of tokenizers that only Python reads.
const SLOW: [&str; 5] = ["tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "sentencepiece.bpe.model"];

impl TextCodec {
    /// Loads `tokenizer.json` and its companions. `config` is the folder's `config.json`.
    pub fn load(dir: &Path, config: &Json) -> Result<TextCodec, PromptError> {
        let path = dir.join("tokenizer.json");
        if !path.exists()
            && let Some(slow) = SLOW.iter().find(|name| dir.join(name).exists())
        {
            return Err(PromptError::SlowTokenizer { path: dir.to_path_buf(), slow });
        }
        let text = files::read_text(&path)?;
        let fail = |problem: String| PromptError::File { path: path.clone(), problem };
        let mut tokenizer: Tokenizer = text.parse().map_err(|error| fail(format!("{error}")))?;
        // Saved batch settings would cut or pad single texts.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| fail(format!("{error}")))?;
        let specials: BTreeMap<u32, String> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        let token_names = token_names(dir)?;
        let end_ids = end_ids(dir, config, &token_names, &tokenizer)?;
        let tokenizer_size = tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let text_config = config.get("text_config").unwrap_or(config);
        let rows = [text_config, config].iter().find_map(|config| config.get("vocab_size").and_then(Json::as_u64));
        let vocab_size = rows.map_or(tokenizer_size, |rows| rows as usize);
        if let Some(&id) = end_ids.iter().find(|&&id| id as usize >= vocab_size) {
            let problem = format!("end token {id} lies outside the vocabulary of {vocab_size}");
            return Err(PromptError::Settings { path: dir.join("generation_config.json"), problem });
        }
        Ok(TextCodec { tokenizer, token_names, specials, end_ids, vocab_size })
    }

    /// Token ids of a text. `add_special` lets the tokenizer put its own tokens (BOS) around it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, PromptError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|error| PromptError::Tokenizer { problem: error.to_string() })?;
        let ids = encoding.get_ids().to_vec();
        match ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(id) => {
                let problem = format!("id {id} has no row in the embedding table of {}", self.vocab_size);
                Err(PromptError::Tokenizer { problem })
            }
            None => Ok(ids),
        }
    }

    /// Text of some ids; ids without a token give nothing, bytes that are not UTF-8 give replacement characters.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.tokenizer.decode(ids, skip_special).unwrap_or_default()
    }

    /// The text after the tokenizer's own normalising (NFC in Qwen): what its tokens can decode to.
    pub fn normalized(&self, text: &str) -> String {
        use tokenizers::{NormalizedString, Normalizer};
        let Some(normalizer) = self.tokenizer.get_normalizer() else { return text.to_string() };
        let mut normalized = NormalizedString::from(text);
        match normalizer.normalize(&mut normalized) {
            Ok(()) => normalized.get().to_string(),
            Err(_) => text.to_string(),
        }
    }

    /// Id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Text of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Special tokens, by id.
    pub fn specials(&self) -> &BTreeMap<u32, String> {
        &self.specials
    }

    /// Ids that end an answer.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// The largest id that a text can become.
    pub fn largest_id(&self) -> Option<u32> {
        self.tokenizer.get_vocab(true).into_values().max()
    }

    /// Rows of the embedding table.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// `bos_token` and its siblings.
    pub fn token_names(&self) -> &Map<String, Json> {
        &self.token_names
    }

    /// The text that a name such as `bos_token` stands for.
    pub fn named(&self, name: &str) -> Option<&str> {
        self.token_names.get(name).and_then(Json::as_str).filter(|token| !token.is_empty())
    }

    /// Sorted ids that an answer never holds: every special token that does not end it, and table rows without a
    /// token.
    pub fn banned_ids(&self) -> Vec<u32> {
        (0..self.vocab_size as u32)
            .filter(|&id| !self.end_ids.contains(&id))
            .filter(|id| self.specials.contains_key(id) || self.tokenizer.id_to_token(*id).is_none())
            .collect()
    }
}

const TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

/// Names from `tokenizer_config.json`, gaps filled from `special_tokens_map.json`. A token is written as a string or as
/// `{"content": ..}`; null means that the model has none.
fn token_names(dir: &Path) -> Result<Map<String, Json>, PromptError> {
    let mut names = Map::new();
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let Some(config) = files::read_json_if_present(&dir.join(file))? else { continue };
        for name in TOKEN_NAMES {
            let value = config.get(name).map(|value| value.get("content").unwrap_or(value));
            if let Some(Json::String(token)) = value
                && !names.contains_key(name)
            {
                names.insert(name.into(), token.clone().into());
            }
        }
    }
    Ok(names)
}

/// End tokens come from `generation_config.json`; `config.json` of a checkpoint saved by transformers 5 holds Llama's
/// default instead of the true one, so it is only asked after the tokenizer's own `eos_token`.
fn end_ids(
    dir: &Path,
    config: &Json,
    token_names: &Map<String, Json>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, PromptError> {
    let path = dir.join("generation_config.json");
    let generation = files::read_json_if_present(&path)?;
    let stated = generation.as_ref().and_then(|config| config.get("eos_token_id")).filter(|value| !value.is_null());
    if let Some(stated) = stated {
        let ids = id_list(stated);
        return ids.filter(|ids| !ids.is_empty()).ok_or_else(|| PromptError::Settings {
            path,
            problem: format!("eos_token_id is {stated}, not a token id or a list of them"),
        });
    }
    let named = token_names.get("eos_token").and_then(Json::as_str).and_then(|token| tokenizer.token_to_id(token));
    if let Some(id) = named {
        return Ok(vec![id]);
    }
    let configs = [Some(config), config.get("text_config")];
    configs.into_iter().flatten().filter_map(|config| config.get("eos_token_id")).find_map(id_list).ok_or_else(|| {
        PromptError::Settings { path, problem: "no eos_token_id here, in config.json or in the tokenizer".into() }
    })
}

fn id_list(value: &Json) -> Option<Vec<u32>> {
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Json::Array(list) => list.iter().map(id).collect(),
        single => id(single).map(|id| vec![id]),
    }
}
