//! A new small model of the SmolVLM family, from nothing: architecture numbers and a text to learn words from become a
//! complete Hugging Face folder, ready for its first weights.
//! Knows the family's files; draws no weights (the model crate does). Cost: dominated by training the tokenizer.

pub mod tokenizer;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checkpoint::durable::{FileError, create_folder, write_file};
use tokenizer::{AROUND_IMAGE, END_OF_TEXT, END_OF_UTTERANCE, GLOBAL_IMAGE, IMAGE, PADDING, START, special_id};

/// Why a new model could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum FreshError {
    /// The numbers do not fit together.
    #[error("model.new: {0}")]
    Impossible(String),
    /// The tokenizer could not be trained.
    #[error("model.new: the tokenizer could not be trained: {0}")]
    Tokenizer(String),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

impl FreshError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            FreshError::Impossible(_) => Some("see recipes/minnow.toml for numbers that fit together".to_string()),
            FreshError::Tokenizer(_) => Some("the training data must contain text".to_string()),
            FreshError::File(error) => error.hint(),
        }
    }
}

/// Architecture of a new model. The defaults are Minnow's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewModel {
    /// Side of the square picture the vision tower sees, in pixels. Cost grows with its square.
    pub image_size: u32,
    /// Side of a patch, in pixels; small details must not be smaller than about half of it.
    pub patch_size: u32,
    /// Patches per side that pixel shuffle folds into one image token: the prompt holds
    /// `(image_size / patch_size / scale_factor)^2` image tokens. More tokens see better and cost more.
    pub scale_factor: u32,
    /// Width of the vision tower.
    pub vision_width: u32,
    /// Blocks of the vision tower.
    pub vision_layers: u32,
    /// Attention heads of the vision tower; must divide its width.
    pub vision_heads: u32,
    /// Width of the vision tower's feed-forward part, usually four times its width.
    pub vision_hidden: u32,
    /// Width of the language model.
    pub text_width: u32,
    /// Blocks of the language model.
    pub text_layers: u32,
    /// Query heads of the language model; must divide its width.
    pub text_heads: u32,
    /// Key/value heads; must divide the query heads.
    pub text_kv_heads: u32,
    /// Width of the gated feed-forward part, usually 8/3 of the width.
    pub text_hidden: u32,
    /// Entries of the tokenizer to be trained, special tokens and 256 bytes included.
    pub vocabulary: u32,
    /// Longest text in tokens.
    pub max_positions: u32,
    /// Whether input and output embeddings are one table: right for small models, where the table is a large part.
    pub tie_embeddings: bool,
}

impl Default for NewModel {
    fn default() -> Self {
        Self {
            image_size: 128,
            patch_size: 8,
            scale_factor: 2,
            vision_width: 192,
            vision_layers: 4,
            vision_heads: 3,
            vision_hidden: 768,
            text_width: 256,
            text_layers: 5,
            text_heads: 4,
            text_kv_heads: 2,
            text_hidden: 704,
            vocabulary: 1000,
            max_positions: 2048,
            tie_embeddings: true,
        }
    }
}

impl NewModel {
    /// Refuses numbers that no model can have.
    pub fn check(&self) -> Result<(), FreshError> {
        let wrong = |text: String| Err(FreshError::Impossible(text));
        let positive = [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("scale_factor", self.scale_factor),
            ("vision_width", self.vision_width),
            ("vision_layers", self.vision_layers),
            ("vision_heads", self.vision_heads),
            ("vision_hidden", self.vision_hidden),
            ("text_width", self.text_width),
            ("text_layers", self.text_layers),
            ("text_heads", self.text_heads),
            ("text_kv_heads", self.text_kv_heads),
            ("text_hidden", self.text_hidden),
        ];
        for (name, value) in positive {
            if value == 0 {
                return wrong(format!("{name} must not be 0"));
            }
            if value > 1 << 16 {
                return wrong(format!("{name} = {value} is beyond any small model"));
            }
        }
        for (whole, value, part, divisor) in [
            ("image_size", self.image_size, "patch_size", self.patch_size),
            ("vision_width", self.vision_width, "vision_heads", self.vision_heads),
            ("text_width", self.text_width, "text_heads", self.text_heads),
            ("text_heads", self.text_heads, "text_kv_heads", self.text_kv_heads),
        ] {
            if value % divisor != 0 {
                return wrong(format!("{part} = {divisor} does not divide {whole} = {value}"));
            }
        }
        let side = self.image_size / self.patch_size;
        if !side.is_multiple_of(self.scale_factor) {
            return wrong(format!("scale_factor = {} does not divide the {side} patches of a side", self.scale_factor));
        }
        if !(self.text_width / self.text_heads).is_multiple_of(2) {
            return wrong("the width of a text head must be even: rotary angles turn pairs".to_string());
        }
        let least = 256 + tokenizer::SPECIAL.len() as u32;
        if self.vocabulary < least {
            return wrong(format!("vocabulary = {} is below the {least} bytes and special tokens", self.vocabulary));
        }
        if self.max_positions < self.image_tokens() + 32 {
            return wrong(format!(
                "max_positions = {} leaves no room beside the {} image tokens",
                self.max_positions,
                self.image_tokens()
            ));
        }
        Ok(())
    }

    /// Tokens that one picture takes in the prompt.
    pub fn image_tokens(&self) -> u32 {
        (self.image_size / self.patch_size / self.scale_factor).pow(2)
    }

    /// `config.json`, every key that matters written out: readers differ in their defaults.
    pub fn config(&self, vocabulary: u32) -> Value {
        json!({
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "dtype": "float32",
            "image_token_id": special_id(IMAGE),
            "scale_factor": self.scale_factor,
            "tie_word_embeddings": self.tie_embeddings,
            "use_cache": true,
            "pad_token_id": special_id(PADDING),
            "bos_token_id": special_id(START),
            "eos_token_id": special_id(END_OF_UTTERANCE),
            "vision_config": {
                "model_type": "smolvlm_vision",
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_hidden,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_heads,
                "num_channels": 3,
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
                "attention_dropout": 0.0,
                "initializer_range": 0.02
            },
            "text_config": {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": vocabulary,
                "hidden_size": self.text_width,
                "intermediate_size": self.text_hidden,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": self.text_heads,
                "num_key_value_heads": self.text_kv_heads,
                "head_dim": self.text_width / self.text_heads,
                "hidden_act": "silu",
                "max_position_embeddings": self.max_positions,
                "initializer_range": 0.02,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "rope_scaling": null,
                "attention_bias": false,
                "attention_dropout": 0.0,
                "mlp_bias": false,
                "tie_word_embeddings": self.tie_embeddings,
                "use_cache": true,
                "pad_token_id": special_id(PADDING),
                "bos_token_id": special_id(START),
                "eos_token_id": special_id(END_OF_UTTERANCE)
            }
        })
    }
}

/// White becomes zero, so that an empty patch says nothing; colours lie about one away from it. Read off a trial of
/// 250 steps from random weights on pictures of one or two objects: loss 0.38 so, 0.51 with the usual 0.5 and 0.5.
const WHITE: [f32; 3] = [1.0; 3];
const SPREAD: [f32; 3] = [0.2; 3];

/// The conversation as the family writes it: `<|im_start|>User:<image>question<end_of_utterance>`, a new line,
/// `Assistant:`, and the answer after one space.
pub const CHAT_TEMPLATE: &str = "\
<|im_start|>{% for message in messages -%}
{{ message['role'] | capitalize }}{{ ':' if message['content'] is not string and message['content'] \
and message['content'][0]['type'] == 'image' else ': ' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}{% for part in message['content'] -%}
{{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor %}{% endif -%}
<end_of_utterance>{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// Writes everything but the weights into `folder` and gives `config.json`. `texts` is what the tokenizer learns its
/// words from.
pub fn write(folder: &Path, model: &NewModel, texts: impl Iterator<Item = String> + Send) -> Result<Value, FreshError> {
    model.check()?;
    create_folder(folder)?;
    let tokenizer = tokenizer::train(texts, model.vocabulary as usize)?;
    let vocabulary = tokenizer.get_vocab_size(true) as u32;
    let text = tokenizer.to_string(true).map_err(|error| FreshError::Tokenizer(error.to_string()))?;
    write_file(&folder.join("tokenizer.json"), text.as_bytes())?;
    write_file(&folder.join("chat_template.jinja"), CHAT_TEMPLATE.as_bytes())?;

    let config = model.config(vocabulary);
    let edge = json!({"longest_edge": model.image_size});
    let special = |token: &str| json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false});
    let files = [
        ("config.json", config.clone()),
        (
            "generation_config.json",
            json!({
                "bos_token_id": special_id(START),
                "eos_token_id": special_id(END_OF_UTTERANCE),
                "pad_token_id": special_id(PADDING)
            }),
        ),
        (
            "special_tokens_map.json",
            json!({
                "additional_special_tokens": [AROUND_IMAGE, IMAGE, END_OF_UTTERANCE],
                "bos_token": special(START),
                "eos_token": special(END_OF_UTTERANCE),
                "pad_token": special(PADDING),
                "unk_token": special(END_OF_TEXT)
            }),
        ),
        (
            "tokenizer_config.json",
            json!({
                "add_prefix_space": false,
                "bos_token": START,
                "eos_token": END_OF_UTTERANCE,
                "pad_token": PADDING,
                "unk_token": END_OF_TEXT,
                "clean_up_tokenization_spaces": false,
                "extra_special_tokens": {
                    "end_of_utterance_token": END_OF_UTTERANCE,
                    "fake_image_token": AROUND_IMAGE,
                    "global_image_token": GLOBAL_IMAGE,
                    "image_token": IMAGE
                },
                "model_max_length": model.max_positions,
                "processor_class": "SmolVLMProcessor",
                "tokenizer_class": "PreTrainedTokenizerFast"
            }),
        ),
        (
            "preprocessor_config.json",
            json!({
                "do_convert_rgb": true,
                "do_image_splitting": false,
                "do_normalize": true,
                "do_pad": true,
                "do_rescale": true,
                "do_resize": true,
                "image_mean": WHITE,
                "image_std": SPREAD,
                "image_processor_type": "SmolVLMImageProcessor",
                "max_image_size": edge,
                "processor_class": "SmolVLMProcessor",
                "resample": 1,
                "rescale_factor": 1.0 / 255.0,
                "size": edge
            }),
        ),
        (
            "processor_config.json",
            json!({"image_seq_len": model.image_tokens(), "processor_class": "SmolVLMProcessor"}),
        ),
    ];
    for (name, value) in files {
        let mut text = serde_json::to_string_pretty(&value).expect("plain data always serialises");
        text.push('\n');
        write_file(&folder.join(name), text.as_bytes())?;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_named() {
        NewModel::default().check().unwrap();
        let message = |model: NewModel| model.check().unwrap_err().to_string();
        assert!(message(NewModel { vision_heads: 5, ..NewModel::default() }).contains("vision_heads = 5"));
        assert!(message(NewModel { scale_factor: 3, ..NewModel::default() }).contains("16 patches"));
        assert!(message(NewModel { vocabulary: 100, ..NewModel::default() }).contains("263"));
        assert!(message(NewModel { patch_size: 0, ..NewModel::default() }).contains("patch_size"));
        assert!(message(NewModel { text_heads: 256, text_kv_heads: 2, ..NewModel::default() }).contains("even"));
    }

    #[test]
    fn the_folder_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let texts = (0..100).map(|i| format!("Are there {i} fish? No."));
        let config = write(folder.path(), &NewModel::default(), texts).unwrap();
        assert!(config["text_config"]["vocab_size"].as_u64().unwrap() <= 1000);
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            assert!(folder.path().join(name).is_file(), "{name}");
        }
    }

    #[test]
    fn the_template_writes_what_the_family_writes() {
        let mut environment = minijinja::Environment::new();
        environment.set_syntax(
            minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap(),
        );
        let template = environment.template_from_str(CHAT_TEMPLATE).unwrap();
        let text = template
            .render(minijinja::context! {
                messages => minijinja::value::Serde(json!([
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
                    {"role": "user", "content": "Sure?"}
                ])),
                add_generation_prompt => true,
            })
            .unwrap();
        assert_eq!(
            text,
            "<|im_start|>User:<image>How many?<end_of_utterance>\nAssistant: Two.<end_of_utterance>\n\
             User: Sure?<end_of_utterance>\nAssistant:"
        );
    }
}
