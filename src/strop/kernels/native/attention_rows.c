/* Softmax over rows of scores, forward and backward, 16 lanes at a time (attention.h says what each does).
 *
 * A row is worked on up to the end of the 16 lanes in which its visible keys end; the scores in between are set to -inf
 * first, and so count for nothing. The additions are the same with every instruction set, and so are the bytes.
 */
#include "attention.h"

#include "lanes.h"

/* Numbers in a register. */
#if defined(ISA_AVX512)
enum { WIDE = 16 };
#elif defined(ISA_AVX2)
enum { WIDE = 8 };
#else
enum { WIDE = 4 };
#endif
enum { SIXTEEN = 16, PARTS = SIXTEEN / WIDE };

typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef int32_t wide_bits __attribute__((vector_size(4 * WIDE)));

static inline wide choose(wide_bits which, wide yes, wide no) {
    return (wide)((which & (wide_bits)yes) | (~which & (wide_bits)no));
}

/* exp_float of lanes.h for numbers that are not above 88. */
static inline wide exp_wide(wide x) {
    const wide zero = {0};
    const wide clamped = choose(x < -87.33654f, zero - 87.33654f, x);
    const wide shifted = clamped * 1.44269504f + 12582912.0f;
    const wide n = shifted - 12582912.0f;
    const wide r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    wide p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const wide_bits exponent = ((wide_bits)shifted - 0x4B400000 + 127) << 23;
    return choose(x < -87.33654f, zero, p * (wide)exponent);
}

static inline wide load(const float *x) {
    wide value;
    memcpy(&value, x, sizeof value);
    return value;
}

static inline void store(float *x, wide value) { memcpy(x, &value, sizeof value); }

static inline int64_t visible_keys(tile_shape shape, int64_t row) {
    return smaller(shape.columns, shape.first_visible + row % shape.positions);
}

static inline int64_t whole_lanes(int64_t count) { return (count + SIXTEEN - 1) / SIXTEEN * SIXTEEN; }

/* The fold of lanes.h: 16 partial sums, 8, 4, 2, 1. */
static inline float fold_sixteen(float *sums) {
    for (int half = SIXTEEN / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

static inline void fill(float *x, int64_t from, int64_t to, float value) {
    for (int64_t i = from; i < to; i++) x[i] = value;
}

/* The highest of whole lanes; NaN is passed over. */
static inline float highest_of(const float *x, int64_t count) {
    wide most[PARTS];
    for (int part = 0; part < PARTS; part++) most[part] = load(x + part * WIDE);
    for (int64_t i = SIXTEEN; i < count; i += SIXTEEN)
        for (int part = 0; part < PARTS; part++) {
            const wide value = load(x + i + part * WIDE);
            most[part] = choose(value > most[part], value, most[part]);
        }
    float each[SIXTEEN], highest = -INFINITY;
    memcpy(each, most, sizeof each);
    for (int lane = 0; lane < SIXTEEN; lane++) highest = each[lane] > highest ? each[lane] : highest;
    return highest;
}

static void softmax(float *scores, tile_shape shape, float *highest, float *total, float *shrink) {
    for (int64_t row = 0; row < shape.rows; row++) {
        float *x = scores + row * shape.stride;
        const int64_t visible = visible_keys(shape, row), count = whole_lanes(visible);
        fill(x, visible, count, -INFINITY);
        const float before = highest[row], here = highest_of(x, count), now = here > before ? here : before;
        wide sums[PARTS] = {{0}};
        for (int64_t i = 0; i < count; i += SIXTEEN)
            for (int part = 0; part < PARTS; part++) {
                const wide value = exp_wide(load(x + i + part * WIDE) - now);
                store(x + i + part * WIDE, value);
                sums[part] += value;
            }
        fill(x, count, shape.columns, 0.0f);
        highest[row] = now;
        shrink[row] = exp_float(before - now);
        float each[SIXTEEN];
        memcpy(each, sums, sizeof each);
        total[row] = total[row] * shrink[row] + fold_sixteen(each);
    }
}

static void softmax_backward(float *scores, float *grads, tile_shape shape, const float *row_sums,
                             const float *delta) {
    for (int64_t row = 0; row < shape.rows; row++) {
        float *x = scores + row * shape.stride, *grad = grads + row * shape.stride;
        const int64_t visible = visible_keys(shape, row), count = whole_lanes(visible);
        const float sum = row_sums[row], less = delta[row];
        fill(x, visible, count, -INFINITY);
        fill(grad, visible, count, 0.0f);
        for (int64_t i = 0; i < count; i += WIDE) {
            const wide p = exp_wide(load(x + i) - sum);
            store(x + i, p);
            store(grad + i, p * (load(grad + i) - less));
        }
        fill(x, count, shape.columns, 0.0f);
        fill(grad, count, shape.columns, 0.0f);
    }
}

static float dot(const float *a, const float *b, int64_t count) {
    float sums[SIXTEEN] = {0};
    int64_t i = 0;
    for (; i + SIXTEEN <= count; i += SIXTEEN)
        for (int lane = 0; lane < SIXTEEN; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (int lane = 0; i < count; i++, lane++) sums[lane] += a[i] * b[i];
    return fold_sixteen(sums);
}

static void scale(float *x, float factor, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] *= factor;
}

const attention_rows ISA_NAME(attention_rows) = {softmax, softmax_backward, dot, scale};
