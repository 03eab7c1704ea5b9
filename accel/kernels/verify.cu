// Verifies windows of drafts: raw logits in, tokens out. `reference.py` is the specification.
//
// One block per (picture, rank) guides, warps, tests and draws; one block per picture then joins the
// ranks. All sums are of integers (fixed point) and the exponential is our own, so that a result
// depends neither on the number of threads nor on the batch, and is the same bits on a GPU and in
// the host build, where a block is one thread. Compile without fused multiply-add for that.
// Knows nothing about torch, and includes nothing from elsewhere when compiled for a GPU.

#include "rules.cuh"

#ifndef RULE
#define RULE Exact
#endif

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

// ---- The law of a rank ----

// Classifier-free guidance as `visual_ar.sampling.guide` has it: what is infinite stays so, the
// conditional's infinity first, and the other's only where the scale is not 1.
DEVICE float guide(float logit, float from, float scale) {
    if (infinite(logit)) return logit;
    if (infinite(from)) return scale == 1.0f ? logit : from;
    const float away = logit - from;
    // As torch.lerp does, so that a scale of 1 is the conditional logit itself.
    return scale < 0.5f && scale > -0.5f ? from + scale * away : logit - away * (1.0f - scale);
}

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
        if (unconditional) logit = guide(logit, widen(unconditional[i]), scale);
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

template <typename Logit>
DEVICE void judge(const Arguments& a) {
    const int picture = BLOCK / a.window, column = BLOCK % a.window, count = a.vocabulary;
    float* law = a.laws + (long long)BLOCK * count;
    float* row = a.on_chip ? shared_row : law;
    int flags = prepare<Logit>(a, picture, column, row, law);
    float u[4];
    numbers_of(a, picture, column, u);
    int kept = 0, correction = -1, tail = -1;
    if (a.drafts && column < a.window - 1) {
        const long long draft_row = (long long)picture * (a.window - 1) + column;
        const long long code = a.drafts[draft_row];
        const float* q = a.q + draft_row * count;
        const bool inside = code >= 0 && code < count;
        if (!inside) flags |= BAD_TOKEN;
        if (inside && !(q[code] > 0)) flags |= BAD_LAW;
        const Draft draft = {(int)code, column, u[ACCEPT], row, q};
        bool passes = false;  // the exact test, which couples the tail
        if (flags == 0) {
            kept = RULE::keeps(a, draft);
            passes = passes_exactly(draft);
        }
        const bool ordinary = flags || RULE::ordinary;
        int rest = -1;
        if (a.coupling == MAXIMAL ? !passes || (!kept && ordinary) : !kept && ordinary)
            rest = draw_residual(row, flags ? nullptr : q, count, u[RESIDUAL]);
        if (!kept) correction = ordinary ? rest : RULE::correct(a, draft, u[RESIDUAL]);
        if (a.coupling == MAXIMAL) tail = passes ? (int)code : rest;
    }
    if (tail < 0) {
        const unsigned rank = (unsigned)(a.rank[picture] + column);
        tail = a.coupling == GUMBEL ? race(row, count, (u64)a.seed[picture], rank)
                                    : draw(row, nullptr, count, u[FRESH]);
    }
    if (THREAD == 0) {
        int* draws = a.draws + (long long)BLOCK * DRAWS;
        draws[KEPT] = kept;
        draws[CORRECTION] = correction;
        draws[TAIL] = tail;
        a.flags[BLOCK] = flags;
        a.initial[BLOCK] = u[INITIAL];
    }
}

KERNEL judge_float32(Arguments a) { judge<float>(a); }
KERNEL judge_float16(Arguments a) { judge<Half>(a); }
KERNEL judge_bfloat16(Arguments a) { judge<Brain>(a); }

// Joins the ranks of a picture: the run ends at the first draft that is not kept.
KERNEL settle(Arguments a) {
    const int drafts = a.drafts ? a.window - 1 : 0;
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

extern "C" float guide_on_host(float logit, float from, float scale) {
    return guide(logit, from, scale);
}

extern "C" float exponential_on_host(float x) { return exponential(x); }

extern "C" float logarithm_on_host(float x) { return logarithm(x); }

extern "C" float race_time_on_host(float u) { return exponential_of(u); }

#endif
