/* What attention does to tiles of scores. attention_rows.c and attention_product.c are compiled for every instruction
 * set, attention.c picks one and does the rest.
 *
 * A tile is turned over: a row is a key, a column a row of the block of queries, so that 16 queries are 16 lanes and
 * nothing is summed across them. It has `keys` rows of `stride` scores, a multiple of 16 that is not below the block's
 * rows. Column r sees the keys below limits[r], at least one; those below `seen_by_all` are seen by all of them. What
 * it does not see becomes 0.
 */
#ifndef STROP_ATTENTION_H
#define STROP_ATTENTION_H

#include <string.h>

#include "strop.h"

/* Numbers in a register. */
#if defined(ISA_AVX512)
#define ATTENTION_WIDTH 16
#elif defined(ISA_AVX2)
#define ATTENTION_WIDTH 8
#else
#define ATTENTION_WIDTH 4
#endif

typedef struct {
    int64_t keys, stride, seen_by_all;
    const int32_t *limits;
} tile_shape;

typedef struct {
    /* scores_kr becomes exp(scores_kr - highest_r); highest, total and shrink go on from the tiles before: what was
     * summed before has to be multiplied by shrink_r. */
    void (*softmax)(float *scores, tile_shape shape, float *highest, float *total, float *shrink);
    /* scores_kr becomes P = exp(scores_kr - row_sum_r), grads_kr (dP) becomes P (dP - delta_r). */
    void (*softmax_backward)(float *scores, float *grads, tile_shape shape, const float *row_sums, const float *delta);
    /* to_er = factor · from_re for `rows` rows of `width`; the columns from there to `stride` become 0. */
    void (*turn)(const float *from, int64_t rows, int64_t width, float factor, float *to, int64_t stride);
    /* Σ_i a_i b_i */
    float (*dot)(const float *a, const float *b, int64_t count);
    /* x_i = factor · x_i */
    void (*scale)(float *x, float factor, int64_t count);
    /* bfloat16 to float32, and back: to the nearest, of two the even one; NaN stays NaN. */
    void (*widen)(const uint16_t *from, float *to, int64_t count);
    void (*narrow)(const float *from, uint16_t *to, int64_t count);
} attention_rows;

/* c_mn = a · b, or c_mn + a · b where `add`. Element (i, p) of a is a[i · a_row + p · a_column]; b is [k, n], c is
 * [m, n], ld* floats from one row to the next; c overlaps neither. */
typedef void (*attention_product)(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column,
                                  const float *b, int64_t ldb, int add, float *c, int64_t ldc);

#define ATTENTION_DECLARE(isa)                          \
    extern const attention_rows attention_rows_##isa;   \
    extern const attention_product attention_product_##isa;
ATTENTION_DECLARE(plain)
ATTENTION_DECLARE(avx2)
ATTENTION_DECLARE(avx512)
ATTENTION_DECLARE(neon)

#endif
