//! Models of the Hugging Face hub: found in the cache of its own programs, without any network, or fetched into it.
//! Layout: `models--ORG--NAME/refs/REVISION` holds a commit, `snapshots/COMMIT/` the files of it.
//! Knows folders and environment variables. Cost: two small reads.

mod download;
pub mod sha256;

use std::path::{Path, PathBuf};

use foveate_model::safetensors_io::weight_files;

pub use download::{Hub, HubError, Progress, watch};

/// `ORG/NAME`, maybe with `@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// User or organisation, and model.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl HubId {
    /// Reads an id; nothing if the text cannot be one.
    pub fn parse(text: &str) -> Option<HubId> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (organisation, model) = name.split_once('/')?;
        let fine = |part: &str| {
            let inside = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            !part.is_empty() && part.len() <= 96 && inside && !part.starts_with(['.', '-']) && !part.contains("..")
        };
        let fine_revision = revision.split('/').all(fine);
        (fine(organisation) && fine(model) && fine_revision)
            .then(|| HubId { name: name.to_string(), revision: revision.to_string() })
    }

    /// The folder of the model inside the cache `root`.
    fn home(&self, root: &Path) -> PathBuf {
        root.join(format!("models--{}", self.name.replace('/', "--")))
    }

    /// The folder of its files inside the cache `root`, if all of them are there.
    pub fn cached(&self, root: &Path) -> Option<PathBuf> {
        let home = self.home(root);
        let reference = std::fs::read_to_string(home.join("refs").join(&self.revision));
        let commit = reference.map_or_else(|_| self.revision.clone(), |text| text.trim().to_string());
        let snapshot = home.join("snapshots").join(commit);
        is_whole(&snapshot).then_some(snapshot)
    }

    /// What to type so that it is there.
    pub fn how_to_get(&self) -> String {
        let revision = if self.revision == "main" { String::new() } else { format!(" --revision {}", self.revision) };
        format!("hf download {}{revision}", self.name)
    }
}

/// Whether a folder holds a model with all its weights, or an adapter.
fn is_whole(folder: &Path) -> bool {
    let there = |name: &str| folder.join(name).is_file();
    let weights =
        || weight_files(folder).is_ok_and(|files| !files.is_empty() && files.iter().all(|file| file.is_file()));
    there("config.json") && weights() || there("adapter_config.json") && there("adapter_model.safetensors")
}

/// Where the hub's programs keep what they remember.
fn home() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HOME")
        .or_else(|| set("XDG_CACHE_HOME").map(|home| home.join("huggingface")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/huggingface")))
}

/// Where the hub's programs keep their downloads: the same variables in the same order.
pub fn cache_root() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).or_else(|| home().map(|home| home.join("hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for (text, revision) in [("a/b", "main"), ("Some-Org/Model.1_x", "main"), ("a/b@v1.0", "v1.0")] {
            assert_eq!(HubId::parse(text).unwrap().revision, revision, "{text}");
        }
        for text in ["a", "a/b/c", "../b", "a/..", "/a", "a/", "./b", "a b/c", "a/b@", "a/b@../x", "a/b..c"] {
            assert_eq!(HubId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_snapshot_is_found_through_its_branch_or_by_its_commit() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("models--org--name");
        let snapshot = home.join("snapshots/0123abcd");
        std::fs::create_dir_all(home.join("refs/pr")).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(home.join("refs/main"), "0123abcd\n").unwrap();
        std::fs::write(home.join("refs/pr/1"), "0123abcd").unwrap();
        let find = |text: &str| HubId::parse(text).unwrap().cached(root.path());
        assert_eq!(find("org/name"), None, "an unfinished download has no configuration");
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(find("org/name"), None, "nor are all weights there");
        let index = r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
        std::fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
        std::fs::write(snapshot.join("1.safetensors"), "").unwrap();
        assert_eq!(find("org/name"), None, "one of two");
        std::fs::write(snapshot.join("2.safetensors"), "").unwrap();
        for text in ["org/name", "org/name@main", "org/name@0123abcd", "org/name@pr/1"] {
            assert_eq!(find(text), Some(snapshot.clone()), "{text}");
        }
        for text in ["org/other", "org/name@v2"] {
            assert_eq!(find(text), None, "{text}");
        }
    }
}
