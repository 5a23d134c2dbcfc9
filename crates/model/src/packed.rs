//! The packed bf16 copies of matrices: made when first needed, kept up with the weights by the optimiser's step, forgotten
//! when the weights change otherwise.
//! Knows matrices and their places in the flat buffer; knows no parameters and no numbers.
//! Cost: 2 bytes a weight for each copy that products use.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use foveate_kernels::cpu::adamw::PackedWeight;
use foveate_kernels::cpu::matmul::{Forms, PackedMatrix};

use crate::weights::Linear;

/// The bf16 copies of one matrix, made when first needed after a change.
#[derive(Default)]
pub(crate) struct Packed {
    /// Operand of `x·Wᵀ`.
    pub forward: Copied,
    /// Operand of `dy·W`.
    pub backward: Copied,
}

impl Packed {
    /// The matrix has changed.
    pub fn forget(&mut self) {
        self.forward.forget();
        self.backward.forget();
    }
}

/// One bf16 copy, and the memory of the last one while it is out of date: fresh memory costs as much as packing does.
#[derive(Default)]
pub(crate) struct Copied {
    current: OnceLock<PackedMatrix>,
    old: Mutex<Option<PackedMatrix>>,
}

impl Copied {
    /// The copy; `pack` makes it if there is none.
    pub fn get(&self, k: usize, n: usize, pack: impl FnOnce(&mut PackedMatrix)) -> &PackedMatrix {
        self.current.get_or_init(|| {
            let old = self.old.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut packed = old.unwrap_or_else(|| PackedMatrix::new(k, n));
            pack(&mut packed);
            packed
        })
    }

    fn forget(&mut self) {
        if let Some(packed) = self.current.take() {
            *self.old.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(packed);
        }
    }
}

/// The copies in use that an optimiser's step over `range` of the flat buffer is to write anew, at places counted from its
/// start; those that it cannot are forgotten: where a part of the matrix does not move with the rest, and second views
/// of the same weights.
pub(crate) fn following<'a>(
    linears: &[Linear],
    packed: &'a mut [Packed],
    range: &Range<usize>,
) -> Vec<PackedWeight<'a>> {
    let inside = linears.iter().zip(packed).filter(|(linear, _)| linear.overlaps(range));
    let mut inside: Vec<(&Linear, &mut Packed)> = inside.collect();
    // Views are declared after other matrices than those that they lie before.
    inside.sort_by_key(|(linear, _)| linear.offset);
    let mut done = range.start;
    let mut following = Vec::with_capacity(inside.len());
    for (linear, packed) in inside {
        let own = linear.range();
        if own.start < done || own.end > range.end {
            packed.forget();
            continue;
        }
        let (forward, backward) = (packed.forward.current.get_mut(), packed.backward.current.get_mut());
        if forward.is_some() || backward.is_some() {
            done = own.end;
            let forms = Forms::new(linear.n, linear.k, forward, backward);
            following.push(PackedWeight { first: own.start - range.start, forms });
        }
    }
    following
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Fill, Layout, LinearId, Part};

    /// Two stacked weights `[3 + 4, 8]`, a table `[5, 16]` with two views, and a matrix `[2, 16]` with a bias.
    fn layout() -> (Layout, [LinearId; 4]) {
        let mut layout = Layout::default();
        let rows = [("a", 3), ("b", 4)].map(|(name, rows)| (name.to_string(), rows));
        let stacked = layout.linear(&rows, 8, false, Part::Language, 1.0);
        let table = layout.tensor("table", &[5, 16], Part::Language, true, Fill::Constant(0.0));
        let alone = layout.linear(&[("c".to_string(), 2)], 16, true, Part::Language, 1.0);
        let views = [(); 2].map(|()| layout.linear_from(table));
        (layout, [stacked, alone, views[0], views[1]])
    }

    /// Which copies are in use after a step over `range`, forward and backward, and the first weights of the matrices
    /// that follow it; all forward copies were in use before, and those backward copies that `backward` says.
    fn after(range: Range<usize>, backward: [bool; 4]) -> (Vec<[bool; 2]>, Vec<usize>) {
        let (layout, ids) = layout();
        let linears = layout.linears();
        let mut packed: Vec<Packed> = linears.iter().map(|_| Packed::default()).collect();
        for (id, backward) in ids.into_iter().zip(backward) {
            packed[id.0].forward.get(linears[id.0].k, linears[id.0].n, |_| {});
            if backward {
                packed[id.0].backward.get(linears[id.0].n, linears[id.0].k, |_| {});
            }
        }
        let firsts = following(linears, &mut packed, &range).iter().map(|weight| weight.first).collect();
        let in_use = |copied: &Copied| copied.current.get().is_some();
        let used = ids.into_iter().map(|id| [in_use(&packed[id.0].forward), in_use(&packed[id.0].backward)]);
        (used.collect(), firsts)
    }

    #[test]
    fn whole_matrices_follow_a_step_and_others_are_forgotten() {
        const BOTH: [bool; 2] = [true, true];
        const ONE: [bool; 2] = [true, false];
        const NONE: [bool; 2] = [false, false];
        // 56 weights and 8 to the next line, a table of 80, a matrix of 32, its bias.
        let all = 0..178;
        assert_eq!(after(all, [true, true, true, false]), (vec![BOTH, BOTH, BOTH, NONE], vec![0, 64, 144]));
        // Half of a stacked matrix learns; the second half begins within it.
        assert_eq!(after(0..24, [true; 4]), (vec![NONE, BOTH, BOTH, BOTH], vec![]));
        assert_eq!(after(24..178, [false; 4]), (vec![NONE, ONE, ONE, NONE], vec![40, 120]));
        // Places count from the start of the step; what lies beside it stays.
        assert_eq!(after(144..176, [true; 4]), (vec![BOTH; 4], vec![0]));
        assert_eq!(after(176..178, [true; 4]), (vec![BOTH; 4], vec![]));
    }
}
