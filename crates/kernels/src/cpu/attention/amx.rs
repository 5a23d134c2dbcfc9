//! Attention's products on the AMX unit, in the orientation of [`lanes`](super::lanes): operands are packed into tiles
//! of 16 rows by 32 bf16 (A) and of 16 pairs by 16 columns (B), sums are tiles of 16x16 f32.
//! Everything here needs AMX with AVX-512 BF16; [`available`] says whether it may be called.
//! Cost: one `tdpbf16ps` (16 cycles) per 8192 multiply-adds; packing is a few percent of that for 16 tiles of lanes.

use super::lanes::{Lanes, Softmax, Visible};
use super::{BLOCK, LANES};
use crate::cpu::vector::{Arithmetic, Avx512, Vector, exp2, exp2_short, total};
use crate::element::{Element, bf16};
use crate::isa::{Machine, MatmulPath};
use std::arch::asm;
use std::arch::x86_64::*;

/// bf16 of an operand tile; 1 KiB, as a tile of sums.
pub(super) const TILE: usize = 512;
/// Depth of an operand tile.
pub(super) const DEPTH: usize = 32;
/// Tiles of keys in a block.
pub(super) const KEY_TILES: usize = BLOCK / 16;
/// Depth tiles of a block of keys.
pub(super) const KEY_STEPS: usize = BLOCK / DEPTH;

/// Whether attention over `E` takes this path when bf16 products take `path`.
pub(super) fn available<E: Element>(path: MatmulPath) -> bool {
    E::NAME == bf16::NAME && path == MatmulPath::Amx && Machine::get().amx_bf16 && Machine::get().avx512_bf16
}

/// The tiles of this thread, configured while the value lives: eight of 16 rows by 64 bytes.
pub(super) struct Tiles(std::marker::PhantomData<*const u8>);

#[repr(C, align(64))]
struct Configuration([u8; 64]);

const CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Configuration(bytes)
};

impl Tiles {
    /// Panics where AMX is missing.
    pub(super) fn new() -> Self {
        assert!(available::<bf16>(MatmulPath::Amx), "this machine has no AMX");
        // SAFETY: the machine has AMX and the process may use it; the configuration is 64 valid bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, readonly)) }
        Self(std::marker::PhantomData)
    }

    /// `c[i] (+)= sum over steps of a[i][step] * b[step]` for `panels` panels of A: `a` `[panels][steps]` tiles, `b`
    /// `[steps]` tiles, `c` `[panels]` tiles. Overwrites unless `add`. `a_steps` is the distance of panels in tiles.
    pub(super) fn multiply(&self, a: &[bf16], a_steps: usize, b: &[bf16], steps: usize, c: &mut [f32], add: bool) {
        let panels = c.len() / (TILE / 2);
        assert!(a.len() >= ((panels - 1) * a_steps + steps) * TILE, "A holds the panels");
        let layout = Layout { line: DEPTH, step: TILE, panel: a_steps * TILE };
        // SAFETY: the assertion covers all panels and steps in this layout.
        unsafe { self.multiply_from(a.as_ptr(), layout, b, steps, c, add) }
    }

    /// [`Tiles::multiply`] with the rows of A as they lie in memory.
    ///
    /// # Safety
    /// As many panels of 16 rows as `c` has tiles can be read at `a`, `steps` steps of 32 columns each.
    pub(super) unsafe fn multiply_from(
        &self,
        a: *const bf16,
        layout: Layout,
        b: &[bf16],
        steps: usize,
        c: &mut [f32],
        add: bool,
    ) {
        let panels = c.len() / (TILE / 2);
        assert!(steps > 0 && panels > 0 && b.len() >= steps * TILE, "operands hold the steps");
        let mut done = 0;
        while done < panels {
            let c = c[done * TILE / 2..].as_mut_ptr();
            // SAFETY: four panels are left here, or one; tiles are configured as long as `self` lives.
            unsafe {
                let a = a.add(done * layout.panel);
                if panels - done >= 4 {
                    four_panels(a, layout, b.as_ptr(), steps, c, add);
                    done += 4;
                } else {
                    one_panel(a, layout, b.as_ptr(), steps, c, add);
                    done += 1;
                }
            }
        }
    }
}

/// Where the rows of A lie, in elements.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// From row to row of a panel.
    pub line: usize,
    /// From step to step of a row.
    pub step: usize,
    /// From panel to panel.
    pub panel: usize,
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `new` ran on this thread, so AMX is there.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// # Safety
/// Tiles are configured; the pointers hold four panels of `steps` tiles, `steps` tiles, four tiles of sums.
unsafe fn four_panels(a: *const bf16, layout: Layout, b: *const bf16, steps: usize, c: *mut f32, add: bool) {
    let Layout { line, step, panel } = layout;
    // SAFETY: loads and stores stay within the operands that the caller vouches for.
    unsafe {
        asm!(
            "test {add}, {add}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {line}]",
            "tileloadd tmm1, [{c} + {line} + 1024]",
            "tileloadd tmm2, [{c} + {line} + 2048]",
            "tileloadd tmm3, [{c} + {line} + 3072]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{b} + {line}]",
            "tileloadd tmm5, [{a0} + {a_line}]",
            "tdpbf16ps tmm0, tmm5, tmm4",
            "tileloadd tmm6, [{a1} + {a_line}]",
            "tdpbf16ps tmm1, tmm6, tmm4",
            "tileloadd tmm7, [{a2} + {a_line}]",
            "tdpbf16ps tmm2, tmm7, tmm4",
            "tileloadd tmm5, [{a3} + {a_line}]",
            "tdpbf16ps tmm3, tmm5, tmm4",
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {a2}, {a_step}",
            "add {a3}, {a_step}",
            "add {b}, 1024",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {line}], tmm0",
            "tilestored [{c} + {line} + 1024], tmm1",
            "tilestored [{c} + {line} + 2048], tmm2",
            "tilestored [{c} + {line} + 3072], tmm3",
            a0 = inout(reg) a => _,
            a1 = inout(reg) a.add(panel) => _,
            a2 = inout(reg) a.add(2 * panel) => _,
            a3 = inout(reg) a.add(3 * panel) => _,
            b = inout(reg) b => _,
            c = in(reg) c,
            steps = inout(reg) steps => _,
            line = in(reg) 64usize,
            a_line = in(reg) line * size_of::<bf16>(),
            a_step = in(reg) step * size_of::<bf16>(),
            add = in(reg) add as usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }
}

/// # Safety
/// As [`four_panels`], with one panel.
unsafe fn one_panel(a: *const bf16, layout: Layout, b: *const bf16, steps: usize, c: *mut f32, add: bool) {
    // SAFETY: as promised by the caller.
    unsafe {
        asm!(
            "tilezero tmm0",
            "test {add}, {add}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {line}]",
            "2:",
            "tileloadd tmm1, [{b} + {line}]",
            "tileloadd tmm2, [{a} + {a_line}]",
            "tdpbf16ps tmm0, tmm2, tmm1",
            "add {a}, {a_step}",
            "add {b}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {line}], tmm0",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            c = in(reg) c,
            steps = inout(reg) steps => _,
            line = in(reg) 64usize,
            a_line = in(reg) layout.line * size_of::<bf16>(),
            a_step = in(reg) layout.step * size_of::<bf16>(),
            add = in(reg) add as usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
            options(nostack),
        )
    }
}

/// Compiles a function with the instructions that AMX machines have besides, and enters it; `Tiles` vouches for them.
macro_rules! with_avx512 {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident : $kind:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $visibility fn $name(_tiles: &Tiles, $($argument: $kind),*) {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
            fn wide($($argument: $kind),*) $body
            // SAFETY: whoever has `Tiles` has asked `available`, which demands AVX-512 and its bf16 part.
            unsafe { wide($($argument),*) }
        }
    };
}

/// Sixteen consecutive bf16 of a row as 16 words; `room` elements are there, the rest reads as 0.
#[inline(always)]
fn widen(row: &[bf16], at: usize) -> __m512i {
    let room = row.len().saturating_sub(at).min(16);
    if room == 0 {
        // A masked load from nowhere does not fault, but the processor takes a thousand cycles to find that out.
        // SAFETY: called from `with_avx512` functions.
        return unsafe { _mm512_setzero_si512() };
    }
    let mask = ((1u32 << room) - 1) as u16;
    // SAFETY: called from `with_avx512` functions; the mask keeps the load inside the row.
    unsafe { _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row.as_ptr().add(at.min(row.len())).cast())) }
}

/// 16 columns of two rows as pairs: the even row in the low halves.
#[inline(always)]
fn pair(even: &[bf16], odd: &[bf16], at: usize) -> __m512i {
    // SAFETY: called from `with_avx512` functions.
    unsafe { _mm512_or_si512(widen(even, at), _mm512_slli_epi32::<16>(widen(odd, at))) }
}

/// Transposes 16x16 words.
#[inline(always)]
fn transpose(r: &mut [__m512i; 16]) {
    // SAFETY: called from `with_avx512` functions; registers only.
    unsafe {
        for i in (0..16).step_by(4) {
            let [a, b, c, d] = [r[i], r[i + 1], r[i + 2], r[i + 3]];
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            r[i] = _mm512_unpacklo_epi64(ab, cd);
            r[i + 1] = _mm512_unpackhi_epi64(ab, cd);
            r[i + 2] = _mm512_unpacklo_epi64(ab2, cd2);
            r[i + 3] = _mm512_unpackhi_epi64(ab2, cd2);
        }
        // r[4g + j] holds column j (mod 4) of rows 4g.. in each quarter; gather the quarters.
        let s = *r;
        for j in 0..4 {
            let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(s[j], s[4 + j]);
            let high = _mm512_shuffle_i32x4::<0b11_01_11_01>(s[j], s[4 + j]);
            let low2 = _mm512_shuffle_i32x4::<0b10_00_10_00>(s[8 + j], s[12 + j]);
            let high2 = _mm512_shuffle_i32x4::<0b11_01_11_01>(s[8 + j], s[12 + j]);
            r[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, low2);
            r[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, low2);
            r[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, high2);
            r[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, high2);
        }
    }
}

/// Fetches row `index` of the following block towards the caches where rows are too far apart for the hardware to
/// guess.
#[inline(always)]
fn prefetch(rows: &[bf16], stride: usize, width: usize, index: usize) {
    if stride == width {
        return;
    }
    let at = (BLOCK + index) * stride;
    if let Some(next) = rows.get(at..at + width) {
        for line in next.chunks(32) {
            // SAFETY: prefetching an address inside a slice.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
        }
    }
}

/// Row `index` of `count` rows, `width` wide and `stride` apart; empty beyond them.
#[inline(always)]
fn row(rows: &[bf16], stride: usize, count: usize, width: usize, index: usize) -> &[bf16] {
    if index < count { &rows[index * stride..][..width] } else { &[] }
}

with_avx512! {
    /// Rows as A: `[BLOCK / 16][steps]` tiles of 16 rows by 32 dims; absent rows and dims are 0.
    pub(super) fn pack_rows(rows: &[bf16], stride: usize, count: usize, width: usize, out: &mut [bf16]) {
        let steps = width.div_ceil(DEPTH);
        for index in 0..BLOCK {
            prefetch(rows, stride, width, index);
        }
        for (index, tile) in out.chunks_exact_mut(TILE).take(KEY_TILES * steps).enumerate() {
            for (line, to) in tile.chunks_exact_mut(DEPTH).enumerate() {
                let from = row(rows, stride, count, width, index / steps * 16 + line);
                let part = from.get(index % steps * DEPTH..).unwrap_or(&[]);
                if part.is_empty() {
                    to.fill(bf16::ZERO);
                    continue;
                }
                let mask = ((1u64 << part.len().min(DEPTH)) - 1) as u32;
                // SAFETY: the mask keeps the load inside the row; `to` holds 32 bf16.
                unsafe {
                    let values = _mm512_maskz_loadu_epi16(mask, part.as_ptr().cast());
                    _mm512_storeu_si512(to.as_mut_ptr().cast(), values);
                }
            }
        }
    }
}

with_avx512! {
    /// Rows transposed as A: `[width / 16][BLOCK / 32]` tiles of 16 dims by 32 rows.
    pub(super) fn pack_rows_transposed(rows: &[bf16], stride: usize, count: usize, width: usize, out: &mut [bf16]) {
        for index in 0..BLOCK {
            prefetch(rows, stride, width, index);
        }
        for (index, tile) in out.chunks_exact_mut(TILE).take(width.div_ceil(16) * KEY_STEPS).enumerate() {
            let (at, first) = (index / KEY_STEPS * 16, index % KEY_STEPS * DEPTH);
            let mut lines = [_mm512_setzero_si512(); 16];
            for (j, line) in lines.iter_mut().enumerate() {
                let even = row(rows, stride, count, width, first + 2 * j);
                *line = pair(even, row(rows, stride, count, width, first + 2 * j + 1), at);
            }
            transpose(&mut lines);
            store_tile(&lines, tile);
        }
    }
}

with_avx512! {
    /// [`pack_rows_transposed`] of rows that stand in pairs, element beside element.
    pub(super) fn pack_pairs_transposed(pairs: &[bf16], count: usize, width: usize, out: &mut [bf16]) {
        for (index, tile) in out.chunks_exact_mut(TILE).take(width.div_ceil(16) * KEY_STEPS).enumerate() {
            let (at, first) = (index / KEY_STEPS * 16, index % KEY_STEPS * DEPTH);
            let mask = ((1u32 << (width - at).min(16)) - 1) as u16;
            let mut lines = [_mm512_setzero_si512(); 16];
            for (j, line) in lines.iter_mut().enumerate() {
                let key = first + 2 * j;
                if key < count {
                    let from = &pairs[key * width + 2 * at..(key + 2) * width];
                    // SAFETY: the mask keeps the load inside the pair.
                    *line = unsafe { _mm512_maskz_loadu_epi32(mask, from.as_ptr().cast()) };
                }
                if key + 1 == count {
                    *line = _mm512_and_si512(*line, _mm512_set1_epi32(0xffff));
                }
            }
            transpose(&mut lines);
            store_tile(&lines, tile);
        }
    }
}

with_avx512! {
    /// 16 rows (lanes) transposed as B: `[steps]` tiles of 16 pairs of dims by 16 lanes. `rows` are `width` wide, a
    /// multiple of 32, and stand one after the other.
    pub(super) fn pack_lanes(rows: &[bf16], width: usize, out: &mut [bf16]) {
        for (step, tile) in out.chunks_exact_mut(TILE).take(width / DEPTH).enumerate() {
            let mut lines = [_mm512_setzero_si512(); 16];
            for (lane, to) in lines.iter_mut().enumerate() {
                let from = &rows[lane * width + step * DEPTH..][..DEPTH];
                // SAFETY: 32 bf16 are one register.
                *to = unsafe { _mm512_loadu_si512(from.as_ptr().cast()) };
            }
            transpose(&mut lines);
            store_tile(&lines, tile);
        }
    }
}

with_avx512! {
    /// Copies a query and the gradient of its answer, zeros behind them, and gives `sum of out * d_out`, added up as
    /// everywhere.
    pub(super) fn take_query(
        q: &[bf16], out: &[bf16], d_out: &[bf16], q_row: &mut [bf16], d_out_row: &mut [bf16], delta: &mut f32,
    ) {
        let mut sum = Avx512::splat(0.0);
        for (at, (q_row, d_out_row)) in
            (0..).step_by(DEPTH).zip(q_row.chunks_exact_mut(DEPTH).zip(d_out_row.chunks_exact_mut(DEPTH)))
        {
            let (q, out, d_out) = (part(q, at), part(out, at), part(d_out, at));
            // SAFETY: the rows are cut into registers.
            unsafe {
                _mm512_storeu_si512(q_row.as_mut_ptr().cast(), q);
                _mm512_storeu_si512(d_out_row.as_mut_ptr().cast(), d_out);
            }
            let [out, out_high] = as_floats(out);
            let [d_out, d_out_high] = as_floats(d_out);
            sum = out_high.mul_add(d_out_high, out.mul_add(d_out, sum));
        }
        *delta = total(sum);
    }
}

/// 32 bf16 of a row from `at` on; beyond its end zeros.
#[inline(always)]
fn part(row: &[bf16], at: usize) -> __m512i {
    let mask = ((1u64 << (row.len() - at).min(DEPTH)) - 1) as u32;
    // SAFETY: called from `with_avx512` functions; the mask, which is not empty, keeps the load inside the row.
    unsafe { _mm512_maskz_loadu_epi16(mask, row[at..].as_ptr().cast()) }
}

/// 32 bf16 as f32.
#[inline(always)]
fn as_floats(x: __m512i) -> [Avx512; 2] {
    // SAFETY: called from `with_avx512` functions; registers only.
    unsafe {
        let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
        let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(x));
        [
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(low))),
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(high))),
        ]
    }
}

with_avx512! {
    /// Lanes as B for sums over lanes: `[dims / 16][lanes / 32]` tiles of 16 pairs of lanes by 16 dims.
    pub(super) fn pack_lane_pairs(rows: &[bf16], width: usize, dims: usize, out: &mut [bf16]) {
        let steps = rows.len() / (width * DEPTH);
        for (index, tile) in out.chunks_exact_mut(TILE).take(dims.div_ceil(16) * steps).enumerate() {
            let (at, first) = (index / steps * 16, index % steps * DEPTH);
            let mut lines = [_mm512_setzero_si512(); 16];
            for (to, two) in lines.iter_mut().zip(rows[first * width..].chunks_exact(2 * width)) {
                let (even, odd) = two.split_at(width);
                *to = pair(even, odd, at);
            }
            store_tile(&lines, tile);
        }
    }
}

/// Writes 16 registers as a tile.
#[inline(always)]
fn store_tile(lines: &[__m512i; 16], tile: &mut [bf16]) {
    for (line, to) in lines.iter().zip(tile.chunks_exact_mut(DEPTH)) {
        // SAFETY: called from `with_avx512` functions; `to` holds one register.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *line) }
    }
}

/// Two rows of 16 f32 as 16 pairs of bf16: the order of a B tile whose depth runs over the rows.
#[inline(always)]
fn round_pairs(even: Avx512, odd: Avx512, to: &mut [bf16]) {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut lane = 0;
        while lane < 16 {
            order[2 * lane] = lane as u16;
            order[2 * lane + 1] = 16 + lane as u16;
            lane += 1;
        }
        order
    };
    let to: &mut [bf16; DEPTH] = to.try_into().expect("one line of a tile");
    // SAFETY: called from `with_avx512` functions; `to` holds one register.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(odd.0, even.0));
        _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, both));
    }
}

with_avx512! {
    /// [`softmax_step`](super::lanes::softmax_step) with the probabilities rounded into B tiles `[BLOCK / 32]`, as many
    /// as `visible` needs, and the earlier sums `out` scaled down.
    pub(super) fn softmax_step(
        scores: &mut [Lanes; BLOCK], visible: &Visible, scale2: f32, state: &mut Softmax, p: &mut [bf16],
        out: &mut [Lanes],
    ) {
        type V = Avx512;
        let (limit, least, zero) = (V::load(visible.limit()), V::splat(f32::NEG_INFINITY), V::splat(0.0));
        // Only keys beyond these need a mask.
        let (count, clear) = (visible.count, visible.seen_by_all() / 4 * 4);
        let mut tops = [least; 4];
        for four in scores[..clear].as_chunks::<4>().0 {
            for (s, top) in four.iter().zip(&mut tops) {
                *top = V::load(s).max(*top);
            }
        }
        for (key, s) in scores[..count].iter().enumerate().skip(clear) {
            let seen = V::splat(key as f32).select_less(limit, V::load(s), least);
            tops[key % 4] = seen.max(tops[key % 4]);
        }
        let top = tops[0].max(tops[1]).max(tops[2].max(tops[3]));
        let (scale2, old) = (V::splat(scale2), V::load(&state.max));
        let new = top.mul(scale2).max(old);
        new.store(&mut state.max);
        // See `lanes::softmax_step` for the two special cases.
        let factor = old.select_less(new, exp2(old.sub(new)), V::splat(1.0));
        let minus = zero.sub(least.select_less(new, new, zero));
        // Keys by their remainder, as `few_amx` holds four keys in a register.
        let mut sums = [zero; 4];
        let (clear_p, rest) = p[..count.div_ceil(DEPTH) * TILE].split_at_mut(clear / 2 * DEPTH);
        for (s, lines) in scores[..clear].as_chunks::<4>().0.iter().zip(clear_p.chunks_exact_mut(2 * DEPTH)) {
            let mut four = [zero; 4];
            for key in 0..4 {
                four[key] = exp2_short(V::load(&s[key]).mul_add(scale2, minus));
                sums[key] = sums[key].add(four[key]);
            }
            let (even, odd) = lines.split_at_mut(DEPTH);
            round_pairs(four[0], four[1], even);
            round_pairs(four[2], four[3], odd);
        }
        for (first, lines) in (clear..).step_by(4).zip(rest.chunks_exact_mut(2 * DEPTH)) {
            let mut four = [zero; 4];
            for (key, p) in four.iter_mut().enumerate() {
                if first + key < count {
                    *p = exp2_short(V::load(&scores[first + key]).mul_add(scale2, minus));
                    *p = V::splat((first + key) as f32).select_less(limit, *p, zero);
                    sums[key] = sums[key].add(*p);
                }
            }
            let (even, odd) = lines.split_at_mut(DEPTH);
            round_pairs(four[0], four[1], even);
            round_pairs(four[2], four[3], odd);
        }
        let sum = sums[0].add(sums[2]).add(sums[1].add(sums[3]));
        V::load(&state.sum).mul_add(factor, sum).store(&mut state.sum);
        // Multiplying by 1 changes nothing: skipping it is the same for every lane.
        if _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(factor.0, V::splat(1.0).0) != 0 {
            for out in out {
                V::load(out).mul(factor).store(out);
            }
        }
    }
}

/// What the backward pass knows of a tile of lanes: log-sum-exp times log2(e), and `sum of out * d_out`.
#[derive(Clone, Copy)]
pub(super) struct Saved {
    pub lse2: Lanes,
    pub delta: Lanes,
}

with_avx512! {
    /// [`softmax_backward`](super::lanes::softmax_backward), rounded: `p` and `ds` as columns `16 * half ..` of A tiles
    /// `[key tile]` with `a_stride` bf16 between them (depth runs over lanes), `ds_pairs` as B tiles (depth over keys).
    pub(super) fn softmax_backward(
        scores: &[Lanes; BLOCK], dp: &[Lanes; BLOCK], visible: &Visible, scale2: f32, saved: &Saved, half: usize,
        a_stride: usize, p_out: &mut [bf16], ds_out: &mut [bf16], ds_pairs: &mut [bf16],
    ) {
        type V = Avx512;
        let (limit, zero, scale2) = (V::load(visible.limit()), V::splat(0.0), V::splat(scale2));
        let (minus, delta) = (zero.sub(V::load(&saved.lse2)), V::load(&saved.delta));
        let all = visible.sees_all();
        for pair in 0..BLOCK / 2 {
            let mut ds_both = [zero; 2];
            for (odd, ds) in ds_both.iter_mut().enumerate() {
                let key = 2 * pair + odd;
                let mut p = zero;
                if key < visible.count {
                    p = exp2_short(V::load(&scores[key]).mul_add(scale2, minus));
                    *ds = p.mul(V::load(&dp[key]).sub(delta));
                    if !all {
                        let at = V::splat(key as f32);
                        p = at.select_less(limit, p, zero);
                        *ds = at.select_less(limit, *ds, zero);
                    }
                }
                let at = key / 16 * a_stride + key % 16 * DEPTH + half * 16;
                round(p, &mut p_out[at..][..16]);
                round(*ds, &mut ds_out[at..][..16]);
            }
            round_pairs(ds_both[0], ds_both[1], &mut ds_pairs[pair * DEPTH..][..DEPTH]);
        }
    }
}

with_avx512! {
    /// Sums `[dim][lane]` as rows `[lane][width]`, times a factor per lane, rounded.
    pub(super) fn finish_lanes(sums: &[Lanes], factor: &Lanes, width: usize, rows: &mut [bf16]) {
        let factor = Avx512::load(factor);
        for (index, sums) in sums.as_chunks::<16>().0.iter().enumerate() {
            let mut lines = [_mm512_setzero_si512(); 16];
            for (line, sums) in lines.iter_mut().zip(sums) {
                *line = _mm512_castps_si512(Avx512::load(sums).mul(factor).0);
            }
            transpose(&mut lines);
            for (line, row) in lines.into_iter().zip(rows.chunks_exact_mut(width)) {
                round(Avx512(_mm512_castsi512_ps(line)), &mut row[index * 16..][..16]);
            }
        }
    }
}

with_avx512! {
    /// Row `index` of sums in tiles `[dim tile][BLOCK][16]`, times a factor, rounded.
    pub(super) fn finish_row(sums: &[f32], index: usize, factor: f32, row: &mut [bf16]) {
        for (sums, to) in sums.chunks_exact(BLOCK * 16).zip(row.chunks_mut(16)) {
            let sums: &[f32; 16] = sums[index * 16..][..16].try_into().expect("sliced to 16");
            let mask = ((1u32 << to.len()) - 1) as u16;
            // SAFETY: the mask keeps the store inside the row.
            unsafe {
                let narrow: __m256i =
                    std::mem::transmute(_mm512_cvtneps_pbh(Avx512::load(sums).mul(Avx512::splat(factor)).0));
                _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), mask, narrow);
            }
        }
    }
}

/// 16 f32 as 16 bf16.
#[inline(always)]
fn round(x: Avx512, to: &mut [bf16]) {
    let to: &mut [bf16; LANES] = to.try_into().expect("half a line of a tile");
    // SAFETY: called from `with_avx512` functions; `to` holds 16 bf16.
    unsafe {
        let narrow: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x.0));
        _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
    }
}

/// Cuts pieces off a scratch buffer, each a multiple of 64 bytes so that the next one starts on a line.
pub(super) struct Pieces<'s>(pub &'s mut [f32]);

impl<'s> Pieces<'s> {
    /// `len` f32.
    pub(super) fn floats(&mut self, len: usize) -> &'s mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len.next_multiple_of(16));
        self.0 = rest;
        &mut piece[..len]
    }

    /// Scores of one tile.
    pub(super) fn block(&mut self) -> &'s mut [Lanes; BLOCK] {
        self.floats(BLOCK * LANES).as_chunks_mut().0.try_into().expect("a block of scores")
    }

    /// `len` bf16.
    pub(super) fn halves(&mut self, len: usize) -> &'s mut [bf16] {
        &mut bytemuck::cast_slice_mut(self.floats(len.div_ceil(2)))[..len]
    }

    /// `tiles` operand tiles.
    pub(super) fn tiles(&mut self, tiles: usize) -> &'s mut [bf16] {
        bytemuck::cast_slice_mut(self.floats(tiles * TILE / 2))
    }
}
