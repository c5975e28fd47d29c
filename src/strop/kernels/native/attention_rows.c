/* Softmax over tiles of scores, forward and backward (attention.h says what each does).
 *
 * A register holds as many queries, and goes down their keys one after another: each query has its own sum, in the same
 * order with every instruction set, and so the bytes are the same.
 */
#include "attention.h"

#include "lanes.h"

enum { WIDE = ATTENTION_WIDTH, SIXTEEN = 16 };

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

static inline wide_bits load_bits(const int32_t *x) {
    wide_bits value;
    memcpy(&value, x, sizeof value);
    return value;
}

/* NaN in x is passed over. */
static inline wide higher(wide x, wide y) { return choose(x > y, x, y); }

static inline void softmax_columns(float *scores, tile_shape shape, wide_bits limits, float *highest, float *total,
                                   float *shrink) {
    const wide zero = {0}, before = load(highest);
    for (int64_t key = shape.seen_by_all; key < shape.keys; key++) {
        float *score = scores + key * shape.stride;
        store(score, choose(limits > (int32_t)key, load(score), zero - INFINITY));
    }
    /* Four at a time, for one has to wait for the one before. */
    wide most[4] = {before, before, before, before};
    int64_t next = 0;
    for (; next + 4 <= shape.keys; next += 4)
        for (int i = 0; i < 4; i++) most[i] = higher(load(scores + (next + i) * shape.stride), most[i]);
    for (; next < shape.keys; next++) most[0] = higher(load(scores + next * shape.stride), most[0]);
    const wide now = higher(higher(most[0], most[1]), higher(most[2], most[3]));
    wide sum = zero;
    for (int64_t key = 0; key < shape.keys; key++) {
        const wide value = exp_wide(load(scores + key * shape.stride) - now);
        store(scores + key * shape.stride, value);
        sum += value;
    }
    const wide less = exp_wide(before - now);
    store(highest, now);
    store(shrink, less);
    store(total, load(total) * less + sum);
}

static void softmax(float *scores, tile_shape shape, float *highest, float *total, float *shrink) {
    for (int64_t row = 0; row < shape.stride; row += WIDE)
        softmax_columns(scores + row, shape, load_bits(shape.limits + row), highest + row, total + row, shrink + row);
}

static void softmax_backward(float *scores, float *grads, tile_shape shape, const float *row_sums,
                             const float *delta) {
    const wide zero = {0};
    for (int64_t row = 0; row < shape.stride; row += WIDE) {
        const wide_bits limits = load_bits(shape.limits + row);
        const wide sum = load(row_sums + row), less = load(delta + row);
        for (int64_t key = 0; key < shape.keys; key++) {
            float *score = scores + key * shape.stride + row, *grad = grads + key * shape.stride + row;
            wide p = exp_wide(load(score) - sum), slope = p * (load(grad) - less);
            if (key >= shape.seen_by_all) {
                const wide_bits seen = limits > (int32_t)key;
                p = choose(seen, p, zero);
                slope = choose(seen, slope, zero);
            }
            store(score, p);
            store(grad, slope);
        }
    }
}

/* Sixteen rows by sixteen columns at a time, so that lines that are read and written stay in the first cache. */
static void turn(const float *from, int64_t rows, int64_t width, float factor, float *to, int64_t stride) {
    for (int64_t row = 0; row < stride; row += SIXTEEN) {
        const int64_t there = smaller(SIXTEEN, rows - row);
        for (int64_t column = 0; column < width; column++) {
            float *out = to + column * stride + row;
            const float *in = from + row * width + column;
            for (int64_t i = 0; i < there; i++) out[i] = in[i * width] * factor;
            for (int64_t i = there < 0 ? 0 : there; i < SIXTEEN; i++) out[i] = 0.0f;
        }
    }
}

static float dot(const float *a, const float *b, int64_t count) {
    float sums[SIXTEEN] = {0};
    int64_t i = 0;
    for (; i + SIXTEEN <= count; i += SIXTEEN)
        for (int lane = 0; lane < SIXTEEN; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (int lane = 0; i < count; i++, lane++) sums[lane] += a[i] * b[i];
    for (int half = SIXTEEN / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

static void scale(float *x, float factor, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] *= factor;
}

static void widen(const uint16_t *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = from_bfloat16(from[i]);
}

/* Half of the last place that stays is added, less a bit where that place is even. NaN keeps its upper bits and
 * becomes a quiet one, so that it does not round to an infinity. */
static void narrow(const float *from, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = bits_of(from[i]), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        to[i] = (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? (bits >> 16) | 0x40u : rounded);
    }
}

const attention_rows ISA_NAME(attention_rows) = {softmax, softmax_backward, turn, dot, scale, widen, narrow};
