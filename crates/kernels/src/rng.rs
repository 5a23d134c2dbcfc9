//! Counter-based random numbers: Philox 4x32-10, keyed by what a draw is for.
//! Any draw can be repeated alone; nothing depends on order, threads or neighbours.
//! Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
//! Cost: ten rounds of two multiplications for four 32-bit words.

/// What a stream of numbers is for. The number is part of the key, so values never change once published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Choosing the next token.
    Sampling = 1,
    /// Order of the training rows.
    Shuffle = 2,
    /// Scenes and questions of the built-in worlds.
    World = 3,
    /// Fresh weights.
    Initialisation = 4,
    /// Resampling for confidence intervals.
    Bootstrap = 5,
    /// Dropout masks.
    Dropout = 6,
    /// Distractors and order of derived questions.
    Derivation = 7,
    /// Anything in tests.
    Test = 8,
    /// Drawing from replay buffers, pools and mixtures.
    Replay = 9,
}

/// A stream of numbers, named by its key. Copy it freely: it has no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Stream {
    /// The stream for (`seed`, `purpose`, `step`, `question`, `answer`).
    pub fn new(seed: u64, purpose: Purpose, step: u32, question: u32, answer: u32) -> Self {
        // The purpose goes into the key by a multiplication with an odd constant, so that keys of neighbouring seeds
        // and purposes do not meet.
        let mixed = seed ^ (purpose as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { key: [mixed as u32, (mixed >> 32) as u32], counter: [step, question, answer] }
    }

    /// Key and counter, for devices that make the same numbers.
    pub fn parts(&self) -> ([u32; 2], [u32; 3]) {
        (self.key, self.counter)
    }

    /// Four random words at `position`.
    pub fn words(&self, position: u32) -> [u32; 4] {
        philox([self.counter[0], self.counter[1], self.counter[2], position], self.key)
    }

    /// Uniform in `[0, 1)`, 24 bits.
    pub fn uniform(&self, position: u32) -> f32 {
        (self.words(position)[0] >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform integer in `0..bound` (`bound > 0`), by multiplication; the bias is below `bound / 2^64`.
    pub fn below(&self, position: u32, bound: u32) -> u32 {
        let words = self.words(position);
        let wide = (u64::from(words[0]) << 32) | u64::from(words[1]);
        ((u128::from(wide) * u128::from(bound)) >> 64) as u32
    }

    /// Standard normal (Box-Muller on the first two words).
    pub fn normal(&self, position: u32) -> f32 {
        let words = self.words(position);
        let radius = (-2.0 * ((f64::from(words[0]) + 1.0) / 4_294_967_296.0).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(words[1]) / 4_294_967_296.0;
        (radius * angle.cos()) as f32
    }
}

/// Philox 4x32 with ten rounds.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xd251_1f53;
        let b = u64::from(c[2]) * 0xcd9e_8d57;
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    // Known answers of the Random123 distribution for philox4x32-10.
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_look_uniform_and_normal() {
        let stream = Stream::new(7, Purpose::Test, 0, 0, 0);
        let count = 20_000;
        let mean: f64 = (0..count).map(|i| f64::from(stream.uniform(i))).sum::<f64>() / f64::from(count);
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        let square: f64 = (0..count).map(|i| f64::from(stream.normal(i)).powi(2)).sum::<f64>() / f64::from(count);
        assert!((square - 1.0).abs() < 0.05, "second moment {square}");
        assert!((0..1000).all(|i| stream.below(i, 7) < 7));
    }
}
