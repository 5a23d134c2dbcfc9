//! The two number types that activations come in: `f32`, and `bf16` as the operand of matrix units.
//! Every kernel is generic over them; arithmetic is always done in f32.
//! Cost: conversions vectorise; bf16 rounds to nearest, ties to even.

pub use half::bf16;
use std::any::TypeId;

/// A type that activations are stored in.
pub trait Element: Copy + Send + Sync + Default + bytemuck::Pod + PartialEq + std::fmt::Debug + 'static {
    /// Name as written in checkpoints and messages.
    const NAME: &'static str;
    /// Widens to f32, exactly.
    fn to_f32(self) -> f32;
    /// Rounds to the nearest value of the type, ties to even.
    fn from_f32(value: f32) -> Self;
}

/// The same slice, if its type is `T`.
pub(crate) fn same_type<E: Element, T: Element>(x: &[E]) -> Option<&[T]> {
    (TypeId::of::<E>() == TypeId::of::<T>()).then(|| bytemuck::cast_slice(x))
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        // Branch-free for finite input so that loops vectorise; NaN keeps a set quiet bit.
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }
}
