// Rows that move: gathering, weighted sums of rows (scattering, tables, interpolation), image features into the token
// stream, rotation of heads, folding of patches, keys and values into their store.
// Sums run in the order of the lists that the host made. Cost: one pass over what moves.

// out[i] = x[rows[i]]
KERNEL gather_rows(const float* x, const u32* rows, u64 count, u32 d, float* out) {
    u64 at = flat_index();
    if (at < count * d) out[at] = x[(u64)rows[at / d] * d + at % d];
}

// out[target[i]] (+)= sum over j in starts[i]..starts[i + 1] of weight[j] * x[index[j]]; no weights count as ones, no
// targets as i. Block (row, 128 columns).
KERNEL sum_rows(const float* x, const u32* starts, const u32* index, const float* weight, const u32* target, u32 d,
                u32 add, float* out) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= d) return;
    u32 row = blockIdx.x;
    u64 to = (u64)(target ? target[row] : row) * d + column;
    float sum = add ? out[to] : 0.0f;
    for (u32 j = starts[row]; j < starts[row + 1]; j++) {
        float value = x[(u64)index[j] * d + column];
        sum += weight ? weight[j] * value : value;
    }
    out[to] = sum;
}

// x[rows[i]] = features[i]
KERNEL place_rows(const float* features, const u32* rows, u64 count, u32 d, float* x) {
    u64 at = flat_index();
    if (at < count * d) x[(u64)rows[at / d] * d + at % d] = features[at];
}

// features[i] = x[rows[i]], which becomes zero
KERNEL take_rows(float* x, const u32* rows, u64 count, u32 d, float* features) {
    u64 at = flat_index();
    if (at >= count * d) return;
    u64 from = (u64)rows[at / d] * d + at % d;
    features[at] = x[from];
    x[from] = 0.0f;
}

// Rotates pairs (i, i + half) of the first `heads` heads of every row, in place.
template <typename E>
DEVICE void rope(E* x, u64 rows, u32 width, u32 heads, u32 head_dim, const float* cosine, const float* sine, u32 half,
                 float sign) {
    u64 at = flat_index();
    if (at >= rows * heads * half) return;
    u32 pair = (u32)(at % half), head = (u32)(at / half % heads);
    u64 row = at / half / heads;
    float c = cosine[row * half + pair], s = sine[row * half + pair] * sign;
    u64 first = row * width + (u64)head * head_dim + pair;
    float a = load(x, first), b = load(x, first + half);
    store(x, first, a * c - b * s);
    store(x, first + half, b * c + a * s);
}

KERNEL rope_f32(float* x, u64 rows, u32 width, u32 heads, u32 head_dim, const float* cosine, const float* sine, u32 half,
                float sign) {
    rope(x, rows, width, heads, head_dim, cosine, sine, half, sign);
}
KERNEL rope_bf16(bf16* x, u64 rows, u32 width, u32 heads, u32 head_dim, const float* cosine, const float* sine, u32 half,
                 float sign) {
    rope(x, rows, width, heads, head_dim, cosine, sine, half, sign);
}

// Each factor x factor square of patches becomes one wide row; back the same way. One thread a value of the wide rows.
template <typename E>
DEVICE void pixel_shuffle(const E* from, u64 count, u32 h, u32 w, u32 d, u32 factor, u32 back, E* to) {
    u64 at = flat_index();
    if (at >= count) return;
    u32 run = factor * d, wide = run * factor, w_out = w / factor, h_out = h / factor;
    u64 row = at / wide;
    u32 place = (u32)(at % wide), line = place / run, inside = place % run;
    u64 tile = row / (h_out * w_out);
    u32 y = (u32)(row / w_out % h_out), x = (u32)(row % w_out);
    u64 narrow_at = ((tile * h + y * factor + line) * w + x * factor) * d + inside;
    if (back) {
        to[narrow_at] = from[at];
    } else {
        to[at] = from[narrow_at];
    }
}

KERNEL pixel_shuffle_f32(const float* from, u64 count, u32 h, u32 w, u32 d, u32 factor, u32 back, float* to) {
    pixel_shuffle(from, count, h, w, d, factor, back, to);
}
KERNEL pixel_shuffle_bf16(const bf16* from, u64 count, u32 h, u32 w, u32 d, u32 factor, u32 back, bf16* to) {
    pixel_shuffle(from, count, h, w, d, factor, back, to);
}

// Keys and values of fused rows go to rows of the store.
template <typename E>
DEVICE void store_rows(const E* qkv, u64 rows, u32 query_width, u32 key_width, const u32* places, E* keys, E* values) {
    u64 at = flat_index();
    if (at >= rows * key_width) return;
    u64 row = at / key_width, column = at % key_width;
    u64 from = row * (query_width + 2 * key_width) + query_width + column;
    u64 to = (u64)places[row] * key_width + column;
    keys[to] = qkv[from];
    values[to] = qkv[from + key_width];
}

KERNEL store_rows_f32(const float* qkv, u64 rows, u32 query_width, u32 key_width, const u32* places, float* keys,
                      float* values) {
    store_rows(qkv, rows, query_width, key_width, places, keys, values);
}
KERNEL store_rows_bf16(const bf16* qkv, u64 rows, u32 query_width, u32 key_width, const u32* places, bf16* keys,
                       bf16* values) {
    store_rows(qkv, rows, query_width, key_width, places, keys, values);
}
