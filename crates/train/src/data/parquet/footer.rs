//! The footer of a Parquet file: the tree of columns, and where the chunks of each column lie.
//! Knows Parquet's metadata; reads no values. Cost: the footer's bytes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::Unreadable;
use super::thrift::Reader;

/// Footers beyond this are refused.
const MAX_FOOTER: u64 = 256 << 20;
/// Trees of columns deeper than this are refused.
const MAX_DEPTH: usize = 16;

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Physical {
    /// One bit.
    Boolean,
    /// 32 bits.
    Int32,
    /// 64 bits.
    Int64,
    /// 96 bits: a time of old writers.
    Int96,
    /// A float of 32 bits.
    Float,
    /// A float of 64 bits.
    Double,
    /// Bytes with their length.
    Bytes,
    /// So many bytes each.
    Fixed(usize),
}

/// What a stored value means, as far as rows care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// What its storage says.
    Plain,
    /// Text in UTF-8.
    Text,
    /// A whole number without sign.
    Unsigned,
    /// A whole number with so many decimal places.
    Decimal(u32),
    /// A float of 16 bits.
    Half,
}

/// A node of the tree of columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it may be absent.
    pub optional: bool,
    /// Whether there may be any number of it.
    pub repeated: bool,
    /// Definition level at which it is there.
    pub definition: u16,
    /// Repetition level of its entries.
    pub repetition: u16,
    /// Index of the first column below it.
    pub first_leaf: usize,
    /// How many columns are below it, itself included.
    pub num_leaves: usize,
    /// What it is.
    pub kind: NodeKind,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// A column.
    Leaf(Physical, Meaning),
    /// Named members.
    Group(Vec<Node>),
    /// A list: its only member is repeated.
    List(Box<Node>),
}

/// One column's part of a row group.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// How its pages are compressed, as Parquet numbers it.
    pub codec: i64,
    /// Values, absent ones included.
    pub num_values: usize,
    /// Where it begins in the file.
    pub start: u64,
    /// How many bytes it takes there.
    pub len: usize,
    /// Whether it lies in another file.
    elsewhere: bool,
    data_page: usize,
    dictionary_page: Option<usize>,
}

/// So many rows, column by column.
#[derive(Clone, Debug, Default)]
pub struct RowGroup {
    /// One chunk for each column.
    pub chunks: Vec<Chunk>,
    /// Rows.
    pub num_rows: usize,
}

/// What the footer says.
#[derive(Clone, Debug)]
pub struct Footer {
    /// The root of the tree: a group of the columns.
    pub root: Node,
    /// The rows.
    pub groups: Vec<RowGroup>,
    /// Notes by the program that wrote it.
    pub notes: Vec<(String, String)>,
}

/// One entry of the flat list that the tree is written as.
#[derive(Default)]
struct Element {
    physical: Option<i64>,
    type_length: usize,
    repetition: i64,
    name: String,
    num_children: usize,
    converted: Option<i64>,
    /// Number of the member of the union `LogicalType`.
    logical: Option<i64>,
    scale: u32,
}

/// Reads the footer of `file`.
pub fn read(file: &mut File) -> Result<Footer, Unreadable> {
    let size = file.seek(SeekFrom::End(0)).map_err(Unreadable::io)?;
    let foreign = || Unreadable::damaged("it is no Parquet file, or it is cut off");
    if size < 12 {
        return Err(foreign());
    }
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(size - 8)).map_err(Unreadable::io)?;
    file.read_exact(&mut tail).map_err(Unreadable::io)?;
    match &tail[4..] {
        b"PAR1" => {}
        b"PARE" => return Err(Unreadable::new("it is encrypted", "write it without encryption")),
        _ => return Err(foreign()),
    }
    let len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if len > MAX_FOOTER || len > size - 12 {
        return Err(foreign());
    }
    let mut bytes = vec![0; len as usize];
    file.seek(SeekFrom::Start(size - 8 - len)).map_err(Unreadable::io)?;
    file.read_exact(&mut bytes).map_err(Unreadable::io)?;
    parse(&bytes, size)
}

fn parse(bytes: &[u8], size: u64) -> Result<Footer, Unreadable> {
    let (mut elements, mut groups, mut notes) = (vec![], vec![], vec![]);
    Reader::new(bytes).fields(|reader, id, _| {
        match id {
            2 => reader.list(|reader, _| element(reader).map(|element| elements.push(element)))?,
            4 => reader.list(|reader, _| row_group(reader).map(|group| groups.push(group)))?,
            5 => reader.list(|reader, _| note(reader).map(|note| notes.push(note)))?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let mut rest = elements.into_iter();
    let mut num_leaves = 0;
    let root = node(&mut rest, &mut num_leaves, Levels::default(), 0)?;
    if rest.next().is_some() || !matches!(root.kind, NodeKind::Group(_)) {
        return Err(Unreadable::damaged("its tree of columns does not hold together"));
    }
    for group in &mut groups {
        let RowGroup { chunks, .. } = group;
        if chunks.len() != num_leaves {
            return Err(Unreadable::damaged("a row group has another number of columns"));
        }
        for chunk in chunks {
            if chunk.elsewhere {
                return Err(Unreadable::new("its columns lie in other files", "write it as one file"));
            }
            let start = chunk.dictionary_page.filter(|&page| page > 0 && page < chunk.data_page);
            chunk.start = start.unwrap_or(chunk.data_page) as u64;
            if chunk.start.checked_add(chunk.len as u64).is_none_or(|end| end > size) {
                return Err(Unreadable::damaged("a column reaches beyond the end of the file"));
            }
        }
    }
    Ok(Footer { root, groups, notes })
}

fn element(reader: &mut Reader) -> Result<Element, Unreadable> {
    let mut element = Element::default();
    reader.fields(|reader, id, _| {
        match id {
            1 => element.physical = Some(reader.int()?),
            2 => element.type_length = reader.count()?,
            3 => element.repetition = reader.int()?,
            4 => element.name = reader.text()?,
            5 => element.num_children = reader.count()?,
            6 => element.converted = Some(reader.int()?),
            7 => element.scale = u32::try_from(reader.int()?).unwrap_or(0),
            10 => reader.fields(|_, id, _| {
                element.logical = Some(id);
                Ok(false)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(element)
}

fn row_group(reader: &mut Reader) -> Result<RowGroup, Unreadable> {
    let mut group = RowGroup::default();
    reader.fields(|reader, id, _| {
        match id {
            1 => reader.list(|reader, _| chunk(reader).map(|chunk| group.chunks.push(chunk)))?,
            3 => group.num_rows = reader.count()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(group)
}

fn chunk(reader: &mut Reader) -> Result<Chunk, Unreadable> {
    let mut chunk = Chunk::default();
    let mut described = false;
    reader.fields(|reader, id, _| {
        match id {
            1 => chunk.elsewhere = !reader.binary()?.is_empty(),
            3 => {
                described = true;
                reader.fields(|reader, id, _| {
                    match id {
                        4 => chunk.codec = reader.int()?,
                        5 => chunk.num_values = reader.count()?,
                        7 => chunk.len = reader.count()?,
                        9 => chunk.data_page = reader.count()?,
                        11 => chunk.dictionary_page = Some(reader.count()?),
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if described { Ok(chunk) } else { Err(Unreadable::damaged("a column is not described")) }
}

fn note(reader: &mut Reader) -> Result<(String, String), Unreadable> {
    let mut note = (String::new(), String::new());
    reader.fields(|reader, id, _| {
        match id {
            1 => note.0 = reader.text()?,
            2 => note.1 = reader.text()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(note)
}

#[derive(Clone, Copy, Default)]
struct Levels {
    definition: u16,
    repetition: u16,
}

/// Takes a node and all below it from the flat list.
fn node(
    rest: &mut impl Iterator<Item = Element>,
    num_leaves: &mut usize,
    above: Levels,
    depth: usize,
) -> Result<Node, Unreadable> {
    let broken = || Unreadable::damaged("its tree of columns does not hold together");
    if depth > MAX_DEPTH {
        return Err(Unreadable::damaged("its tree of columns is too deep"));
    }
    let element = rest.next().ok_or_else(broken)?;
    let (optional, repeated) = (depth > 0 && element.repetition == 1, depth > 0 && element.repetition == 2);
    let levels = Levels {
        definition: above.definition + u16::from(optional || repeated),
        repetition: above.repetition + u16::from(repeated),
    };
    let first_leaf = *num_leaves;
    let kind = match element.physical {
        Some(physical) if element.num_children == 0 => {
            *num_leaves += 1;
            let physical = match physical {
                0 => Physical::Boolean,
                1 => Physical::Int32,
                2 => Physical::Int64,
                3 => Physical::Int96,
                4 => Physical::Float,
                5 => Physical::Double,
                6 => Physical::Bytes,
                7 => Physical::Fixed(element.type_length),
                _ => return Err(Unreadable::damaged(format!("column `{}` is of an unknown type", element.name))),
            };
            NodeKind::Leaf(physical, meaning(&element))
        }
        _ => {
            let mut members = Vec::new();
            for _ in 0..element.num_children {
                members.push(node(rest, num_leaves, levels, depth + 1)?);
            }
            let is_list = element.converted == Some(3) || element.logical == Some(3);
            match members.pop() {
                Some(only) if members.is_empty() && is_list && only.repeated => NodeKind::List(Box::new(only)),
                Some(last) => {
                    members.push(last);
                    NodeKind::Group(members)
                }
                None => return Err(broken()),
            }
        }
    };
    Ok(Node {
        name: element.name,
        optional,
        repeated,
        definition: levels.definition,
        repetition: levels.repetition,
        first_leaf,
        num_leaves: *num_leaves - first_leaf,
        kind,
    })
}

/// Old writers say it in `converted_type`, new ones in `LogicalType`.
fn meaning(element: &Element) -> Meaning {
    match (element.converted, element.logical) {
        (Some(0 | 4 | 19), _) | (_, Some(1 | 4 | 12)) => Meaning::Text,
        (Some(5), _) | (_, Some(5)) => Meaning::Decimal(element.scale),
        (Some(11..=14), _) => Meaning::Unsigned,
        (_, Some(15)) => Meaning::Half,
        _ => Meaning::Plain,
    }
}
