// Conversions, sums of tensors, columns of wider rows, biases where a product could not add them, and dropout.
// One thread an element; cost: one pass over memory.

template <typename A, typename B>
DEVICE void convert(const A* a, B* b, u64 count) {
    u64 at = flat_index();
    if (at < count) store(b, at, load(a, at));
}

KERNEL convert_f32_bf16(const float* a, bf16* b, u64 count) { convert(a, b, count); }
KERNEL convert_bf16_f32(const bf16* a, float* b, u64 count) { convert(a, b, count); }

// x += y
template <typename E>
DEVICE void add(E* x, const E* y, u64 count) {
    u64 at = flat_index();
    if (at < count) store(x, at, load(x, at) + load(y, at));
}

KERNEL add_f32(float* x, const float* y, u64 count) { add(x, y, count); }
KERNEL add_bf16(bf16* x, const bf16* y, u64 count) { add(x, y, count); }

// x[:, column..column + n] += scale * y
template <typename E>
DEVICE void add_columns(E* x, u64 rows, u32 width, u32 column, const float* y, u32 n, float scale) {
    u64 at = flat_index();
    if (at >= rows * n) return;
    u64 to = at / n * width + column + at % n;
    store(x, to, load(x, to) + scale * y[at]);
}

KERNEL add_columns_f32(float* x, u64 rows, u32 width, u32 column, const float* y, u32 n, float scale) {
    add_columns(x, rows, width, column, y, n, scale);
}
KERNEL add_columns_bf16(bf16* x, u64 rows, u32 width, u32 column, const float* y, u32 n, float scale) {
    add_columns(x, rows, width, column, y, n, scale);
}

// y = scale * x[:, column..column + n]
template <typename E>
DEVICE void take_columns(const E* x, u64 rows, u32 width, u32 column, E* y, u32 n, float scale) {
    u64 at = flat_index();
    if (at < rows * n) store(y, at, scale * load(x, at / n * width + column + at % n));
}

KERNEL take_columns_f32(const float* x, u64 rows, u32 width, u32 column, float* y, u32 n, float scale) {
    take_columns(x, rows, width, column, y, n, scale);
}
KERNEL take_columns_bf16(const bf16* x, u64 rows, u32 width, u32 column, bf16* y, u32 n, float scale) {
    take_columns(x, rows, width, column, y, n, scale);
}

// x[:, c] += bias[c]
template <typename E>
DEVICE void add_bias(E* x, u64 count, const float* bias, u32 n) {
    u64 at = flat_index();
    if (at < count) store(x, at, load(x, at) + bias[at % n]);
}

KERNEL add_bias_f32(float* x, u64 count, const float* bias, u32 n) { add_bias(x, count, bias, n); }
KERNEL add_bias_bf16(bf16* x, u64 count, const float* bias, u32 n) { add_bias(x, count, bias, n); }

// Inverted dropout, in place: one draw of Philox decides for four neighbours, as in model/src/linear.rs.
template <typename E>
DEVICE void thin(E* x, u64 count, u64 bound, float scale, u32 key0, u32 key1, u32 c0, u32 c1, u32 c2) {
    u64 four = flat_index();
    if (four * 4 >= count) return;
    u32 words[4] = {c0, c1, c2, (u32)four};
    philox(words, key0, key1);
    for (int i = 0; i < 4; i++) {
        u64 at = four * 4 + i;
        if (at < count) store(x, at, (u64)words[i] < bound ? 0.0f : load(x, at) * scale);
    }
}

KERNEL thin_f32(float* x, u64 count, u64 bound, float scale, u32 key0, u32 key1, u32 c0, u32 c1, u32 c2) {
    thin(x, count, bound, scale, key0, key1, c0, c1, c2);
}
KERNEL thin_bf16(bf16* x, u64 count, u64 bound, float scale, u32 key0, u32 key1, u32 c0, u32 c1, u32 c2) {
    thin(x, count, bound, scale, key0, key1, c0, c1, c2);
}
