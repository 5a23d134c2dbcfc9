//! Pictures that look alike although their bytes differ: resized, re-encoded, slightly brighter.
//! Each picture becomes 128 bits that say where it grows lighter to the right and downwards, and its mean colour.
//! Knows pictures; knows no rows. Cost: one decode and one small resize a picture, then all pairs of bits.

use image::imageops::FilterType;
use rayon::prelude::*;

/// What a picture looks like from afar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    gradients: u128,
    mean: [u8; 3],
}

/// Side of the grid whose neighbours are compared.
const SIDE: u32 = 8;
/// Bits in which pictures that look alike may differ. Re-encoding and resizing change 0 to 6 of the 128; different
/// photographs differ in about 60.
const FAR: u32 = 8;
/// Levels by which their mean colours may differ.
const OFF: u8 = 12;

/// Looks at a picture.
pub fn look(picture: &image::DynamicImage) -> Look {
    let rgb = picture.to_rgb8();
    let tiny = image::imageops::resize(&rgb, 1, 1, FilterType::Triangle);
    let grid = image::imageops::resize(&picture.to_luma16(), SIDE + 1, SIDE + 1, FilterType::Triangle);
    let mut gradients = 0;
    for y in 0..SIDE {
        for x in 0..SIDE {
            let here = grid.get_pixel(x, y).0[0];
            for next in [grid.get_pixel(x + 1, y), grid.get_pixel(x, y + 1)] {
                gradients = gradients << 1 | u128::from(next.0[0] > here);
            }
        }
    }
    Look { gradients, mean: tiny.get_pixel(0, 0).0 }
}

impl Look {
    /// Whether two pictures are probably the same.
    pub fn is_like(&self, other: &Look) -> bool {
        (self.gradients ^ other.gradients).count_ones() <= FAR
            && self.mean.iter().zip(other.mean).all(|(a, b)| a.abs_diff(b) <= OFF)
    }
}

/// Index pairs `(a, b)`, `a < b`, of looks that are alike; each `b` once, with its first `a`.
pub fn pairs(looks: &[Option<Look>]) -> Vec<(usize, usize)> {
    let first_like = |(b, look): (usize, &Option<Look>)| {
        let look = look.as_ref()?;
        let a = looks[..b].iter().position(|other| other.is_some_and(|other| other.is_like(look)))?;
        Some((a, b))
    };
    looks.par_iter().enumerate().filter_map(first_like).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, RgbImage};

    /// A smooth picture that `seed` changes altogether.
    fn picture(seed: u32, side: u32) -> DynamicImage {
        let wave =
            |x: f32, k: u32| 127.0 + 90.0 * (x * (1.3 + (seed * 7 + k * 3) as f32 % 5.0) + (seed * k) as f32).sin();
        DynamicImage::ImageRgb8(RgbImage::from_fn(side, side, |x, y| {
            let (x, y) = (x as f32 / side as f32, y as f32 / side as f32);
            image::Rgb([1, 2, 3].map(|k| (0.5 * (wave(x + 0.3 * y, k) + wave(y - 0.2 * x, k + 1))) as u8))
        }))
    }

    #[test]
    fn resized_and_brightened_pictures_are_found_and_others_are_not() {
        let one = picture(1, 120);
        let smaller = one.resize_exact(90, 90, FilterType::CatmullRom);
        let brighter = one.brighten(6);
        let looks: Vec<_> =
            [&one, &picture(2, 120), &smaller, &picture(3, 120), &brighter].map(|p| Some(look(p))).into();
        assert_eq!(pairs(&looks), [(0, 2), (0, 4)]);
        assert_eq!(pairs(&[None, looks[0], None]), []);
    }
}
