//! The 32x32 block kernel on the AMX unit: 2x2 tiles of 16x16 sums, in `asm!` because the intrinsics are unstable.
//! One step of 32 k costs four tile loads and four `tdpbf16ps`, 64 cycles if the loads keep up.
//! Cost, measured 2026-11-21 on one Sapphire Rapids core that does 3.1 TFLOP/s from registers: 2.2 TFLOP/s with B in
//! the first-level cache and A streaming from the second. `tileloaddt1` for A is what makes that possible: with plain
//! `tileloadd` A drives B out of the first-level cache, and the same loop reaches 1.7.

use super::kernel::Block;
use super::target::{Form, Outgoing};
use std::arch::asm;
use std::arch::x86_64::_mm512_loadu_ps;
use std::marker::PhantomData;

/// The tiles of this thread, configured while the value lives: eight of 16 rows by 64 bytes.
pub(super) struct Tiles {
    /// The configuration belongs to the thread.
    not_send: PhantomData<*const u8>,
}

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
    /// # Safety
    /// The machine has AMX and the process may use it (`Machine::amx_bf16`).
    pub(super) unsafe fn new() -> Self {
        // SAFETY: the caller checked for AMX; the configuration is 64 valid bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, readonly)) }
        Self { not_send: PhantomData }
    }

    /// Computes one block.
    ///
    /// # Safety
    /// The pointers of `block` are valid for its sizes, and nobody else writes to its sums.
    pub(super) unsafe fn multiply(&self, block: &Block) {
        // SAFETY: as promised by the caller; tiles are configured as long as `self` lives.
        unsafe {
            match (block.num_tiles, block.fresh) {
                (2, true) if block.streamed => tall_stream(block),
                (_, true) if block.streamed => short_stream(block),
                (2, true) => tall_fresh(block),
                (2, false) => tall_more(block),
                (_, true) => short_fresh(block),
                (_, false) => short_more(block),
            }
        }
    }

    /// Computes a block of two tiles and at least [`OUTGOING_STEPS`] steps into a buffer, 32 sums a row, and writes the
    /// block before.
    ///
    /// # Safety
    /// As for [`Tiles::multiply`]; the machine has AVX-512 BF16, what goes out is as large as it says, starts on lines,
    /// and nobody else writes there.
    pub(super) unsafe fn multiply_and_write(&self, block: &Block, outgoing: &Outgoing) {
        // SAFETY: as promised by the caller.
        unsafe {
            match (outgoing.form, block.fresh) {
                (Form::Bf16, true) => fresh_write_bf16(block, outgoing, 0),
                (Form::Bf16, false) => more_write_bf16(block, outgoing, 0),
                (Form::F32, true) => fresh_write_f32(block, outgoing, 0),
                (Form::F32, false) => more_write_f32(block, outgoing, 0),
                (Form::F32Onto(base), true) => fresh_write_onto(block, outgoing, base),
                (Form::F32Onto(base), false) => more_write_onto(block, outgoing, base),
            }
        }
    }
}

/// Steps that it takes to write a block past the caches, two rows in each.
pub(super) const OUTGOING_STEPS: usize = 16;

/// Steps of [`peak`].
pub(super) const PEAK_STEPS: usize = 20_000;

/// Products from registers alone: what the unit does at best.
pub(super) fn peak(_tiles: &Tiles) {
    // SAFETY: tiles are configured as long as the argument lives; no memory is touched.
    unsafe {
        asm!(
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {steps}",
            "jnz 2b",
            steps = inout(reg) PEAK_STEPS => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        )
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `new` ran on this thread, so AMX is there. An unconfigured thread switches contexts faster.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// The loop over steps between a start and an end. Each step also asks for two lines of the B that comes next and for
/// two rows of the output: spread out like this the requests hide behind the products, in one burst they would not.
macro_rules! kernel {
    ($name:ident, [$($start:literal),*], [$($step:literal),*], [$($fetch:literal),*], [$($end:literal),*]) => {
        unsafe fn $name(block: &Block) {
            // SAFETY: tile loads and stores stay within the operands that the caller vouches for; prefetches never
            // fault.
            unsafe {
                asm!(
                    $($start,)*
                    "2:",
                    $($step,)*
                    $($fetch,)*
                    "prefetchw [{out}]",
                    "prefetchw [{out} + {second}]",
                    "add {out}, {row}",
                    "prefetchw [{out}]",
                    "prefetchw [{out} + {second}]",
                    "add {out}, {row}",
                    "add {a}, 2048",
                    "add {b}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    $($end,)*
                    a = inout(reg) block.a => _,
                    b = inout(reg) block.b => _,
                    next = inout(reg) block.next => _,
                    out = inout(reg) block.output.first => _,
                    second = in(reg) block.output.second,
                    row = in(reg) block.output.stride,
                    steps = inout(reg) block.steps => _,
                    line = in(reg) 64usize,
                    c = in(reg) block.c,
                    low = in(reg) block.c.wrapping_add(16 * block.c_stride),
                    stride = in(reg) 4 * block.c_stride,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
        }
    };
}

/// A little of the B that comes next, two lines per step: with more, tiles would wait for a place among what is under
/// way.
macro_rules! a_little {
    ($kernel:ident, $name:ident, $($start:literal),*) => {
        $kernel!($name, [
            "prefetcht1 [{next}]",
            "prefetcht1 [{next} + 64]",
            "add {next}, 128"
        ], $($start),*);
    };
}

/// All of the B that comes later, a step's worth per step.
macro_rules! all {
    ($kernel:ident, $name:ident, $($start:literal),*) => {
        $kernel!($name, [
            ".irp offset, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
            "prefetcht1 [{next} + \\offset]",
            "prefetcht1 [{next} + \\offset + 1024]",
            ".endr",
            "add {next}, 2048"
        ], $($start),*);
    };
}

/// Operands of the upper row of tiles, in the words of `asm!`.
macro_rules! load_upper {
    () => {
        "tileloaddt1 tmm4, [{a} + {line}]\ntileloadd tmm6, [{b} + {line}]"
    };
}

/// Operands of the lower row of tiles, and the products of the upper one.
macro_rules! load_lower {
    () => {
        "tileloaddt1 tmm5, [{a} + {line} + 1024]\ntileloadd tmm7, [{b} + {line} + 1024]\n\
         tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7"
    };
}

/// The products of the lower row of tiles, a little of the B that comes next, and on to the next step.
macro_rules! finish_step {
    () => {
        "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7\n\
         prefetcht1 [{next}]\nprefetcht1 [{next} + 64]\n\
         add {next}, 128\nadd {a}, 2048\nadd {b}, 2048"
    };
}

/// A block of two tiles, as `tall` makes it; `row` writes a row of the block before, twice in each of the first steps.
macro_rules! step_and_write {
    ($name:ident, [$($start:literal),*], [$($row:literal),*]) => {
        #[target_feature(enable = "avx512f,avx512bf16")]
        unsafe fn $name(block: &Block, outgoing: &Outgoing, base: isize) {
            // SAFETY: tile loads and stores stay within the operands that the caller vouches for, vector loads and
            // stores within the sums, the base and the output of the block before; prefetches never fault.
            unsafe {
                asm!(
                    $($start,)*
                    "2:",
                    load_upper!(),
                    $($row,)*
                    load_lower!(),
                    $($row,)*
                    finish_step!(),
                    "dec {writing}",
                    "jnz 2b",
                    "test {steps}, {steps}",
                    "jz 4f",
                    "3:",
                    load_upper!(),
                    load_lower!(),
                    finish_step!(),
                    "dec {steps}",
                    "jnz 3b",
                    "4:",
                    "tilestored [{c} + 2*{line}], tmm0",
                    "tilestored [{c} + 2*{line} + 64], tmm1",
                    "tilestored [{c} + 2*{line} + 2048], tmm2",
                    "tilestored [{c} + 2*{line} + 2112], tmm3",
                    "/* {base} {ahead} */",
                    a = inout(reg) block.a => _,
                    b = inout(reg) block.b => _,
                    next = inout(reg) block.next => _,
                    writing = inout(reg) OUTGOING_STEPS => _,
                    steps = inout(reg) block.steps - OUTGOING_STEPS => _,
                    line = in(reg) 64usize,
                    c = in(reg) block.c,
                    sums = inout(reg) outgoing.sums => _,
                    out = inout(reg) outgoing.out => _,
                    row = in(reg) outgoing.stride,
                    base = in(reg) base,
                    // Of the base, not of the output.
                    ahead = in(reg) base + outgoing.ahead,
                    out("zmm16") _, out("zmm17") _,
                    in("zmm18") _mm512_loadu_ps(outgoing.bias.as_ptr()),
                    in("zmm19") _mm512_loadu_ps(outgoing.bias.as_ptr().add(16)),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            }
        }
    };
}

/// With sums from the slices before, those of the next block are asked for.
macro_rules! write {
    ($fresh:ident, $more:ident, $($row:literal),*) => {
        step_and_write!($fresh, ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"], [$($row),*]);
        step_and_write!(
            $more,
            [
                "tileloadd tmm0, [{c} + 2*{line}]",
                "tileloadd tmm1, [{c} + 2*{line} + 64]",
                "tileloadd tmm2, [{c} + 2*{line} + 2048]",
                "tileloadd tmm3, [{c} + 2*{line} + 2112]"
            ],
            [$($row,)* "prefetchw [{sums} + 8064]", "prefetchw [{sums} + 8128]"]
        );
    };
}

write!(
    fresh_write_bf16,
    more_write_bf16,
    "vaddps zmm16, zmm18, [{sums}]",
    "vaddps zmm17, zmm19, [{sums} + 64]",
    "vcvtne2ps2bf16 zmm16, zmm17, zmm16",
    "vmovntps [{out}], zmm16",
    "add {sums}, 128",
    "add {out}, {row}"
);
write!(
    fresh_write_f32,
    more_write_f32,
    "vaddps zmm16, zmm18, [{sums}]",
    "vaddps zmm17, zmm19, [{sums} + 64]",
    "vmovntps [{out}], zmm16",
    "vmovntps [{out} + 64], zmm17",
    "add {sums}, 128",
    "add {out}, {row}"
);
write!(
    fresh_write_onto,
    more_write_onto,
    "vaddps zmm16, zmm18, [{sums}]",
    "vaddps zmm17, zmm19, [{sums} + 64]",
    "vaddps zmm16, zmm16, [{out} + {base}]",
    "vaddps zmm17, zmm17, [{out} + {base} + 64]",
    "prefetcht0 [{out} + {ahead}]",
    "prefetcht0 [{out} + {ahead} + 64]",
    "vmovntps [{out}], zmm16",
    "vmovntps [{out} + 64], zmm17",
    "add {sums}, 128",
    "add {out}, {row}"
);

macro_rules! tall {
    ($name:ident, [$($fetch:literal),*], $($start:literal),*) => {
        kernel!(
            $name,
            [$($start),*],
            [
                "tileloaddt1 tmm4, [{a} + {line}]",
                "tileloadd tmm6, [{b} + {line}]",
                "tileloaddt1 tmm5, [{a} + {line} + 1024]",
                "tileloadd tmm7, [{b} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7"
            ],
            [$($fetch),*],
            [
                "tilestored [{c} + {stride}], tmm0",
                "tilestored [{c} + {stride} + 64], tmm1",
                "tilestored [{low} + {stride}], tmm2",
                "tilestored [{low} + {stride} + 64], tmm3"
            ]
        );
    };
}

macro_rules! short {
    ($name:ident, [$($fetch:literal),*], $($start:literal),*) => {
        kernel!(
            $name,
            [$($start),*],
            [
                "tileloaddt1 tmm4, [{a} + {line}]",
                "tileloadd tmm6, [{b} + {line}]",
                "tileloadd tmm7, [{b} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7"
            ],
            [$($fetch),*],
            ["tilestored [{c} + {stride}], tmm0", "tilestored [{c} + {stride} + 64], tmm1", "/* {low} */"]
        );
    };
}

a_little!(tall, tall_fresh, "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
all!(tall, tall_stream, "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
a_little!(
    tall,
    tall_more,
    "tileloadd tmm0, [{c} + {stride}]",
    "tileloadd tmm1, [{c} + {stride} + 64]",
    "tileloadd tmm2, [{low} + {stride}]",
    "tileloadd tmm3, [{low} + {stride} + 64]"
);
a_little!(short, short_fresh, "tilezero tmm0", "tilezero tmm1");
all!(short, short_stream, "tilezero tmm0", "tilezero tmm1");
a_little!(short, short_more, "tileloadd tmm0, [{c} + {stride}]", "tileloadd tmm1, [{c} + {stride} + 64]");
