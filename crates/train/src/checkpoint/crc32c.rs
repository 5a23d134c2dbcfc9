//! CRC-32C (Castagnoli): the checksum of checkpoint files and of event records.
//! Plain numbers. Cost: about one byte per cycle or better (eight tables), so a checksum never outlasts its write.

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0x82f6_3b78 } else { value >> 1 };
            bit += 1;
        }
        tables[0][index] = value;
        index += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut index = 0;
        while index < 256 {
            let before = tables[table - 1][index];
            tables[table][index] = (before >> 8) ^ tables[0][(before & 255) as usize];
            index += 1;
        }
        table += 1;
    }
    tables
}

/// A checksum in the making.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crc32c {
    value: u32,
}

impl Crc32c {
    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut value = !self.value;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let low = value ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            value = TABLES[7][(low & 255) as usize]
                ^ TABLES[6][(low >> 8 & 255) as usize]
                ^ TABLES[5][(low >> 16 & 255) as usize]
                ^ TABLES[4][(low >> 24) as usize]
                ^ TABLES[3][chunk[4] as usize]
                ^ TABLES[2][chunk[5] as usize]
                ^ TABLES[1][chunk[6] as usize]
                ^ TABLES[0][chunk[7] as usize];
        }
        for &byte in chunks.remainder() {
            value = (value >> 8) ^ TABLES[0][((value ^ u32::from(byte)) & 255) as usize];
        }
        self.value = !value;
    }

    /// The checksum of everything taken in so far.
    pub fn value(self) -> u32 {
        self.value
    }
}

/// The checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::default();
    crc.update(bytes);
    crc.value()
}

/// The checksum as event records carry it: turned and shifted, so that a checksum of checksums stays sound.
pub fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Check value of the CRC catalogue, and the vectors of RFC 3720 B.4.
    #[test]
    fn known_answers() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn pieces_give_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut crc = Crc32c::default();
        for piece in bytes.chunks(13) {
            crc.update(piece);
        }
        assert_eq!(crc.value(), crc32c(&bytes));
    }
}
