//! Which instructions this machine offers, which of them the kernels use, and the macro that compiles one body for
//! several instruction sets.
//! Detected once per process. `FOVEATE_ISA` and `FOVEATE_MATMUL` force a choice; a forced choice that the machine does
//! not have is an error of [`check`], and the kernels fall back to the best that is there.
//! Cost: one atomic load per kernel call.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// The vector instructions that element-wise kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VectorIsa {
    /// AVX-512 F, BW, VL and DQ.
    Avx512 = 1,
    /// AVX2 with FMA.
    Avx2 = 2,
    /// Arm NEON, the baseline of aarch64.
    Neon = 3,
    /// What the compiler assumes anyway.
    Portable = 4,
}

/// The instructions that bf16 matrix products use. Bits differ between paths, never within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MatmulPath {
    /// `tdpbf16ps` on 16x16 tiles.
    Amx = 1,
    /// `vdpbf16ps` on 512-bit registers.
    Avx512Bf16 = 2,
    /// Widening to f32.
    Portable = 3,
}

impl VectorIsa {
    /// Name as `FOVEATE_ISA` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }
}

impl MatmulPath {
    /// Name as `FOVEATE_MATMUL` takes it and as checkpoints record it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Portable => "portable",
        }
    }

    /// The paths that this machine can run, best first.
    pub fn available() -> Vec<MatmulPath> {
        let machine = Machine::get();
        let mut paths = Vec::new();
        if machine.amx_bf16 {
            paths.push(Self::Amx);
        }
        if machine.avx512_bf16 {
            paths.push(Self::Avx512Bf16);
        }
        paths.push(Self::Portable);
        paths
    }
}

/// A forced choice that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The value is none of those known.
    #[error("{variable}={value} is not known (hint: use one of {allowed}, or unset the variable)")]
    Unknown {
        /// The environment variable.
        variable: &'static str,
        /// What it was set to.
        value: String,
        /// What it can be set to.
        allowed: &'static str,
    },
    /// The machine lacks the instructions.
    #[error("{variable}={value}: this machine does not offer it (hint: unset the variable; it offers {offered})")]
    Unavailable {
        /// The environment variable.
        variable: &'static str,
        /// What it was set to.
        value: String,
        /// What the machine has.
        offered: String,
    },
}

/// What was found on this machine. Printed by `foveate doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// AVX-512 F, BW, VL and DQ.
    pub avx512: bool,
    /// AVX-512 BF16 on top of those.
    pub avx512_bf16: bool,
    /// AMX tiles with bf16, permitted by the operating system.
    pub amx_bf16: bool,
    /// AMX tiles exist, whether or not the operating system lets us use them.
    pub amx_present: bool,
    /// AVX2 and FMA.
    pub avx2_fma: bool,
    /// NEON.
    pub neon: bool,
}

impl Machine {
    /// Detects on the first call; the AMX permission is asked for then, once for the whole process.
    pub fn get() -> Machine {
        static MACHINE: OnceLock<Machine> = OnceLock::new();
        *MACHINE.get_or_init(detect)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Vec::new();
        for (present, name) in [
            (self.amx_bf16, "amx-bf16"),
            (self.amx_present && !self.amx_bf16, "amx-bf16 (not permitted by the operating system)"),
            (self.avx512_bf16, "avx512-bf16"),
            (self.avx512, "avx512"),
            (self.avx2_fma, "avx2+fma"),
            (self.neon, "neon"),
        ] {
            if present {
                names.push(name);
            }
        }
        if names.is_empty() { f.write_str("no vector extensions") } else { f.write_str(&names.join(", ")) }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Machine {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma");
    let amx_present = amx_present();
    Machine {
        avx512,
        avx512_bf16: avx512 && is_x86_feature_detected!("avx512bf16"),
        amx_present,
        amx_bf16: amx_present && request_amx(),
        avx2_fma: is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        neon: false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Machine {
    Machine {
        avx512: false,
        avx512_bf16: false,
        amx_present: false,
        amx_bf16: false,
        avx2_fma: false,
        neon: cfg!(target_arch = "aarch64"),
    }
}

/// CPUID leaf 7 names the tiles (EDX bit 24) and their bf16 product (bit 22); XCR0 bits 17 and 18 say that the
/// operating system saves the tile state.
#[cfg(target_arch = "x86_64")]
fn amx_present() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let edx = __cpuid_count(7, 0).edx;
    if edx & (1 << 22) == 0 || edx & (1 << 24) == 0 {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: the caller saw OSXSAVE, so XCR0 can be read.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: OSXSAVE implies the xsave instructions.
    let saved = unsafe { xcr0() };
    saved & (0b11 << 17) == 0b11 << 17
}

/// Linux gives tiles to a process that asks, before its first tile instruction; the grant covers running threads.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request_amx() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request takes no pointers and changes nothing but the permission.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn request_amx() -> bool {
    false
}

const ISA_VARIABLE: &str = "FOVEATE_ISA";
const MATMUL_VARIABLE: &str = "FOVEATE_MATMUL";

fn best_isa(machine: &Machine) -> VectorIsa {
    if machine.avx512 {
        VectorIsa::Avx512
    } else if machine.avx2_fma {
        VectorIsa::Avx2
    } else if machine.neon {
        VectorIsa::Neon
    } else {
        VectorIsa::Portable
    }
}

fn best_path(machine: &Machine, isa: VectorIsa) -> MatmulPath {
    // A machine that is told to behave as one with AVX2 behaves so in its products as well.
    if isa != VectorIsa::Avx512 {
        MatmulPath::Portable
    } else if machine.amx_bf16 {
        MatmulPath::Amx
    } else if machine.avx512_bf16 {
        MatmulPath::Avx512Bf16
    } else {
        MatmulPath::Portable
    }
}

fn forced_isa(machine: &Machine, value: &str) -> Result<VectorIsa, IsaError> {
    let (isa, present) = match value {
        "avx512" => (VectorIsa::Avx512, machine.avx512),
        "avx2" => (VectorIsa::Avx2, machine.avx2_fma),
        "neon" => (VectorIsa::Neon, machine.neon),
        "portable" => (VectorIsa::Portable, true),
        _ => {
            return Err(IsaError::Unknown {
                variable: ISA_VARIABLE,
                value: value.to_owned(),
                allowed: "avx512, avx2, neon, portable",
            });
        }
    };
    if present { Ok(isa) } else { Err(unavailable(machine, ISA_VARIABLE, value)) }
}

fn forced_path(machine: &Machine, value: &str) -> Result<MatmulPath, IsaError> {
    let (path, present) = match value {
        "amx" => (MatmulPath::Amx, machine.amx_bf16),
        "avx512bf16" => (MatmulPath::Avx512Bf16, machine.avx512_bf16),
        "portable" => (MatmulPath::Portable, true),
        _ => {
            return Err(IsaError::Unknown {
                variable: MATMUL_VARIABLE,
                value: value.to_owned(),
                allowed: "amx, avx512bf16, portable",
            });
        }
    };
    if present { Ok(path) } else { Err(unavailable(machine, MATMUL_VARIABLE, value)) }
}

fn unavailable(machine: &Machine, variable: &'static str, value: &str) -> IsaError {
    IsaError::Unavailable { variable, value: value.to_owned(), offered: machine.to_string() }
}

/// The resolved choice, and the error that a forced value earned.
struct Choice {
    isa: VectorIsa,
    path: MatmulPath,
    error: Option<IsaError>,
}

fn resolve(machine: &Machine, isa_value: Option<&str>, path_value: Option<&str>) -> Choice {
    let mut error = None;
    let mut isa = best_isa(machine);
    match isa_value.map(|value| forced_isa(machine, value)) {
        Some(Ok(forced)) => isa = forced,
        Some(Err(refused)) => error = Some(refused),
        None => {}
    }
    let mut path = best_path(machine, isa);
    match path_value.map(|value| forced_path(machine, value)) {
        Some(Ok(forced)) => path = forced,
        Some(Err(refused)) => error = error.or(Some(refused)),
        None => {}
    }
    Choice { isa, path, error }
}

fn choice() -> &'static Choice {
    static CHOICE: OnceLock<Choice> = OnceLock::new();
    CHOICE.get_or_init(|| {
        let read = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        resolve(&Machine::get(), read(ISA_VARIABLE).as_deref(), read(MATMUL_VARIABLE).as_deref())
    })
}

/// Says whether the forced choices can be honoured. The program asks once, at its start.
pub fn check() -> Result<(), IsaError> {
    match &choice().error {
        Some(error) => Err(error.clone()),
        None => Ok(()),
    }
}

/// 0 until the first call of [`vector_isa`]; tests may write another value.
static CURRENT_ISA: AtomicU8 = AtomicU8::new(0);

/// The instruction set of the element-wise kernels.
#[inline]
pub fn vector_isa() -> VectorIsa {
    match CURRENT_ISA.load(Ordering::Relaxed) {
        1 => VectorIsa::Avx512,
        2 => VectorIsa::Avx2,
        3 => VectorIsa::Neon,
        4 => VectorIsa::Portable,
        _ => {
            let isa = choice().isa;
            CURRENT_ISA.store(isa as u8, Ordering::Relaxed);
            isa
        }
    }
}

/// The path that bf16 products take.
pub fn matmul_path() -> MatmulPath {
    choice().path
}

/// Whether bf16 products are faster here than f32 ones; decides what `precision = "auto"` means.
pub fn has_fast_bf16() -> bool {
    matmul_path() != MatmulPath::Portable
}

/// One line for `foveate doctor`: what is there and what is used.
pub fn describe() -> String {
    format!("{}; vectors use {}, bf16 products use {}", Machine::get(), vector_isa().name(), matmul_path().name())
}

/// Runs `body` once for every instruction set of this machine, with the kernels switched to it. Other tests running
/// at the same time see the switch too, which is harmless where bits are equal across instruction sets.
#[cfg(test)]
pub(crate) fn for_each_isa(mut body: impl FnMut(VectorIsa)) {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let machine = Machine::get();
    let before = vector_isa();
    for (present, isa) in [
        (machine.avx512, VectorIsa::Avx512),
        (machine.avx2_fma, VectorIsa::Avx2),
        (machine.neon, VectorIsa::Neon),
        (true, VectorIsa::Portable),
    ] {
        if present {
            CURRENT_ISA.store(isa as u8, Ordering::Relaxed);
            body(isa);
        }
    }
    CURRENT_ISA.store(before as u8, Ordering::Relaxed);
}

/// Compiles the body of one function for AVX-512, for AVX2 with FMA and for the baseline, and picks at run time.
///
/// The body is plain Rust; loops over fixed-size lane arrays vectorise without intrinsics. Rust never fuses or
/// reorders floating-point operations on its own, so all versions give the same bits. `mul_add` is one instruction
/// in the first two and a library call with the same result in the baseline. Functions called from the body take
/// part when they are `#[inline(always)]`. Parameters are plain `name: type`, generics plain `<E: Bound>`.
///
/// ```ignore
/// multiversion! {
///     /// y = 2 x
///     pub fn double<E: Element>(x: &[E], y: &mut [E]) { .. }
/// }
/// ```
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident $(<$($generic:ident : $bound:path),+ $(,)?>)? (
            $($argument:ident : $kind:ty),* $(,)?
        ) $(-> $result:ty)? $body:block
    ) => {
        $(#[$meta])*
        $visibility fn $name $(<$($generic: $bound),+>)? ($($argument: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body $(<$($generic: $bound),+>)? ($($argument: $kind),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
                fn avx512 $(<$($generic: $bound),+>)? ($($argument: $kind),*) $(-> $result)? {
                    body $(::<$($generic),+>)? ($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($generic: $bound),+>)? ($($argument: $kind),*) $(-> $result)? {
                    body $(::<$($generic),+>)? ($($argument),*)
                }
                match $crate::isa::vector_isa() {
                    $crate::isa::VectorIsa::Avx512 => {
                        // SAFETY: `vector_isa` answers Avx512 only where detection found these features.
                        return unsafe { avx512 $(::<$($generic),+>)? ($($argument),*) };
                    }
                    $crate::isa::VectorIsa::Avx2 => {
                        // SAFETY: `vector_isa` answers Avx2 only where detection found these features.
                        return unsafe { avx2 $(::<$($generic),+>)? ($($argument),*) };
                    }
                    _ => {}
                }
            }
            body $(::<$($generic),+>)? ($($argument),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{Element, bf16};

    const NOTHING: Machine = Machine {
        avx512: false,
        avx512_bf16: false,
        amx_bf16: false,
        amx_present: false,
        avx2_fma: false,
        neon: false,
    };

    #[test]
    fn forced_choices_are_honoured_or_refused_with_a_hint() {
        let machine = Machine { avx512: true, avx2_fma: true, amx_bf16: true, avx512_bf16: true, ..NOTHING };
        let plain = resolve(&machine, None, None);
        assert_eq!((plain.isa, plain.path), (VectorIsa::Avx512, MatmulPath::Amx));
        let forced = resolve(&machine, Some("avx2"), None);
        assert_eq!((forced.isa, forced.path, forced.error), (VectorIsa::Avx2, MatmulPath::Portable, None));
        let forced = resolve(&machine, None, Some("avx512bf16"));
        assert_eq!((forced.isa, forced.path), (VectorIsa::Avx512, MatmulPath::Avx512Bf16));

        let refused = resolve(&NOTHING, Some("avx512"), Some("amx"));
        assert_eq!((refused.isa, refused.path), (VectorIsa::Portable, MatmulPath::Portable));
        let message = refused.error.expect("refused").to_string();
        assert!(message.contains("FOVEATE_ISA=avx512") && message.contains("hint"), "{message}");
        let message = resolve(&NOTHING, None, Some("gpu")).error.expect("unknown").to_string();
        assert!(message.contains("amx, avx512bf16, portable"), "{message}");
    }

    multiversion! {
        fn scaled_sum<E: Element>(x: &[E], scale: f32, y: &mut [f32]) -> f32 {
            let mut total = 0.0f32;
            for (y, x) in y.iter_mut().zip(x) {
                *y = x.to_f32().mul_add(scale, *y) / 3.0;
                total += *y;
            }
            total
        }
    }

    #[test]
    fn versions_agree_bit_for_bit() {
        let x: Vec<bf16> = (0..103).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();
        let mut results = Vec::new();
        for_each_isa(|_| {
            let mut y: Vec<f32> = (0..103).map(|i| (i as f32).sqrt()).collect();
            let total = scaled_sum(&x, 1.7, &mut y);
            y.push(total);
            results.push(y.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        });
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
