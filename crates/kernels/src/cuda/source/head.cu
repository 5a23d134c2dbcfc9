// The language-model head behind its product: log-probability and entropy of given tokens, their gradient, and the
// choice of the next token. Logits come in chunks of the vocabulary; a row's state goes from chunk to chunk.
// Cost: two reads of each logit forward, one read and one write backward.

// Logits below the largest by more than this count as zero probability; keeps 0 * infinity out of the sums.
#define LOWEST -200.0f

// Banned tokens of the chunk that begins at `first` get negative infinity.
KERNEL ban(float* logits, u32 width, u32 first, const u32* banned, u32 count) {
    u32 index = blockIdx.y * blockDim.x + threadIdx.x;
    if (index >= count) return;
    u32 id = banned[index];
    if (id >= first && id - first < width) logits[(u64)blockIdx.x * width + id - first] = negative_infinity();
}

// State of a row: largest scaled logit m, sum of e^(z - m), sum of (z - m) e^(z - m), the target's z.
KERNEL head_chunk(const float* logits, u32 width, u32 first, const u32* targets, const float* inv_temperature,
                  float* state) {
    __shared__ float scratch[32];
    u32 row = blockIdx.x;
    logits += (u64)row * width;
    float scale = inv_temperature[row], most = negative_infinity();
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        float z = logits[at] * scale;
        most = z > most ? z : most;
    }
    most = block_max(most, scratch);
    // All banned, or all NaN: any finite stand-in gives sum 0 or NaN.
    float shift = most == negative_infinity() ? 0.0f : most;
    float sum = 0.0f, weighted = 0.0f;
    for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
        float below = logits[at] * scale - shift;
        below = below < LOWEST ? LOWEST : below;
        float e = expf(below);
        sum += e;
        weighted += e * below;
    }
    sum = block_sum(sum, scratch);
    weighted = block_sum(weighted, scratch);
    if (threadIdx.x != 0) return;
    state += (u64)row * 4;
    u32 target = targets[row];
    if (first == 0 || (target >= first && target - first < width)) {
        state[3] = target >= first && target - first < width ? logits[target - first] * scale : 0.0f;
    }
    if (first == 0) {
        state[0] = most;
        state[1] = sum;
        state[2] = weighted;
        return;
    }
    // A chunk without a single allowed token counts for nothing; a NaN in it is kept in `sum`.
    if (most == negative_infinity() && sum == 0.0f) return;
    float before = state[0], all = most > before ? most : before;
    float old_below = before - all, new_below = most - all;
    float old_factor = before == negative_infinity() ? 0.0f : expf(old_below);
    float new_factor = most == negative_infinity() ? 0.0f : expf(new_below);
    old_below = before == negative_infinity() ? 0.0f : old_below;
    new_below = most == negative_infinity() ? 0.0f : new_below;
    state[2] = (state[2] + state[1] * old_below) * old_factor + (weighted + sum * new_below) * new_factor;
    state[1] = state[1] * old_factor + sum * new_factor;
    state[0] = all;
}

// Entropy = sum of p (lse - z) = ln sum - sum of p (z - max): no large numbers cancel.
KERNEL head_finish(const float* state, u32 rows, float* logprob, float* entropy, float* lse) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    state += (u64)row * 4;
    float log_sum = logf(state[1]);
    logprob[row] = (state[3] - state[0]) - log_sum;
    entropy[row] = log_sum - state[2] / state[1];
    lse[row] = state[0] + log_sum;
}

// Gradient by the logits of one chunk: scale * (by_logprob * (1[target] - p) - by_entropy * p * (ln p + entropy)).
// Block (row, 256 tokens).
template <typename E>
DEVICE void head_gradient(const float* logits, u32 width, u32 first, const u32* targets, const float* inv_temperature,
                          const float* lse, const float* entropy, const float* by_logprob, const float* by_entropy,
                          E* out) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (column >= width) return;
    u64 at = (u64)row * width + column;
    float scale = inv_temperature[row], z = logits[at], logp = z * scale - lse[row];
    logp = logp < LOWEST ? LOWEST : logp;
    float g = -scale * expf(logp) * (by_logprob[row] + by_entropy[row] * (logp + entropy[row]));
    if (targets[row] == first + column && z != negative_infinity()) g += scale * by_logprob[row];
    store(out, at, g);
}

KERNEL head_gradient_f32(const float* logits, u32 width, u32 first, const u32* targets, const float* inv_temperature,
                         const float* lse, const float* entropy, const float* by_logprob, const float* by_entropy,
                         float* out) {
    head_gradient(logits, width, first, targets, inv_temperature, lse, entropy, by_logprob, by_entropy, out);
}
KERNEL head_gradient_bf16(const float* logits, u32 width, u32 first, const u32* targets, const float* inv_temperature,
                          const float* lse, const float* entropy, const float* by_logprob, const float* by_entropy,
                          bf16* out) {
    head_gradient(logits, width, first, targets, inv_temperature, lse, entropy, by_logprob, by_entropy, out);
}

// e^x operation by operation as cpu/math.rs has it: equal logits must give equal draws.
DEVICE float exact_exp(float x) {
    const float ROUND = 12582912.0f;
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float shifted = __fmaf_rn(x, 1.44269504f, ROUND);
    float n = __fadd_rn(shifted, -ROUND);
    float r = __fmaf_rn(n, -0.6933594f, x);
    r = __fmaf_rn(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = __fmaf_rn(p, r, 1.3981999e-3f);
    p = __fmaf_rn(p, r, 8.333452e-3f);
    p = __fmaf_rn(p, r, 4.1665796e-2f);
    p = __fmaf_rn(p, r, 1.6666665e-1f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
    int whole = (int)(__float_as_uint(shifted) - __float_as_uint(ROUND));
    int half = whole >> 1;
    float one = __uint_as_float((u32)(half + 127) << 23), two = __uint_as_float((u32)(whole - half + 127) << 23);
    return __fmul_rn(__fmul_rn(p, one), two);
}

// Probability mass of one token, not normalised, with the bits of `softmax::exponentials`.
DEVICE float mass_of(float z, float most, float factor) {
    float below = __fmul_rn(__fadd_rn(z, -most), factor);
    return below >= LOWEST ? exact_exp(below) : 0.0f;
}

// Tokens whose masses are added first, and the lanes of that sum: as `head::draw` has them.
#define DRAW_BLOCK 64
#define DRAW_LANES 16

// Who draws: row of the logits, whether the most probable token is taken, the key and counter of the random numbers.
struct Draw {
    u32 row, greedy, key0, key1, c0, c1, c2, position;
    float inv_temperature;
};

// One block a draw. Banned tokens are at negative infinity already. `sums` (dynamic) has one f64 per DRAW_BLOCK tokens.
KERNEL pick(const float* logits, u32 vocabulary, const Draw* draws, u32* ids, float* logprob, float* entropy) {
    DYNAMIC_SHARED(double, sums);
    __shared__ float scratch[32];
    __shared__ u32 chosen, candidates[256];
    Draw draw = draws[blockIdx.x];
    logits += (u64)draw.row * vocabulary;
    float most = negative_infinity();
    u32 best = 0xffffffffu;
    for (u32 at = threadIdx.x; at < vocabulary; at += blockDim.x) {
        if (logits[at] > most) {
            most = logits[at];
            best = at;
        }
    }
    float all = block_max(most, scratch);
    // The lowest id among equals: each thread has met its own ids in rising order.
    candidates[threadIdx.x] = most == all ? best : 0xffffffffu;
    u32 blocks = (vocabulary + DRAW_BLOCK - 1) / DRAW_BLOCK;
    if (!draw.greedy) {
        for (u32 block = threadIdx.x; block < blocks; block += blockDim.x) {
            double lanes[DRAW_LANES];
            for (int lane = 0; lane < DRAW_LANES; lane++) lanes[lane] = 0.0;
            for (u32 offset = 0; offset < DRAW_BLOCK; offset++) {
                u32 at = block * DRAW_BLOCK + offset;
                if (at < vocabulary) lanes[offset % DRAW_LANES] += (double)mass_of(logits[at], all, draw.inv_temperature);
            }
            double sum = 0.0;
            for (int lane = 0; lane < DRAW_LANES; lane++) sum += lanes[lane];
            sums[block] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 id = 0xffffffffu;
        if (draw.greedy) {
            for (u32 thread = 0; thread < blockDim.x; thread++) {
                if (candidates[thread] < id) id = candidates[thread];
            }
        } else {
            u32 words[4] = {draw.c0, draw.c1, draw.c2, draw.position};
            philox(words, draw.key0, draw.key1);
            double uniform = (double)((float)(words[0] >> 8) * (1.0f / 16777216.0f));
            double total = 0.0;
            for (u32 block = 0; block < blocks; block++) total += sums[block];
            double left = uniform * total;
            for (u32 block = 0; block < blocks && id == 0xffffffffu; block++) {
                if (left >= sums[block]) {
                    left -= sums[block];
                    continue;
                }
                for (u32 offset = 0; offset < DRAW_BLOCK; offset++) {
                    u32 at = block * DRAW_BLOCK + offset;
                    if (at >= vocabulary) break;
                    float mass = mass_of(logits[at], all, draw.inv_temperature);
                    if (!(mass > 0.0f)) continue;
                    // Rounding can leave a crumb at the end of a block: its last id with any mass takes it.
                    id = at;
                    left -= (double)mass;
                    if (left < 0.0) break;
                }
            }
            // A crumb after the last block, or a row without a single number.
            for (u32 at = vocabulary; id == 0xffffffffu && at > 0; at--) {
                if (mass_of(logits[at - 1], all, draw.inv_temperature) > 0.0f) id = at - 1;
            }
        }
        chosen = id == 0xffffffffu ? 0 : id;
    }
    __syncthreads();
    float scale = draw.inv_temperature, shift = all == negative_infinity() ? 0.0f : all * scale;
    float sum = 0.0f, weighted = 0.0f;
    for (u32 at = threadIdx.x; at < vocabulary; at += blockDim.x) {
        float below = logits[at] * scale - shift;
        below = below < LOWEST ? LOWEST : below;
        float e = expf(below);
        sum += e;
        weighted += e * below;
    }
    sum = block_sum(sum, scratch);
    weighted = block_sum(weighted, scratch);
    if (threadIdx.x == 0) {
        float log_sum = logf(sum);
        ids[blockIdx.x] = chosen;
        logprob[blockIdx.x] = (logits[chosen] * scale - shift) - log_sum;
        entropy[blockIdx.x] = log_sum - weighted / sum;
    }
}
