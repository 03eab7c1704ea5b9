// What differs between a GPU and the host, where a block is one thread; knows nothing about laws.
#pragma once

typedef unsigned long long u64;

// ---- The machine: the only part that differs between a GPU and the host. ----

struct Span {
    u64 before;  // sum over the threads before this one
    u64 total;   // sum over all
};

#if defined(__CUDACC__)

#define KERNEL extern "C" __global__ void __launch_bounds__(1024)
#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define SHARED __shared__
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)

constexpr int THREADS = 1024, LANES = 32, WARPS = THREADS / LANES;
extern __shared__ float shared_row[];

DEVICE void barrier() { __syncthreads(); }
DEVICE bool any_thread(bool mine) { return __syncthreads_or(mine); }
DEVICE void add(unsigned* to, unsigned value) { atomicAdd(to, value); }
DEVICE void add(u64* to, u64 value) { atomicAdd(to, value); }
DEVICE unsigned bits_of(float value) { return __float_as_uint(value); }
DEVICE float float_of(unsigned bits) { return __uint_as_float(bits); }
DEVICE u64 high_product(unsigned a, unsigned b) { return __umulhi(a, b); }

DEVICE Span scan_warp(u64 mine) {
    u64 upto = mine;
    for (int step = 1; step < LANES; step *= 2) {
        u64 other = __shfl_up_sync(0xFFFFFFFFu, upto, step);
        if (THREAD % LANES >= step) upto += other;
    }
    return {upto - mine, __shfl_sync(0xFFFFFFFFu, upto, LANES - 1)};
}

DEVICE Span scan(u64 mine) {
    __shared__ u64 sums[WARPS];
    Span warp = scan_warp(mine);
    if (THREAD % LANES == 0) sums[THREAD / LANES] = warp.total;
    barrier();
    Span all = {warp.before, 0};
    for (int i = 0; i < WARPS; ++i) {
        if (i < THREAD / LANES) all.before += sums[i];
        all.total += sums[i];
    }
    barrier();
    return all;
}

DEVICE unsigned largest(unsigned mine) {
    __shared__ unsigned values[WARPS];
    for (int step = LANES / 2; step > 0; step /= 2)
        mine = max(mine, __shfl_xor_sync(0xFFFFFFFFu, mine, step));
    if (THREAD % LANES == 0) values[THREAD / LANES] = mine;
    barrier();
    for (int i = 0; i < WARPS; ++i) mine = max(mine, values[i]);
    barrier();
    return mine;
}

DEVICE u64 smallest(u64 mine) {
    __shared__ u64 values[WARPS];
    for (int step = LANES / 2; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(0xFFFFFFFFu, mine, step);
        mine = other < mine ? other : mine;
    }
    if (THREAD % LANES == 0) values[THREAD / LANES] = mine;
    barrier();
    for (int i = 0; i < WARPS; ++i) mine = values[i] < mine ? values[i] : mine;
    barrier();
    return mine;
}

#else

#include <cmath>
#include <cstring>

#define KERNEL static void
#define DEVICE static inline
#define METHOD inline
#define SHARED static
#define THREAD 0
#define BLOCK host_block

constexpr int THREADS = 1, LANES = 1, WARPS = 1;
static int host_block;
static float shared_row[1 << 18];

DEVICE void barrier() {}
DEVICE bool any_thread(bool mine) { return mine; }
DEVICE void add(unsigned* to, unsigned value) { *to += value; }
DEVICE void add(u64* to, u64 value) { *to += value; }
DEVICE unsigned bits_of(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
DEVICE float float_of(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
DEVICE u64 high_product(unsigned a, unsigned b) { return (u64)a * b >> 32; }
DEVICE Span scan_warp(u64 mine) { return {0, mine}; }
DEVICE Span scan(u64 mine) { return {0, mine}; }
DEVICE unsigned largest(unsigned mine) { return mine; }
DEVICE u64 smallest(u64 mine) { return mine; }

#endif
