// Thresholds and draws over one row, by a whole block; knows nothing about drafts.
#pragma once

#include "numbers.cuh"

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

// The code of the least race E / p, E = -log(1 - u) and u the Gumbel stream of the rank: that is the
// code of the largest log p - log E, the Gumbel maximum, with one logarithm a code instead of two.
DEVICE int race(const float* p, int count, u64 seed, unsigned rank) {
    u64 best = ~0ull;
    for (int block = THREAD; block * 4 < count; block += THREADS) {
        unsigned word[4] = {rank, (unsigned)block, GUMBEL_STREAM, 0};
        philox(word, seed);
        for (int lane = 0; lane < 4; ++lane) {
            const int code = block * 4 + lane;
            if (code >= count || !(p[code] > 0)) continue;
            const float time = exponential_of(uniform(word[lane])) / p[code];
            const u64 key = (u64)bits_of(time) << 32 | (unsigned)code;
            best = key < best ? key : best;
        }
    }
    return (int)(smallest(best) & 0xFFFFFFFFu);
}
