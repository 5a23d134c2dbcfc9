// Pointwise activations, plain and gated. The numbers of the curves are those of `Curve` in ops/activation.rs.
// Cost: one pass.

#define GELU_TANH 0
#define GELU_ERF 1
#define QUICK_GELU 2
#define SILU 3
#define RELU 4

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The curve and its slope.
DEVICE void curve(u32 kind, float x, float* value, float* slope) {
    if (kind == GELU_TANH) {
        // (1 + tanh(u)) / 2 is sigmoid(2u): no cancellation on the negative side.
        float square = x * x;
        float s = sigmoid(x * (1.5957691f * 0.044715f * square + 1.5957691f));
        *value = x * s;
        *slope = s + x * s * (1.0f - s) * (1.5957691f * 3.0f * 0.044715f * square + 1.5957691f);
    } else if (kind == GELU_ERF) {
        float share = 0.5f * erff(x * 0.70710678f) + 0.5f;
        *value = x * share;
        *slope = share + x * 0.3989423f * expf(-0.5f * x * x);
    } else if (kind == QUICK_GELU) {
        float s = sigmoid(1.702f * x);
        *value = x * s;
        *slope = s + 1.702f * x * s * (1.0f - s);
    } else if (kind == SILU) {
        float s = sigmoid(x);
        *value = x * s;
        *slope = s + x * s * (1.0f - s);
    } else {
        // Selecting by `x < 0` lets NaN pass: a broken run must not look healthy.
        *value = x < 0.0f ? 0.0f : x;
        *slope = x > 0.0f ? 1.0f : 0.0f;
    }
}

// y = act(x)
template <typename E>
DEVICE void activation(u32 kind, const E* x, u64 count, E* y) {
    u64 at = flat_index();
    if (at >= count) return;
    float value, slope;
    curve(kind, load(x, at), &value, &slope);
    store(y, at, value);
}

KERNEL activation_f32(u32 kind, const float* x, u64 count, float* y) { activation(kind, x, count, y); }
KERNEL activation_bf16(u32 kind, const bf16* x, u64 count, bf16* y) { activation(kind, x, count, y); }

// dx = dy * act'(x)
template <typename E>
DEVICE void activation_backward(u32 kind, const E* dy, const E* x, u64 count, E* dx) {
    u64 at = flat_index();
    if (at >= count) return;
    float value, slope;
    curve(kind, load(x, at), &value, &slope);
    store(dx, at, load(dy, at) * slope);
}

KERNEL activation_backward_f32(u32 kind, const float* dy, const float* x, u64 count, float* dx) {
    activation_backward(kind, dy, x, count, dx);
}
KERNEL activation_backward_bf16(u32 kind, const bf16* dy, const bf16* x, u64 count, bf16* dx) {
    activation_backward(kind, dy, x, count, dx);
}

// y = act(gate) * up; rows of gate_up hold the gate first, then up.
template <typename E>
DEVICE void gated(u32 kind, const E* gate_up, u32 f, u64 count, E* y) {
    u64 at = flat_index();
    if (at >= count) return;
    u64 gate = at / f * 2 * f + at % f;
    float value, slope;
    curve(kind, load(gate_up, gate), &value, &slope);
    store(y, at, value * load(gate_up, gate + f));
}

KERNEL gated_f32(u32 kind, const float* gate_up, u32 f, u64 count, float* y) { gated(kind, gate_up, f, count, y); }
KERNEL gated_bf16(u32 kind, const bf16* gate_up, u32 f, u64 count, bf16* y) { gated(kind, gate_up, f, count, y); }

template <typename E>
DEVICE void gated_backward(u32 kind, const E* dy, const E* gate_up, u32 f, u64 count, E* d_gate_up) {
    u64 at = flat_index();
    if (at >= count) return;
    u64 gate = at / f * 2 * f + at % f;
    float value, slope, d = load(dy, at);
    curve(kind, load(gate_up, gate), &value, &slope);
    store(d_gate_up, gate, d * load(gate_up, gate + f) * slope);
    store(d_gate_up, gate + f, d * value);
}

KERNEL gated_backward_f32(u32 kind, const float* dy, const float* gate_up, u32 f, u64 count, float* d_gate_up) {
    gated_backward(kind, dy, gate_up, f, count, d_gate_up);
}
KERNEL gated_backward_bf16(u32 kind, const bf16* dy, const bf16* gate_up, u32 f, u64 count, bf16* d_gate_up) {
    gated_backward(kind, dy, gate_up, f, count, d_gate_up);
}
