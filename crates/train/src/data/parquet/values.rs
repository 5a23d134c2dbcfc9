//! Values of a page: the encodings Parquet knows, and the runs in which it writes levels and places in a dictionary.
//! Knows bits and bytes; knows nothing of rows. Every length is checked before it is used, and nothing is allocated on
//! the word of the file alone. Cost: one value of 24 bytes each.

use std::sync::Arc;

use half::f16;

use super::Unreadable;
use super::footer::{Meaning, Physical};

/// A value that is there.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number without sign.
    Unsigned(u64),
    /// Any number.
    Float(f64),
    /// Text or bytes.
    Bytes(Arc<[u8]>),
}

/// Values of more than so many cells in one column of a row group are refused: short runs may claim any number.
pub const MAX_VALUES: usize = 1 << 24;

fn cut() -> Unreadable {
    Unreadable::damaged("a page ends too early")
}

/// What is left of a page.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        Ok(self.take(N)?.try_into().expect("so many were taken"))
    }

    /// A length of four bytes.
    pub fn length(&mut self) -> Result<usize, Unreadable> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Unreadable::damaged("a number is too long"))
    }

    fn zigzag(&mut self) -> Result<i64, Unreadable> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

/// `count` numbers of `width` bits in runs: one number so many times, or groups of eight packed bits.
pub fn runs(bytes: &mut Bytes, width: u32, count: usize) -> Result<Vec<u32>, Unreadable> {
    if width > 32 || count > MAX_VALUES {
        return Err(Unreadable::damaged("a page's runs are out of range"));
    }
    let mut out = Vec::new();
    while out.len() < count {
        let head = bytes.varint()?;
        let left = count - out.len();
        if head & 1 == 0 {
            let times = usize::try_from(head >> 1).map_err(|_| cut())?.min(left);
            if times == 0 {
                return Err(Unreadable::damaged("a run is empty"));
            }
            let value = bytes.take(width.div_ceil(8) as usize)?;
            let value = value.iter().rev().fold(0, |all, &byte| all << 8 | u32::from(byte));
            out.resize(out.len() + times, value);
        } else {
            let groups = usize::try_from(head >> 1).map_err(|_| cut())?;
            let len = groups.checked_mul(width as usize).ok_or_else(cut)?;
            // The last group may be cut where the values end.
            let wanted = (left * width as usize).div_ceil(8);
            let packed = bytes.take(len.min(bytes.0.len()))?;
            if packed.len() < len.min(wanted) || groups == 0 {
                return Err(cut());
            }
            let times = left.min(groups.saturating_mul(8));
            out.extend((0..times).map(|i| bits(packed, i * width as usize, width) as u32));
        }
    }
    Ok(out)
}

/// `width` bits from bit `at`, lowest first; bits behind the end count as zero.
fn bits(packed: &[u8], at: usize, width: u32) -> u64 {
    let mut value = 0u64;
    let mut have = 0;
    let (mut byte, mut skip) = (at / 8, (at % 8) as u32);
    while have < width {
        let take = (8 - skip).min(width - have);
        let piece = u64::from(packed.get(byte).copied().unwrap_or(0)) >> skip & ((1 << take) - 1);
        value |= piece << have;
        have += take;
        byte += 1;
        skip = 0;
    }
    value
}

/// Reads `count` values in the encoding number `encoding`.
pub fn read(
    encoding: i64,
    bytes: &mut Bytes,
    count: usize,
    physical: Physical,
    meaning: Meaning,
    dictionary: &[Scalar],
) -> Result<Vec<Scalar>, Unreadable> {
    if count > MAX_VALUES {
        return Err(Unreadable::damaged("a page claims too many values"));
    }
    match encoding {
        0 => plain(bytes, count, physical, meaning),
        2 | 8 => {
            let width = u32::from(bytes.take(1)?[0]);
            let places = runs(bytes, width, count)?;
            let missing = || Unreadable::damaged("a value is not in its dictionary");
            places.into_iter().map(|place| dictionary.get(place as usize).cloned().ok_or_else(missing)).collect()
        }
        3 if physical == Physical::Boolean => {
            let len = bytes.length()?;
            let mut inside = Bytes(bytes.take(len)?);
            Ok(runs(&mut inside, 1, count)?.into_iter().map(|bit| Scalar::Bool(bit == 1)).collect())
        }
        5 => {
            let numbers = deltas(bytes, count)?;
            match physical {
                Physical::Int32 => Ok(numbers.into_iter().map(|n| whole(i64::from(n as i32), 32, meaning)).collect()),
                Physical::Int64 => Ok(numbers.into_iter().map(|n| whole(n, 64, meaning)).collect()),
                _ => Err(Unreadable::damaged("differences of what is no whole number")),
            }
        }
        6 => {
            let lengths = deltas(bytes, count)?;
            let one = |len: i64| wrap(bytes.take(usize::try_from(len).map_err(|_| cut())?)?, meaning);
            lengths.into_iter().map(one).collect()
        }
        7 => prefixed(bytes, count, meaning),
        9 => split(bytes, count, physical, meaning),
        other => Err(Unreadable::new(
            format!("its values are in the encoding {other}, which is not known here"),
            "write the file again, in Python with write_table(table, path)",
        )),
    }
}

/// Values one after the other.
fn plain(bytes: &mut Bytes, count: usize, physical: Physical, meaning: Meaning) -> Result<Vec<Scalar>, Unreadable> {
    if physical == Physical::Boolean {
        let packed = bytes.take(count.div_ceil(8))?;
        return Ok((0..count).map(|i| Scalar::Bool(bits(packed, i, 1) == 1)).collect());
    }
    (0..count).map(|_| one(bytes, physical, meaning)).collect()
}

fn one(bytes: &mut Bytes, physical: Physical, meaning: Meaning) -> Result<Scalar, Unreadable> {
    Ok(match physical {
        Physical::Boolean => Scalar::Bool(bytes.take(1)?[0] != 0),
        Physical::Int32 => whole(i64::from(i32::from_le_bytes(bytes.array()?)), 32, meaning),
        Physical::Int64 => whole(i64::from_le_bytes(bytes.array()?), 64, meaning),
        Physical::Int96 => {
            let nanoseconds = i64::from_le_bytes(bytes.array()?);
            let day = i64::from(u32::from_le_bytes(bytes.array()?)) - 2_440_588;
            Scalar::Int(day * 86_400_000 + nanoseconds / 1_000_000)
        }
        Physical::Float => Scalar::Float(f64::from(f32::from_le_bytes(bytes.array()?))),
        Physical::Double => Scalar::Float(f64::from_le_bytes(bytes.array()?)),
        Physical::Bytes => {
            let len = bytes.length()?;
            wrap(bytes.take(len)?, meaning)?
        }
        Physical::Fixed(len) => wrap(bytes.take(len)?, meaning)?,
    })
}

fn whole(value: i64, width: u32, meaning: Meaning) -> Scalar {
    match meaning {
        Meaning::Unsigned if width == 32 => Scalar::Unsigned(u64::from(value as u32)),
        Meaning::Unsigned => Scalar::Unsigned(value as u64),
        Meaning::Decimal(scale) => Scalar::Float(value as f64 / 10f64.powi(scale as i32)),
        _ => Scalar::Int(value),
    }
}

/// Bytes as text, bytes, or the number they are.
fn wrap(bytes: &[u8], meaning: Meaning) -> Result<Scalar, Unreadable> {
    Ok(match meaning {
        Meaning::Half if bytes.len() == 2 => Scalar::Float(f16::from_le_bytes([bytes[0], bytes[1]]).to_f64()),
        Meaning::Decimal(scale) if (1..=16).contains(&bytes.len()) => {
            let sign = if bytes[0] & 0x80 == 0 { 0i128 } else { -1 };
            let value = bytes.iter().fold(sign, |value, &byte| value << 8 | i128::from(byte));
            Scalar::Float(value as f64 / 10f64.powi(scale as i32))
        }
        _ => Scalar::Bytes(Arc::from(bytes)),
    })
}

/// Whole numbers as differences, in blocks of packed bits.
fn deltas(bytes: &mut Bytes, count: usize) -> Result<Vec<i64>, Unreadable> {
    let wrong = || Unreadable::damaged("a block of differences does not hold together");
    let size = |value: u64| usize::try_from(value).ok().filter(|&size| size <= MAX_VALUES).ok_or_else(wrong);
    let block = size(bytes.varint()?)?;
    let parts = size(bytes.varint()?)?;
    let total = size(bytes.varint()?)?;
    let mut value = bytes.zigzag()?;
    if total != count || parts == 0 || block == 0 || !block.is_multiple_of(parts) || !(block / parts).is_multiple_of(8)
    {
        return Err(wrong());
    }
    let per_part = block / parts;
    let mut out = Vec::new();
    if total > 0 {
        out.push(value);
    }
    while out.len() < total {
        let least = bytes.zigzag()?;
        let widths = bytes.take(parts)?;
        for &width in widths {
            if out.len() == total {
                break;
            }
            if width > 64 {
                return Err(wrong());
            }
            let packed = bytes.take(per_part / 8 * usize::from(width))?;
            for i in 0..per_part.min(total - out.len()) {
                let step = bits(packed, i * usize::from(width), u32::from(width)) as i64;
                value = value.wrapping_add(least).wrapping_add(step);
                out.push(value);
            }
        }
    }
    Ok(out)
}

/// Texts that begin like the one before.
fn prefixed(bytes: &mut Bytes, count: usize, meaning: Meaning) -> Result<Vec<Scalar>, Unreadable> {
    let shared = deltas(bytes, count)?;
    let lengths = deltas(bytes, count)?;
    let mut last: Vec<u8> = vec![];
    let mut out = Vec::new();
    for (shared, len) in shared.into_iter().zip(lengths) {
        let shared = usize::try_from(shared).ok().filter(|&shared| shared <= last.len()).ok_or_else(cut)?;
        let rest = bytes.take(usize::try_from(len).map_err(|_| cut())?)?;
        last.truncate(shared);
        last.extend_from_slice(rest);
        out.push(wrap(&last, meaning)?);
    }
    Ok(out)
}

/// The first bytes of all values, then the second ones, and so on.
fn split(bytes: &mut Bytes, count: usize, physical: Physical, meaning: Meaning) -> Result<Vec<Scalar>, Unreadable> {
    let width = match physical {
        Physical::Int32 | Physical::Float => 4,
        Physical::Int64 | Physical::Double => 8,
        Physical::Fixed(len) if len > 0 => len,
        _ => return Err(Unreadable::damaged("split bytes of values without a width")),
    };
    let all = bytes.take(count.checked_mul(width).ok_or_else(cut)?)?;
    let mut value = vec![0; width];
    (0..count)
        .map(|i| {
            (0..width).for_each(|j| value[j] = all[j * count + i]);
            one(&mut Bytes(&value), physical, meaning)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_repeated_or_packed() {
        // Five times 3, then eight values of three bits: 0 to 7.
        let bytes = [5 << 1, 3, 1 << 1 | 1, 0b1000_1000, 0b1100_0110, 0b1111_1010];
        let values = runs(&mut Bytes(&bytes), 3, 13).unwrap();
        assert_eq!(values, [3, 3, 3, 3, 3, 0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(runs(&mut Bytes(&bytes), 3, 14).is_err());
        assert!(runs(&mut Bytes(&bytes[..4]), 3, 13).is_err());
        assert!(runs(&mut Bytes(&[0]), 3, 1).is_err(), "an empty run would never end");
    }

    #[test]
    fn hostile_counts_are_refused() {
        assert!(runs(&mut Bytes(&[0xff, 0xff, 0xff, 0xff, 0x0e, 0]), 1, usize::MAX).is_err());
        for encoding in [0, 5, 6, 7, 9] {
            for physical in [Physical::Int64, Physical::Bytes, Physical::Fixed(0), Physical::Fixed(usize::MAX)] {
                let tiny = read(encoding, &mut Bytes(&[0x80, 0x01, 4, 9]), 9, physical, Meaning::Plain, &[]);
                let is_empty = encoding == 0 && physical == Physical::Fixed(0);
                assert!(is_empty || tiny.is_err(), "{encoding} {physical:?}");
            }
        }
    }
}
