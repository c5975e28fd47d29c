/* What the files that are compiled for every instruction set share: sums in a fixed order, exp, 16-bit numbers.
 *
 * Loops over elements are plain C that the compiler vectorises. A sum keeps 16 partial sums, lane l of elements l,
 * l + 16, …, which are folded in halves at the end: whatever the width of the machine's registers, the additions are
 * the same and so are the bytes. No operation here is a fused multiply-add, for a plain x86-64 has none.
 */
#ifndef STROP_LANES_H
#define STROP_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

/* Numbers in a register. gcc keeps vectors that are wider than a register in memory: on AVX2 a sum of 64-byte vectors
 * ran at 1.2 numbers a nanosecond, as two registers it runs at 18. */
#if defined(ISA_AVX512)
#define WIDTH 16
#elif defined(ISA_AVX2)
#define WIDTH 8
#else
#define WIDTH 4
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH)));

/* Sixteen numbers: partial sums, or what is added to them. */
typedef struct {
    vec part[LANES / WIDTH];
} lanes;

static inline lanes load_lanes(const float *x) {
    lanes value;
    for (int i = 0; i < LANES / WIDTH; i++) memcpy(&value.part[i], x + i * WIDTH, sizeof value.part[i]);
    return value;
}

/* The first `count` of 16, and zeros. */
static inline lanes load_some(const float *x, int64_t count) {
    float part[LANES] = {0};
    for (int64_t i = 0; i < count; i++) part[i] = x[i];
    return load_lanes(part);
}

static inline lanes add(lanes a, lanes b) {
    for (int i = 0; i < LANES / WIDTH; i++) a.part[i] += b.part[i];
    return a;
}

static inline lanes multiply(lanes a, lanes b) {
    for (int i = 0; i < LANES / WIDTH; i++) a.part[i] *= b.part[i];
    return a;
}

/* A sum's next numbers: a multiple of 16 of them, or its last. */
static inline lanes add_block(lanes sums, const float *x, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums = add(sums, load_lanes(x + i));
    return add(sums, load_some(x + i, count - i));
}

/* The fold: 16 partial sums, 8, 4, 2, 1. */
static inline float fold(lanes sums) {
    float part[LANES];
    memcpy(part, &sums, sizeof part);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++) part[lane] += part[lane + width];
    return part[0];
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* e^x to 1.5 units in the last place, without branches: Cephes' polynomial and split of ln 2 (S. Moshier, expf.c).
 * Below the logarithm of the smallest normal number it is 0, above 88 infinite; NaN stays NaN. Whatever the
 * polynomial makes of numbers outside is not chosen: clamping x first took twice the time. */
static inline float exp_float(float x) {
    /* Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits. */
    const float shifted = x * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const float power = p * float_of((bits_of(shifted) - bits_of(12582912.0f) + 127u) << 23);
    const float bounded = x > 88.0f ? INFINITY : power;
    return x < -87.33654f ? 0.0f : bounded;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_float(-x)); }

static inline float from_bfloat16(uint16_t number) { return float_of((uint32_t)number << 16); }

/* To the nearest, of two that are as near to the even one. A NaN is cut, and stays one: what arithmetic makes, or
 * leaves of a NaN, has the highest bit of its mantissa set. */
static inline uint16_t to_bfloat16(float x) {
    const uint32_t bits = bits_of(x), half = x == x ? 0x7FFFu + (bits >> 16 & 1u) : 0u;
    return (uint16_t)((bits + half) >> 16);
}

/* Exact, denormals, infinities and NaN included, without branches (M. Dukhan, FP16, fp16_ieee_to_fp32_value). */
static inline float from_float16(uint16_t number) {
    const uint32_t word = (uint32_t)number << 16, twice = word + word;
    const float normal = float_of((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
    const float denormal = float_of((twice >> 17) | (126u << 23)) - 0.5f;
    return float_of((word & 0x80000000u) | (twice < (1u << 27) ? bits_of(denormal) : bits_of(normal)));
}

/* To the nearest, of two that are as near to the even one, denormals included (Dukhan, fp16_ieee_from_fp32_value). */
static inline uint16_t to_float16(float x) {
    const uint32_t bits = bits_of(x), twice = bits + bits;
    const uint32_t exponent = (twice & 0xFF000000u) < 0x71000000u ? 0x71000000u : twice & 0xFF000000u;
    /* Too large a number becomes infinite; what is added next pushes the bits out that have no place. */
    const float scaled = fabsf(x) * 0x1.0p+112f * 0x1.0p-110f;
    const uint32_t sum = bits_of(float_of((exponent >> 1) + 0x07800000u) + scaled);
    const uint32_t magnitude = ((sum >> 13) & 0x7C00u) + (sum & 0x0FFFu);
    return (uint16_t)((bits >> 16 & 0x8000u) | (twice > 0xFF000000u ? 0x7E00u : magnitude));
}

/* Rows a task: about 16,384 elements, 64 KiB, so that a task costs more than handing it out. */
static inline int64_t rows_per_task(int64_t columns) {
    return columns >= 16384 ? 1 : 16384 / (columns > 0 ? columns : 1);
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
