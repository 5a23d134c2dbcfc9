//! Reads the small text files of a checkpoint folder, with errors that name the file.
//! Knows JSON; knows nothing of what the files mean. Cost: none worth naming.

use std::path::Path;

use serde_json::Value as Json;

use super::error::PromptError;

/// A text file.
pub fn read_text(path: &Path) -> Result<String, PromptError> {
    std::fs::read_to_string(path)
        .map_err(|error| PromptError::File { path: path.to_path_buf(), problem: error.to_string() })
}

/// A JSON object.
pub fn read_json(path: &Path) -> Result<Json, PromptError> {
    let text = read_text(path)?;
    let fail = |problem: String| PromptError::File { path: path.to_path_buf(), problem };
    let json: Json = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    if json.is_object() { Ok(json) } else { Err(fail("is not a JSON object".into())) }
}

/// A JSON object, or `None` if there is no such file.
pub fn read_json_if_present(path: &Path) -> Result<Option<Json>, PromptError> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}
