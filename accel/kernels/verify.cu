// Verifies windows of drafts: raw logits in, tokens out. `reference.py` is the specification.
//
// One block per (picture, rank) guides, warps, tests and draws; one block per picture then joins the
// ranks. All sums are of integers (fixed point) and the exponential is our own, so that a result
// depends neither on the number of threads nor on the batch, and is the same bits on a GPU and in
// the host build, where a block is one thread. Compile without fused multiply-add for that.
// Knows nothing about torch, and includes nothing when compiled for a GPU.

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

#endif

// ---- What a launch is given. `Arguments` in `device.py` mirrors it field by field. ----

struct Arguments {
    const void* conditional;      // [B, W, V], rows `conditional_rank` apart
    const void* unconditional;    // the same, or null
    const float* guidance;        // [B, W]
    const float* temperature;     // [B]
    const long long* top_k;       // [B], off below 1 and from V on
    const float* top_p;           // [B], off from 1 on
    const long long* drafts;      // [B, W - 1]
    const float* q;               // [B, W - 1, V]
    const long long* forced;      // [B, W], or null
    const float* numbers;         // [4, B, W], or null: drawn here
    const long long* seed;        // [B]
    const long long* rank;        // [B], first of the window
    const long long* attempt;     // [B]
    float* laws;                  // [B, W, V], out
    long long* tokens;            // [B, W], out
    long long* run;               // [B], out
    int* flags;                   // [B, W], out
    int* draws;                   // [B, W, 3], between the two kernels
    long long conditional_picture, conditional_rank;  // strides in elements
    long long unconditional_picture, unconditional_rank;
    float omega, decay;           // accept while u q < max(1, omega exp(-decay i)) p; 1 is exact
    int pictures, window, vocabulary;
    int maximal;                  // coupling: maximal, or else independent
    int on_chip;                  // whether a row fits into shared memory
};

enum Flag { BAD_LOGITS = 1, BAD_TOKEN = 2, BAD_LAW = 4 };
enum Draw { KEPT, CORRECTION, TAIL, DRAWS };  // columns of `draws`
enum Use { ACCEPT, RESIDUAL, FRESH };         // of the numbers of a rank

// ---- Numbers ----

struct Half {
    unsigned short bits;
};
struct Brain {
    unsigned short bits;
};

DEVICE float widen(float value) { return value; }
DEVICE float widen(Brain value) { return float_of((unsigned)value.bits << 16); }
DEVICE float widen(Half value) {
    unsigned sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7FFFu;
    if (rest >= 0x7C00u) return float_of(sign | 0x7F800000u | (rest << 13));
    float magnitude = float_of(rest << 13) * float_of(0x77800000u);  // 2^112 moves the exponent
    return sign ? -magnitude : magnitude;
}

// Unsigned keys in the order of the floats.
DEVICE unsigned key_of(float value) {
    unsigned bits = bits_of(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float of_key(unsigned key) {
    return float_of(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

// exp(x) for x of at most 0, and 0 below -87. Taylor's series on [-ln 2 / 2, ln 2 / 2]; ln 2 is
// taken away in two parts, the first of which is exact.
DEVICE float exponential(float x) {
    if (!(x > -87.0f)) return 0.0f;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float sum = 1.0f / 5040;
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return sum * float_of((unsigned)((int)n + 127) << 23);
}

// Fixed point. Weights up to 1 at 2^40 leave room for a sum over 2^18 codes; laws sum to about 1.
constexpr float WEIGHT_ONE = 1099511627776.0f;     // 2^40
constexpr float LAW_ONE = 72057594037927936.0f;    // 2^56

DEVICE u64 fixed(float value, float one) { return (u64)(value * one); }

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011).
DEVICE void philox(unsigned word[4], u64 seed) {
    unsigned first = (unsigned)seed, second = (unsigned)(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        unsigned high0 = (unsigned)high_product(0xD2511F53u, word[0]), low0 = 0xD2511F53u * word[0];
        unsigned high2 = (unsigned)high_product(0xCD9E8D57u, word[2]), low2 = 0xCD9E8D57u * word[2];
        word[0] = high2 ^ word[1] ^ first;
        word[2] = high0 ^ word[3] ^ second;
        word[1] = low2;
        word[3] = low0;
        first += 0x9E3779B9u;
        second += 0xBB67AE85u;
    }
}

DEVICE float uniform(unsigned word) {
    float u = ((float)word + 0.5f) * 2.3283064365386963e-10f;  // 2^-32
    return u < 0.99999994f ? u : 0.99999994f;                  // 1 - 2^-24
}

DEVICE void numbers_of(const Arguments& a, int picture, int column, float u[4]) {
    if (a.numbers) {
        for (int use = 0; use < 4; ++use)
            u[use] = a.numbers[((long long)use * a.pictures + picture) * a.window + column];
        return;
    }
    unsigned word[4] = {(unsigned)(a.rank[picture] + column), (unsigned)a.attempt[picture], 0, 0};
    philox(word, (u64)a.seed[picture]);
    for (int use = 0; use < 4; ++use) u[use] = uniform(word[use]);
}

// ---- Thresholds ----

constexpr int BINS = 2048;

union Histogram {
    unsigned counts[BINS];
    u64 masses[BINS];
};

struct One {
    METHOD unsigned operator()(float) const { return 1; }
};
struct Mass {
    float peak, least;
    METHOD u64 operator()(float logit) const {
        return logit >= least ? fixed(exponential(logit - peak), WEIGHT_ONE) : 0;
    }
};

// The largest value such that the weights of the values of at least it sum to `target` or more.
// Radix select over 11, 11 and 10 bits: with two bits of mantissa among the first eleven, logits
// spread over tens of bins, so that few threads add to the same one.
template <typename Sum, typename Weigh>
DEVICE float threshold(const float* row, int count, Sum* bins, Weigh weigh, u64 target) {
    SHARED int chosen;
    SHARED u64 left;
    unsigned prefix = 0, known = 0;
    for (int pass = 0; pass < 3; ++pass) {
        const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0;
        const int number = pass == 2 ? BINS / 2 : BINS, share = number / THREADS;
        for (int i = THREAD; i < number; i += THREADS) bins[i] = 0;
        barrier();
        for (int i = THREAD; i < count; i += THREADS) {
            unsigned key = key_of(row[i]);
            if ((key & known) == prefix) add(&bins[key >> shift & (number - 1)], weigh(row[i]));
        }
        barrier();
        int bin = number - 1 - THREAD * share;
        u64 mine = 0;
        for (int i = 0; i < share; ++i) mine += bins[bin - i];
        u64 above = scan(mine).before;
        if (above < target && target <= above + mine) {
            while (above + bins[bin] < target) above += bins[bin--];
            chosen = bin;
            left = target - above;
        }
        barrier();
        prefix |= (unsigned)chosen << shift;
        known |= (unsigned)(number - 1) << shift;
        target = left;
        barrier();
    }
    return of_key(prefix);
}

// ---- Draws ----

// What is drawn from: p, or with q the residual (p - q)+.
DEVICE u64 weight_at(const float* p, const float* q, int i) {
    float weight = q && q[i] > 0 ? p[i] - q[i] : p[i];
    return weight > 0 ? fixed(weight, LAW_ONE) : 0;
}

DEVICE u64 position(float u, u64 total) {
    if (!(u > 0)) return 0;
    u64 at = u < 1 ? (u64)((double)u * (double)total) : total;
    return at < total ? at : total - 1;
}

// The first code whose cumulative weight exceeds u times the total; -1 where there is no weight.
DEVICE int draw(const float* p, const float* q, int count, float u) {
    SHARED int picked;
    // Every warp owns a stretch of codes and reads it side by side.
    const int stretch = ((count + WARPS - 1) / WARPS + LANES - 1) / LANES * LANES;
    const int start = THREAD / LANES * stretch, lane = THREAD % LANES;
    const int end = start + stretch < count ? start + stretch : count;
    u64 mine = 0;
    for (int i = start + lane; i < end; i += LANES) mine += weight_at(p, q, i);
    Span all = scan(mine);
    if (all.total == 0) return -1;
    u64 target = position(u, all.total);
    Span warp = scan_warp(mine);
    u64 base = all.before - warp.before;
    if (base <= target && target < base + warp.total) {
        for (int first = start; base <= target; first += LANES) {
            u64 weight = first + lane < end ? weight_at(p, q, first + lane) : 0;
            Span step = scan_warp(weight);
            u64 before = base + step.before;
            if (before <= target && target < before + weight) picked = first + lane;
            base += step.total;
        }
    }
    barrier();
    int code = picked;
    barrier();
    return code;
}

// ---- The law of a rank ----

// Writes guided logits over the temperature; returns the largest, or -infinity without any.
template <typename Logit>
DEVICE float load(const Arguments& a, int picture, int column, float* row, int& flags) {
    const float infinity = float_of(0x7F800000u);
    const Logit* conditional = (const Logit*)a.conditional + picture * a.conditional_picture
                               + column * a.conditional_rank;
    const Logit* unconditional = (const Logit*)a.unconditional;
    if (unconditional)
        unconditional += picture * a.unconditional_picture + column * a.unconditional_rank;
    const float scale = a.guidance[(long long)picture * a.window + column];
    float temperature = a.temperature[picture];
    if (!(temperature > 0)) temperature = float_of(0x7FC00000u);  // NaN: every code is bad
    bool bad = false;
    unsigned best = key_of(-infinity);
    for (int i = THREAD; i < a.vocabulary; i += THREADS) {
        float logit = widen(conditional[i]);
        if (unconditional) {
            float from = widen(unconditional[i]), away = logit - from;
            // As torch.lerp does, so that a scale of 1 is the conditional logit itself.
            logit = scale < 0.5f && scale > -0.5f ? from + scale * away
                                                  : logit - away * (1.0f - scale);
        }
        logit = logit / temperature;
        if (!(logit < infinity)) {
            logit = -infinity;
            bad = true;
        }
        row[i] = logit;
        unsigned key = key_of(logit);
        best = key > best ? key : best;
    }
    float peak = of_key(largest(best));
    if (any_thread(bad) || peak == -infinity) flags |= BAD_LOGITS;
    return peak;
}

// Turns logits into a law in place, cut by top-k and top-p, and writes it out.
DEVICE void normalise(float* row, float* law, int count, long long k, float p, float peak) {
    SHARED Histogram histogram;
    float least = float_of(0xFF800000u);  // -infinity
    if (k > 0 && k < count) least = threshold(row, count, histogram.counts, One{}, (u64)k);
    Mass mass = {peak, least};
    u64 mine = 0;
    if (!(p >= 1)) {
        for (int i = THREAD; i < count; i += THREADS) mine += mass(row[i]);
        double part = p > 0 ? (double)p * (double)scan(mine).total : 0.0;
        u64 target = (u64)part;
        if ((double)target < part || target == 0) ++target;
        mass.least = threshold(row, count, histogram.masses, mass, target);
        mine = 0;
    }
    for (int i = THREAD; i < count; i += THREADS) mine += mass(row[i]);
    const float total = (float)scan(mine).total / WEIGHT_ONE;
    for (int i = THREAD; i < count; i += THREADS) {
        float weight = row[i] >= mass.least ? exponential(row[i] - peak) / total : 0.0f;
        row[i] = weight;
        law[i] = weight;
    }
    barrier();
}

// The law of a rank in `row` and in `law`. Returns the flags.
template <typename Logit>
DEVICE int prepare(const Arguments& a, int picture, int column, float* row, float* law) {
    const long long token = a.forced ? a.forced[(long long)picture * a.window + column] : -1;
    if (token >= 0 && token < a.vocabulary) {
        for (int i = THREAD; i < a.vocabulary; i += THREADS) row[i] = law[i] = i == token;
        barrier();
        return 0;
    }
    int flags = token >= 0 ? BAD_TOKEN : 0;
    float peak = load<Logit>(a, picture, column, row, flags);
    if (peak == float_of(0xFF800000u)) {
        peak = 0.0f;
        for (int i = THREAD; i < a.vocabulary; i += THREADS) row[i] = 0.0f;
    }
    barrier();
    normalise(row, law, a.vocabulary, a.top_k[picture], a.top_p[picture], peak);
    return flags;
}

// ---- The kernels ----

// Accept while u q(x) < scale p(x): Leviathan et al. (2023), Algorithm 1, and Cool-SD (AAAI 2026).
DEVICE float scale_at(const Arguments& a, int column) {
    float scale = a.omega * exponential(-a.decay * column);
    return scale > 1.0f ? scale : 1.0f;
}

template <typename Logit>
DEVICE void judge(const Arguments& a) {
    const int picture = BLOCK / a.window, column = BLOCK % a.window, count = a.vocabulary;
    float* law = a.laws + (long long)BLOCK * count;
    float* row = a.on_chip ? shared_row : law;
    int flags = prepare<Logit>(a, picture, column, row, law);
    float u[4];
    numbers_of(a, picture, column, u);
    int kept = 0, correction = -1, tail = -1;
    if (column < a.window - 1) {
        const long long draft_row = (long long)picture * (a.window - 1) + column;
        const long long draft = a.drafts[draft_row];
        const float* q = a.q + draft_row * count;
        const bool inside = draft >= 0 && draft < count;
        if (!inside) flags |= BAD_TOKEN;
        if (inside && !(q[draft] > 0)) flags |= BAD_LAW;
        bool passes = false;  // the exact test, which couples the tail
        if (flags == 0) {
            const float tested = u[ACCEPT] * q[draft];
            kept = tested < scale_at(a, column) * row[draft];
            passes = tested < row[draft];
        }
        if (a.maximal ? !passes : !kept) {
            correction = draw(row, flags ? nullptr : q, count, u[RESIDUAL]);
            if (correction < 0) correction = draw(row, nullptr, count, u[RESIDUAL]);
        }
        if (a.maximal) tail = passes ? (int)draft : correction;
    }
    if (tail < 0) tail = draw(row, nullptr, count, u[FRESH]);
    if (THREAD == 0) {
        int* draws = a.draws + (long long)BLOCK * DRAWS;
        draws[KEPT] = kept;
        draws[CORRECTION] = correction;
        draws[TAIL] = tail;
        a.flags[BLOCK] = flags;
    }
}

KERNEL judge_float32(Arguments a) { judge<float>(a); }
KERNEL judge_float16(Arguments a) { judge<Half>(a); }
KERNEL judge_bfloat16(Arguments a) { judge<Brain>(a); }

// Joins the ranks of a picture: the run ends at the first draft that is not kept.
KERNEL settle(Arguments a) {
    const int drafts = a.window - 1;
    const int* draws = a.draws + (long long)BLOCK * a.window * DRAWS;
    unsigned left = 0;  // drafts from the first that is not kept
    for (int i = THREAD; i < drafts; i += THREADS)
        if (!draws[i * DRAWS + KEPT] && drafts - i > (int)left) left = drafts - i;
    const int run = drafts - (int)largest(left);
    long long* tokens = a.tokens + (long long)BLOCK * a.window;
    for (int i = THREAD; i < a.window; i += THREADS) {
        if (i < run) tokens[i] = a.drafts[(long long)BLOCK * drafts + i];
        else tokens[i] = draws[i * DRAWS + (i == run && i < drafts ? CORRECTION : TAIL)];
    }
    if (THREAD == 0) a.run[BLOCK] = run;
}

// ---- The host build ----

#if !defined(__CUDACC__)

extern "C" void verify_on_host(const Arguments* a, int logit_bytes, int brain) {
    for (host_block = 0; host_block < a->pictures * a->window; ++host_block) {
        if (logit_bytes == 4) judge_float32(*a);
        else if (brain) judge_bfloat16(*a);
        else judge_float16(*a);
    }
    for (host_block = 0; host_block < a->pictures; ++host_block) settle(*a);
}

extern "C" void philox_on_host(unsigned* words, u64 seed) { philox(words, seed); }

extern "C" float exponential_on_host(float x) { return exponential(x); }

#endif
