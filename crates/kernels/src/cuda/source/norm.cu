// RMS norm and layer norm of an f32 stream, RMS norm of single heads, layer scale, and sums over rows.
// One block a row; what parameters receive is summed in two steps of fixed order: 64 rows first, then the parts.
// Cost: one or two passes over the rows.

// Rows whose share in a parameter's gradient is summed first.
#define PART_ROWS 64

// y = x * rstd * w
template <typename E>
DEVICE void rms_norm(const float* x, const float* w, u32 d, float eps, E* y, float* rstd) {
    __shared__ float scratch[32];
    u64 row = blockIdx.x;
    x += row * d;
    float square = 0.0f;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) square += x[at] * x[at];
    float r = 1.0f / sqrtf(block_sum(square, scratch) / (float)d + eps);
    if (threadIdx.x == 0) rstd[row] = r;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) store(y, row * d + at, x[at] * r * w[at]);
}

KERNEL rms_norm_f32(const float* x, const float* w, u32 d, float eps, float* y, float* rstd) {
    rms_norm(x, w, d, eps, y, rstd);
}
KERNEL rms_norm_bf16(const float* x, const float* w, u32 d, float eps, bf16* y, float* rstd) {
    rms_norm(x, w, d, eps, y, rstd);
}

// dx += the gradient of x
template <typename E>
DEVICE void rms_norm_backward(const E* dy, const float* x, const float* w, const float* rstd, u32 d, float* dx) {
    __shared__ float scratch[32];
    u64 row = blockIdx.x, first = row * d;
    float by_x = 0.0f;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) by_x += load(dy, first + at) * w[at] * x[first + at];
    float r = rstd[row];
    float c = block_sum(by_x, scratch) * r * r * r / (float)d;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) {
        dx[first + at] += load(dy, first + at) * w[at] * r - x[first + at] * c;
    }
}

KERNEL rms_norm_backward_f32(const float* dy, const float* x, const float* w, const float* rstd, u32 d, float* dx) {
    rms_norm_backward(dy, x, w, rstd, d, dx);
}
KERNEL rms_norm_backward_bf16(const bf16* dy, const float* x, const float* w, const float* rstd, u32 d, float* dx) {
    rms_norm_backward(dy, x, w, rstd, d, dx);
}

// y = (x - mean) * rstd * w + b
template <typename E>
DEVICE void layer_norm(const float* x, const float* w, const float* b, u32 d, float eps, E* y, float* mean,
                       float* rstd) {
    __shared__ float scratch[32];
    u64 row = blockIdx.x;
    x += row * d;
    float sum = 0.0f;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) sum += x[at];
    float m = block_sum(sum, scratch) / (float)d;
    // Centred first: the one-pass formula cancels when the mean is large.
    float square = 0.0f;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) square += (x[at] - m) * (x[at] - m);
    float r = 1.0f / sqrtf(block_sum(square, scratch) / (float)d + eps);
    if (threadIdx.x == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) store(y, row * d + at, (x[at] - m) * r * w[at] + b[at]);
}

KERNEL layer_norm_f32(const float* x, const float* w, const float* b, u32 d, float eps, float* y, float* mean,
                      float* rstd) {
    layer_norm(x, w, b, d, eps, y, mean, rstd);
}
KERNEL layer_norm_bf16(const float* x, const float* w, const float* b, u32 d, float eps, bf16* y, float* mean,
                       float* rstd) {
    layer_norm(x, w, b, d, eps, y, mean, rstd);
}

// dx += the gradient of x
template <typename E>
DEVICE void layer_norm_backward(const E* dy, const float* x, const float* w, const float* mean, const float* rstd,
                                u32 d, float* dx) {
    __shared__ float scratch[32];
    u64 row = blockIdx.x, first = row * d;
    float m = mean[row], r = rstd[row], sum = 0.0f, by_x = 0.0f;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) {
        float g = load(dy, first + at) * w[at];
        sum += g;
        by_x += g * ((x[first + at] - m) * r);
    }
    float mean_g = block_sum(sum, scratch) / (float)d;
    float mean_gx = block_sum(by_x, scratch) / (float)d;
    for (u32 at = threadIdx.x; at < d; at += blockDim.x) {
        float g = load(dy, first + at) * w[at];
        dx[first + at] += r * (g - mean_g - (x[first + at] - m) * r * mean_gx);
    }
}

KERNEL layer_norm_backward_f32(const float* dy, const float* x, const float* w, const float* mean, const float* rstd,
                               u32 d, float* dx) {
    layer_norm_backward(dy, x, w, mean, rstd, d, dx);
}
KERNEL layer_norm_backward_bf16(const bf16* dy, const float* x, const float* w, const float* mean, const float* rstd,
                                u32 d, float* dx) {
    layer_norm_backward(dy, x, w, mean, rstd, d, dx);
}

// Sums over PART_ROWS rows of dy * (x - mean) * rstd into `part_w` and of dy into `part_b`; each may be null, and so may
// `mean`. Block (part, 128 columns).
template <typename E>
DEVICE void norm_parts(const E* dy, const float* x, const float* mean, const float* rstd, u32 rows, u32 d,
                       float* part_w, float* part_b) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= d) return;
    u32 first = blockIdx.x * PART_ROWS, last = first + PART_ROWS < rows ? first + PART_ROWS : rows;
    float sum_w = 0.0f, sum_b = 0.0f;
    for (u32 row = first; row < last; row++) {
        u64 at = (u64)row * d + column;
        float g = load(dy, at);
        float centred = mean ? x[at] - mean[row] : x[at];
        sum_w += g * (centred * rstd[row]);
        sum_b += g;
    }
    if (part_w) part_w[(u64)blockIdx.x * d + column] = sum_w;
    if (part_b) part_b[(u64)blockIdx.x * d + column] = sum_b;
}

KERNEL norm_parts_f32(const float* dy, const float* x, const float* mean, const float* rstd, u32 rows, u32 d,
                      float* part_w, float* part_b) {
    norm_parts(dy, x, mean, rstd, rows, d, part_w, part_b);
}
KERNEL norm_parts_bf16(const bf16* dy, const float* x, const float* mean, const float* rstd, u32 rows, u32 d,
                       float* part_w, float* part_b) {
    norm_parts(dy, x, mean, rstd, rows, d, part_w, part_b);
}

// Sums over PART_ROWS rows of a, or of a * b unless b is null.
template <typename A, typename B>
DEVICE void column_parts(const A* a, const B* b, u32 rows, u32 d, float* part) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= d) return;
    u32 first = blockIdx.x * PART_ROWS, last = first + PART_ROWS < rows ? first + PART_ROWS : rows;
    float sum = 0.0f;
    for (u32 row = first; row < last; row++) {
        u64 at = (u64)row * d + column;
        sum += b ? load(a, at) * load(b, at) : load(a, at);
    }
    part[(u64)blockIdx.x * d + column] = sum;
}

KERNEL column_parts_f32(const float* a, const float* b, u32 rows, u32 d, float* part) {
    column_parts(a, b, rows, d, part);
}
KERNEL column_parts_bf16(const bf16* a, const float* b, u32 rows, u32 d, float* part) {
    column_parts(a, b, rows, d, part);
}

// sum += the parts, first to last.
KERNEL add_parts(const float* part, u32 parts, u32 d, float* sum) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= d) return;
    float total = 0.0f;
    for (u32 index = 0; index < parts; index++) total += part[(u64)index * d + column];
    sum[column] += total;
}

// One warp a head: queries first, keys next, the rest of the row is copied. Block (row, 4 heads).
template <typename E>
DEVICE void head_norm(const E* x, u32 width, u32 queries, u32 keys, u32 d, const float* w_q, const float* w_k, float eps,
                      E* y, float* rstd) {
    u32 head = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 row = blockIdx.x, first = row * width + (u64)head * d;
    if (head >= width / d) return;
    if (head >= queries + keys) {
        for (u32 at = lane; at < d; at += 32) y[first + at] = x[first + at];
        return;
    }
    const float* w = head < queries ? w_q : w_k;
    float square = 0.0f;
    for (u32 at = lane; at < d; at += 32) square += load(x, first + at) * load(x, first + at);
    float r = 1.0f / sqrtf(warp_sum(square) / (float)d + eps);
    if (lane == 0) rstd[row * (queries + keys) + head] = r;
    for (u32 at = lane; at < d; at += 32) store(y, first + at, load(x, first + at) * r * w[at]);
}

KERNEL head_norm_f32(const float* x, u32 width, u32 queries, u32 keys, u32 d, const float* w_q, const float* w_k,
                     float eps, float* y, float* rstd) {
    head_norm(x, width, queries, keys, d, w_q, w_k, eps, y, rstd);
}
KERNEL head_norm_bf16(const bf16* x, u32 width, u32 queries, u32 keys, u32 d, const float* w_q, const float* w_k,
                      float eps, bf16* y, float* rstd) {
    head_norm(x, width, queries, keys, d, w_q, w_k, eps, y, rstd);
}

// Turns the gradient of the output into that of the input, in place.
template <typename E>
DEVICE void head_norm_backward(E* dy, const E* x, u32 width, u32 queries, u32 keys, u32 d, const float* w_q,
                               const float* w_k, const float* rstd) {
    u32 head = blockIdx.y * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (head >= queries + keys) return;
    u64 row = blockIdx.x, first = row * width + (u64)head * d;
    const float* w = head < queries ? w_q : w_k;
    float by_x = 0.0f;
    for (u32 at = lane; at < d; at += 32) by_x += load(dy, first + at) * w[at] * load(x, first + at);
    float r = rstd[row * (queries + keys) + head];
    float c = warp_sum(by_x) * r * r * r / (float)d;
    for (u32 at = lane; at < d; at += 32) {
        store(dy, first + at, load(dy, first + at) * w[at] * r - load(x, first + at) * c);
    }
}

KERNEL head_norm_backward_f32(float* dy, const float* x, u32 width, u32 queries, u32 keys, u32 d, const float* w_q,
                              const float* w_k, const float* rstd) {
    head_norm_backward(dy, x, width, queries, keys, d, w_q, w_k, rstd);
}
KERNEL head_norm_backward_bf16(bf16* dy, const bf16* x, u32 width, u32 queries, u32 keys, u32 d, const float* w_q,
                               const float* w_k, const float* rstd) {
    head_norm_backward(dy, x, width, queries, keys, d, w_q, w_k, rstd);
}

// Sums over PART_ROWS rows and `count` heads from `first_head` on of dy * x * rstd. Before the gradient is turned.
template <typename E>
DEVICE void head_norm_parts(const E* dy, const E* x, const float* rstd, u32 rows, u32 width, u32 first_head, u32 count,
                            u32 all_heads, u32 d, float* part) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= d) return;
    u32 first = blockIdx.x * PART_ROWS, last = first + PART_ROWS < rows ? first + PART_ROWS : rows;
    float sum = 0.0f;
    for (u32 row = first; row < last; row++) {
        for (u32 head = first_head; head < first_head + count; head++) {
            u64 at = (u64)row * width + head * d + column;
            sum += load(dy, at) * (load(x, at) * rstd[(u64)row * all_heads + head]);
        }
    }
    part[(u64)blockIdx.x * d + column] = sum;
}

KERNEL head_norm_parts_f32(const float* dy, const float* x, const float* rstd, u32 rows, u32 width, u32 first_head,
                           u32 count, u32 all_heads, u32 d, float* part) {
    head_norm_parts(dy, x, rstd, rows, width, first_head, count, all_heads, d, part);
}
KERNEL head_norm_parts_bf16(const bf16* dy, const bf16* x, const float* rstd, u32 rows, u32 width, u32 first_head,
                            u32 count, u32 all_heads, u32 d, float* part) {
    head_norm_parts(dy, x, rstd, rows, width, first_head, count, all_heads, d, part);
}

// out = stream + scale * branch, the scale by columns.
template <typename E>
DEVICE void layer_scale(const E* branch, const float* scale, const float* stream, u32 d, u64 count, float* out) {
    u64 at = flat_index();
    if (at < count) out[at] = load(branch, at) * scale[at % d] + stream[at];
}

KERNEL layer_scale_f32(const float* branch, const float* scale, const float* stream, u32 d, u64 count, float* out) {
    layer_scale(branch, scale, stream, d, count, out);
}
KERNEL layer_scale_bf16(const bf16* branch, const float* scale, const float* stream, u32 d, u64 count, float* out) {
    layer_scale(branch, scale, stream, d, count, out);
}

// d_branch = scale * d_stream
template <typename E>
DEVICE void layer_scale_backward(const float* d_stream, const float* scale, u32 d, u64 count, E* d_branch) {
    u64 at = flat_index();
    if (at < count) store(d_branch, at, d_stream[at] * scale[at % d]);
}

KERNEL layer_scale_backward_f32(const float* d_stream, const float* scale, u32 d, u64 count, float* d_branch) {
    layer_scale_backward(d_stream, scale, d, count, d_branch);
}
KERNEL layer_scale_backward_bf16(const float* d_stream, const float* scale, u32 d, u64 count, bf16* d_branch) {
    layer_scale_backward(d_stream, scale, d, count, d_branch);
}
