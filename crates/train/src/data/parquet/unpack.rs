//! Pages as they were before they were compressed: Snappy, gzip, Zstandard and LZ4.
//! The first and the last are a screen of code each; the others come from the crates that decode PNG, and from a reader
//! in pure Rust. What comes out may never be longer than the page's head says. Cost: one pass.

use std::io::Read;

use super::Unreadable;
use super::values::Bytes;

/// The content of a compressed page that says to have `len` bytes.
pub fn unpack(codec: i64, bytes: &[u8], len: usize) -> Result<Vec<u8>, Unreadable> {
    let content = match codec {
        0 => bytes.to_vec(),
        1 => snappy(bytes, len)?,
        2 => read_all(flate2::read::MultiGzDecoder::new(bytes), len)?,
        6 => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(|error| broken(&error.to_string()))?;
            read_all(decoder, len)?
        }
        7 => lz4(bytes, len)?,
        other => {
            let name = match other {
                3 => "LZO",
                4 => "Brotli",
                5 => "the old LZ4",
                _ => "an unknown method",
            };
            return Err(Unreadable::new(
                format!("its pages are compressed with {name}"),
                "Snappy, Zstandard, gzip and LZ4_RAW can be read; in Python: write_table(table, path, compression=\"snappy\")",
            ));
        }
    };
    if content.len() == len { Ok(content) } else { Err(broken("it has another length than it says")) }
}

fn broken(problem: &str) -> Unreadable {
    Unreadable::damaged(format!("a compressed page cannot be unpacked: {problem}"))
}

fn read_all(reader: impl Read, len: usize) -> Result<Vec<u8>, Unreadable> {
    let mut content = Vec::new();
    // One byte more than promised, so that too much is noticed and a bomb is not unpacked.
    reader.take(len as u64 + 1).read_to_end(&mut content).map_err(|error| broken(&error.to_string()))?;
    Ok(content)
}

/// Snappy's format: a length, then literals and copies of what came before.
fn snappy(bytes: &[u8], len: usize) -> Result<Vec<u8>, Unreadable> {
    let mut rest = Bytes(bytes);
    let mut declared = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = rest.take(1)?[0];
        declared |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    if declared != len as u64 {
        return Err(broken("it has another length than it says"));
    }
    let mut out = Vec::new();
    while out.len() < len {
        let tag = rest.take(1)?[0];
        let (count, back) = match tag & 3 {
            0 => {
                let mut count = usize::from(tag >> 2);
                if count >= 60 {
                    count = little(rest.take(count - 59)?);
                }
                let literal = rest.take(count.saturating_add(1))?;
                if literal.len() > len - out.len() {
                    return Err(broken("it is longer than it says"));
                }
                out.extend_from_slice(literal);
                continue;
            }
            1 => (4 + usize::from(tag >> 2 & 7), usize::from(tag >> 5) << 8 | usize::from(rest.take(1)?[0])),
            2 => (1 + usize::from(tag >> 2), little(rest.take(2)?)),
            _ => (1 + usize::from(tag >> 2), little(rest.take(4)?)),
        };
        copy_back(&mut out, back, count, len)?;
    }
    Ok(out)
}

/// LZ4's block format: runs of literals, each followed by a copy of what came before.
fn lz4(bytes: &[u8], len: usize) -> Result<Vec<u8>, Unreadable> {
    let mut rest = Bytes(bytes);
    let mut out = Vec::new();
    loop {
        let token = rest.take(1)?[0];
        let literals = extended(&mut rest, token >> 4)?;
        let literal = rest.take(literals)?;
        if literal.len() > len - out.len() {
            return Err(broken("it is longer than it says"));
        }
        out.extend_from_slice(literal);
        // The last run has no copy behind it.
        if out.len() == len {
            return Ok(out);
        }
        let back = little(rest.take(2)?);
        let count = extended(&mut rest, token & 15)?.saturating_add(4);
        copy_back(&mut out, back, count, len)?;
    }
}

/// Fifteen means that more follows, as long as it is 255.
fn extended(rest: &mut Bytes, nibble: u8) -> Result<usize, Unreadable> {
    let mut count = usize::from(nibble);
    let mut more = if nibble == 15 { 255 } else { 0 };
    while more == 255 {
        more = rest.take(1)?[0];
        count += usize::from(more);
    }
    Ok(count)
}

fn little(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte))
}

/// Appends `count` bytes that begin `back` before the end; they may overlap what is being written.
fn copy_back(out: &mut Vec<u8>, back: usize, count: usize, len: usize) -> Result<(), Unreadable> {
    if back == 0 || back > out.len() || count > len - out.len() {
        return Err(broken("a copy points outside"));
    }
    let start = out.len() - back;
    for i in start..start + count {
        out.push(out[i]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_copies_repeat() {
        // "ab" and then six bytes copied from two before.
        let snappy = [8, 1 << 2, b'a', b'b', (6 - 1) << 2 | 2, 2, 0];
        assert_eq!(unpack(1, &snappy, 8).unwrap(), b"abababab");
        let lz4 = [0x22, b'a', b'b', 2, 0, 0x00];
        assert_eq!(unpack(7, &lz4, 8).unwrap(), b"abababab");
        assert!(unpack(1, &snappy, 9).is_err());
        assert!(unpack(1, &[8, 1 << 2, b'a', b'b', (6 - 1) << 2 | 2, 3, 0], 8).is_err(), "before the start");
        assert!(unpack(4, &[], 0).unwrap_err().problem.contains("Brotli"));
    }
}
