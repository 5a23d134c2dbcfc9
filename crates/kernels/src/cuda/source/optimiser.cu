// AdamW and sums of squares. AdamW rounds after every operation, as the CPU does: the same bits from the same input.
// Cost: one pass over weights, gradients and moments.

// `mirror` receives the weights rounded to bf16, unless it is null.
KERNEL adamw(float* p, const float* g, float* m, float* v, u64 count, float decay, float keep1, float take1, float keep2,
             float take2, float step_size, float inv_root_correction2, float eps, float gradient_scale, bf16* mirror) {
    u64 at = flat_index();
    if (at >= count) return;
    float gradient = __fmul_rn(g[at], gradient_scale);
    float first = __fadd_rn(__fmul_rn(m[at], keep1), __fmul_rn(gradient, take1));
    float second = __fadd_rn(__fmul_rn(v[at], keep2), __fmul_rn(__fmul_rn(gradient, gradient), take2));
    float denominator = __fadd_rn(__fmul_rn(__fsqrt_rn(second), inv_root_correction2), eps);
    float weight = __fadd_rn(__fmul_rn(p[at], decay), -__fmul_rn(step_size, __fdiv_rn(first, denominator)));
    p[at] = weight;
    m[at] = first;
    v[at] = second;
    if (mirror) mirror[at].bits = narrow(weight);
}

// Sum of squares of `chunk` values a block, in f64 and a fixed order.
KERNEL sum_of_squares(const float* x, u64 count, u32 chunk, double* sums) {
    __shared__ double scratch[256];
    u64 first = (u64)blockIdx.x * chunk, last = first + chunk < count ? first + chunk : count;
    double sum = 0.0;
    for (u64 at = first + threadIdx.x; at < last; at += blockDim.x) sum += (double)x[at] * (double)x[at];
    scratch[threadIdx.x] = sum;
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = scratch[0];
}
