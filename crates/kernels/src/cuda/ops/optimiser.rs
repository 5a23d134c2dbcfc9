//! AdamW and the sum of squares of gradients.
//! Cost: one pass over weights, gradients and moments; the sums bring at most 32 KiB to the host.

use super::{NULL, flat, is_f32, u32_of, u64_of};
use crate::cpu::adamw::Numbers;
use crate::cuda::buffer::View;
use crate::cuda::engine::{Argument, Number};
use crate::cuda::sources::Module;

const MODULE: Module = Module::Optimiser;
/// Values that a block sums at least, and the most blocks that there are.
const CHUNK: usize = 16 * 1024;
const MOST_BLOCKS: usize = 4096;

/// One step for `p` with gradients `g` and moments `m`, `v`: the bits of the CPU's. `mirror` receives the new weights
/// rounded to bf16.
pub fn adamw_step(p: View, g: View, m: View, v: View, numbers: &Numbers, mirror: Option<View>) {
    is_f32("adamw_step", &[p, g, m, v]);
    let count = p.len();
    assert!(g.len() == count && m.len() == count && v.len() == count, "adamw_step: lengths differ");
    if let Some(mirror) = mirror {
        assert!(mirror.len() == count && mirror.number() == Number::Bf16, "adamw_step: the mirror is bf16");
    }
    let mut arguments = vec![p.argument(), g.argument(), m.argument(), v.argument(), u64_of(count)];
    let Numbers { decay, keep1, take1, keep2, take2, step_size, inv_root_correction2, eps, gradient_scale } = *numbers;
    arguments.extend(
        [decay, keep1, take1, keep2, take2, step_size, inv_root_correction2, eps, gradient_scale].map(Argument::F32),
    );
    arguments.push(mirror.map_or(NULL, |mirror| mirror.argument()));
    flat(p.device(), MODULE, "adamw", count, &arguments);
}

/// Sum of squares in f64. Waits for the device.
pub fn sum_of_squares(x: View) -> f64 {
    is_f32("sum_of_squares", &[x]);
    if x.is_empty() {
        return 0.0;
    }
    // By the number of values alone: the order of the sum is the same on every device.
    let chunk = CHUNK.max(x.len().div_ceil(MOST_BLOCKS).next_multiple_of(256));
    let blocks = x.len().div_ceil(chunk);
    let sums = x.device().take(Number::F64, blocks);
    let arguments = [x.argument(), u64_of(x.len()), u32_of(chunk), sums.all().argument()];
    x.device().launch(MODULE, "sum_of_squares", [blocks, 1], 256, 0, &arguments);
    sums.download::<f64>().iter().sum()
}
