// Runs CUDA kernels on the host, one thread of a block after the other: each is a fiber of its own that is left at
// barriers and at the operations of warps. Enough of CUDA C for the sources in src/cuda/source, not more; what PTX does
// (tensor cores, ldmatrix, cp.async) is written down here from its documentation, apart from the kernels.
//
// What it finds besides wrong numbers: barriers that not everybody reaches, asynchronous copies that nobody waited for
// (they arrive only then), reads of shared memory before it was written (NaN), and, by running the threads in several
// orders (emulate_order), most missing barriers.
// Cost: some nanoseconds per switch; blocks run one after the other.

#pragma once
#define FOVEATE_HOST
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
struct float4 {
    float x, y, z, w;
};
struct uint4 {
    u32 x, y, z, w;
};
struct Index {
    u32 x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

const size_t STACK = 64 << 10;
const size_t SHARED = 256 << 10;

struct Copy {
    void* to;
    const void* from;
    int group;
    bool present;
};

struct Fiber {
    void* stack = nullptr;
#if defined(__x86_64__)
    void* at = nullptr;
#else
    ucontext_t at;
#endif
    bool done = false;
    u64 barriers = 0, exchanges = 0;
    std::vector<Copy> copies;
    int group = 0;
};

// What the lanes of a warp hand each other; two sets, used in turn, so that a fast lane does not overwrite what a slow
// one has yet to read.
struct Warp {
    u64 arrived = 0;
    u32 words[2][32][8];
    const void* addresses[2][32];
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static u32 running;
static u64 at_barrier;
static u64 progress;
static int order;
alignas(16) static unsigned char shared[SHARED];
static void (*entry)(void*);
static void* entry_data;

static void fail(const char* what) {
    fprintf(stderr, "emulator: %s (block %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, threadIdx.x);
    abort();
}

#if defined(__x86_64__)
static void* scheduler_at;
extern "C" void foveate_switch(void** save, void* load);
__asm__(
    ".text\n.type foveate_switch,@function\nfoveate_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
static void yield() { foveate_switch(&fibers[running].at, scheduler_at); }
static void enter() { foveate_switch(&scheduler_at, fibers[running].at); }
#else
static ucontext_t scheduler_at;
static void yield() { swapcontext(&fibers[running].at, &scheduler_at); }
static void enter() { swapcontext(&scheduler_at, &fibers[running].at); }
#endif

static void body() {
    entry(entry_data);
    Fiber& self = fibers[running];
    for (const Copy& copy : self.copies) {
        if (copy.group >= 0) fail("a thread ends with asynchronous copies under way");
    }
    self.done = true;
    progress++;
    for (;;) yield();
}

static void prepare(Fiber& fiber) {
    fiber.done = false;
    fiber.barriers = fiber.exchanges = 0;
    fiber.copies.clear();
    fiber.group = 0;
    if (!fiber.stack) fiber.stack = aligned_alloc(64, STACK);
#if defined(__x86_64__)
    void** top = (void**)((char*)fiber.stack + STACK) - 2;
    *top = (void*)body;
    top -= 6;
    fiber.at = top;
#else
    getcontext(&fiber.at);
    fiber.at.uc_stack.ss_sp = fiber.stack;
    fiber.at.uc_stack.ss_size = STACK;
    fiber.at.uc_link = nullptr;
    makecontext(&fiber.at, body, 0);
#endif
}

static void run_block() {
    u32 threads = blockDim.x;
    if (threads % 32) fail("blocks are whole warps");
    if (fibers.size() < threads) fibers.resize(threads);
    warps.assign(threads / 32, Warp());
    at_barrier = 0;
    // Shared memory begins as NaN of every type.
    memset(shared, 0xff, SHARED);
    for (u32 thread = 0; thread < threads; thread++) prepare(fibers[thread]);
    u32 shuffle = 12345;
    for (;;) {
        u64 before = progress;
        u32 finished = 0;
        // A step that has no factor in common with the number of threads visits them all.
        shuffle = shuffle * 1664525u + 1013904223u;
        u32 step = order == 2 ? (shuffle >> 8) * 2 + 1 : 1, offset = order == 2 ? shuffle >> 16 : 0;
        for (u32 turn = 0; turn < threads; turn++) {
            u32 thread = order == 1 ? threads - 1 - turn : turn;
            if (order == 2 && (threads & (threads - 1)) == 0) thread = (turn * step + offset) % threads;
            running = thread;
            threadIdx.x = thread;
            if (fibers[thread].done) {
                finished++;
            } else {
                enter();
            }
        }
        if (finished == threads) return;
        if (progress == before) fail("threads wait for each other for ever");
    }
}

template <typename F, size_t... I, typename... A>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

template <typename... A>
static void launch(void (*kernel)(A...), u32 x, u32 y, u32 threads, u32 bytes, void** arguments) {
    if (bytes > SHARED) fail("more shared memory than there is");
    struct Data {
        void (*kernel)(A...);
        void** arguments;
    } data = {kernel, arguments};
    entry_data = &data;
    entry = [](void* pointer) {
        Data* data = (Data*)pointer;
        call<void>(data->kernel, data->arguments, std::index_sequence_for<A...>());
    };
    blockDim = {threads, 1, 1};
    gridDim = {x, y, 1};
    for (u32 block_y = 0; block_y < y; block_y++) {
        for (u32 block_x = 0; block_x < x; block_x++) {
            blockIdx = {block_x, block_y, 0};
            run_block();
        }
    }
}

// Hands `count` words to the warp and returns everybody's, once all have come.
static const u32 (*exchange(const u32* words, int count, const void* address))[8] {
    Fiber& self = fibers[running];
    u32 lane = running % 32;
    Warp& warp = warps[running / 32];
    int set = (int)(self.exchanges % 2);
    for (int i = 0; i < count; i++) warp.words[set][lane][i] = words[i];
    warp.addresses[set][lane] = address;
    self.exchanges++;
    warp.arrived++;
    progress++;
    while (warps[running / 32].arrived < self.exchanges * 32) yield();
    return warp.words[set];
}

static const void* const* addresses() {
    return warps[running / 32].addresses[(fibers[running].exchanges - 1) % 2];
}

static float bf16_to_float(u32 bits) {
    bits <<= 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

}  // namespace emulator

extern "C" void emulate_order(int which) { emulator::order = which; }

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define DEVICE static inline
#define KERNEL static void
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulator::shared
#define EXPORT(name)                                                                                    \
    extern "C" void emulate_##name(u32 x, u32 y, u32 threads, u32 bytes, void** arguments) {            \
        emulator::launch(name, x, y, threads, bytes, arguments);                                        \
    }

DEVICE void __syncthreads() {
    emulator::Fiber& self = emulator::fibers[emulator::running];
    self.barriers++;
    emulator::at_barrier++;
    emulator::progress++;
    u64 wanted = self.barriers * blockDim.x;
    while (emulator::at_barrier < wanted) emulator::yield();
}

DEVICE u32 __float_as_uint(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
}
DEVICE float __uint_as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float __fadd_rn(float a, float b) { return a + b; }
DEVICE float __fmul_rn(float a, float b) { return a * b; }
DEVICE float __fdiv_rn(float a, float b) { return a / b; }
DEVICE float __fsqrt_rn(float a) { return sqrtf(a); }

DEVICE float __shfl_sync(u32 mask, float x, u32 lane) {
    if (mask != 0xffffffffu) emulator::fail("only whole warps");
    u32 word = __float_as_uint(x);
    return __uint_as_float(emulator::exchange(&word, 1, nullptr)[lane % 32][0]);
}
DEVICE float __shfl_xor_sync(u32 mask, float x, int away) {
    return __shfl_sync(mask, x, (emulator::running % 32) ^ away);
}

DEVICE u32 pack_bf16(float low, float high) {
    u32 words[2];
    float values[2] = {low, high};
    for (int i = 0; i < 2; i++) {
        u32 bits = __float_as_uint(values[i]);
        words[i] = values[i] != values[i] ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    }
    return words[0] | words[1] << 16;
}
DEVICE float fast_exp2(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

// mma.m16n8k16: with g = lane / 4 and t = lane % 4, a lane holds of A the pairs at (g, 2t), (g + 8, 2t), (g, 2t + 8),
// (g + 8, 2t + 8), of B those at (2t, g) and (2t + 8, g) going down, of C (g, 2t), (g, 2t + 1) and the same in g + 8.
DEVICE void mma_bf16(float c[4], const u32 a[4], u32 b0, u32 b1) {
    u32 mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const u32(*words)[8] = emulator::exchange(mine, 6, nullptr);
    u32 lane = emulator::running % 32, g = lane / 4, t = lane % 4;
    auto half = [](u32 word, int which) { return emulator::bf16_to_float(which ? word >> 16 : word & 0xffff); };
    for (int i = 0; i < 4; i++) {
        u32 row = g + (i / 2) * 8, column = 2 * t + i % 2;
        double sum = c[i];
        for (u32 k = 0; k < 16; k++) {
            u32 from_a = (row % 8) * 4 + k % 8 / 2, from_b = column * 4 + k % 8 / 2;
            float x = half(words[from_a][(row / 8) + 2 * (k / 8)], k % 2);
            float y = half(words[from_b][4 + k / 8], k % 2);
            sum += (double)x * y;
        }
        c[i] = (float)sum;
    }
}

DEVICE void load_any_matrices(u32 r[4], const void* row, bool transposed) {
    if ((uintptr_t)row % 16) emulator::fail("ldmatrix from an address that is not a multiple of 16");
    emulator::exchange(nullptr, 0, row);
    const void* const* rows = emulator::addresses();
    u32 lane = emulator::running % 32;
    for (int matrix = 0; matrix < 4; matrix++) {
        u16 pair[2];
        for (u32 i = 0; i < 2; i++) {
            u32 y = transposed ? lane % 4 * 2 + i : lane / 4, x = transposed ? lane / 4 : lane % 4 * 2 + i;
            pair[i] = ((const u16*)rows[matrix * 8 + y])[x];
        }
        r[matrix] = pair[0] | (u32)pair[1] << 16;
    }
    // Nobody goes on, and perhaps overwrites the rows, before everybody has read.
    emulator::exchange(nullptr, 0, nullptr);
}
DEVICE void load_matrices(u32 r[4], const void* row) { load_any_matrices(r, row, false); }
DEVICE void load_matrices_transposed(u32 r[4], const void* row) { load_any_matrices(r, row, true); }

DEVICE void copy_ahead(void* shared, const void* global, bool present) {
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) emulator::fail("cp.async between addresses off 16 bytes");
    emulator::Fiber& self = emulator::fibers[emulator::running];
    self.copies.push_back({shared, global, self.group, present});
}
DEVICE void copies_end() { emulator::fibers[emulator::running].group++; }
template <int LEFT>
DEVICE void copies_wait() {
    emulator::Fiber& self = emulator::fibers[emulator::running];
    std::vector<emulator::Copy> left;
    for (const emulator::Copy& copy : self.copies) {
        if (copy.group >= self.group - LEFT) {
            left.push_back(copy);
        } else if (copy.present) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    self.copies = std::move(left);
}
