//! The files around the weights that make a folder loadable elsewhere: configuration, tokenizer, processor, template.
//! They are copied from the model that the run began with; only the number format in `config.json` follows the
//! weights. Cost: a few small copies.

use std::path::Path;

use super::CheckpointError;
use super::durable::{read_file, write_file};

/// Files that travel with a model. Weights and their index are written, never copied.
pub const SIDE_FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
];

/// Copies the side files of the model in `source` to `target`. `dtype` is the number format of the weights beside
/// them, in PyTorch's word (`float32`, `bfloat16`, `float16`).
pub fn copy_side_files(source: &Path, target: &Path, dtype: &str) -> Result<(), CheckpointError> {
    for name in SIDE_FILES {
        let path = source.join(name);
        if !path.is_file() {
            continue;
        }
        let mut bytes = read_file(&path)?;
        if name == "config.json" {
            bytes = with_dtype(&bytes, dtype).ok_or_else(|| CheckpointError::Damaged {
                path: path.clone(),
                reason: "it is not a JSON object".into(),
            })?;
        }
        write_file(&target.join(name), &bytes)?;
    }
    Ok(())
}

/// Copies the files that an adapter needs beside it to be asked on its own: tokenizer, processor, template. The model's
/// configuration stays with the model, or the folder would pass for one.
pub fn copy_prompt_files(source: &Path, target: &Path) -> Result<(), CheckpointError> {
    for name in SIDE_FILES.into_iter().filter(|name| !["config.json", "generation_config.json"].contains(name)) {
        let path = source.join(name);
        if path.is_file() {
            write_file(&target.join(name), &read_file(&path)?)?;
        }
    }
    Ok(())
}

/// `config.json` with its number format replaced, in whichever place this version of it keeps one.
fn with_dtype(config: &[u8], dtype: &str) -> Option<Vec<u8>> {
    let mut config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let root = config.as_object_mut()?;
    let new = serde_json::Value::String(dtype.to_string());
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) = root.get_mut(key) {
            *value = new.clone();
        }
        for part in ["text_config", "vision_config"] {
            if let Some(value) = root.get_mut(part).and_then(|part| part.get_mut(key)) {
                *value = new.clone();
            }
        }
    }
    serde_json::to_vec_pretty(&config).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_format_follows_the_weights_and_all_else_stays() {
        let config = br#"{"b": 1, "torch_dtype": "float32", "text_config": {"dtype": "float32", "x": 2}}"#;
        let text = String::from_utf8(with_dtype(config, "bfloat16").unwrap()).unwrap();
        assert!(!text.contains("float32"), "{text}");
        assert!(text.find("\"b\"").unwrap() < text.find("torch_dtype").unwrap());
    }
}
