//! From a path to the files that hold its rows: a file, a folder that `data make` wrote, or a folder of Parquet files in
//! one of the layouts of the hub (`data/train-00000-of-00002.parquet`, `default/train/0000.parquet`).
//! Looks at names and sizes only. Cost: listing the folder.

use std::fs;
use std::path::{Path, PathBuf};

use foveate_model::plan::available_memory;

use super::error::DataError;
use super::write::ROWS;

/// Folders are looked into this far down.
const DEPTH: usize = 4;

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A file of JSON.
    Text(PathBuf),
    /// What was named, and its Parquet files in order, each with the split that its name tells.
    Parquet(PathBuf, Vec<(PathBuf, Option<String>)>),
}

impl Found {
    /// What was named; for a folder of rows, their file.
    pub fn path(&self) -> &Path {
        match self {
            Found::Text(path) | Found::Parquet(path, _) => path,
        }
    }
}

/// Looks at `path`. `split` picks among the files of a folder that holds several splits.
pub fn find(path: &Path, split: Option<&str>) -> Result<Found, DataError> {
    let found = if path.is_dir() && !path.join(ROWS).exists() {
        let mut files = Vec::new();
        list(path, DEPTH, &mut files)?;
        files.sort_unstable();
        if files.is_empty() {
            return Err(DataError::Source {
                problem: format!("{} holds neither {ROWS} nor Parquet files", path.display()),
                hint: "name the file of rows, or a folder of .parquet files".into(),
            });
        }
        Found::Parquet(path.to_path_buf(), of_split(path, files, split)?)
    } else {
        let path = if path.is_dir() { path.join(ROWS) } else { path.to_path_buf() };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("parquet") => Found::Parquet(path.clone(), vec![(path.clone(), split_of(&path))]),
            Some(kind @ ("arrow" | "csv" | "tsv")) => {
                return Err(DataError::Source {
                    problem: format!("{}: {kind} files cannot be read", path.display()),
                    hint: "write it as Parquet, or as JSONL, one row a line with question, answer and image paths"
                        .into(),
                });
            }
            _ => Found::Text(path),
        }
    };
    if let Found::Parquet(path, files) = &found {
        let bytes: u64 = files.iter().filter_map(|(path, _)| fs::metadata(path).ok()).map(|file| file.len()).sum();
        let free = available_memory().unwrap_or(usize::MAX) as u64;
        if bytes > free {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            return Err(DataError::Source {
                problem: format!(
                    "{} holds {:.1} GiB, and {:.1} GiB of memory are free",
                    path.display(),
                    gib(bytes),
                    gib(free)
                ),
                hint: "rows stay in memory with their pictures; name some of its files, or convert them one by one \
                       with `foveate data convert`, which puts pictures into files"
                    .into(),
            });
        }
    }
    Ok(found)
}

fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(DataError::file("read the folder", folder))? {
        let path = entry.map_err(DataError::file("read the folder", folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && depth > 0 && !hidden {
            list(&path, depth - 1, files)?;
        } else if path.extension().is_some_and(|extension| extension == "parquet") && !hidden {
            files.push(path);
        }
    }
    Ok(())
}

/// Several splits are never joined unasked: training on the test rows would go unnoticed.
fn of_split(
    folder: &Path,
    files: Vec<PathBuf>,
    split: Option<&str>,
) -> Result<Vec<(PathBuf, Option<String>)>, DataError> {
    let files: Vec<_> =
        files.into_iter().map(|path| (split_of(&path), path)).map(|(split, path)| (path, split)).collect();
    let mut splits: Vec<&str> = files.iter().filter_map(|(_, split)| split.as_deref()).collect();
    splits.sort_unstable();
    splits.dedup();
    match split {
        None if splits.len() > 1 => Err(DataError::Source {
            problem: format!("{} holds the splits {}", folder.display(), splits.join(", ")),
            hint: format!("say which: {{ path = {:?}, split = {:?} }}", folder.display().to_string(), splits[0]),
        }),
        Some(wanted) if splits.contains(&wanted) => {
            Ok(files.into_iter().filter(|(_, split)| split.as_deref() == Some(wanted)).collect())
        }
        // No file is called so: the rows may still have a column that says it.
        _ => Ok(files),
    }
}

/// The split that a file's name begins with, or that its folder is called after if its name is only a number.
fn split_of(path: &Path) -> Option<String> {
    const KNOWN: [&str; 7] = ["train", "test", "validation", "valid", "val", "dev", "eval"];
    let stem = path.file_stem()?.to_string_lossy().into_owned();
    let numbered =
        stem.split_once("-of-").and_then(|(before, _)| before.rsplit_once('-')).map(|(name, _)| name.to_string());
    if let Some(name) = numbered {
        return Some(name);
    }
    let begins =
        |text: &str| text.split(['-', '_', '.']).next().filter(|word| KNOWN.contains(word)).map(str::to_string);
    if stem.bytes().all(|byte| byte.is_ascii_digit()) {
        return begins(&path.parent()?.file_name()?.to_string_lossy());
    }
    begins(&stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_read_off_names() {
        for (path, split) in [
            ("data/train-00000-of-00002.parquet", Some("train")),
            ("data/test_mini-00000-of-00001-a1b2.parquet", Some("test_mini")),
            ("default/validation/0000.parquet", Some("validation")),
            ("test.parquet", Some("test")),
            ("val_1.parquet", Some("val")),
            ("part-0.parquet", None),
            ("rows/0001.parquet", None),
        ] {
            assert_eq!(split_of(Path::new(path)).as_deref(), split, "{path}");
        }
    }

    #[test]
    fn several_splits_are_never_joined_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let touch = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        assert!(find(folder.path(), None).is_err(), "an empty folder");
        touch("data/train-00001-of-00002.parquet");
        touch("data/train-00000-of-00002.parquet");
        touch("README.md");
        let Found::Parquet(_, files) = find(folder.path(), None).unwrap() else { panic!() };
        assert!(files.len() == 2 && files[0].0.ends_with("train-00000-of-00002.parquet"), "{files:?}");
        touch("data/test-00000-of-00001.parquet");
        let error = find(folder.path(), None).unwrap_err();
        assert!(error.to_string().contains("test, train") && error.hint().unwrap().contains("split = \"test\""));
        let Found::Parquet(_, files) = find(folder.path(), Some("test")).unwrap() else { panic!() };
        assert_eq!(files.len(), 1);
        let Found::Parquet(_, files) = find(folder.path(), Some("hard")).unwrap() else { panic!() };
        assert_eq!(files.len(), 3, "rows may have a column that says it");
        touch("rows.jsonl");
        assert!(matches!(find(folder.path(), None).unwrap(), Found::Text(_)));
    }
}
