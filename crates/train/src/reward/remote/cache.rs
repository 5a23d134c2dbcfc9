//! Replies of a judge on disk, found again by what was asked: a question is paid for once, and a resumed run hears what
//! it heard before. Knows JSON values and files. Cost: one small file per reply.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A folder of replies. Without a folder nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// Keeps replies in `folder`, which is made when the first one is kept.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The reply to exactly this request, if one is kept.
    pub fn get(&self, request: &Value) -> Option<String> {
        let text = fs::read(self.place(request)?).ok()?;
        let entry: Value = serde_json::from_slice(&text).ok()?;
        // Compared in full: the name is a short hash, and a wrong reply would be a wrong reward.
        (entry.get("request") == Some(request)).then(|| entry.get("reply")?.as_str().map(String::from)).flatten()
    }

    /// Keeps a reply. A disk that refuses costs money, not correctness: the error is dropped.
    pub fn put(&self, request: &Value, reply: &str) {
        let Some(place) = self.place(request) else { return };
        let entry = json!({ "request": request, "reply": reply }).to_string();
        let _ = place.parent().map(fs::create_dir_all);
        // Aside and renamed: two threads may keep the same reply, and a kill must not leave half of one.
        let aside = place.with_extension(format!("{:?}.partial", std::thread::current().id()));
        if fs::write(&aside, entry).is_ok() && fs::rename(&aside, &place).is_err() {
            let _ = fs::remove_file(&aside);
        }
    }

    fn place(&self, request: &Value) -> Option<PathBuf> {
        let name = hash(request.to_string().as_bytes());
        Some(self.folder.as_deref()?.join(&name[..2]).join(format!("{name}.json")))
    }

    /// Where replies are kept.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

/// 128 bits as hexadecimal digits: two FNV-1a hashes, one of the bytes backwards.
fn hash(bytes: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let forwards = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    let backwards = bytes.iter().rev().fold(0x9e37_79b9_7f4a_7c15, step);
    format!("{forwards:016x}{backwards:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_request_finds_its_reply() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::new(Some(folder.path().join("judge")));
        let (a, b) = (json!({"model": "m", "messages": ["a"]}), json!({"model": "m", "messages": ["b"]}));
        assert_eq!(cache.get(&a), None);
        cache.put(&a, "high");
        assert_eq!((cache.get(&a), cache.get(&b)), (Some("high".into()), None));
        cache.put(&a, "low");
        assert_eq!(cache.get(&a).as_deref(), Some("low"));
        // An entry of another request under the same name, and one that was cut.
        let place = cache.place(&a).expect("a folder");
        fs::write(&place, json!({"request": b, "reply": "x"}).to_string()).expect("written");
        assert_eq!(cache.get(&a), None);
        fs::write(&place, "{\"request\":").expect("written");
        assert_eq!(cache.get(&a), None);
        let none = Cache::default();
        none.put(&a, "x");
        assert_eq!(none.get(&a), None);
    }
}
