//! From the name of a model to the folder that holds it: a built-in model, a folder in Hugging Face layout, a hub id,
//! or a folder with a PEFT adapter, which names the model underneath. A hub id is looked for in the hub's cache, and
//! fetched if it is not there. Knows names and folders; reads no weights until it is asked to.
//! Cost: none before that, but for what is fetched.

use std::path::{Path, PathBuf};

use foveate_model::{ModelError, Policy, Precision, peft, plan};

use crate::builtin;
use crate::checkpoint::durable::FileError;
use crate::hub::{self, Hub, HubError, HubId};
use crate::prompt::{ImageLimits, ImageProcessor, PromptError, Prompter};

/// A model that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSource {
    /// The model itself: configuration, weights, tokenizer, processor, template.
    pub folder: PathBuf,
    /// What an adapter calls that model, so that it is found again.
    pub name: String,
    /// The adapter that was named, if one was.
    pub adapter: Option<PathBuf>,
    /// Limits on pictures that are not the model's own.
    pub images: ImageLimits,
}

/// Why a name leads to no model.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing of that name exists.
    #[error("{name}: {problem}")]
    Unknown {
        /// The name.
        name: String,
        /// What was looked for.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// The adapter's settings cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer, template or image settings cannot be used.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The hub does not give it.
    #[error("{name} is no folder here, and the hub does not give it: {problem}")]
    Hub {
        /// The name.
        name: String,
        /// Why.
        problem: HubError,
    },
    /// A built-in model could not be unpacked.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SourceError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            SourceError::Unknown { hint, .. } => Some(hint.clone()),
            SourceError::Model(error) => Some(error.hint()),
            SourceError::Prompt(error) => Some(error.hint().to_string()),
            SourceError::Hub { problem, .. } => problem.hint(),
            SourceError::File(error) => error.hint(),
        }
    }
}

/// Finds the model `name`; relative paths start at `base`.
pub fn find(base: &Path, name: &str) -> Result<ModelSource, SourceError> {
    let local = base.join(name);
    let on_hub = if local.exists() { None } else { from_hub(name)? };
    let folder = on_hub.clone().unwrap_or(local);
    if let Some(adapter) = peft::read_config(&folder)? {
        let unknown = |problem: String, hint: &str| SourceError::Unknown {
            name: name.to_string(),
            problem,
            hint: hint.to_string(),
        };
        let Some(under) = adapter.base else {
            let problem = "the adapter does not say which model it belongs to".to_string();
            return Err(unknown(problem, "add base_model_name_or_path to its adapter_config.json"));
        };
        let source = match peft::local_base(&folder, &under) {
            Some(folder) => plain(&folder, &under)?,
            None => find_plain(&under).map_err(|error| match error {
                SourceError::Unknown { problem, .. } => unknown(
                    format!("the adapter belongs to the model {under:?}: {problem}"),
                    "put the model's folder in base_model_name_or_path of adapter_config.json",
                ),
                other => other,
            })?,
        };
        return Ok(ModelSource { adapter: Some(folder), ..source });
    }
    match on_hub {
        Some(folder) => {
            Ok(ModelSource { folder, name: name.to_string(), adapter: None, images: ImageLimits::default() })
        }
        None => plain(&folder, name),
    }
}

/// The model underneath an adapter, by the name that the adapter gives it.
fn find_plain(name: &str) -> Result<ModelSource, SourceError> {
    let local = Path::new(name);
    match if local.exists() { None } else { from_hub(name)? } {
        Some(folder) => {
            Ok(ModelSource { folder, name: name.to_string(), adapter: None, images: ImageLimits::default() })
        }
        None => plain(local, name),
    }
}

/// The folder of a hub id, from the cache or from the hub; nothing if the name cannot be one.
fn from_hub(name: &str) -> Result<Option<PathBuf>, SourceError> {
    let (Some(id), Some(root)) = (HubId::parse(name), hub::cache_root()) else { return Ok(None) };
    if let Some(folder) = id.cached(&root) {
        return Ok(Some(folder));
    }
    let Some(hub) = Hub::from_environment(&root) else {
        return Err(SourceError::Unknown {
            name: name.to_string(),
            problem: format!("neither a folder nor, whole, in the hub's cache at {}", root.display()),
            hint: format!(
                "HF_HUB_OFFLINE forbids to fetch it: unset it, or get the model once with `{}`; built in: {}",
                id.how_to_get(),
                builtin::names().join(", ")
            ),
        });
    };
    let failed = |problem| SourceError::Hub { name: name.to_string(), problem };
    Ok(Some(hub.download(&id).map_err(failed)?))
}

/// A model without adapters.
fn plain(folder: &Path, name: &str) -> Result<ModelSource, SourceError> {
    if let Some(folder) = builtin::unpack(name)? {
        return Ok(ModelSource { folder, name: name.to_string(), adapter: None, images: ImageLimits::default() });
    }
    if folder.join("config.json").is_file() {
        // Whole, so that an adapter finds it from anywhere on this machine.
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        let name = whole.to_string_lossy().into_owned();
        return Ok(ModelSource { folder: folder.to_path_buf(), name, adapter: None, images: ImageLimits::default() });
    }
    let unknown = |problem: &str, hint: String| {
        Err(SourceError::Unknown { name: name.to_string(), problem: problem.to_string(), hint })
    };
    if folder.is_dir() {
        return unknown(
            "the folder has no config.json",
            "a model folder is in Hugging Face layout; an adapter folder holds adapter_config.json".to_string(),
        );
    }
    let known = builtin::names().join(", ");
    unknown(
        "neither a built-in model nor a folder",
        format!("built in: {known}; or give a folder; a checkpoint of a run lies in runs/NAME/checkpoints/"),
    )
}

impl ModelSource {
    /// How the model's pictures are cut, as its folder says.
    pub fn processor(&self) -> Result<ImageProcessor, SourceError> {
        Ok(Prompter::load(&self.folder)?.processor().clone())
    }

    /// The same model with limits on pictures.
    pub fn with_images(self, images: &ImageLimits) -> Self {
        Self { images: images.clone(), ..self }
    }

    /// Loads what turns conversations into tokens for `policy`, and refuses ids that the model has no row for.
    pub fn prompter(&self, policy: &Policy) -> Result<Prompter, SourceError> {
        let mut prompter = Prompter::load(&self.folder)?;
        self.images.apply(prompter.processor_mut())?;
        let vocabulary = policy.description().vocabulary;
        match prompter.codec().largest_id() {
            Some(id) if id as usize >= vocabulary => {
                Err(ModelError::Tokenizer { path: self.folder.clone(), id, vocabulary }.into())
            }
            _ => Ok(prompter),
        }
    }

    /// Loads the model, its adapter beside it if there is one.
    pub fn load(&self, precision: Precision) -> Result<Policy, ModelError> {
        plan::check_fits(&self.folder, precision)?;
        let policy = Policy::load(&self.folder, precision)?;
        match &self.adapter {
            None => Ok(policy),
            Some(adapter) => policy.with_adapter_from(adapter),
        }
    }
}
