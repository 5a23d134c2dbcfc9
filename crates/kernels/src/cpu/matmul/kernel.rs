//! The one door to the block kernels: what they are asked, and which of them this machine runs.
//! Cost: a branch per block.

use super::pack::{STEP, TILE, TILE_LEN};
use super::portable;
use super::target::{Outgoing, OutputLines};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx512};
use crate::element::bf16;
use crate::isa::{Machine, MatmulPath};

/// One call of a block kernel: up to 32x32 sums over some steps of k.
#[derive(Debug)]
pub(super) struct Block {
    /// Packed rows at the first step.
    pub(super) a: *const bf16,
    /// Tiles of 16 rows to compute, 1 or 2.
    pub(super) num_tiles: usize,
    /// Packed columns at the first step.
    pub(super) b: *const bf16,
    /// Steps of k, at least 1.
    pub(super) steps: usize,
    /// 16 or 32 rows of 32 sums.
    pub(super) c: *mut f32,
    /// Elements from one row of sums to the next.
    pub(super) c_stride: usize,
    /// Start from zero instead of from the sums.
    pub(super) fresh: bool,
    /// Part of B that is wanted soon: 128 bytes per step are prefetched from here on. Need not be valid.
    pub(super) next: *const bf16,
    /// B comes from memory and is read once: all 2048 bytes per step are prefetched from `next` on.
    pub(super) streamed: bool,
    /// Lines that are written soon, of the output or of the next block's sums: two rows per step are prefetched. Need
    /// not be valid.
    pub(super) output: OutputLines,
}

/// A block kernel, ready on this thread.
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Tiles),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    Portable,
}

impl Kernel {
    /// The kernel of `path`; a path that the machine lacks becomes the portable one.
    pub(super) fn new(path: MatmulPath) -> Self {
        let machine = Machine::get();
        match path {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: detection found AMX and got permission for it.
            MatmulPath::Amx if machine.amx_bf16 => Self::Amx(unsafe { amx::Tiles::new() }),
            #[cfg(target_arch = "x86_64")]
            MatmulPath::Avx512Bf16 if machine.avx512_bf16 => Self::Avx512Bf16,
            _ => {
                let _ = machine;
                Self::Portable
            }
        }
    }

    /// Whether a block of so many tiles and steps can write the one before past the caches on the way.
    pub(super) fn takes_along(&self, num_tiles: usize, steps: usize) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => num_tiles == 2 && steps >= amx::OUTGOING_STEPS && Machine::get().avx512_bf16,
            _ => {
                let _ = (num_tiles, steps);
                false
            }
        }
    }

    /// Computes a block and writes the one before, whose sums are others; [`Kernel::takes_along`] said that it can.
    ///
    /// # Safety
    /// As for [`Kernel::multiply`]; what goes out is as large as it says, and nobody else writes there.
    pub(super) unsafe fn multiply_and_write(&self, block: &Block, outgoing: &Outgoing) {
        // SAFETY: as promised by the caller; `takes_along` looked at the machine.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Amx(tiles) => tiles.multiply_and_write(block, outgoing),
                _ => unreachable!("no other kernel takes blocks along: {block:?}, {outgoing:?}"),
            }
        }
    }

    /// # Safety
    /// The pointers of `block` are valid for its sizes, and nobody else writes to its sums.
    pub(super) unsafe fn multiply(&self, block: &Block) {
        // SAFETY: as promised by the caller; `new` checked the machine.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Amx(tiles) => tiles.multiply(block),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Bf16 => avx512::multiply(block),
                Self::Portable => portable::multiply(block),
            }
        }
    }
}

/// A loop without memory, for measuring what a path can do at best.
#[derive(Clone, Copy)]
pub(crate) struct PeakRate {
    /// Floating-point operations of one run.
    pub(crate) flops: usize,
    /// Runs it on this thread.
    pub(crate) run: fn(),
}

/// The peak loop of a path, if the machine has a unit for it.
pub(crate) fn peak_rate(path: MatmulPath) -> Option<PeakRate> {
    match Kernel::new(path) {
        #[cfg(target_arch = "x86_64")]
        Kernel::Amx(_) => Some(PeakRate {
            flops: amx::PEAK_STEPS * 4 * 2 * TILE * TILE_LEN,
            run: || {
                if let Kernel::Amx(tiles) = Kernel::new(MatmulPath::Amx) {
                    amx::peak(&tiles);
                }
            },
        }),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Bf16 => Some(PeakRate {
            flops: avx512::PEAK_ROUNDS * 16 * 2 * STEP,
            run: || {
                // SAFETY: this path was available a moment ago.
                std::hint::black_box(unsafe { avx512::peak() });
            },
        }),
        Kernel::Portable => None,
    }
}
