//! Resamples 8-bit pictures with the bits that Python gets.
//! Knows filters and rounding; knows nothing of tiles, normalising or files.
//! Cost: two passes over the picture, integers only; the tap weights of a row and a column are computed per call.
//!
//! Python has several answers. Pillow weighs taps in 22-bit fixed point; torch on `uint8` scales them to 16 bits, with
//! as many fraction bits as the largest tap leaves room for. Both round to 8 bits between the two passes; keeping floats
//! there would be simpler and gives other pixels. So does the order of the passes: Pillow 13 changed it.

use foveate_tasks::row::Drawing;
use rayon::prelude::*;

/// The resampling kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Cubic with a = -1/2, support 2.
    Bicubic,
    /// Windowed sinc, support 3.
    Lanczos,
}

/// Whose fixed-point arithmetic is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `PIL.Image.resize` from Pillow 13.0 on: 22 fraction bits; vertically first where the height shrinks by more than
    /// twice as many pixels as the width does.
    Pillow,
    /// `PIL.Image.resize` up to Pillow 12.1: 22 fraction bits, always horizontally first.
    PillowBefore13,
    /// `torch.nn.functional.interpolate` on `uint8` with antialiasing: 16-bit taps.
    TorchUint8,
}

const CHANNELS: usize = 3;

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Fixed-point weights of one direction.
struct Taps {
    /// First input pixel and number of taps of each output pixel.
    bounds: Vec<(usize, usize)>,
    /// `stride` weights per output pixel, unused ones zero.
    weights: Vec<i32>,
    stride: usize,
    /// Fraction bits of the weights.
    precision: u32,
}

impl Taps {
    fn new(filter: Filter, rounding: Rounding, input: usize, output: usize) -> Taps {
        let scale = input as f64 / output as f64;
        // Antialiasing: shrinking widens the kernel.
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / filter_scale;
        let mut bounds = Vec::with_capacity(output);
        let mut exact = vec![0.0f64; output * stride];
        for (index, row) in exact.chunks_mut(stride).enumerate() {
            let center = (index as f64 + 0.5) * scale;
            // Truncation toward zero, as a C cast does; negative starts are clamped either way.
            let first = ((center - support + 0.5) as i64).max(0) as usize;
            let end = ((center + support + 0.5) as i64).min(input as i64) as usize;
            let count = end.saturating_sub(first).min(stride);
            let mut total = 0.0;
            for (tap, weight) in row[..count].iter_mut().enumerate() {
                *weight = filter.weight(((first + tap) as f64 - center + 0.5) * inverse);
                total += *weight;
            }
            if total != 0.0 {
                row[..count].iter_mut().for_each(|weight| *weight /= total);
            }
            bounds.push((first, count));
        }
        let precision = match rounding {
            Rounding::Pillow | Rounding::PillowBefore13 => 22,
            Rounding::TorchUint8 => torch_precision(exact.iter().copied().fold(0.0, f64::max)),
        };
        let one = (1i64 << precision) as f64;
        let weights =
            exact.iter().map(|&weight| (weight * one + if weight < 0.0 { -0.5 } else { 0.5 }) as i32).collect();
        Taps { bounds, weights, stride, precision }
    }

    fn of(&self, index: usize) -> (usize, &[i32]) {
        let (first, count) = self.bounds[index];
        (first, &self.weights[index * self.stride..][..count])
    }
}

/// As many fraction bits as keep the largest weight below 2^15.
fn torch_precision(largest: f64) -> u32 {
    let mut precision = 0;
    while precision < 22 && ((0.5 + largest * (1i64 << (precision + 1)) as f64) as i64) < (1 << 15) {
        precision += 1;
    }
    precision
}

fn to_byte(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

/// The picture at another size. Sizes must not be zero; equal sizes give a copy.
pub fn resize(image: &Drawing, width: u32, height: u32, filter: Filter, rounding: Rounding) -> Drawing {
    let (w0, h0) = (image.width as usize, image.height as usize);
    let (w, h) = (width as usize, height as usize);
    assert!(w0 > 0 && h0 > 0 && w > 0 && h > 0, "pictures have at least one pixel; checked when they are decoded");
    let horizontally = |rgb: &[u8], h: usize| horizontal(rgb, w0, h, w, filter, rounding);
    let vertically = |rgb: &[u8], w: usize| vertical(rgb, w, h0, h, filter, rounding);
    let vertical_first = rounding == Rounding::Pillow && h < h0 && h0 - h > 2 * w0.saturating_sub(w);
    let rgb = match (w != w0, h != h0) {
        (false, false) => image.rgb.clone(),
        (true, false) => horizontally(&image.rgb, h0),
        (false, true) => vertically(&image.rgb, w0),
        (true, true) if vertical_first => horizontally(&vertically(&image.rgb, w0), h),
        (true, true) => vertically(&horizontally(&image.rgb, h0), w),
    };
    Drawing { width, height, rgb }
}

/// Rows in parallel are worth a thread from about this many output bytes.
const PARALLEL_BYTES: usize = 1 << 16;

fn each_row(rgb: &mut [u8], row_bytes: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    if rgb.len() < PARALLEL_BYTES {
        rgb.chunks_mut(row_bytes).enumerate().for_each(|(row, out)| work(row, out));
    } else {
        rgb.par_chunks_mut(row_bytes).enumerate().for_each(|(row, out)| work(row, out));
    }
}

fn horizontal(rgb: &[u8], w0: usize, h: usize, w: usize, filter: Filter, rounding: Rounding) -> Vec<u8> {
    let taps = Taps::new(filter, rounding, w0, w);
    let half = 1i32 << (taps.precision - 1);
    let mut out = vec![0u8; w * h * CHANNELS];
    each_row(&mut out, w * CHANNELS, |row, out| {
        let line = &rgb[row * w0 * CHANNELS..][..w0 * CHANNELS];
        for (x, pixel) in out.chunks_exact_mut(CHANNELS).enumerate() {
            let (first, weights) = taps.of(x);
            let mut sum = [half; CHANNELS];
            for (source, &weight) in line[first * CHANNELS..].chunks_exact(CHANNELS).zip(weights) {
                for channel in 0..CHANNELS {
                    sum[channel] += source[channel] as i32 * weight;
                }
            }
            for channel in 0..CHANNELS {
                pixel[channel] = to_byte(sum[channel], taps.precision);
            }
        }
    });
    out
}

fn vertical(rgb: &[u8], w: usize, h0: usize, h: usize, filter: Filter, rounding: Rounding) -> Vec<u8> {
    let taps = Taps::new(filter, rounding, h0, h);
    let half = 1i32 << (taps.precision - 1);
    let row_bytes = w * CHANNELS;
    let mut out = vec![0u8; row_bytes * h];
    each_row(&mut out, row_bytes, |y, out| {
        let (first, weights) = taps.of(y);
        let mut sums = vec![half; row_bytes];
        for (line, &weight) in rgb[first * row_bytes..].chunks_exact(row_bytes).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += value as i32 * weight;
            }
        }
        for (byte, &sum) in out.iter_mut().zip(&sums) {
            *byte = to_byte(sum, taps.precision);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// Every golden of `fixtures/resize`, bit for bit.
    #[test]
    fn equal_to_python() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/resize/resize.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let drawing = |name: &str| {
            let view = tensors.tensor(name).unwrap();
            Drawing { height: view.shape()[0] as u32, width: view.shape()[1] as u32, rgb: view.data().to_vec() }
        };
        let mut num_checked = 0;
        for name in tensors.names() {
            let parts: Vec<&str> = name.split('.').collect();
            let [kind, filter, source, _] = parts[..] else { continue };
            let rounding = if kind == "pillow" { Rounding::Pillow } else { Rounding::TorchUint8 };
            let filter = match filter {
                "lanczos" => Filter::Lanczos,
                "bicubic" => Filter::Bicubic,
                _ => Filter::Bilinear,
            };
            let want = drawing(name);
            let got = resize(&drawing(&format!("source.{source}")), want.width, want.height, filter, rounding);
            let wrong = got.rgb.iter().zip(&want.rgb).filter(|(a, b)| a != b).count();
            assert_eq!((got.rgb.len(), wrong), (want.rgb.len(), 0), "{name}");
            num_checked += 1;
        }
        assert_eq!(num_checked, 15 * 3 + 12 * 2);
    }

    #[test]
    fn older_pillow_goes_horizontally_first() {
        let image = Drawing { width: 37, height: 91, rgb: (0..37 * 91 * 3).map(|i| (i * 89 % 251) as u8).collect() };
        let go = |image, width, height, rounding| resize(image, width, height, Filter::Lanczos, rounding);
        let wide = go(&image, 26, 91, Rounding::Pillow);
        let old = go(&image, 26, 64, Rounding::PillowBefore13);
        assert_eq!(old, go(&wide, 26, 64, Rounding::Pillow));
        assert_ne!(old, go(&image, 26, 64, Rounding::Pillow));
    }

    #[test]
    fn same_bytes_for_any_number_of_threads() {
        let rgb = (0..300 * 200 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let image = Drawing { width: 300, height: 200, rgb };
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| resize(&image, 411, 333, Filter::Lanczos, Rounding::Pillow))
        };
        assert_eq!(with(1), with(3));
    }
}
