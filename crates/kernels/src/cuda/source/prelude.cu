// What every source begins with: number types, sums over warps and blocks, and the few instructions that C++ has no
// words for. Written without headers: where a toolkit's headers lie is one more thing to get wrong at run time.
//
// The same sources are compiled for the host by the tests (tests/emulator/emulator.h), which defines FOVEATE_HOST and
// brings its own versions of what stands inside `#ifndef FOVEATE_HOST`.

#ifndef FOVEATE_HOST
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];  \
    type* name = (type*)dynamic_shared

// Two floats rounded to bf16, the first in the low half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// 2^x, subnormal results flushed to zero.
DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// c += a·b for a [16, 16] by rows and b [16, 8] by columns, spread over a warp as PTX lays down.
DEVICE void mma_bf16(float c[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Four 8x8 matrices of 16-bit values; lane i names row i % 8 of matrix i / 8.
DEVICE void load_matrices(u32 r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed.
DEVICE void load_matrices_transposed(u32 r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copies 16 bytes to shared memory behind the thread's back, or zeros if `present` is false.
DEVICE void copy_ahead(void* shared, const void* global, bool present) {
    int bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

// Ends a group of copies.
DEVICE void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `LEFT` groups are under way.
template <int LEFT>
DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
#endif

struct bf16 {
    u16 bits;
};

DEVICE float widen(u16 bits) { return __uint_as_float((u32)bits << 16); }

// Rounds to nearest, ties to even; NaN stays one.
DEVICE u16 narrow(float x) {
    u32 bits = __float_as_uint(x);
    if (x != x) return (u16)((bits >> 16) | 0x40);
    return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

DEVICE float load(const float* x, u64 at) { return x[at]; }
DEVICE float load(const bf16* x, u64 at) { return widen(x[at].bits); }
DEVICE void store(float* x, u64 at, float value) { x[at] = value; }
DEVICE void store(bf16* x, u64 at, float value) { x[at].bits = narrow(value); }

DEVICE float negative_infinity() { return __uint_as_float(0xff800000u); }

// Every thread's own element of a flat tensor.
DEVICE u64 flat_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

DEVICE float warp_sum(float x) {
    for (int away = 16; away > 0; away /= 2) x += __shfl_xor_sync(0xffffffffu, x, away);
    return x;
}

DEVICE float warp_max(float x) {
    for (int away = 16; away > 0; away /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, away);
        x = other > x ? other : x;
    }
    return x;
}

// Sum over a block of up to 32 warps, always in the same order; `scratch` has 32 floats. All threads get it.
DEVICE float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) sum += scratch[warp];
    return sum;
}

DEVICE float block_max(float x, float* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float most = scratch[0];
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) most = scratch[warp] > most ? scratch[warp] : most;
    return most;
}

// Philox 4x32 with ten rounds, as rng.rs has it.
DEVICE void philox(u32 c[4], u32 key0, u32 key1) {
    for (int round = 0; round < 10; round++) {
        u64 a = (u64)c[0] * 0xd2511f53u;
        u64 b = (u64)c[2] * 0xcd9e8d57u;
        u32 c1 = c[1], c3 = c[3];
        c[0] = (u32)(b >> 32) ^ c1 ^ key0;
        c[1] = (u32)b;
        c[2] = (u32)(a >> 32) ^ c3 ^ key1;
        c[3] = (u32)a;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
}
