//! Decodes PNG, JPEG and WebP to upright 8-bit RGB, as transformers' processors see a picture.
//! Knows alpha, EXIF and bit depths; knows nothing of models. Cost: one decode per call; nothing is cached.
//!
//! Alpha is blended onto white with Pillow's integers (transformers 5.23; 4.x dropped alpha). Of 16-bit channels the
//! high byte counts: Pillow does so for colour, while it clips 16-bit grey to white, which nobody wants.

use std::io::Cursor;
use std::sync::Arc;

use foveate_tasks::row::{Drawing, ImageData};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, Limits};

use super::error::PromptError;
use super::resize::{Filter, Rounding, resize};
use crate::data::pictures::{open, reader};

/// Most pixels of one picture (about 300 MB while decoding); larger files are refused before they are decoded.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Longest side of a picture; resizing keeps weights for every pixel of a side, and nothing real is longer.
pub const MAX_SIDE: u32 = 1 << 16;
/// Most bytes of an encoded file.
const MAX_FILE_BYTES: u64 = 1 << 28;

/// Upright RGB pixels of a picture, wherever it is kept.
pub fn load(image: &ImageData) -> Result<Arc<Drawing>, PromptError> {
    match image {
        ImageData::Drawn(drawing) => {
            let bytes = drawing.width as u64 * drawing.height as u64 * 3;
            if bytes == 0 || bytes != drawing.rgb.len() as u64 {
                let problem = format!("{drawing:?} holds {} bytes", drawing.rgb.len());
                return Err(PromptError::Image { name: "drawn in memory".into(), problem });
            }
            check_size("drawn in memory", drawing.width, drawing.height)?;
            Ok(drawing.clone())
        }
        ImageData::Encoded(bytes) => decode(bytes, "in memory").map(Arc::new),
        ImageData::Path(path) => {
            let name = path.display().to_string();
            let fail = |problem: String| PromptError::Image { name: name.clone(), problem };
            let metadata = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?;
            if !metadata.is_file() {
                return Err(fail("is not a file".into()));
            }
            if metadata.len() > MAX_FILE_BYTES {
                return Err(fail(format!("has {} bytes, more than {MAX_FILE_BYTES}", metadata.len())));
            }
            let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
            decode(&bytes, &name).map(Arc::new)
        }
    }
}

/// Width and height of a picture as it stands upright, read from the head of its file; nothing if that cannot be read.
pub fn size(image: &ImageData) -> Option<(u32, u32)> {
    let upright = |mut decoder: Box<dyn ImageDecoder + '_>| {
        let (width, height) = decoder.dimensions();
        let turned = matches!(
            decoder.orientation(),
            Ok(Orientation::Rotate90
                | Orientation::Rotate270
                | Orientation::Rotate90FlipH
                | Orientation::Rotate270FlipH)
        );
        let size = if turned { (height, width) } else { (width, height) };
        (width > 0 && height > 0).then_some(size)
    };
    match image {
        ImageData::Drawn(drawing) => Some((drawing.width, drawing.height)),
        ImageData::Encoded(bytes) => upright(Box::new(reader(Cursor::new(&bytes[..])).ok()?.into_decoder().ok()?)),
        ImageData::Path(path) => upright(Box::new(open(path).ok()?.into_decoder().ok()?)),
    }
}

/// Height and width of a picture of at most `cap` pixels (Curr-ReFT, arXiv 2503.07065): both sides over
/// `sqrt(w h / cap)`, rounded down. Smaller pictures, and those more than twelve times as long as wide, stay as they are.
pub fn capped(height: u32, width: u32, cap: u32) -> (u32, u32) {
    let (h, w) = (f64::from(height), f64::from(width));
    if h * w <= f64::from(cap) || h.max(w) / h.min(w) > 12.0 {
        return (height, width);
    }
    let by = (h * w / f64::from(cap)).sqrt();
    ((((h / by).floor()) as u32).max(1), (((w / by).floor()) as u32).max(1))
}

/// The picture, smaller if it has more pixels than `cap`. One that cannot be read is given back: whoever reads it next
/// says what is wrong with it.
pub fn at_most(image: &ImageData, cap: u32) -> ImageData {
    let fits = |(width, height): (u32, u32)| capped(height, width, cap) == (height, width);
    if size(image).is_none_or(fits) {
        return image.clone();
    }
    let Ok(drawing) = load(image) else { return image.clone() };
    let (height, width) = capped(drawing.height, drawing.width, cap);
    ImageData::Drawn(Arc::new(resize(&drawing, width, height, Filter::Bicubic, Rounding::Pillow)))
}

/// Decodes an encoded file; `name` is for messages only.
pub fn decode(bytes: &[u8], name: &str) -> Result<Drawing, PromptError> {
    let fail = |problem: String| PromptError::Image { name: name.to_string(), problem };
    if bytes.is_empty() {
        return Err(fail("is empty".into()));
    }
    let reader = reader(Cursor::new(bytes)).map_err(|error| fail(error.to_string()))?;
    match reader.format() {
        None => return Err(fail("is neither PNG, JPEG nor WebP".into())),
        // The decoder would paint the rest grey.
        Some(ImageFormat::Jpeg) if !has_end(bytes) => return Err(fail("is cut off".into())),
        Some(_) => {}
    }
    let mut decoder = reader.into_decoder().map_err(|error| fail(error.to_string()))?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(fail(format!("has {width} x {height} pixels")));
    }
    check_size(name, width, height)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 16);
    decoder.set_limits(limits).map_err(|error| fail(error.to_string()))?;
    // Damaged metadata is no reason to refuse a picture that decodes.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| fail(error.to_string()))?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    Ok(Drawing { width, height, rgb: to_rgb(image) })
}

/// Whether a JPEG has its end mark. Coded pixels never look like one, and the picture begins after the last mark of a
/// scan: an end before it is that of a thumbnail.
fn has_end(jpeg: &[u8]) -> bool {
    let last = |mark: u8| jpeg.windows(2).rposition(|pair| pair == [0xff, mark]);
    last(0xd9) > last(0xda)
}

/// Refuses what would take too much memory, by its size alone.
fn check_size(name: &str, width: u32, height: u32) -> Result<(), PromptError> {
    if width as u64 * height as u64 > MAX_PIXELS {
        return Err(PromptError::ImageTooLarge { name: name.to_string(), width, height, limit: MAX_PIXELS });
    }
    if width.max(height) > MAX_SIDE {
        let problem = format!("has {width} x {height} pixels; no side may be longer than {MAX_SIDE}");
        return Err(PromptError::Image { name: name.to_string(), problem });
    }
    Ok(())
}

fn to_rgb(image: DynamicImage) -> Vec<u8> {
    match image {
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageLuma8(grey) => grey.as_raw().iter().flat_map(|&level| [level; 3]).collect(),
        DynamicImage::ImageLumaA8(grey) => {
            grey.as_raw().chunks_exact(2).flat_map(|pixel| [on_white(pixel[0], pixel[1]); 3]).collect()
        }
        DynamicImage::ImageRgba8(rgba) => blend(rgba.as_raw()),
        DynamicImage::ImageLuma16(grey) => grey.as_raw().iter().flat_map(|&level| [high(level); 3]).collect(),
        DynamicImage::ImageLumaA16(grey) => {
            grey.as_raw().chunks_exact(2).flat_map(|pixel| [on_white(high(pixel[0]), high(pixel[1])); 3]).collect()
        }
        DynamicImage::ImageRgb16(rgb) => rgb.as_raw().iter().map(|&level| high(level)).collect(),
        DynamicImage::ImageRgba16(rgba) => blend(&rgba.as_raw().iter().map(|&level| high(level)).collect::<Vec<_>>()),
        // Float formats are not among the three decoders.
        other => other.into_rgb8().into_raw(),
    }
}

fn high(level: u16) -> u8 {
    (level >> 8) as u8
}

fn blend(rgba: &[u8]) -> Vec<u8> {
    rgba.chunks_exact(4).flat_map(|pixel| [0, 1, 2].map(|channel| on_white(pixel[channel], pixel[3]))).collect()
}

/// Pillow's `alpha_composite` over opaque white: 7 extra bits, then a division by 255 by shifts.
fn on_white(level: u8, alpha: u8) -> u8 {
    let sum = 128 * (level as u32 * alpha as u32 + 255 * (255 - alpha as u32)) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use safetensors::SafeTensors;

    fn fixtures() -> std::path::PathBuf {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/decode").into()
    }

    #[test]
    fn large_pictures_are_capped_as_published() {
        assert_eq!(capped(600, 800, 262_144), (443, 591));
        assert_eq!(capped(1000, 1000, 410_000), (640, 640));
        assert_eq!(capped(1080, 1920, 420_000), (486, 864));
        assert_eq!(capped(100, 1300, 1000), (100, 1300), "more than twelve times as long as wide");
        assert_eq!(capped(10, 10, 100), (10, 10));
        let drawn = ImageData::Drawn(Arc::new(Drawing { width: 40, height: 20, rgb: vec![200; 2400] }));
        assert_eq!(size(&at_most(&drawn, 200)), Some((20, 10)));
        assert_eq!(at_most(&drawn, 800), drawn);
        let missing = ImageData::Path("/no/such/picture.png".into());
        assert_eq!((at_most(&missing, 1), size(&missing)), (missing.clone(), None));
    }

    #[test]
    fn equal_to_python() {
        let bytes = std::fs::read(fixtures().join("decoded.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for name in tensors.names() {
            let want = tensors.tensor(name).unwrap();
            let got = load(&ImageData::Path(fixtures().join(name))).unwrap();
            assert_eq!([got.height as usize, got.width as usize, 3], want.shape(), "{name}");
            // JPEG decoders may differ by a few levels; everything else is exact.
            let tolerance = if name.ends_with(".jpg") { 3 } else { 0 };
            let worst = got.rgb.iter().zip(want.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= tolerance, "{name}: off by {worst}");
        }
        assert!(tensors.len() > 20);
    }

    #[test]
    fn hostile_files_are_errors() {
        let png = std::fs::read(fixtures().join("rgb.png")).unwrap();
        for bytes in [&b""[..], b"hello", b"\x89PNG\r\n\x1a\n", &png[..png.len() / 2], &png[..40]] {
            assert!(decode(bytes, "x").is_err(), "{} bytes", bytes.len());
        }
        // Every single damaged byte: an error or a picture, never a panic.
        for name in ["rgb.png", "turned_3.jpg", "alpha.webp"] {
            let good = std::fs::read(fixtures().join(name)).unwrap();
            for index in 0..good.len() {
                let mut bad = good.clone();
                bad[index] ^= 0xa5;
                let _ = decode(&bad, name);
            }
        }
        assert!(load(&ImageData::Path("/nowhere/at all.png".into())).is_err());
        assert!(load(&ImageData::Path(fixtures())).is_err());
        let lie = Drawing { width: 4, height: 4, rgb: vec![0; 5] };
        assert!(load(&ImageData::Drawn(Arc::new(lie))).is_err());
        let ribbon = Drawing { width: MAX_SIDE + 1, height: 1, rgb: vec![0; 3 * (MAX_SIDE as usize + 1)] };
        let error = load(&ImageData::Drawn(Arc::new(ribbon))).unwrap_err();
        assert!(error.to_string().contains("longer"), "{error}");
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_decoded() {
        // An IHDR that claims 60000 x 60000 pixels.
        let mut png = std::fs::read(fixtures().join("rgb.png")).unwrap();
        png[16..20].copy_from_slice(&60000u32.to_be_bytes());
        png[20..24].copy_from_slice(&60000u32.to_be_bytes());
        let checksum = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        let error = decode(&png, "bomb.png").unwrap_err();
        assert!(matches!(error, PromptError::ImageTooLarge { width: 60000, .. }), "{error}");
    }

    #[test]
    fn a_head_that_unpacks_to_more_than_a_picture_is_not_unpacked() {
        // A colour profile of 64 MiB in some 64 KiB.
        let mut profile = b"k\0\0".to_vec();
        let mut zlib = flate2::write::ZlibEncoder::new(&mut profile, flate2::Compression::fast());
        (0..64).for_each(|_| zlib.write_all(&[0; 1 << 20]).unwrap());
        zlib.finish().unwrap();
        let mut chunk = [b"iCCP", &profile[..]].concat();
        chunk.extend(crc32(&chunk).to_be_bytes());
        let png = std::fs::read(fixtures().join("rgb.png")).unwrap();
        let bomb = [&png[..33], &(profile.len() as u32).to_be_bytes(), &chunk, &png[33..]].concat();
        let kept = reader(Cursor::new(&bomb[..])).unwrap().into_decoder().unwrap().icc_profile().unwrap_or_default();
        assert!(kept.is_none_or(|profile| profile.len() <= 1 << 24));
        assert_eq!(decode(&bomb, "bomb.png").unwrap(), decode(&png, "plain.png").unwrap());
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_refused() {
        let jpeg = std::fs::read(fixtures().join("turned_3.jpg")).unwrap();
        assert!(decode(&jpeg, "whole.jpg").is_ok());
        for end in [jpeg.len() - 2, jpeg.len() * 3 / 4] {
            let error = decode(&jpeg[..end], "cut.jpg").unwrap_err();
            assert!(error.to_string().contains("cut off"), "{error}");
        }
        // What stands behind the end does not matter.
        assert!(decode(&[&jpeg[..], &[0; 7]].concat(), "more.jpg").is_ok());
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for &byte in bytes {
            crc ^= byte as u32;
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
        }
        !crc
    }
}
