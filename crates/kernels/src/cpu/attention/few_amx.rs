//! Single queries on the AMX unit: decoding asks for one row, which is as many lanes as a key/value head has query
//! heads. With at most four of them a whole tile of lanes would be mostly empty; here a register holds four keys by
//! four lanes, keys and values are multiplied where they lie in the store, and nothing is packed.
//! The numbers are those of [`AmxUnit`](super::forward_amx::AmxUnit): the same products with their factors exchanged,
//! the same sums in the same order.
//! Cost: about 24 tile products and 16 registers of softmax for 64 keys; reading the keys from memory takes longer.

use super::BLOCK;
use super::amx::{DEPTH, KEY_STEPS, Pieces};
use super::lanes::Softmax;
use crate::cpu::vector::{Arithmetic, Avx512, Vector, exp2, exp2_short};
use crate::element::bf16;
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Lanes of a query at most.
pub(super) const FEW: usize = 4;

/// Keys of a tile.
const KEYS: usize = 16;

#[repr(C, align(64))]
struct Configuration([u8; 64]);

/// Tiles 0 to 2: 16 rows of four lanes (scores, and pairs of dimensions of the queries); 3 and 4: 16 rows of 64 bytes
/// (keys, pairs of values); 5 to 7: four lanes of 64 bytes (probabilities, sums of values).
const CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = if tile < 3 { 4 * FEW as u8 } else { 64 };
        bytes[48 + tile] = if tile < 5 { 16 } else { FEW as u8 };
        tile += 1;
    }
    Configuration(bytes)
};

/// The tiles of this thread, configured while the value lives.
struct Tiles(PhantomData<*const u8>);

impl Tiles {
    fn new() -> Self {
        assert!(super::amx::available::<bf16>(crate::isa::MatmulPath::Amx), "this machine has no AMX");
        // SAFETY: the machine has AMX and the process may use it; the configuration is 64 valid bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, readonly)) }
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `new` ran on this thread, so AMX is there.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// Keys and values of a block where they lie.
#[derive(Clone, Copy)]
struct Block {
    /// First key; rows are `head_dim` apart.
    keys: *const bf16,
    /// First pair of values; pairs are `2 * head_dim` apart.
    values: *const bf16,
    count: usize,
}

/// See the file's header. Queries are numbered; each has up to [`FEW`] lanes.
pub(super) struct FewUnit<'s> {
    tiles: Tiles,
    head_dim: usize,
    block: Block,
    /// Queries as B, `[query][step][16 pairs of dimensions][FEW]` pairs.
    q: &'s mut [bf16],
    /// Sums of values, `[query][FEW][head_dim]`.
    sums: &'s mut [f32],
    /// Largest scores and sums of probabilities, `[query][2][FEW]`.
    states: &'s mut [f32],
    /// Keys that cannot be read in place because the store ends before the tile does.
    keys: &'s mut [bf16],
    /// The last values of a segment, filled up to a whole step with zeros.
    tail: &'s mut [bf16],
    scores: &'s mut [f32],
    p: &'s mut [bf16],
}

impl<'s> FewUnit<'s> {
    /// f32 of scratch.
    pub(super) fn scratch_len(queries: usize, head_dim: usize) -> usize {
        queries * (FEW * head_dim / 2 + FEW * head_dim + 2 * FEW)
            + (BLOCK + DEPTH) * head_dim / 2
            + BLOCK * FEW
            + KEY_STEPS * FEW * DEPTH / 2
            // Pieces start on lines.
            + 7 * 16
    }

    /// For `queries` queries; `head_dim` is a multiple of 32.
    pub(super) fn new(queries: usize, head_dim: usize, scratch: &'s mut [f32]) -> Self {
        assert!(head_dim.is_multiple_of(DEPTH), "heads are whole steps");
        let mut pieces = Pieces(scratch);
        let q = pieces.halves(queries * FEW * head_dim);
        q.fill(bf16::ZERO);
        let sums = pieces.floats(queries * FEW * head_dim);
        sums.fill(0.0);
        let states = pieces.floats(queries * 2 * FEW);
        for state in states.chunks_exact_mut(2 * FEW) {
            state[..FEW].fill(f32::NEG_INFINITY);
            state[FEW..].fill(0.0);
        }
        Self {
            tiles: Tiles::new(),
            head_dim,
            block: Block { keys: std::ptr::null(), values: std::ptr::null(), count: 0 },
            q,
            sums,
            states,
            keys: pieces.halves(BLOCK * head_dim),
            tail: pieces.halves(DEPTH * head_dim),
            scores: pieces.floats(BLOCK * FEW),
            p: pieces.halves(KEY_STEPS * FEW * DEPTH),
        }
    }

    /// Takes one lane of a query.
    pub(super) fn load_query(&mut self, query: usize, lane: usize, q: &[bf16]) {
        let words: &mut [u32] =
            bytemuck::cast_slice_mut(&mut self.q[query * FEW * self.head_dim..][..FEW * self.head_dim]);
        for (pair, two) in q.as_chunks::<2>().0.iter().enumerate() {
            words[pair * FEW + lane] = u32::from(two[0].to_bits()) | u32::from(two[1].to_bits()) << 16;
        }
    }

    /// Continues a lane of a query from what others made of its first blocks.
    pub(super) fn take_over(
        &mut self,
        query: usize,
        lane: usize,
        softmax: &Softmax,
        of: usize,
        sums: impl Fn(usize) -> f32,
    ) {
        let state = &mut self.states[query * 2 * FEW..][..2 * FEW];
        (state[lane], state[FEW + lane]) = (softmax.max[of], softmax.sum[of]);
        let own = &mut self.sums[(query * FEW + lane) * self.head_dim..][..self.head_dim];
        for (dim, own) in own.iter_mut().enumerate() {
            *own = sums(dim);
        }
    }

    /// Takes `count` keys, and values in pairs; the slices begin at the first one's. They live and stay as they are
    /// until the next call.
    pub(super) fn load_block(&mut self, k: &[bf16], v: &[bf16], count: usize) {
        let d = self.head_dim;
        assert!(v.len() >= count.next_multiple_of(2) * d, "pairs of values are complete");
        // Whole tiles are read; what stands in rows beyond `count` makes scores that nobody looks at.
        let keys = if k.len() >= count.next_multiple_of(KEYS) * d {
            k.as_ptr()
        } else {
            self.keys[..count * d].copy_from_slice(&k[..count * d]);
            self.keys.as_ptr()
        };
        let (whole, rest) = (count / DEPTH * DEPTH, count % DEPTH);
        if rest > 0 {
            // What stands beyond `count` may be anything, and zero times anything is not zero.
            let from: &[u32] = bytemuck::cast_slice(&v[whole * d..][..rest.next_multiple_of(2) * d]);
            let to: &mut [u32] = bytemuck::cast_slice_mut(self.tail);
            let pairs = rest / 2 * d;
            to[..pairs].copy_from_slice(&from[..pairs]);
            to[pairs..].fill(0);
            if rest % 2 == 1 {
                for (to, from) in to[pairs..].iter_mut().zip(&from[pairs..]) {
                    *to = from & 0xffff;
                }
            }
        }
        self.block = Block { keys, values: v.as_ptr(), count };
    }

    /// Advances the running softmax and the sums of a query by the loaded block, of which it sees every key.
    pub(super) fn step(&mut self, query: usize, scale2: f32) {
        let (d, steps) = (self.head_dim, self.head_dim / DEPTH);
        let Block { keys, values, count } = self.block;
        assert!(0 < count && count <= BLOCK, "a block is loaded");
        let q = self.q[query * FEW * d..][..FEW * d].as_ptr();
        let tiles = count.div_ceil(KEYS);
        for tile in (0..tiles).step_by(2) {
            let other = (tile + 1).min(tiles - 1);
            // SAFETY: `load_block` saw that whole tiles of keys are there, or copied them; scores hold four tiles.
            unsafe {
                let (one, two) = (keys.add(tile * KEYS * d), keys.add(other * KEYS * d));
                score_two(one, two, d * size_of::<bf16>(), q, steps, self.scores.as_mut_ptr().add(tile * KEYS * FEW));
            }
        }
        let state: &mut [f32; 2 * FEW] =
            (&mut self.states[query * 2 * FEW..][..2 * FEW]).try_into().expect("the state of one query");
        let sums = &mut self.sums[query * FEW * d..][..FEW * d];
        let scores = self.scores.as_chunks::<16>().0;
        // SAFETY: `tiles` exist, so the machine has AMX and AVX-512 with bf16.
        unsafe { softmax_step(scores, count, scale2, state, self.p, sums, d) }
        let (whole, rest) = (count / DEPTH, count % DEPTH);
        for dims in (0..d).step_by(2 * KEYS) {
            // SAFETY: the steps of `p` and of the values, in place or in `tail`, are whole; the sums are `[FEW][d]`.
            unsafe {
                let sums = sums.as_mut_ptr().add(dims);
                if whole > 0 {
                    add_two(self.p.as_ptr(), values.add(2 * dims), d * size_of::<u32>(), whole, sums);
                }
                if rest > 0 {
                    let p = self.p.as_ptr().add(whole * FEW * DEPTH);
                    add_two(p, self.tail.as_ptr().add(2 * dims), d * size_of::<u32>(), 1, sums);
                }
            }
        }
        let _ = &self.tiles;
    }

    /// Writes a lane's answer and returns its log-sum-exp.
    pub(super) fn finish(&self, query: usize, lane: usize, out: &mut [bf16]) -> f32 {
        let state = &self.states[query * 2 * FEW..][..2 * FEW];
        let softmax = Softmax { max: [state[lane]; super::LANES], sum: [state[FEW + lane]; super::LANES] };
        let (factor, lse) = softmax.finish(0);
        let sums = &self.sums[(query * FEW + lane) * self.head_dim..][..self.head_dim];
        // SAFETY: `tiles` exist, so the machine has AMX and AVX-512 with bf16.
        unsafe { round_row(sums, factor, out) }
        lse
    }
}

/// Scores of two tiles of keys against `steps` steps of a query.
///
/// # Safety
/// [`Tiles`] are configured; at `one` and `two` are 16 rows of `steps` times 32 values, `line` bytes apart, at `q` the
/// query as B, at `c` room for two tiles.
unsafe fn score_two(one: *const bf16, two: *const bf16, line: usize, q: *const bf16, steps: usize, c: *mut f32) {
    // SAFETY: loads and stores stay within the operands that the caller vouches for.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm2, [{q} + {few}]",
            "tileloadd tmm3, [{one} + {line}]",
            "tdpbf16ps tmm0, tmm3, tmm2",
            "tileloadd tmm4, [{two} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm2",
            "add {q}, 256",
            "add {one}, 64",
            "add {two}, 64",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c} + {few}], tmm0",
            "tilestored [{c} + {few} + 256], tmm1",
            one = inout(reg) one => _,
            two = inout(reg) two => _,
            q = inout(reg) q => _,
            steps = inout(reg) steps => _,
            line = in(reg) line,
            few = in(reg) 4 * FEW,
            c = in(reg) c,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        )
    }
}

/// Adds probabilities times values to two times 16 dimensions of the sums.
///
/// # Safety
/// [`Tiles`] are configured; at `p` are `steps` tiles `[FEW][32]`, at `v` as many times 16 rows of pairs, `line` bytes
/// apart, at `sums` FEW rows of 32 sums, `line` bytes apart too.
unsafe fn add_two(p: *const bf16, v: *const bf16, line: usize, steps: usize, sums: *mut f32) {
    // SAFETY: loads and stores stay within the operands that the caller vouches for.
    unsafe {
        asm!(
            "tileloadd tmm6, [{sums} + {line}]",
            "tileloadd tmm7, [{sums} + {line} + 64]",
            "2:",
            "tileloadd tmm5, [{p} + {row}]",
            "tileloadd tmm3, [{v} + {line}]",
            "tdpbf16ps tmm6, tmm5, tmm3",
            "tileloadd tmm4, [{v} + {line} + 64]",
            "tdpbf16ps tmm7, tmm5, tmm4",
            "add {p}, 256",
            "add {v}, {step}",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm6",
            "tilestored [{sums} + {line} + 64], tmm7",
            p = inout(reg) p => _,
            v = inout(reg) v => _,
            steps = inout(reg) steps => _,
            line = in(reg) line,
            row = in(reg) 64usize,
            step = in(reg) 16 * line,
            sums = in(reg) sums,
            out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }
}

/// Where a register of 8 keys by four lanes keeps the keys of two lanes, of two such registers.
const fn gather_order(first_lane: u16) -> [u16; 32] {
    let mut order = [0; 32];
    let mut word = 0;
    while word < 32 {
        let (lane, key) = (first_lane + word as u16 / 16, word as u16 % 16);
        order[word] = key / 8 * 32 + key % 8 * 4 + lane;
        word += 1;
    }
    order
}

const GATHER: [[u16; 32]; 2] = [gather_order(0), gather_order(2)];

/// [`softmax_step`](super::amx::softmax_step) for four keys by four lanes a register; probabilities go to
/// `[step][FEW][32 keys]`.
///
/// # Safety
/// AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn softmax_step(
    scores: &[[f32; 16]],
    count: usize,
    scale2: f32,
    state: &mut [f32; 2 * FEW],
    p: &mut [bf16],
    sums: &mut [f32],
    head_dim: usize,
) {
    type V = Avx512;
    let (least, zero) = (V::splat(f32::NEG_INFINITY), V::splat(0.0));
    let registers = count.div_ceil(FEW);
    // Keys beyond `count` in the last register.
    let last: u16 = if count.is_multiple_of(FEW) { !0 } else { (1 << (count % FEW * FEW)) - 1 };
    let mut top = least;
    for s in &scores[..registers - 1] {
        top = V::load(s).max(top);
    }
    let s = Avx512(_mm512_mask_mov_ps(least.0, last, V::load(&scores[registers - 1]).0));
    top = s.max(top);
    top = top.max(Avx512(_mm512_shuffle_f32x4::<0b01_00_11_10>(top.0, top.0)));
    top = top.max(Avx512(_mm512_shuffle_f32x4::<0b10_11_00_01>(top.0, top.0)));
    // SAFETY: the state holds two times four values.
    let (old, old_sum) = unsafe {
        let state = state.as_mut_ptr();
        (
            Avx512(_mm512_broadcast_f32x4(_mm_loadu_ps(state))),
            Avx512(_mm512_broadcast_f32x4(_mm_loadu_ps(state.add(FEW)))),
        )
    };
    let scale2 = V::splat(scale2);
    let new = top.mul(scale2).max(old);
    // See `lanes::softmax_step` for the two special cases.
    let factor = old.select_less(new, exp2(old.sub(new)), V::splat(1.0));
    let minus = zero.sub(least.select_less(new, new, zero));
    let mut sum = zero;
    // SAFETY: arrays of one register.
    let order = GATHER.map(|order| unsafe { _mm512_loadu_si512(order.as_ptr().cast()) });
    for (step, p) in p.chunks_exact_mut(FEW * DEPTH).take(count.div_ceil(DEPTH)).enumerate() {
        let mut halves = [_mm512_setzero_si512(); 4];
        for (index, half) in halves.iter_mut().enumerate() {
            let mut both = [zero; 2];
            for (odd, value) in both.iter_mut().enumerate() {
                let register = step * 8 + 2 * index + odd;
                if register < registers {
                    *value = exp2_short(V::load(&scores[register]).mul_add(scale2, minus));
                    if register + 1 == registers {
                        *value = Avx512(_mm512_maskz_mov_ps(last, value.0));
                    }
                    sum = sum.add(*value);
                }
            }
            // SAFETY: both are registers of 32 words.
            *half = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(both[1].0, both[0].0)) };
        }
        for (two, order) in order.into_iter().enumerate() {
            let low = _mm512_permutex2var_epi16(halves[0], order, halves[1]);
            let high = _mm512_permutex2var_epi16(halves[2], order, halves[3]);
            let p = p[two * 2 * DEPTH..][..2 * DEPTH].as_mut_ptr();
            // SAFETY: two rows of 32 values.
            unsafe {
                _mm512_storeu_si512(p.cast(), _mm512_shuffle_i64x2::<0b01_00_01_00>(low, high));
                _mm512_storeu_si512(p.add(DEPTH).cast(), _mm512_shuffle_i64x2::<0b11_10_11_10>(low, high));
            }
        }
    }
    // Keys by their remainder: (0 + 2) + (1 + 3).
    sum = sum.add(Avx512(_mm512_shuffle_f32x4::<0b01_00_11_10>(sum.0, sum.0)));
    sum = sum.add(Avx512(_mm512_shuffle_f32x4::<0b10_11_00_01>(sum.0, sum.0)));
    let new_sum = old_sum.mul_add(factor, sum);
    // SAFETY: the state holds two times four values.
    unsafe {
        let state = state.as_mut_ptr();
        _mm_storeu_ps(state, _mm512_castps512_ps128(new.0));
        _mm_storeu_ps(state.add(FEW), _mm512_castps512_ps128(new_sum.0));
    }
    if _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(factor.0, V::splat(1.0).0) != 0 {
        let mut factors = [0.0; 16];
        factor.store(&mut factors);
        for (row, factor) in sums.chunks_exact_mut(head_dim).zip(factors) {
            for sums in row.as_chunks_mut::<16>().0 {
                V::load(sums).mul(V::splat(factor)).store(sums);
            }
        }
    }
}

/// Sums times a factor, rounded.
///
/// # Safety
/// AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn round_row(sums: &[f32], factor: f32, out: &mut [bf16]) {
    for (sums, out) in sums.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0) {
        // SAFETY: `out` holds 16 bf16.
        unsafe {
            let narrow: __m256i =
                std::mem::transmute(_mm512_cvtneps_pbh(Avx512::load(sums).mul(Avx512::splat(factor)).0));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), narrow);
        }
    }
}
