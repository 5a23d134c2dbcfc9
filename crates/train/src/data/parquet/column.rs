//! One column of a row group: its pages read, unpacked and decoded into levels and values.
//! Knows pages; knows nothing of rows. Cost: the column's bytes, unpacked, and 24 bytes a value.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::Unreadable;
use super::footer::{Chunk, Meaning, Node, NodeKind, Physical};
use super::thrift::Reader;
use super::unpack::unpack;
use super::values::{self, Bytes, MAX_VALUES, Scalar, runs};

/// Pages beyond this are refused.
const MAX_PAGE: usize = 1 << 30;

/// The cells of a column, and how far they have been read.
pub struct Column {
    /// How much of the path to each cell is there.
    definitions: Vec<u32>,
    /// At which level each cell repeats.
    repetitions: Vec<u32>,
    values: Vec<Scalar>,
    /// Level at which a value is there.
    full: u32,
    next_cell: usize,
    next_value: usize,
}

impl Column {
    /// Definition level of the next cell.
    pub fn definition(&self) -> Option<u32> {
        self.definitions.get(self.next_cell).copied()
    }

    /// Repetition level of the next cell; nothing at the end.
    pub fn repetition(&self) -> Option<u32> {
        self.repetitions.get(self.next_cell).copied()
    }

    /// Takes the next cell: a value, or nothing where it is absent.
    pub fn take(&mut self) -> Result<Option<Scalar>, Unreadable> {
        let short = || Unreadable::damaged("a column has fewer values than rows need");
        let there = self.definition().ok_or_else(short)? == self.full;
        self.next_cell += 1;
        if !there {
            return Ok(None);
        }
        let value = self.values.get(self.next_value).cloned().ok_or_else(short)?;
        self.next_value += 1;
        Ok(Some(value))
    }
}

/// The head of a page.
#[derive(Default)]
struct Head {
    kind: i64,
    unpacked: usize,
    packed: usize,
    num_values: usize,
    encoding: i64,
    /// Lengths of the levels, which stand before the packed part; only in pages of the second version.
    levels: Option<[usize; 2]>,
    is_packed: bool,
}

/// Reads a column's chunk.
pub fn read(file: &mut File, chunk: &Chunk, leaf: &Node) -> Result<Column, Unreadable> {
    let NodeKind::Leaf(physical, meaning) = leaf.kind else {
        return Err(Unreadable::damaged("a column is a group"));
    };
    if chunk.num_values > MAX_VALUES {
        return Err(Unreadable::new(
            format!("column `{}` has {} values in one row group", leaf.name, chunk.num_values),
            "write it in smaller row groups, in Python with write_table(table, path, row_group_size=1000)",
        ));
    }
    file.seek(SeekFrom::Start(chunk.start)).map_err(Unreadable::io)?;
    // The length was checked against the file's.
    let mut bytes = vec![0; chunk.len];
    file.read_exact(&mut bytes).map_err(Unreadable::io)?;
    let mut column = Column {
        definitions: vec![],
        repetitions: vec![],
        values: vec![],
        full: u32::from(leaf.definition),
        next_cell: 0,
        next_value: 0,
    };
    let mut dictionary = Vec::new();
    let mut rest = Bytes(&bytes);
    while column.definitions.len() < chunk.num_values {
        let head = head(&mut rest)?;
        let page = rest.take(head.packed)?;
        match head.kind {
            0 | 3 => add_page(&mut column, &head, page, chunk, leaf, (physical, meaning), &dictionary)?,
            2 => {
                let content = unpack(chunk.codec, page, head.unpacked)?;
                dictionary = values::read(0, &mut Bytes(&content), head.num_values, physical, meaning, &[])?;
            }
            // Pages of an index.
            _ => {}
        }
    }
    Ok(column)
}

fn head(rest: &mut Bytes) -> Result<Head, Unreadable> {
    let mut head = Head { is_packed: true, ..Head::default() };
    let mut reader = Reader::new(rest.0);
    reader.fields(|reader, id, _| {
        match id {
            1 => head.kind = reader.int()?,
            2 => head.unpacked = reader.count()?,
            3 => head.packed = reader.count()?,
            // Data and dictionary begin alike.
            5 | 7 => reader.fields(|reader, id, _| {
                match id {
                    1 => head.num_values = reader.count()?,
                    2 => head.encoding = reader.int()?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            8 => {
                let mut lengths = [0; 2];
                reader.fields(|reader, id, kind| {
                    match id {
                        1 => head.num_values = reader.count()?,
                        4 => head.encoding = reader.int()?,
                        5 => lengths[1] = reader.count()?,
                        6 => lengths[0] = reader.count()?,
                        // A flag's value is its kind.
                        7 => head.is_packed = kind == super::thrift::kind::TRUE,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                head.levels = Some(lengths);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let len = reader.position();
    rest.take(len)?;
    if head.unpacked > MAX_PAGE || head.num_values > MAX_VALUES {
        return Err(Unreadable::damaged("a page is too large"));
    }
    Ok(head)
}

fn add_page(
    column: &mut Column,
    head: &Head,
    page: &[u8],
    chunk: &Chunk,
    leaf: &Node,
    (physical, meaning): (Physical, Meaning),
    dictionary: &[Scalar],
) -> Result<(), Unreadable> {
    let count = head.num_values;
    if count == 0 {
        return Ok(());
    }
    if count > chunk.num_values - column.definitions.len() {
        return Err(Unreadable::damaged("its pages hold another number of values than it says"));
    }
    let width = |level: u16| u32::BITS - u32::from(level).leading_zeros();
    let (repetitions, definitions, content);
    let unpacked;
    let mut rest = match head.levels {
        None => {
            unpacked = unpack(chunk.codec, page, head.unpacked)?;
            let mut rest = Bytes(&unpacked);
            let mut levels = |level: u16| -> Result<Vec<u32>, Unreadable> {
                if level == 0 {
                    return Ok(vec![0; count]);
                }
                let len = rest.length()?;
                runs(&mut Bytes(rest.take(len)?), width(level), count)
            };
            repetitions = levels(leaf.repetition)?;
            definitions = levels(leaf.definition)?;
            rest
        }
        Some([repetition_len, definition_len]) => {
            let mut rest = Bytes(page);
            let mut levels = |level: u16, len: usize| -> Result<Vec<u32>, Unreadable> {
                let mut bytes = Bytes(rest.take(len)?);
                if level == 0 { Ok(vec![0; count]) } else { runs(&mut bytes, width(level), count) }
            };
            repetitions = levels(leaf.repetition, repetition_len)?;
            definitions = levels(leaf.definition, definition_len)?;
            let len = head.unpacked.checked_sub(repetition_len + definition_len);
            let len = len.ok_or_else(|| Unreadable::damaged("a page's levels are longer than the page"))?;
            content = if head.is_packed && len > 0 { unpack(chunk.codec, rest.0, len)? } else { rest.0.to_vec() };
            Bytes(&content)
        }
    };
    let num_values = definitions.iter().filter(|&&level| level == column.full).count();
    // Pages of absent values alone may hold nothing, not even the width of their places.
    if num_values > 0 {
        column.values.extend(values::read(head.encoding, &mut rest, num_values, physical, meaning, dictionary)?);
    }
    column.definitions.extend(definitions);
    column.repetitions.extend(repetitions);
    Ok(())
}
