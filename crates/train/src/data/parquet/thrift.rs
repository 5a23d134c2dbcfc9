//! Reads Thrift's compact protocol, in which Parquet writes its footer and the heads of its pages.
//! Knows numbers, strings, lists and structs; gives no meaning to them. Every length is checked against the bytes that
//! are there, and nesting is bounded. Cost: one pass.

use super::Unreadable;

/// Nesting beyond this is refused; Parquet's own structs are seven deep.
const MAX_DEPTH: usize = 24;

/// Kinds of values as the protocol numbers them.
pub mod kind {
    /// A flag that is set; its value is its kind.
    pub const TRUE: u8 = 1;
    /// A flag that is not set.
    pub const FALSE: u8 = 2;
    /// One byte.
    pub const BYTE: u8 = 3;
    /// 16 bits.
    pub const I16: u8 = 4;
    /// 32 bits.
    pub const I32: u8 = 5;
    /// 64 bits.
    pub const I64: u8 = 6;
    /// A float of 64 bits.
    pub const DOUBLE: u8 = 7;
    /// Text or bytes.
    pub const BINARY: u8 = 8;
    /// A list.
    pub const LIST: u8 = 9;
    /// A set, written like a list.
    pub const SET: u8 = 10;
    /// Keys and values.
    pub const MAP: u8 = 11;
    /// Fields by number.
    pub const STRUCT: u8 = 12;
}

/// A place in the bytes.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// How many bytes have been read.
    pub fn position(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        let byte = *self.bytes.get(self.at).ok_or_else(cut)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Unreadable::damaged("a number is too long"))
    }

    /// A whole number of any width.
    pub fn int(&mut self) -> Result<i64, Unreadable> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A whole number that counts or points to something.
    pub fn count(&mut self) -> Result<usize, Unreadable> {
        usize::try_from(self.int()?).map_err(|_| Unreadable::damaged("a size is negative"))
    }

    /// Bytes or text.
    pub fn binary(&mut self) -> Result<&'a [u8], Unreadable> {
        let len = usize::try_from(self.varint()?).map_err(|_| cut())?;
        let end = self.at.checked_add(len).ok_or_else(cut)?;
        let bytes = self.bytes.get(self.at..end).ok_or_else(cut)?;
        self.at = end;
        Ok(bytes)
    }

    /// Text.
    pub fn text(&mut self) -> Result<String, Unreadable> {
        Ok(String::from_utf8_lossy(self.binary()?).into_owned())
    }

    /// Reads a struct: `field` gets each field's number and kind, reads it and says so, or leaves it to be skipped.
    pub fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, i64, u8) -> Result<bool, Unreadable>,
    ) -> Result<(), Unreadable> {
        self.deeper()?;
        let mut id = 0;
        loop {
            let head = self.byte()?;
            let (step, kind) = (head >> 4, head & 0x0f);
            if kind == 0 {
                break;
            }
            // A step of zero means that the number itself follows.
            id = if step == 0 { self.int()? } else { id + i64::from(step) };
            if !field(self, id, kind)? {
                self.skip(kind)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a list with one call per entry. An entry takes a byte at least, so hostile lengths end with the bytes.
    pub fn list(&mut self, mut entry: impl FnMut(&mut Self, u8) -> Result<(), Unreadable>) -> Result<(), Unreadable> {
        self.deeper()?;
        let head = self.byte()?;
        let len = match head >> 4 {
            15 => self.varint()?,
            short => u64::from(short),
        };
        for _ in 0..len {
            entry(self, head & 0x0f)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn deeper(&mut self) -> Result<(), Unreadable> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(Unreadable::damaged("its structure is nested too deeply")) } else { Ok(()) }
    }

    /// Passes over a field's value.
    fn skip(&mut self, kind: u8) -> Result<(), Unreadable> {
        match kind {
            kind::TRUE | kind::FALSE => Ok(()),
            _ => self.skip_entry(kind),
        }
    }

    /// Passes over a list's entry: flags take a byte there.
    fn skip_entry(&mut self, kind: u8) -> Result<(), Unreadable> {
        match kind {
            kind::TRUE | kind::FALSE | kind::BYTE => self.byte().map(|_| ()),
            kind::I16 | kind::I32 | kind::I64 => self.varint().map(|_| ()),
            kind::DOUBLE => (0..8).try_for_each(|_| self.byte().map(|_| ())),
            kind::BINARY => self.binary().map(|_| ()),
            kind::LIST | kind::SET => self.list(|reader, kind| reader.skip_entry(kind)),
            kind::MAP => {
                self.deeper()?;
                let len = self.varint()?;
                let kinds = if len == 0 { 0 } else { self.byte()? };
                for _ in 0..len {
                    self.skip_entry(kinds >> 4)?;
                    self.skip_entry(kinds & 0x0f)?;
                }
                self.depth -= 1;
                Ok(())
            }
            kind::STRUCT => self.fields(|_, _, _| Ok(false)),
            _ => Err(Unreadable::damaged("a value has an unknown kind")),
        }
    }
}

fn cut() -> Unreadable {
    Unreadable::damaged("it ends too early")
}
