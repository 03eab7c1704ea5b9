// Floats whose bits are the same on every machine, and random numbers; knows nothing about laws.
#pragma once

#include "machine.cuh"

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

DEVICE bool infinite(float value) { return (bits_of(value) & 0x7FFFFFFFu) == 0x7F800000u; }

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

// log(x) for x above 0: 2 atanh((m - 1) / (m + 1)) of the mantissa m in [sqrt(1/2), sqrt(2)).
DEVICE float logarithm(float x) {
    float shift = 0.0f;
    if (x < 1.17549435e-38f) {  // subnormal
        x *= 16777216.0f;
        shift = -24.0f;
    }
    unsigned bits = bits_of(x) - 0x3F3504F3u;
    float exponent = shift + (float)((int)bits >> 23);
    float mantissa = float_of((bits & 0x7FFFFFu) + 0x3F3504F3u);
    float s = (mantissa - 1.0f) / (mantissa + 1.0f), square = s * s;
    float sum = 1.0f / 9;
    sum = sum * square + 1.0f / 7;
    sum = sum * square + 1.0f / 5;
    sum = sum * square + 1.0f / 3;
    sum = sum * square + 1.0f;
    return (2.0f * s * sum + exponent * -2.12194440e-4f) + exponent * 0.693359375f;
}

// -log(1 - u) for u in (0, 1), also where 1 - u rounds.
DEVICE float exponential_of(float u) {
    float rest = 1.0f - u;
    return rest == 1.0f ? u : logarithm(rest) * (u / (rest - 1.0f));
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

enum Stream { UNIFORM_STREAM, GUMBEL_STREAM };  // as in `visual_ar.sampling`

DEVICE float uniform(unsigned word) {
    float u = ((float)word + 0.5f) * 2.3283064365386963e-10f;  // 2^-32
    return u < 0.99999994f ? u : 0.99999994f;                  // 1 - 2^-24
}
