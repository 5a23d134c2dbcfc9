//! Reads the numbers of an architecture out of a Hugging Face `config.json`, defaults included.
//! Knows key names, old and new; knows no tensors. Cost: none.

use std::path::{Path, PathBuf};

use foveate_kernels::cpu::activation::Activation;
use serde_json::Value;

use crate::error::ModelError;
use crate::positions::Rope;

/// One object of a configuration, with the place it came from for messages.
pub struct Keys<'a> {
    path: PathBuf,
    prefix: String,
    value: &'a Value,
}

impl<'a> Keys<'a> {
    /// The root object of `path`.
    pub fn root(path: &Path, value: &'a Value) -> Self {
        Self { path: path.to_path_buf(), prefix: String::new(), value }
    }

    /// A nested object; absent reads as empty.
    pub fn section(&self, key: &str) -> Keys<'a> {
        static EMPTY: Value = Value::Null;
        Keys {
            path: self.path.clone(),
            prefix: format!("{}{key}.", self.prefix),
            value: self.value.get(key).unwrap_or(&EMPTY),
        }
    }

    /// A raw value, if present and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, want: &str) -> ModelError {
        ModelError::Config {
            path: self.path.clone(),
            problem: format!("{}{key} should be {want}, it is {}", self.prefix, self.value[key]),
            hint: "the checkpoint's config.json may have been edited; restore the published one".into(),
        }
    }

    /// A size between 1 and 2^24, with a default.
    pub fn size(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        match value.as_u64() {
            Some(size) if (1..1 << 24).contains(&size) => Ok(size as usize),
            _ => Err(self.wrong(key, "a whole number between 1 and 16777215")),
        }
    }

    /// A finite number, with a default.
    pub fn number(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| self.wrong(key, "a number"))
    }

    /// A flag, if present.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    /// A list of whole numbers below 2^24, if present.
    pub fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = |value: &Value| value.as_u64().filter(|size| *size < 1 << 24).map(|size| size as usize);
        let sizes: Option<Vec<usize>> = value.as_array().and_then(|list| list.iter().map(size).collect());
        sizes.map(Some).ok_or_else(|| self.wrong(key, "a list of whole numbers"))
    }

    /// A word, if present.
    pub fn word(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// An activation, with a default.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelError> {
        match self.word(key) {
            None => Ok(default),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some("gelu") => Ok(Activation::GeluErf),
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            Some("silu") => Ok(Activation::Silu),
            Some("relu") => Ok(Activation::Relu),
            Some(other) => Err(self.problem(
                format!("{}{key} \"{other}\" is not supported", self.prefix),
                "supported: gelu_pytorch_tanh, gelu, quick_gelu, silu, relu",
            )),
        }
    }

    /// An error about a combination of keys.
    pub fn problem(&self, problem: String, hint: &str) -> ModelError {
        ModelError::Config { path: self.path.clone(), problem, hint: hint.into() }
    }
}

/// Rotary frequencies over `head_dim`, one for each pair of values, and the axis that each follows.
///
/// `rope_type` default and llama3 (frequency-dependent interpolation, Llama 3.1 release notes); linear divides all.
/// `mrope_section` says how many frequencies belong to time, height and width: in blocks, or `interleaved` in turns
/// (time takes what the other two leave).
pub fn rotary(text: &Keys, head_dim: usize, default_theta: f64, interleaved: bool) -> Result<Rope, ModelError> {
    // transformers 5 writes rope_parameters, earlier versions rope_theta beside rope_scaling.
    let parameters = text.section("rope_parameters");
    let scaling = if text.get("rope_parameters").is_some() { parameters } else { text.section("rope_scaling") };
    let theta = text.number("rope_theta", scaling.number("rope_theta", default_theta)?)?;
    if text.number("partial_rotary_factor", scaling.number("partial_rotary_factor", 1.0)?)? != 1.0 {
        return Err(text.problem("a partial_rotary_factor is not supported".into(), "supported: whole heads rotate"));
    }
    let mut frequencies: Vec<f64> =
        (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f64 / head_dim as f64)).collect();
    let kind = scaling.word("rope_type").or(scaling.word("type")).unwrap_or("default");
    match kind {
        // Qwen2-VL's name for several axes; the frequencies are the ordinary ones.
        "default" | "mrope" => {}
        "linear" => {
            let factor = scaling.number("factor", 1.0)?;
            frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
        }
        "llama3" => {
            let factor = scaling.number("factor", 8.0)?;
            let low = scaling.number("low_freq_factor", 1.0)?;
            let high = scaling.number("high_freq_factor", 4.0)?;
            let context = scaling.number("original_max_position_embeddings", 8192.0)?;
            for frequency in &mut frequencies {
                let wavelength = std::f64::consts::TAU / *frequency;
                if wavelength > context / low {
                    *frequency /= factor;
                } else if wavelength >= context / high {
                    let smooth = (context / wavelength - low) / (high - low);
                    *frequency = (1.0 - smooth) * *frequency / factor + smooth * *frequency;
                }
            }
        }
        other => {
            return Err(
                text.problem(format!("rope type \"{other}\" is not supported"), "supported: default, linear, llama3")
            );
        }
    }
    let inverse_frequencies: Vec<f32> = frequencies.into_iter().map(|frequency| frequency as f32).collect();
    let axis_of = match scaling.sizes("mrope_section")? {
        None => vec![0; head_dim / 2],
        Some(sections) => axes(&sections, interleaved, head_dim / 2).ok_or_else(|| {
            text.problem(
                format!("mrope_section {sections:?} does not divide {} frequencies among three axes", head_dim / 2),
                "the three sections add up to half of head_dim",
            )
        })?,
    };
    Ok(Rope { inverse_frequencies, axis_of })
}

/// Axis of each of `half` frequencies.
fn axes(sections: &[usize], interleaved: bool, half: usize) -> Option<Vec<u8>> {
    if sections.len() != 3 || sections.iter().sum::<usize>() != half {
        return None;
    }
    if !interleaved {
        return Some((0..3u8).flat_map(|axis| vec![axis; sections[axis as usize]]).collect());
    }
    let mut axis_of = vec![0; half];
    for axis in [1usize, 2] {
        for turn in 0..sections[axis] {
            *axis_of.get_mut(axis + 3 * turn)? = axis as u8;
        }
    }
    Some(axis_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_give_frequencies_to_axes() {
        assert_eq!(axes(&[2, 1, 1], false, 4).unwrap(), [0, 0, 1, 2]);
        assert_eq!(axes(&[3, 2, 2], true, 7).unwrap(), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(axes(&[4, 2, 2], true, 8).unwrap(), [0, 1, 2, 0, 1, 2, 0, 0]);
        assert_eq!(axes(&[1, 1, 1], false, 4), None);
        assert_eq!(axes(&[0, 0, 4], true, 4), None);
    }
}
