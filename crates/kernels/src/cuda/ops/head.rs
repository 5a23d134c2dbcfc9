//! The language-model head: log-probability and entropy of given tokens, their gradients, and drawing tokens.
//! The vocabulary is walked in chunks of a fixed size; no `tokens x vocabulary` matrix exists but while sampling, where
//! rows are few.
//! Cost: one product forward, three backward.

// R trained positions, D width, V vocabulary

use super::elementwise::convert;
use super::{is_f32, typed, u32_of};
use crate::cuda::buffer::{DeviceBuffer, View};
use crate::cuda::device::Device;
use crate::cuda::engine::Number;
use crate::cuda::sources::Module;
use crate::rng::Stream;

const MODULE: Module = Module::Head;
/// Tokens of the vocabulary whose logits exist at once. Part of the definition of the result's bits.
const CHUNK: usize = 8192;
/// Threads of a block that reduces a row.
const ROW: u32 = 256;

/// Columns of the trained tokens, on the device.
pub struct Columns {
    targets: DeviceBuffer,
    inv_temperature: DeviceBuffer,
    banned: DeviceBuffer,
    /// Log-probability, entropy and log-sum-exp, `R` each; filled by [`head_logprob`].
    results: [DeviceBuffer; 3],
}

impl Columns {
    /// Sends the columns of `R` trained tokens; `banned` is sorted.
    pub fn new(device: &Device, targets: &[u32], inv_temperature: &[f32], banned: &[u32]) -> Columns {
        assert_eq!(targets.len(), inv_temperature.len(), "every column has one entry per row");
        assert!(banned.is_sorted(), "banned tokens are sorted");
        Columns {
            targets: device.upload(targets),
            inv_temperature: device.upload(inv_temperature),
            banned: device.upload(banned),
            results: [(); 3].map(|()| device.take(Number::F32, targets.len())),
        }
    }

    /// Log-probability and entropy, on the host. Waits for the device.
    pub fn results(&self) -> (Vec<f32>, Vec<f32>) {
        (self.results[0].download(), self.results[1].download())
    }
}

/// Chunks of the vocabulary.
fn chunks(v: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..v).step_by(CHUNK).map(move |first| first..(first + CHUNK).min(v))
}

/// `logits = x·W[tokens]ᵀ`, banned ones at negative infinity.
fn logits_of(x: View, weight: View, tokens: std::ops::Range<usize>, banned: View, d: usize, logits: View) {
    let (rows, width) = (x.len() / d, tokens.len());
    let first = tokens.start;
    let part = weight.part(tokens.start * d..tokens.end * d);
    x.device().multiply([rows, width, d], (x, false), (part, true), None, None, logits);
    if !banned.is_empty() {
        let arguments = [logits.argument(), u32_of(width), u32_of(first), banned.argument(), u32_of(banned.len())];
        x.device().launch(MODULE, "ban", [rows, banned.len().div_ceil(128)], 128, 0, &arguments);
    }
}

/// Log-probability and entropy of the targets at hidden states `x` `[R, D]`, with `weight` `[V, D]` of the type of `x`.
pub fn head_logprob(x: View, weight: View, columns: &Columns) {
    let (device, rows) = (x.device(), columns.targets.len());
    if rows == 0 {
        return;
    }
    let d = x.len() / rows;
    let v = weight.len() / d;
    let logits = device.take(Number::F32, rows * CHUNK.min(v));
    let state = device.take(Number::F32, rows * 4);
    for tokens in chunks(v) {
        let (first, width) = (tokens.start, tokens.len());
        let block = logits.part(0..rows * width);
        logits_of(x, weight, tokens, columns.banned.all(), d, block);
        let arguments = [
            block.argument(),
            u32_of(width),
            u32_of(first),
            columns.targets.all().argument(),
            columns.inv_temperature.all().argument(),
            state.all().argument(),
        ];
        device.launch(MODULE, "head_chunk", [rows, 1], ROW, 0, &arguments);
    }
    let [logprob, entropy, lse] = columns.results.each_ref().map(|column| column.all().argument());
    let arguments = [state.all().argument(), u32_of(rows), logprob, entropy, lse];
    device.launch(MODULE, "head_finish", [rows.div_ceil(128), 1], 128, 0, &arguments);
}

/// Gradients of [`head_logprob`], which was called with the same columns before: `dx` `[R, D]` is overwritten, `dw`
/// `[V, D]` added to.
pub fn head_logprob_backward(
    x: View,
    weight: View,
    columns: &Columns,
    by_logprob: &[f32],
    by_entropy: &[f32],
    dx: View,
    dw: Option<View>,
) {
    let (device, rows) = (x.device(), columns.targets.len());
    assert!(by_logprob.len() == rows && by_entropy.len() == rows, "every column has one entry per row");
    if rows == 0 {
        return;
    }
    let d = x.len() / rows;
    let v = weight.len() / d;
    let (by_logprob, by_entropy) = (device.upload(by_logprob), device.upload(by_entropy));
    let logits = device.take(Number::F32, rows * CHUNK.min(v));
    let gradients = device.take(x.number(), rows * CHUNK.min(v));
    let sums = device.take(Number::F32, rows * d);
    for tokens in chunks(v) {
        let (first, width) = (tokens.start, tokens.len());
        let (block, by_logits) = (logits.part(0..rows * width), gradients.part(0..rows * width));
        logits_of(x, weight, tokens.clone(), columns.banned.all(), d, block);
        let arguments = [
            block.argument(),
            u32_of(width),
            u32_of(first),
            columns.targets.all().argument(),
            columns.inv_temperature.all().argument(),
            columns.results[2].all().argument(),
            columns.results[1].all().argument(),
            by_logprob.all().argument(),
            by_entropy.all().argument(),
            by_logits.argument(),
        ];
        let grid = [rows, width.div_ceil(256)];
        device.launch(MODULE, &typed("head_gradient", x.number()), grid, 256, 0, &arguments);
        let part = weight.part(tokens.start * d..tokens.end * d);
        let before = (first > 0).then(|| sums.all());
        device.multiply([rows, d, width], (by_logits, false), (part, false), None, before, sums.all());
        if let Some(dw) = dw {
            let dw = dw.part(tokens.start * d..tokens.end * d);
            device.multiply([width, d, rows], (by_logits, true), (x, false), None, Some(dw), dw);
        }
    }
    convert(sums.all(), dx);
}

/// Full logits of the rows of `x` `[rows, D]`, f32 `[rows, V]`, banned tokens at negative infinity.
pub fn head_logits(x: View, weight: View, d: usize, banned: &[u32], logits: View) {
    head_logits_listed(x, weight, d, x.device().upload(banned).all(), logits);
}

/// [`head_logits`] with the list of banned tokens on the device.
pub fn head_logits_listed(x: View, weight: View, d: usize, banned: View, logits: View) {
    is_f32("head_logits", &[logits]);
    assert_eq!(banned.number(), Number::U32, "head_logits: ids are words");
    logits_of(x, weight, 0..weight.len() / d, banned, d, logits);
}

/// How one token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Row of the logits.
    pub row: u32,
    /// The most probable token in the place of a draw.
    pub greedy: bool,
    /// One over the temperature.
    pub inv_temperature: f32,
    /// Random numbers of the answer.
    pub stream: Stream,
    /// Place of the token in the answer.
    pub position: u32,
}

impl Draw {
    /// Words of a draw in the list that the kernel reads.
    pub const WORDS: usize = 9;

    /// As the kernel reads it.
    pub fn words(&self) -> [u32; Self::WORDS] {
        let ([key0, key1], [c0, c1, c2]) = self.stream.parts();
        let scale = self.inv_temperature.to_bits();
        [self.row, self.greedy.into(), key0, key1, c0, c1, c2, self.position, scale]
    }
}

/// A token that was chosen, its log-probability and the entropy of its distribution.
pub type Chosen = (u32, f32, f32);

/// Chooses a token for every draw from logits `[rows, V]`: the tokens that the CPU would draw from the same logits.
/// Waits for the device.
pub fn pick(logits: View, v: usize, draws: &[Draw]) -> Vec<Chosen> {
    assert!(draws.iter().all(|draw| (draw.row as usize + 1) * v <= logits.len()), "pick: a row outside the logits");
    let words: Vec<u32> = draws.iter().flat_map(Draw::words).collect();
    let device = logits.device();
    let chosen = device.take(Number::U32, 3 * draws.len());
    pick_listed(logits, v, device.upload(&words).all(), chosen.all(), 0);
    read_chosen(chosen.all())
}

/// [`pick`] with words of [`Draw`] on the device. `chosen` has a column of ids, one of log-probabilities, one of entropies,
/// the last two as bits; these draws write from row `first` of it on. That draws name rows of `logits` is the caller's
/// promise.
pub fn pick_listed(logits: View, v: usize, draws: View, chosen: View, first: usize) {
    is_f32("pick", &[logits]);
    assert!(draws.number() == Number::U32 && chosen.number() == Number::U32, "pick: lists are words");
    let (count, column) = (draws.len() / Draw::WORDS, chosen.len() / 3);
    assert!(first + count <= column, "pick: draws outside the table of choices");
    let [ids, logprob, entropy] = [0, 1, 2].map(|index| chosen.argument_at(index * column + first));
    let arguments = [logits.argument(), u32_of(v), draws.argument(), ids, logprob, entropy];
    let shared = v.div_ceil(64) * 8;
    logits.device().launch(MODULE, "pick", [count, 1], 256, shared, &arguments);
}

/// What [`pick_listed`] has chosen, on the host. Waits for the device.
pub fn read_chosen(chosen: View) -> Vec<Chosen> {
    let words = chosen.download::<u32>();
    let count = words.len() / 3;
    let number = |at: usize| f32::from_bits(words[at]);
    (0..count).map(|row| (words[row], number(count + row), number(2 * count + row))).collect()
}
