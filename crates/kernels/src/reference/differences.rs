//! Gradients without calculus, to hold backward passes against.
//! Cost: two calls of the function per element.

/// Gradient of `f` at `x` by central differences.
pub fn finite_differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const H: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let here = x[i];
            x[i] = here + H;
            let up = f(&x);
            x[i] = here - H;
            let down = f(&x);
            x[i] = here;
            (up - down) / (2.0 * H)
        })
        .collect()
}
