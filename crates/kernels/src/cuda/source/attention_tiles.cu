// Attention in bf16 on tensor cores: tiles of 64 query rows against tiles of 64 keys, flash style (Dao, "FlashAttention-2",
// 2023): running maximum and sum forward, probabilities made again from the log-sum-exp backward. No atomics: keys and
// queries receive their gradients in two kernels, each walking the other side in a fixed order.
// Compiled once for each width of a head, HEAD (a multiple of 16; narrower heads are filled up with zeros in shared
// memory). Four warps, 16 rows each.
// Cost: two products forward, seven backward; shared memory of three to six tiles.

#define TILE 64
// Values between rows of shared memory: eight more than a head, so that rows fall into different banks.
#define WIDTH (HEAD + 8)
#define CHUNKS (HEAD / 8)
#define THREADS 128
#define EVERYBODY 0xffffffffu
#define LOG2_E 1.44269504f
#define LN_2 0.69314718f
#define JOIN(a, b) a##b
#define NAMED(name, head) JOIN(name, head)
// Query rows at a time where keys stay: wide heads leave fewer registers.
#define QUERY_TILE (HEAD <= 64 ? 64 : 32)
// Tiles of the walked side in shared memory, backward.
#define STAGES (HEAD <= 96 ? 2 : 1)

// A tile of query rows and the ranges of keys that any of them sees.
struct Tile {
    u32 first_row, num_rows, first_range, num_ranges;
};

// A query row: its place in the tensors, the number of its segment, how many rows of that it sees.
struct TileRow {
    u32 row, owner, visible;
};

// A run of keys that everybody in the tile sees, or the rows of one segment each as far as it may.
struct TileRange {
    u32 start, len, owner;
};

// A tile of keys and the runs of rows that see them; `causal`: a row sees only keys up to itself.
struct KeyTile {
    u32 first_key, num_keys, first_range, num_ranges;
};
struct Readers {
    u32 start, len, causal;
};

// Rows `first..first + count` of a tensor into a tile, behind the threads' backs; rows and columns beyond become zero.
template <int ROWS>
DEVICE void fetch(u16* tile, const bf16* x, u64 stride, u32 d, u64 first, u32 count) {
    for (u32 at = threadIdx.x; at < ROWS * CHUNKS; at += THREADS) {
        u32 row = at / CHUNKS, column = at % CHUNKS * 8;
        bool present = row < count && column < d;
        copy_ahead(tile + row * WIDTH + column, present ? x + (first + row) * stride + column : x, present);
    }
}

// A operand: 16 rows from `row` on, 16 columns from `column` on.
DEVICE void load_a(u32 a[4], const u16* tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    load_matrices(a, tile + (row + lane % 16) * WIDTH + column + lane / 16 * 8);
}

// B operands of two neighbouring products where rows of the tile are columns of B: rows `row..row + 16`, depth from
// `column` on. b[0], b[1] belong to the first eight rows, b[2], b[3] to the next.
DEVICE void load_b_rows(u32 b[4], const u16* tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    load_matrices(b, tile + (row + lane / 16 * 8 + lane % 8) * WIDTH + column + lane / 8 % 2 * 8);
}

// B operands of two neighbouring products where rows of the tile are the depth: depth `row..row + 16`, columns from
// `column` on. b[0], b[1] belong to the first eight columns, b[2], b[3] to the next.
DEVICE void load_b_depth(u32 b[4], const u16* tile, u32 row, u32 column) {
    u32 lane = threadIdx.x % 32;
    load_matrices_transposed(b, tile + (row + lane % 16) * WIDTH + column + lane / 16 * 8);
}

// c[16, 8 N] += rows of `left` from `row` on times all rows of `right`, over the width of a head.
template <int N>
DEVICE void multiply_rows(float c[N][4], const u16* left, u32 row, const u16* right) {
    _Pragma("unroll") for (int depth = 0; depth < HEAD; depth += 16) {
        u32 a[4];
        load_a(a, left, row, depth);
        _Pragma("unroll") for (int n = 0; n < N; n += 2) {
            u32 b[4];
            load_b_rows(b, right, n * 8, depth);
            mma_bf16(c[n], a, b[0], b[1]);
            mma_bf16(c[n + 1], a, b[2], b[3]);
        }
    }
}

// c[16, HEAD] += p[16, 8 N] rounded to bf16 times the rows of `right`.
template <int N>
DEVICE void multiply_depth(float c[CHUNKS][4], const float p[N][4], const u16* right) {
    _Pragma("unroll") for (int n = 0; n < N; n += 2) {
        // What a product leaves behind in a thread is what the next one takes as its A operand.
        u32 a[4] = {pack_bf16(p[n][0], p[n][1]), pack_bf16(p[n][2], p[n][3]), pack_bf16(p[n + 1][0], p[n + 1][1]),
                    pack_bf16(p[n + 1][2], p[n + 1][3])};
        _Pragma("unroll") for (int column = 0; column < CHUNKS; column += 2) {
            u32 b[4];
            load_b_depth(b, right, n * 8, column * 8);
            mma_bf16(c[column], a, b[0], b[1]);
            mma_bf16(c[column + 1], a, b[2], b[3]);
        }
    }
}

template <int N>
DEVICE void clear(float c[N][4]) {
    _Pragma("unroll") for (int n = 0; n < N; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
}

// Writes two rows of c[16, HEAD], each multiplied by a factor; a null pointer is a row that does not exist.
DEVICE void write_rows(const float c[CHUNKS][4], u32 d, bf16* low, float low_factor, bf16* high, float high_factor) {
    u32 pair = threadIdx.x % 4 * 2;
    _Pragma("unroll") for (u32 n = 0; n < CHUNKS; n++) {
        if (n * 8 >= d) continue;
        u32 column = n * 8 + pair;
        if (low) *(u32*)(low + column) = pack_bf16(c[n][0] * low_factor, c[n][1] * low_factor);
        if (high) *(u32*)(high + column) = pack_bf16(c[n][2] * high_factor, c[n][3] * high_factor);
    }
}

// Where a walk over the ranges of a tile stands.
struct Walk {
    u32 range, offset;
};

DEVICE Walk next(Walk at, const TileRange* ranges) {
    at.offset += TILE;
    if (at.offset >= ranges[at.range].len) {
        at.range++;
        at.offset = 0;
    }
    return at;
}

// The two query rows of a thread.
DEVICE TileRow row_of(const Tile& tile, const TileRow* rows, u32 index) {
    if (index < tile.num_rows) return rows[tile.first_row + index];
    TileRow none = {0, EVERYBODY - 1, 0};
    return none;
}

DEVICE bool sees(const TileRow& row, const TileRange& range, u32 key) {
    if (key >= range.len) return false;
    return range.owner == EVERYBODY || (range.owner == row.owner && key < row.visible);
}

// Block (tile, head). Rows of q lie `q_stride` values apart, those of k and v `kv_stride`.
KERNEL NAMED(attention_tiles_, HEAD)(const Tile* tiles, const TileRow* rows, const TileRange* ranges, const bf16* q,
                                     u64 q_stride, const bf16* k, const bf16* v, u64 kv_stride, u32 group, u32 d,
                                     float scale2, bf16* out, float* lse) {
    DYNAMIC_SHARED(u16, shared);
    u16 *queries = shared, *keys = shared + TILE * WIDTH, *values = keys + 2 * TILE * WIDTH;
    u32 head = blockIdx.y, num_heads = gridDim.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Tile tile = tiles[blockIdx.x];
    ranges += tile.first_range;
    k += head / group * d;
    v += head / group * d;
    for (u32 at = threadIdx.x; at < TILE * CHUNKS; at += THREADS) {
        u32 index = at / CHUNKS, column = at % CHUNKS * 8;
        bool present = index < tile.num_rows && column < d;
        const bf16* from = present ? q + rows[tile.first_row + index].row * q_stride + head * d + column : q;
        copy_ahead(queries + index * WIDTH + column, from, present);
    }
    Walk at = {0, 0};
    u32 stage = 0;
    if (tile.num_ranges > 0) {
        fetch<TILE>(keys, k, kv_stride, d, ranges[0].start, ranges[0].len);
        fetch<TILE>(values, v, kv_stride, d, ranges[0].start, ranges[0].len);
    }
    copies_end();
    TileRow low = row_of(tile, rows, warp * 16 + lane / 4), high = row_of(tile, rows, warp * 16 + lane / 4 + 8);
    float most[2] = {negative_infinity(), negative_infinity()}, sum[2] = {0.0f, 0.0f}, c[CHUNKS][4];
    clear<CHUNKS>(c);
    while (at.range < tile.num_ranges) {
        Walk then = next(at, ranges);
        if (then.range < tile.num_ranges) {
            TileRange range = ranges[then.range];
            u64 first = range.start + then.offset;
            fetch<TILE>(keys + (stage ^ 1) * TILE * WIDTH, k, kv_stride, d, first, range.len - then.offset);
            fetch<TILE>(values + (stage ^ 1) * TILE * WIDTH, v, kv_stride, d, first, range.len - then.offset);
            copies_end();
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        float s[8][4];
        clear<8>(s);
        multiply_rows<8>(s, queries, warp * 16, keys + stage * TILE * WIDTH);
        TileRange range = ranges[at.range];
        float now[2] = {most[0], most[1]};
        _Pragma("unroll") for (int n = 0; n < 8; n++) {
            _Pragma("unroll") for (int j = 0; j < 4; j++) {
                u32 key = at.offset + n * 8 + lane % 4 * 2 + j % 2;
                s[n][j] = sees(j < 2 ? low : high, range, key) ? s[n][j] * scale2 : negative_infinity();
                now[j / 2] = s[n][j] > now[j / 2] ? s[n][j] : now[j / 2];
            }
        }
        _Pragma("unroll") for (int half = 0; half < 2; half++) {
            _Pragma("unroll") for (int away = 1; away < 4; away *= 2) {
                float other = __shfl_xor_sync(0xffffffffu, now[half], away);
                now[half] = other > now[half] ? other : now[half];
            }
            float shift = now[half] == negative_infinity() ? 0.0f : now[half];
            float keep = fast_exp2(most[half] - shift);
            most[half] = now[half];
            sum[half] *= keep;
            _Pragma("unroll") for (int n = 0; n < CHUNKS; n++) {
                c[n][2 * half] *= keep;
                c[n][2 * half + 1] *= keep;
            }
            _Pragma("unroll") for (int n = 0; n < 8; n++) {
                _Pragma("unroll") for (int j = 2 * half; j < 2 * half + 2; j++) {
                    s[n][j] = fast_exp2(s[n][j] - shift);
                    sum[half] += s[n][j];
                }
            }
        }
        multiply_depth<8>(c, s, values + stage * TILE * WIDTH);
        __syncthreads();
        at = then;
        stage ^= 1;
    }
    copies_wait<0>();
    _Pragma("unroll") for (int half = 0; half < 2; half++) {
        _Pragma("unroll") for (int away = 1; away < 4; away *= 2) sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], away);
    }
    u32 index = warp * 16 + lane / 4;
    bool has_low = index < tile.num_rows, has_high = index + 8 < tile.num_rows;
    u64 low_at = (u64)low.row * num_heads + head, high_at = (u64)high.row * num_heads + head;
    write_rows(c, d, has_low ? out + low_at * d : nullptr, 1.0f / sum[0], has_high ? out + high_at * d : nullptr,
               1.0f / sum[1]);
    if (lane % 4 == 0) {
        if (has_low) lse[low_at] = (most[0] + log2f(sum[0])) * LN_2;
        if (has_high) lse[high_at] = (most[1] + log2f(sum[1])) * LN_2;
    }
}

// Gradient of the queries. Block (tile, head); rows of qkv and d_qkv are `stride` long.
KERNEL NAMED(attention_tiles_queries_, HEAD)(const Tile* tiles, const TileRow* rows, const TileRange* ranges,
                                             const bf16* qkv, u64 stride, u32 group, u32 d, float scale,
                                             const float* lse, const float* delta, const bf16* d_out, bf16* d_qkv) {
    DYNAMIC_SHARED(u16, shared);
    u16 *queries = shared, *wanted = shared + TILE * WIDTH, *keys = wanted + TILE * WIDTH;
    u16* values = keys + STAGES * TILE * WIDTH;
    u32 head = blockIdx.y, num_heads = gridDim.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Tile tile = tiles[blockIdx.x];
    ranges += tile.first_range;
    const bf16* k = qkv + (u64)(num_heads + head / group) * d;
    const bf16* v = k + (u64)(num_heads / group) * d;
    for (u32 at = threadIdx.x; at < TILE * CHUNKS; at += THREADS) {
        u32 index = at / CHUNKS, column = at % CHUNKS * 8;
        bool present = index < tile.num_rows && column < d;
        u64 row = present ? rows[tile.first_row + index].row : 0;
        copy_ahead(queries + index * WIDTH + column, present ? qkv + row * stride + head * d + column : qkv, present);
        copy_ahead(wanted + index * WIDTH + column, present ? d_out + (row * num_heads + head) * d + column : d_out,
                   present);
    }
    copies_end();
    TileRow low = row_of(tile, rows, warp * 16 + lane / 4), high = row_of(tile, rows, warp * 16 + lane / 4 + 8);
    bool has_low = warp * 16 + lane / 4 < tile.num_rows, has_high = warp * 16 + lane / 4 + 8 < tile.num_rows;
    u64 low_at = (u64)low.row * num_heads + head, high_at = (u64)high.row * num_heads + head;
    float lse2[2] = {has_low ? lse[low_at] * LOG2_E : 0.0f, has_high ? lse[high_at] * LOG2_E : 0.0f};
    float own_delta[2] = {has_low ? delta[low_at] : 0.0f, has_high ? delta[high_at] : 0.0f};
    float c[CHUNKS][4];
    clear<CHUNKS>(c);
    Walk at = {0, 0};
    u32 stage = 0;
    if (STAGES == 2 && tile.num_ranges > 0) {
        fetch<TILE>(keys, k, stride, d, ranges[0].start, ranges[0].len);
        fetch<TILE>(values, v, stride, d, ranges[0].start, ranges[0].len);
        copies_end();
    }
    while (at.range < tile.num_ranges) {
        Walk then = next(at, ranges);
        // With two stages the next tile comes while this one is worked on; with one, this one comes now.
        Walk coming = STAGES == 2 ? then : at;
        if (coming.range < tile.num_ranges) {
            TileRange range = ranges[coming.range];
            u32 to = STAGES == 2 ? stage ^ 1 : 0;
            u64 first = range.start + coming.offset;
            fetch<TILE>(keys + to * TILE * WIDTH, k, stride, d, first, range.len - coming.offset);
            fetch<TILE>(values + to * TILE * WIDTH, v, stride, d, first, range.len - coming.offset);
            copies_end();
        }
        if (STAGES == 2 && coming.range < tile.num_ranges) {
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        float s[8][4], by_p[8][4];
        clear<8>(s);
        clear<8>(by_p);
        multiply_rows<8>(s, queries, warp * 16, keys + stage * TILE * WIDTH);
        multiply_rows<8>(by_p, wanted, warp * 16, values + stage * TILE * WIDTH);
        TileRange range = ranges[at.range];
        _Pragma("unroll") for (int n = 0; n < 8; n++) {
            _Pragma("unroll") for (int j = 0; j < 4; j++) {
                u32 key = at.offset + n * 8 + lane % 4 * 2 + j % 2;
                float p = fast_exp2(s[n][j] * scale * LOG2_E - lse2[j / 2]);
                s[n][j] = sees(j < 2 ? low : high, range, key) ? p * (by_p[n][j] - own_delta[j / 2]) * scale : 0.0f;
            }
        }
        multiply_depth<8>(c, s, keys + stage * TILE * WIDTH);
        __syncthreads();
        at = then;
        if (STAGES == 2) stage ^= 1;
    }
    copies_wait<0>();
    write_rows(c, d, has_low ? d_qkv + low.row * stride + head * d : nullptr, 1.0f,
               has_high ? d_qkv + high.row * stride + head * d : nullptr, 1.0f);
}

// Where a walk over the rows that see a tile of keys stands.
struct ReaderWalk {
    u32 head, range, offset;
};

DEVICE ReaderWalk next(ReaderWalk at, const Readers* readers, u32 num_ranges) {
    at.offset += QUERY_TILE;
    if (at.offset >= readers[at.range].len) {
        at.range++;
        at.offset = 0;
    }
    if (at.range == num_ranges) {
        at.head++;
        at.range = 0;
    }
    return at;
}

// Gradients of keys and values. Block (tile of keys, key/value head).
KERNEL NAMED(attention_tiles_keys_, HEAD)(const KeyTile* tiles, const Readers* readers, const bf16* qkv, u64 stride,
                                          u32 group, u32 d, float scale, const float* lse, const float* delta,
                                          const bf16* d_out, bf16* d_qkv) {
    DYNAMIC_SHARED(u16, shared);
    u16 *keys = shared, *values = shared + TILE * WIDTH, *queries = values + TILE * WIDTH;
    u16* wanted = queries + STAGES * QUERY_TILE * WIDTH;
    // Log-sum-exp in base 2 and delta of the rows at work.
    __shared__ float row_lse2[QUERY_TILE], row_delta[QUERY_TILE];
    u32 kv_head = blockIdx.y, num_heads = gridDim.y * group, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    KeyTile tile = tiles[blockIdx.x];
    readers += tile.first_range;
    u64 k_column = (u64)(num_heads + kv_head) * d, v_column = k_column + (u64)gridDim.y * d;
    u64 out_stride = (u64)num_heads * d;
    fetch<TILE>(keys, qkv + k_column, stride, d, tile.first_key, tile.num_keys);
    fetch<TILE>(values, qkv + v_column, stride, d, tile.first_key, tile.num_keys);
    copies_end();
    float by_k[CHUNKS][4], by_v[CHUNKS][4];
    clear<CHUNKS>(by_k);
    clear<CHUNKS>(by_v);
    ReaderWalk at = {0, 0, 0};
    u32 stage = 0;
    bool any = tile.num_ranges > 0;
    if (STAGES == 2 && any) {
        u32 head = kv_head * group;
        fetch<QUERY_TILE>(queries, qkv + head * d, stride, d, readers[0].start, readers[0].len);
        fetch<QUERY_TILE>(wanted, d_out + head * d, out_stride, d, readers[0].start, readers[0].len);
        copies_end();
    }
    while (any && at.head < group) {
        ReaderWalk then = next(at, readers, tile.num_ranges);
        ReaderWalk coming = STAGES == 2 ? then : at;
        if (coming.head < group) {
            Readers range = readers[coming.range];
            u32 to = STAGES == 2 ? stage ^ 1 : 0, head = kv_head * group + coming.head;
            u64 first = range.start + coming.offset;
            fetch<QUERY_TILE>(queries + to * QUERY_TILE * WIDTH, qkv + head * d, stride, d, first,
                              range.len - coming.offset);
            fetch<QUERY_TILE>(wanted + to * QUERY_TILE * WIDTH, d_out + head * d, out_stride, d, first,
                              range.len - coming.offset);
            copies_end();
        }
        Readers range = readers[at.range];
        u32 first_row = range.start + at.offset, count = range.len - at.offset;
        for (u32 i = threadIdx.x; i < QUERY_TILE; i += THREADS) {
            u64 place = (u64)(first_row + i) * num_heads + kv_head * group + at.head;
            row_lse2[i] = i < count ? lse[place] * LOG2_E : 0.0f;
            row_delta[i] = i < count ? delta[place] : 0.0f;
        }
        if (STAGES == 2 && coming.head < group) {
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        // Keys are rows here, queries columns.
        float s[QUERY_TILE / 8][4], by_p[QUERY_TILE / 8][4];
        clear<QUERY_TILE / 8>(s);
        clear<QUERY_TILE / 8>(by_p);
        multiply_rows<QUERY_TILE / 8>(s, keys, warp * 16, queries + stage * QUERY_TILE * WIDTH);
        multiply_rows<QUERY_TILE / 8>(by_p, values, warp * 16, wanted + stage * QUERY_TILE * WIDTH);
        _Pragma("unroll") for (int n = 0; n < QUERY_TILE / 8; n++) {
            _Pragma("unroll") for (int j = 0; j < 4; j++) {
                u32 query = n * 8 + lane % 4 * 2 + j % 2, key = warp * 16 + lane / 4 + j / 2 * 8;
                bool seen = query < count && key < tile.num_keys;
                seen = seen && (!range.causal || first_row + query >= tile.first_key + key);
                float p = seen ? fast_exp2(s[n][j] * scale * LOG2_E - row_lse2[query]) : 0.0f;
                s[n][j] = p;
                by_p[n][j] = p * (by_p[n][j] - row_delta[query]) * scale;
            }
        }
        multiply_depth<QUERY_TILE / 8>(by_v, s, wanted + stage * QUERY_TILE * WIDTH);
        multiply_depth<QUERY_TILE / 8>(by_k, by_p, queries + stage * QUERY_TILE * WIDTH);
        __syncthreads();
        at = then;
        if (STAGES == 2) stage ^= 1;
    }
    copies_wait<0>();
    u32 low = warp * 16 + lane / 4;
    bf16* low_row = low < tile.num_keys ? d_qkv + (u64)(tile.first_key + low) * stride : nullptr;
    bf16* high_row = low + 8 < tile.num_keys ? d_qkv + (u64)(tile.first_key + low + 8) * stride : nullptr;
    write_rows(by_k, d, low_row ? low_row + k_column : nullptr, 1.0f, high_row ? high_row + k_column : nullptr, 1.0f);
    write_rows(by_v, d, low_row ? low_row + v_column : nullptr, 1.0f, high_row ? high_row + v_column : nullptr, 1.0f);
}
