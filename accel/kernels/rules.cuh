// What a launch is given, and the acceptance rules: one structure a rule, named by the macro RULE
// when a kernel is compiled. `visual_ar.accel.rules` specifies them; knows nothing about logits.
#pragma once

#include "select.cuh"

// `Arguments` in `device.py` mirrors it field by field.
struct Arguments {
    const void* conditional;      // [B, W, V], rows `conditional_rank` apart
    const void* unconditional;    // the same, or null
    const float* guidance;        // [B, W]
    const float* temperature;     // [B]
    const long long* top_k;       // [B], off below 1 and from V on
    const float* top_p;           // [B], off from 1 on
    const long long* drafts;      // [B, W - 1], or null: every rank is drawn
    const float* q;               // [B, W - 1, V], null without drafts
    const long long* forced;      // [B, W], or null
    const float* numbers;         // [4, B, W], or null: drawn here
    const long long* seed;        // [B]
    const long long* rank;        // [B], first of the window
    const long long* attempt;     // [B]
    const void* codes;            // [V, width], table of a rule that compares codes, or null
    float* laws;                  // [B, W, V], out
    long long* tokens;            // [B, W], out
    long long* run;               // [B], out
    int* flags;                   // [B, W], out
    float* initial;               // [B, W], out, the number of a rank that is left over
    int* draws;                   // [B, W, 3], between the two kernels
    long long conditional_picture, conditional_rank;  // strides in elements
    long long unconditional_picture, unconditional_rank;
    float options[2];             // of the rule
    int width, size;              // of `codes`, and of a cluster of codes
    int pictures, window, vocabulary;
    int coupling;
    int on_chip;                  // whether a row fits into shared memory
};

enum Flag { BAD_LOGITS = 1, BAD_TOKEN = 2, BAD_LAW = 4 };
enum Coupling { INDEPENDENT, MAXIMAL, GUMBEL };
enum Draw { KEPT, CORRECTION, TAIL, DRAWS };     // columns of `draws`
enum Use { ACCEPT, RESIDUAL, FRESH, INITIAL };  // of the numbers of a rank

// A draft, the number it is tested with, and the laws at its rank.
struct Draft {
    int code, column;
    float u;
    float* p;
    const float* q;
};

// A draw from norm((p - q)+), or from p where that has no mass.
DEVICE int draw_residual(const float* p, const float* q, int count, float u) {
    const int code = draw(p, q, count, u);
    return code < 0 ? draw(p, nullptr, count, u) : code;
}

// Accept while u q(x) < p(x): Leviathan et al. (2023), Algorithm 1.
DEVICE bool passes_exactly(const Draft& d) { return d.u * d.q[d.code] < d.p[d.code]; }

// A rule says whether a draft is kept, and draws what replaces it. All threads call it together.
struct Ordinary {
    static constexpr bool ordinary = true;  // the replacement is drawn from the residual
    static METHOD int correct(const Arguments& a, const Draft& d, float u) {
        return draw_residual(d.p, d.q, a.vocabulary, u);
    }
};

struct Exact : Ordinary {
    static METHOD bool keeps(const Arguments&, const Draft& d) { return passes_exactly(d); }
};

// Cool-SD (AAAI 2026): the exact test, loosened by omega exp(-decay i). Options: omega, decay.
struct Omega : Ordinary {
    static METHOD bool keeps(const Arguments& a, const Draft& d) {
        const float loose = a.options[0] * exponential(-a.options[1] * d.column);
        return d.u * d.q[d.code] < (loose > 1.0f ? loose : 1.0f) * d.p[d.code];
    }
};

// Typical acceptance (Cai et al. 2024, Medusa): p above min(epsilon, alpha exp(-H)), H in nats;
// replaced by a draw from p. Options: epsilon, alpha.
struct Typical {
    static constexpr bool ordinary = false;
    static METHOD bool keeps(const Arguments& a, const Draft& d) {
        u64 mine = 0;
        for (int i = THREAD; i < a.vocabulary; i += THREADS) {
            const float p = d.p[i], share = p > 0 ? -p * logarithm(p) : 0.0f;
            mine += fixed(share > 0 ? share : 0.0f, WEIGHT_ONE);
        }
        const float entropy = (float)scan(mine).total / WEIGHT_ONE;
        const float bound = a.options[1] * exponential(-entropy);
        return d.p[d.code] > (bound < a.options[0] ? bound : a.options[0]);
    }
    static METHOD int correct(const Arguments& a, const Draft& d, float u) {
        return draw(d.p, nullptr, a.vocabulary, u);
    }
};

// LANTERN (Jang et al. 2025, eq. 4) and LANTERN++: a draft counts with its nearest codes while
// their mass is at most limit + slope p(x); they are left out of what replaces it. `codes` is the
// table int64 [V, width], nearest first. Options: limit, slope.
struct Lantern {
    static constexpr bool ordinary = false;
    struct Near {
        int count;
        float mass;
    };
    static METHOD const long long* table(const Arguments& a, const Draft& d) {
        return (const long long*)a.codes + (long long)d.code * a.width;
    }
    static METHOD bool exists(const Arguments& a, long long code) {
        return code >= 0 && code < a.vocabulary;
    }
    static METHOD Near near(const Arguments& a, const Draft& d) {
        const long long* code = table(a, d);
        const float limit = a.options[0] + a.options[1] * d.p[d.code];
        float mass = 0.0f;
        for (int i = 0; i < a.width; ++i) {
            const float with = exists(a, code[i]) ? mass + d.p[code[i]] : mass;
            if (!(with <= limit)) return {i, mass};
            mass = with;
        }
        return {a.width, mass};
    }
    static METHOD bool keeps(const Arguments& a, const Draft& d) {
        const float own = d.p[d.code];
        return own > 0 && d.u * d.q[d.code] < own + near(a, d).mass;
    }
    static METHOD int correct(const Arguments& a, const Draft& d, float u) {
        const int count = near(a, d).count;
        barrier();
        mark(a, d, count, 0x80000000u);  // a negative probability has no weight in a draw
        const int code = draw(d.p, d.q, a.vocabulary, u);
        mark(a, d, count, 0u);
        return code < 0 ? draw_residual(d.p, d.q, a.vocabulary, u) : code;
    }
    static METHOD void mark(const Arguments& a, const Draft& d, int count, unsigned sign) {
        const long long* code = table(a, d);
        for (int i = THREAD; i < count; i += THREADS)
            if (exists(a, code[i]))
                d.p[code[i]] = float_of((bits_of(d.p[code[i]]) & 0x7FFFFFFFu) | sign);
        barrier();
    }
};

// Grouped Speculative Decoding (So et al. 2025, eq. 6): the ratio of clusters of the codes next to
// the draft in the order of p, half of them above, half below. `codes` are the code vectors fp32
// [V, width]. Options: largest squared distance, largest difference of probability.
struct Grouped : Ordinary {
    struct Cluster {
        float p, q;
    };
    static METHOD bool keeps(const Arguments& a, const Draft& d) {
        Cluster cluster = {d.p[d.code], d.q[d.code]};
        if (!(cluster.p > 0)) return false;
        const u64 own = (u64)bits_of(cluster.p) << 32;
        grow<false>(a, d, own, cluster);
        grow<true>(a, d, ~own + 1, cluster);  // keys below `own` have complements from here on
        return d.u * cluster.q < cluster.p;
    }
    // Adds the codes of the size / 2 least keys from `from` on, complements of keys if `below`.
    template <bool below>
    static METHOD void grow(const Arguments& a, const Draft& d, u64 from, Cluster& cluster) {
        for (int step = 0; step < a.size / 2; ++step) {
            u64 mine = ~0ull;
            for (int i = THREAD; i < a.vocabulary; i += THREADS) {
                if (i == d.code || !(d.p[i] > 0)) continue;
                u64 key = (u64)bits_of(d.p[i]) << 32 | (unsigned)i;
                if (below) key = ~key;
                if (key >= from && key < mine) mine = key;
            }
            const u64 key = smallest(mine);
            if (key == ~0ull) return;
            add(a, d, (int)((below ? ~key : key) & 0xFFFFFFFFu), cluster);
            from = key + 1;
        }
    }
    static METHOD void add(const Arguments& a, const Draft& d, int code, Cluster& cluster) {
        const float* vectors = (const float*)a.codes;
        float distance = 0.0f;
        for (int i = 0; i < a.width; ++i) {
            const float away = vectors[(long long)code * a.width + i]
                               - vectors[(long long)d.code * a.width + i];
            distance += away * away;
        }
        const float gap = d.p[code] - d.p[d.code];
        if (!(distance < a.options[0]) || !((gap < 0 ? -gap : gap) < a.options[1])) return;
        cluster.p += d.p[code];
        if (d.q[code] > 0) cluster.q += d.q[code];
    }
};
