// Attention, one block of eight warps for every query row and head: f32 of any kind, heads that the tiles of
// attention_tiles.cu do not know, and single rows while decoding, where tiles would be empty.
// Each warp takes every eighth batch of 32 keys, counted from the beginning of each range; the warps' results are
// combined in their order. What a row gets depends on its own ranges alone.
// Cost: every key and value is read once per query row and head, mostly from cache.

#define WARPS 8
#define MOST_HEAD 256
#define PIECES (MOST_HEAD / 32)
// The values of a head that a lane takes care of. Unrolled, so that what is indexed by `piece` stays in registers.
#define EACH_PIECE(piece, i, lane, d)                 \
    _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++) \
        if (u32 i = (lane) + 32 * piece; i < (d))
#define LOG2_E 1.44269504f
#define LN_2 0.69314718f

// A run of rows.
struct Range {
    u32 start, len;
};

// A row that asks: it sees `num_ranges` ranges of ancestors and `own_visible` rows from `own_start` on.
struct Query {
    u32 row, first_range, num_ranges, own_start, own_visible;
};

// A row that is seen, and the rows that see it.
struct Key {
    u32 row, first_range, num_ranges;
};

DEVICE void load8(const float* x, float y[8]) {
    float4 a = ((const float4*)x)[0], b = ((const float4*)x)[1];
    y[0] = a.x, y[1] = a.y, y[2] = a.z, y[3] = a.w, y[4] = b.x, y[5] = b.y, y[6] = b.z, y[7] = b.w;
}

DEVICE void load8(const bf16* x, float y[8]) {
    uint4 a = ((const uint4*)x)[0];
    u32 words[4] = {a.x, a.y, a.z, a.w};
    for (int i = 0; i < 4; i++) {
        y[2 * i] = __uint_as_float(words[i] << 16);
        y[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

// Product of a row in memory with one in shared memory.
template <typename E>
DEVICE float dot(const E* x, const float* y, u32 d) {
    float sum = 0.0f;
    for (u32 first = 0; first < d; first += 8) {
        float values[8];
        load8(x + first, values);
        for (int i = 0; i < 8; i++) sum += values[i] * y[first + i];
    }
    return sum;
}

// The `index`-th range of a query, its own rows last.
DEVICE Range range_of(const Query& query, const Range* ranges, u32 index) {
    if (index < query.num_ranges) return ranges[query.first_range + index];
    Range own = {query.own_start, query.own_visible};
    return own;
}

// Strides count values. `scale2` is the scale times log2(e).
template <typename E>
DEVICE void attention_rows(const Query* queries, const Range* ranges, const E* q, u64 q_stride, const E* k, const E* v,
                           u64 kv_stride, u32 group, u32 d, float scale2, E* out, float* lse) {
    __shared__ float asked[MOST_HEAD], part_most[WARPS], part_sum[WARPS], part_out[WARPS][MOST_HEAD];
    u32 head = blockIdx.y, num_heads = gridDim.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Query query = queries[blockIdx.x];
    k += head / group * d;
    v += head / group * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) asked[i] = load(q, query.row * q_stride + head * d + i);
    __syncthreads();
    float most = negative_infinity(), sum = 0.0f, sums[PIECES];
    _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++) sums[piece] = 0.0f;
    u32 batch = 0;
    for (u32 index = 0; index <= query.num_ranges; index++) {
        Range range = range_of(query, ranges, index);
        for (u32 first = 0; first < range.len; first += 32, batch++) {
            if (batch % WARPS != warp) continue;
            u32 count = range.len - first < 32 ? range.len - first : 32;
            u64 key = range.start + first;
            float score = lane < count ? dot(k + (key + lane) * kv_stride, asked, d) * scale2 : negative_infinity();
            float now = warp_max(score);
            now = now > most ? now : most;
            float shift = now == negative_infinity() ? 0.0f : now;
            float p = exp2f(score - shift), keep = exp2f(most - shift);
            most = now;
            sum = sum * keep + warp_sum(p);
            _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++) sums[piece] *= keep;
            for (u32 j = 0; j < count; j++) {
                float share = __shfl_sync(0xffffffffu, p, j);
                const E* value = v + (key + j) * kv_stride;
                EACH_PIECE(piece, i, lane, d) sums[piece] += share * load(value, i);
            }
        }
    }
    if (lane == 0) {
        part_most[warp] = most;
        part_sum[warp] = sum;
    }
    EACH_PIECE(piece, i, lane, d) part_out[warp][i] = sums[piece];
    __syncthreads();
    most = part_most[0];
    _Pragma("unroll") for (int w = 1; w < WARPS; w++) most = part_most[w] > most ? part_most[w] : most;
    float shift = most == negative_infinity() ? 0.0f : most, factors[WARPS];
    sum = 0.0f;
    _Pragma("unroll") for (int w = 0; w < WARPS; w++) {
        factors[w] = exp2f(part_most[w] - shift);
        sum += part_sum[w] * factors[w];
    }
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        float total = 0.0f;
        _Pragma("unroll") for (int w = 0; w < WARPS; w++) total += part_out[w][i] * factors[w];
        store(out, ((u64)query.row * num_heads + head) * d + i, total / sum);
    }
    if (threadIdx.x == 0) lse[(u64)query.row * num_heads + head] = (most + log2f(sum)) * LN_2;
}

KERNEL attention_rows_f32(const Query* queries, const Range* ranges, const float* q, u64 q_stride, const float* k,
                          const float* v, u64 kv_stride, u32 group, u32 d, float scale2, float* out, float* lse) {
    attention_rows(queries, ranges, q, q_stride, k, v, kv_stride, group, d, scale2, out, lse);
}
KERNEL attention_rows_bf16(const Query* queries, const Range* ranges, const bf16* q, u64 q_stride, const bf16* k,
                           const bf16* v, u64 kv_stride, u32 group, u32 d, float scale2, bf16* out, float* lse) {
    attention_rows(queries, ranges, q, q_stride, k, v, kv_stride, group, d, scale2, out, lse);
}

// delta = sum of out * d_out per row and head; one warp each.
template <typename E>
DEVICE void attention_delta(const E* out, const E* d_out, u64 count, u32 d, float* delta) {
    u64 index = (u64)blockIdx.x * 4 + threadIdx.x / 32;
    if (index >= count) return;
    float sum = 0.0f;
    for (u32 i = threadIdx.x % 32; i < d; i += 32) sum += load(out, index * d + i) * load(d_out, index * d + i);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[index] = sum;
}

KERNEL attention_delta_f32(const float* out, const float* d_out, u64 count, u32 d, float* delta) {
    attention_delta(out, d_out, count, d, delta);
}
KERNEL attention_delta_bf16(const bf16* out, const bf16* d_out, u64 count, u32 d, float* delta) {
    attention_delta(out, d_out, count, d, delta);
}

// Gradient of the queries. Rows of qkv and d_qkv are `stride` long: queries, keys, values.
template <typename E>
DEVICE void attention_rows_queries(const Query* queries, const Range* ranges, const E* qkv, u64 stride, u32 group, u32 d,
                                   float scale, const float* lse, const float* delta, const E* d_out, E* d_qkv) {
    __shared__ float asked[MOST_HEAD], wanted[MOST_HEAD], part[WARPS][MOST_HEAD];
    u32 head = blockIdx.y, num_heads = gridDim.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Query query = queries[blockIdx.x];
    u64 at = (u64)query.row * num_heads + head;
    const E* k = qkv + (u64)(num_heads + head / group) * d;
    const E* v = k + (u64)(num_heads / group) * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        asked[i] = load(qkv, query.row * stride + head * d + i);
        wanted[i] = load(d_out, at * d + i);
    }
    __syncthreads();
    float lse2 = lse[at] * LOG2_E, own_delta = delta[at], sums[PIECES];
    _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++) sums[piece] = 0.0f;
    u32 batch = 0;
    for (u32 index = 0; index <= query.num_ranges; index++) {
        Range range = range_of(query, ranges, index);
        for (u32 first = 0; first < range.len; first += 32, batch++) {
            if (batch % WARPS != warp) continue;
            u32 count = range.len - first < 32 ? range.len - first : 32;
            u64 key = range.start + first;
            float by_score = 0.0f;
            if (lane < count) {
                float p = exp2f(dot(k + (key + lane) * stride, asked, d) * scale * LOG2_E - lse2);
                by_score = p * (dot(v + (key + lane) * stride, wanted, d) - own_delta) * scale;
            }
            for (u32 j = 0; j < count; j++) {
                float share = __shfl_sync(0xffffffffu, by_score, j);
                const E* row = k + (key + j) * stride;
                EACH_PIECE(piece, i, lane, d) sums[piece] += share * load(row, i);
            }
        }
    }
    EACH_PIECE(piece, i, lane, d) part[warp][i] = sums[piece];
    __syncthreads();
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        float total = 0.0f;
        _Pragma("unroll") for (int w = 0; w < WARPS; w++) total += part[w][i];
        store(d_qkv, query.row * stride + head * d + i, total);
    }
}

KERNEL attention_rows_queries_f32(const Query* queries, const Range* ranges, const float* qkv, u64 stride, u32 group,
                                  u32 d, float scale, const float* lse, const float* delta, const float* d_out,
                                  float* d_qkv) {
    attention_rows_queries(queries, ranges, qkv, stride, group, d, scale, lse, delta, d_out, d_qkv);
}
KERNEL attention_rows_queries_bf16(const Query* queries, const Range* ranges, const bf16* qkv, u64 stride, u32 group,
                                   u32 d, float scale, const float* lse, const float* delta, const bf16* d_out,
                                   bf16* d_qkv) {
    attention_rows_queries(queries, ranges, qkv, stride, group, d, scale, lse, delta, d_out, d_qkv);
}

// Gradients of one key and value from all rows that see it. Block (key, key/value head).
template <typename E>
DEVICE void attention_rows_keys(const Key* keys, const Range* readers, const E* qkv, u64 stride, u32 group, u32 d,
                                float scale, const float* lse, const float* delta, const E* d_out, E* d_qkv) {
    __shared__ float own_key[MOST_HEAD], own_value[MOST_HEAD], part_k[WARPS][MOST_HEAD], part_v[WARPS][MOST_HEAD];
    u32 kv_head = blockIdx.y, num_heads = gridDim.y * group, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Key key = keys[blockIdx.x];
    u64 k_at = key.row * stride + (u64)(num_heads + kv_head) * d, v_at = k_at + (u64)gridDim.y * d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        own_key[i] = load(qkv, k_at + i);
        own_value[i] = load(qkv, v_at + i);
    }
    __syncthreads();
    float sums_k[PIECES], sums_v[PIECES];
    _Pragma("unroll") for (int piece = 0; piece < PIECES; piece++) sums_k[piece] = sums_v[piece] = 0.0f;
    u32 batch = 0;
    for (u32 head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (u32 index = 0; index < key.num_ranges; index++) {
            Range range = readers[key.first_range + index];
            for (u32 first = 0; first < range.len; first += 32, batch++) {
                if (batch % WARPS != warp) continue;
                u32 count = range.len - first < 32 ? range.len - first : 32;
                u64 row = range.start + first;
                float p = 0.0f, by_score = 0.0f;
                if (lane < count) {
                    u64 at = (row + lane) * num_heads + head;
                    float score = dot(qkv + (row + lane) * stride + head * d, own_key, d) * scale * LOG2_E;
                    p = exp2f(score - lse[at] * LOG2_E);
                    by_score = p * (dot(d_out + at * d, own_value, d) - delta[at]) * scale;
                }
                for (u32 j = 0; j < count; j++) {
                    float share = __shfl_sync(0xffffffffu, p, j), pull = __shfl_sync(0xffffffffu, by_score, j);
                    const E* query = qkv + (row + j) * stride + head * d;
                    const E* wanted = d_out + ((row + j) * num_heads + head) * d;
                    EACH_PIECE(piece, i, lane, d) {
                        sums_k[piece] += pull * load(query, i);
                        sums_v[piece] += share * load(wanted, i);
                    }
                }
            }
        }
    }
    EACH_PIECE(piece, i, lane, d) {
        part_k[warp][i] = sums_k[piece];
        part_v[warp][i] = sums_v[piece];
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        float total_k = 0.0f, total_v = 0.0f;
        _Pragma("unroll") for (int w = 0; w < WARPS; w++) {
            total_k += part_k[w][i];
            total_v += part_v[w][i];
        }
        store(d_qkv, k_at + i, total_k);
        store(d_qkv, v_at + i, total_v);
    }
}

KERNEL attention_rows_keys_f32(const Key* keys, const Range* readers, const float* qkv, u64 stride, u32 group, u32 d,
                               float scale, const float* lse, const float* delta, const float* d_out, float* d_qkv) {
    attention_rows_keys(keys, readers, qkv, stride, group, d, scale, lse, delta, d_out, d_qkv);
}
KERNEL attention_rows_keys_bf16(const Key* keys, const Range* readers, const bf16* qkv, u64 stride, u32 group, u32 d,
                                float scale, const float* lse, const float* delta, const bf16* d_out, bf16* d_qkv) {
    attention_rows_keys(keys, readers, qkv, stride, group, d, scale, lse, delta, d_out, d_qkv);
}
