//! Rows of Parquet files as the hub's data sets have them: plain columns, lists, structs, and pictures as bytes.
//! Knows the file format and nothing of questions; `files` makes rows of what comes out. A small reader of our own: the
//! published crate panics on damaged files where rows are put together, and reads Zstandard with bundled C.
//! Cost: one row group in memory at a time, unpacked; pictures are shared, not copied.
//!
//! `footer` says where columns lie, `column` reads one, `unpack` and `values` its pages; this file puts rows together.

mod column;
mod footer;
mod thrift;
mod unpack;
mod values;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use self::column::Column;
use self::footer::{Footer, Meaning, Node, NodeKind};
use self::values::Scalar;

/// Where a row's value stands for bytes: `{ATTACHED: place among them}`.
pub const ATTACHED: &str = "attached bytes";

/// Whether a value points to bytes, itself or somewhere inside.
pub fn is_attached(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.contains_key(ATTACHED) || fields.values().any(is_attached),
        Value::Array(entries) => entries.iter().any(is_attached),
        _ => false,
    }
}

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

impl Unreadable {
    fn new(problem: impl Into<String>, hint: &str) -> Self {
        Self { problem: problem.into(), hint: hint.to_string() }
    }

    fn damaged(problem: impl Into<String>) -> Self {
        Self::new(problem, "the file is damaged or was not copied whole; get it again")
    }

    fn io(error: std::io::Error) -> Self {
        Self::new(format!("cannot read: {error}"), "check the file and the disk it lies on")
    }
}

/// A row: its fields, and the bytes that they point to.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The columns by name.
    pub fields: Map<String, Value>,
    /// Pictures and other bytes.
    pub attached: Vec<Arc<[u8]>>,
}

/// Reads the file and gives each row to `row`, with its number from 0, until that fails.
pub fn read<E: From<Unreadable>>(path: &Path, mut row: impl FnMut(usize, Record) -> Result<(), E>) -> Result<(), E> {
    let mut file = File::open(path).map_err(Unreadable::io)?;
    let Footer { root, groups, notes } = footer::read(&mut file)?;
    let NodeKind::Group(members) = &root.kind else { return Ok(()) };
    let names = class_names(&notes);
    let mut leaves = Vec::new();
    members.iter().for_each(|member| collect_leaves(member, &mut leaves));
    let mut number = 0;
    for group in &groups {
        let mut columns = Vec::with_capacity(leaves.len());
        for (chunk, leaf) in group.chunks.iter().zip(&leaves) {
            columns.push(column::read(&mut file, chunk, leaf)?);
        }
        for _ in 0..group.num_rows {
            let mut record = Record { fields: Map::new(), attached: vec![] };
            for member in members {
                let mut value = value_of(member, &mut columns, &mut record.attached)?;
                if let Some(name) = names.get(&member.name).and_then(|names| names.get(value.as_u64()? as usize)) {
                    value = Value::String(name.clone());
                }
                record.fields.insert(member.name.clone(), value);
            }
            row(number, record)?;
            number += 1;
        }
        if columns.iter().any(|column| column.definition().is_some()) {
            return Err(Unreadable::damaged("a column has more values than there are rows").into());
        }
    }
    Ok(())
}

fn collect_leaves<'a>(node: &'a Node, leaves: &mut Vec<&'a Node>) {
    match &node.kind {
        NodeKind::Leaf(..) => leaves.push(node),
        NodeKind::Group(members) => members.iter().for_each(|member| collect_leaves(member, leaves)),
        NodeKind::List(inside) => collect_leaves(inside, leaves),
    }
}

/// Names of the classes that the `datasets` library keeps as numbers, by column.
fn class_names(notes: &[(String, String)]) -> std::collections::BTreeMap<String, Vec<String>> {
    let note = notes.iter().find(|(key, _)| key == "huggingface").map(|(_, value)| value.as_str());
    let note: Value = note.and_then(|note| serde_json::from_str(note).ok()).unwrap_or_default();
    let Some(features) = note.pointer("/info/features").and_then(Value::as_object) else { return Default::default() };
    let named = features.iter().filter(|(_, feature)| feature["_type"] == "ClassLabel");
    named
        .filter_map(|(name, feature)| {
            let names = feature["names"].as_array()?.iter().map(|name| name.as_str().map(str::to_string));
            Some((name.clone(), names.collect::<Option<_>>()?))
        })
        .collect()
}

/// The next value of a node whose parent is there.
fn value_of(node: &Node, columns: &mut [Column], attached: &mut Vec<Arc<[u8]>>) -> Result<Value, Unreadable> {
    if !node.optional && !node.repeated {
        return content(node, columns, attached);
    }
    let missing = || Unreadable::damaged("a column has fewer values than rows need");
    let first = node.first_leaf;
    if columns[first].definition().ok_or_else(missing)? < u32::from(node.definition) {
        // One cell in every column below says that nothing is here.
        columns[first..first + node.num_leaves].iter_mut().try_for_each(|column| column.take().map(|_| ()))?;
        return Ok(if node.repeated { Value::Array(vec![]) } else { Value::Null });
    }
    if !node.repeated {
        return content(node, columns, attached);
    }
    let mut entries = Vec::new();
    loop {
        entries.push(content(node, columns, attached)?);
        if columns[first].repetition() != Some(u32::from(node.repetition)) {
            return Ok(Value::Array(entries));
        }
    }
}

/// What a node that is there holds.
fn content(node: &Node, columns: &mut [Column], attached: &mut Vec<Arc<[u8]>>) -> Result<Value, Unreadable> {
    match &node.kind {
        NodeKind::Leaf(_, meaning) => match columns[node.first_leaf].take()? {
            None => Err(Unreadable::damaged("a value is absent that must be there")),
            Some(scalar) => json(scalar, *meaning, attached),
        },
        NodeKind::Group(members) => {
            let mut fields = Map::new();
            for member in members {
                fields.insert(member.name.clone(), value_of(member, columns, attached)?);
            }
            Ok(Value::Object(fields))
        }
        NodeKind::List(inside) => {
            let entries = value_of(inside, columns, attached)?;
            // Between a list and its entries stands a group of one member, except in files of very old writers.
            let wraps = matches!(&inside.kind, NodeKind::Group(members)
                if members.len() == 1 && inside.name != "array" && inside.name != format!("{}_tuple", node.name));
            let Value::Array(entries) = entries else { return Ok(entries) };
            let unwrapped = |entry: Value| match entry {
                Value::Object(fields) if wraps => fields.into_iter().next().map_or(Value::Null, |(_, value)| value),
                other => other,
            };
            Ok(Value::Array(entries.into_iter().map(unwrapped).collect()))
        }
    }
}

fn json(scalar: Scalar, meaning: Meaning, attached: &mut Vec<Arc<[u8]>>) -> Result<Value, Unreadable> {
    Ok(match scalar {
        Scalar::Bool(yes) => Value::Bool(yes),
        Scalar::Int(number) => number.into(),
        Scalar::Unsigned(number) => number.into(),
        // What is no number becomes null, as JSON has no word for it.
        Scalar::Float(number) => number.into(),
        Scalar::Bytes(bytes) if meaning == Meaning::Text => {
            Value::String(String::from_utf8(bytes.to_vec()).map_err(|_| Unreadable::damaged("a text is not UTF-8"))?)
        }
        Scalar::Bytes(bytes) => match std::str::from_utf8(&bytes) {
            // Some writers do not say that their columns are text.
            Ok(text) if image::guess_format(&bytes).is_err() => Value::String(text.to_string()),
            _ => {
                attached.push(bytes);
                serde_json::json!({ ATTACHED: attached.len() - 1 })
            }
        },
    })
}
