//! Where finished blocks go: bias, addition or rounding, and the row-major output.
//! Knows blocks of 32x32 sums; nothing of how they were made.
//! Cost: one pass over the output. Its lines are fetched while the block is computed, since nothing else would.

use super::pack::PANEL;
use crate::cpu::past_caches::LARGE;
use crate::element::{Element, bf16};
use crate::isa::multiversion;
use crate::parallel::SharedPointer;

/// What to do with a finished block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sink {
    /// Overwrite.
    F32(*mut f32),
    /// Overwrite with the finished sums on top of a base of the same shape, which may be the output itself.
    F32Add { base: *const f32, out: *mut f32 },
    /// Overwrite, rounded.
    Bf16(*mut bf16),
}

impl Sink {
    /// Adds to what is there.
    pub(crate) fn add_to(out: *mut f32) -> Self {
        Self::F32Add { base: out, out }
    }
}

/// A row-major output that tasks write disjoint blocks of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) sink: Sink,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Valid columns; the padding of the last panel is dropped.
    pub(crate) columns: usize,
    /// Write past the caches: see [`Target::past_caches`].
    pub(crate) past_caches: bool,
    /// Nobody reads a plain f32 output soon; it may be written past the caches too.
    not_read_soon: bool,
}

// SAFETY: tasks write disjoint blocks, see `multiply_rows`.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// The valid part of a block: where it starts and how large it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) column: usize,
    /// Up to 32 rows.
    pub(super) height: usize,
    /// Up to 32 columns.
    pub(super) width: usize,
}

/// Cache lines of a block of the output: in each row the one of `first` and the one `second` bytes further.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputLines {
    pub(super) first: *const u8,
    pub(super) second: usize,
    /// Bytes from row to row.
    pub(super) stride: usize,
}

impl OutputLines {
    /// The lines of a buffer of sums.
    pub(super) fn of_buffer(sums: *const f32) -> Self {
        Self { first: sums.cast(), second: 64, stride: PANEL * size_of::<f32>() }
    }
}

/// A finished full block on its way past the caches: two of its rows go out with each step of the next block. Written in
/// one burst, its lines would fill what a core has under way, and tiles would wait behind them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    /// 32 rows of 32 sums.
    pub(super) sums: *const f32,
    /// Added to each row.
    pub(super) bias: [f32; PANEL],
    /// First row of the output.
    pub(super) out: *mut u8,
    /// Bytes from row to row.
    pub(super) stride: usize,
    pub(super) form: Form,
    /// Bytes from a row to the one of the next block whose base is wanted then.
    pub(super) ahead: isize,
}

/// What becomes of the sums that go out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// They are rounded.
    Bf16,
    /// They stay as they are.
    F32,
    /// They go on top of a base, so many bytes from the output.
    F32Onto(isize),
}

impl Target {
    /// An output whose rows, `stride` apart, start with its first column.
    pub(crate) fn new(sink: Sink, stride: usize, columns: usize) -> Self {
        Self { sink, stride, columns, past_caches: false, not_read_soon: false }
    }

    /// The same output, which nobody reads soon.
    pub(crate) fn not_read_soon(self) -> Self {
        Self { not_read_soon: true, ..self }
    }

    /// Whether `rows` rows of output are better written past the caches: an ordinary store to memory first reads the
    /// line that it overwrites. Needs lines that are written whole.
    pub(crate) fn past_caches(self, rows: usize) -> Self {
        let (start, size) = match self.sink {
            Sink::F32Add { base, out } if !std::ptr::eq(base, out) => (out as usize, size_of::<f32>()),
            Sink::Bf16(out) => (out as usize, size_of::<bf16>()),
            Sink::F32(out) if self.not_read_soon => (out as usize, size_of::<f32>()),
            _ => return self,
        };
        let row = self.stride * size;
        let past_caches = rows * row >= LARGE && start.is_multiple_of(64) && row.is_multiple_of(64);
        Self { past_caches, ..self }
    }

    /// The same output, starting `rows` further down.
    ///
    /// # Safety
    /// The output has at least `rows` rows.
    pub(crate) unsafe fn skip_rows(self, rows: usize) -> Self {
        let offset = rows * self.stride;
        // SAFETY: the caller says that these rows exist.
        let sink = unsafe {
            match self.sink {
                Sink::F32(out) => Sink::F32(out.add(offset)),
                Sink::F32Add { base, out } => Sink::F32Add { base: base.add(offset), out: out.add(offset) },
                Sink::Bf16(out) => Sink::Bf16(out.add(offset)),
            }
        };
        Self { sink, ..self }
    }

    /// Where a kernel may keep the sums of a full block instead of in a buffer: in the target, if it just holds them.
    ///
    /// # Safety
    /// The target has this place.
    pub(super) unsafe fn sums(&self, place: Place) -> Option<(*mut f32, usize)> {
        match self.sink {
            Sink::F32(out) if !self.past_caches && place.height == PANEL && place.width == PANEL => {
                // SAFETY: as the caller promises.
                Some((unsafe { out.add(place.row * self.stride + place.column) }, self.stride))
            }
            _ => None,
        }
    }

    /// The lines of `place` that a store waits for, to be fetched before.
    pub(super) fn lines(&self, place: Place) -> Option<OutputLines> {
        let (start, size) = match self.sink {
            // What is read decides how long a block waits; writing waits for nobody.
            Sink::F32Add { base, .. } => (base.cast::<u8>(), size_of::<f32>()),
            _ if self.past_caches => return None,
            Sink::F32(out) => (out.cast_const().cast(), size_of::<f32>()),
            Sink::Bf16(out) => (out.cast_const().cast(), size_of::<bf16>()),
        };
        // Rows may start anywhere in a line. Their first line was fetched with the panel before; hence the last byte.
        let first = start.wrapping_add((place.row * self.stride + place.column) * size + 63);
        Some(OutputLines { first, second: PANEL * size - 64, stride: self.stride * size })
    }

    /// The full block of sums `c`, to be written while the one at `next` is computed; `None` where [`Target::store`] is
    /// the way.
    pub(super) fn outgoing(&self, c: *const f32, bias: Option<&[f32]>, place: Place, next: Place) -> Option<Outgoing> {
        let full = |place: Place| place.height == PANEL && place.width == PANEL;
        if !(self.past_caches && full(place) && full(next)) {
            return None;
        }
        let (out, size, form) = match self.sink {
            Sink::F32Add { base, out } => {
                (out.cast::<u8>(), size_of::<f32>(), Form::F32Onto(base as isize - out as isize))
            }
            Sink::F32(out) => (out.cast(), size_of::<f32>(), Form::F32),
            Sink::Bf16(out) => (out.cast(), size_of::<bf16>(), Form::Bf16),
        };
        let start = |place: Place| (place.row * self.stride + place.column) * size;
        let mut all = [0.0; PANEL];
        if let Some(bias) = bias {
            all.copy_from_slice(bias);
        }
        Some(Outgoing {
            sums: c,
            bias: all,
            out: out.wrapping_add(start(place)),
            stride: self.stride * size,
            form,
            ahead: start(next) as isize - start(place) as isize,
        })
    }

    /// Writes the valid part of the block of sums `c`.
    ///
    /// # Safety
    /// The target has this place, and no other thread uses it.
    pub(super) unsafe fn store(&self, c: &[f32], bias: Option<&[f32]>, place: Place) {
        assert!(c.len() >= PANEL * PANEL, "a block is complete");
        let Place { row, column, height, width } = place;
        let offset = row * self.stride + column;
        #[cfg(target_arch = "x86_64")]
        if width == PANEL && crate::isa::Machine::get().avx512_bf16 {
            // SAFETY: the machine has the instructions, and the place lies in the target.
            return unsafe {
                match self.sink {
                    Sink::F32(out) if self.past_caches => {
                        full::<false, true>(c, height, bias, std::ptr::null(), out.add(offset), self.stride)
                    }
                    Sink::F32(out) => {
                        full::<false, false>(c, height, bias, std::ptr::null(), out.add(offset), self.stride)
                    }
                    Sink::F32Add { base, out } if self.past_caches => {
                        full::<true, true>(c, height, bias, base.add(offset), out.add(offset), self.stride);
                    }
                    Sink::F32Add { base, out } => {
                        full::<true, false>(c, height, bias, base.add(offset), out.add(offset), self.stride);
                    }
                    Sink::Bf16(out) if self.past_caches => {
                        full_bf16::<true>(c, height, bias, out.add(offset), self.stride);
                    }
                    Sink::Bf16(out) => full_bf16::<false>(c, height, bias, out.add(offset), self.stride),
                }
            };
        }
        // SAFETY: the last element touched is at offset + (height - 1) * stride + width, inside the target.
        unsafe {
            match self.sink {
                Sink::F32(out) => write_f32(c, height, width, bias, SharedPointer(out.add(offset)), self.stride),
                Sink::F32Add { base, out } => {
                    let (base, out) = (SharedPointer(base.add(offset).cast_mut()), SharedPointer(out.add(offset)));
                    add_f32(c, height, width, bias, base, out, self.stride);
                }
                Sink::Bf16(out) => write_bf16(c, height, width, bias, SharedPointer(out.add(offset)), self.stride),
            }
        }
    }
}

/// Rows of 32 columns with the instruction that rounds two registers at once: three instructions a row where plain
/// code needs twenty, few enough to run under the next block's loads. Rounds like `Element::from_f32`, but makes
/// subnormal numbers zero, as the matrix units do with their operands anyway.
///
/// # Safety
/// AVX-512 BF16; `c` has 32 rows, `bias` 32 entries, `out` `height` rows of 32 elements.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn full_bf16<const PAST: bool>(c: &[f32], height: usize, bias: Option<&[f32]>, out: *mut bf16, stride: usize) {
    use std::arch::x86_64::*;
    let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    // SAFETY: sizes as promised by the caller.
    unsafe {
        if let Some(bias) = bias {
            low = _mm512_loadu_ps(bias.as_ptr());
            high = _mm512_loadu_ps(bias.as_ptr().add(16));
        }
        for row in 0..height {
            let c = c.as_ptr().add(row * PANEL);
            let (mut a, mut b) = (_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(16)));
            if bias.is_some() {
                a = _mm512_add_ps(a, low);
                b = _mm512_add_ps(b, high);
            }
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
            if PAST {
                _mm512_stream_si512(out.add(row * stride).cast(), rounded);
            } else {
                _mm512_storeu_si512(out.add(row * stride).cast(), rounded);
            }
        }
    }
}

/// Rows of 32 columns in f32: overwritten, or put on top of `base` if `ADD`; past the caches if `PAST`.
///
/// # Safety
/// AVX-512; `c` has 32 rows, `bias` 32 entries, `out` (and `base` if `ADD`) `height` rows of 32 elements; they start on
/// lines if `PAST`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn full<const ADD: bool, const PAST: bool>(
    c: &[f32],
    height: usize,
    bias: Option<&[f32]>,
    base: *const f32,
    out: *mut f32,
    stride: usize,
) {
    use std::arch::x86_64::*;
    // SAFETY: sizes as promised by the caller.
    unsafe {
        for half in [0, 16] {
            let bias = bias.map(|bias| _mm512_loadu_ps(bias.as_ptr().add(half)));
            for row in 0..height {
                let mut sums = _mm512_loadu_ps(c.as_ptr().add(row * PANEL + half));
                if let Some(bias) = bias {
                    sums = _mm512_add_ps(sums, bias);
                }
                let at = row * stride + half;
                if ADD {
                    sums = _mm512_add_ps(_mm512_loadu_ps(base.add(at)), sums);
                }
                if PAST { _mm512_stream_ps(out.add(at), sums) } else { _mm512_storeu_ps(out.add(at), sums) }
            }
        }
    }
}

/// Calls `write` with each output row of the block and its biased sums; always all 32 columns, so that loops have a
/// fixed length.
///
/// # Safety
/// `out` has `height` rows of `width` elements, `stride` apart.
#[inline(always)]
unsafe fn each_row<T>(
    c: &[f32],
    height: usize,
    width: usize,
    bias: Option<&[f32]>,
    out: SharedPointer<T>,
    stride: usize,
    write: impl Fn(&[f32; PANEL], &mut [T]),
) {
    let (lines, _) = c.as_chunks::<PANEL>();
    // SAFETY: row r of the part that the caller vouches for.
    let row = |r: usize| unsafe { std::slice::from_raw_parts_mut(out.at(r * stride), width) };
    match bias {
        None => {
            for (r, sums) in lines.iter().take(height).enumerate() {
                write(sums, row(r));
            }
        }
        Some(bias) => {
            let mut padded = [0.0; PANEL];
            padded[..width].copy_from_slice(bias);
            for (r, sums) in lines.iter().take(height).enumerate() {
                let mut biased = *sums;
                for j in 0..PANEL {
                    biased[j] += padded[j];
                }
                write(&biased, row(r));
            }
        }
    }
}

multiversion! {
    fn write_f32(c: &[f32], height: usize, width: usize, bias: Option<&[f32]>, out: SharedPointer<f32>, stride: usize) {
        // SAFETY: `store` passes a part of the target.
        unsafe {
            each_row(c, height, width, bias, out, stride, |sums, row| match <&mut [f32; PANEL]>::try_from(&mut *row) {
                Ok(row) => *row = *sums,
                Err(_) => row.copy_from_slice(&sums[..row.len()]),
            });
        }
    }
}

multiversion! {
    /// `base` is only read; it may be `out`.
    fn add_f32(
        c: &[f32], height: usize, width: usize, bias: Option<&[f32]>, base: SharedPointer<f32>,
        out: SharedPointer<f32>, stride: usize,
    ) {
        let mut line = [0.0f32; PANEL];
        for row in 0..height {
            let sums = &c[row * PANEL..][..PANEL];
            match bias {
                None => line.copy_from_slice(sums),
                Some(bias) => line.iter_mut().zip(sums).zip(bias).for_each(|((line, sum), bias)| *line = sum + bias),
            }
            for (column, sum) in line.iter().enumerate().take(width) {
                let at = row * stride + column;
                // SAFETY: `store` passes parts of the target and of its base.
                unsafe { out.at(at).write(base.at(at).read() + sum) }
            }
        }
    }
}

multiversion! {
    fn write_bf16(c: &[f32], height: usize, width: usize, bias: Option<&[f32]>, out: SharedPointer<bf16>, stride: usize) {
        // SAFETY: `store` passes a part of the target.
        unsafe {
            each_row(c, height, width, bias, out, stride, |sums, row| match <&mut [bf16; PANEL]>::try_from(&mut *row) {
                // A plain loop: `array::map` is not inlined and would run without vector instructions.
                Ok(row) => {
                    for j in 0..PANEL {
                        row[j] = Element::from_f32(sums[j]);
                    }
                }
                Err(_) => {
                    for (out, sum) in row.iter_mut().zip(sums) {
                        *out = Element::from_f32(*sum);
                    }
                }
            });
        }
    }
}
