/* The element-wise half of attention: rows of a tile of scores. attention_rows.c is compiled for every instruction set,
 * attention.c picks one and does the rest.
 *
 * A tile has `rows` rows of `columns` scores, `stride` apart, a multiple of 16 that is not below `columns`. Row r is
 * position r mod `positions` of a block of queries, and sees min(columns, first_visible + r mod positions) keys, at
 * least one. What it does not see becomes 0.
 */
#ifndef STROP_ATTENTION_H
#define STROP_ATTENTION_H

#include "strop.h"

typedef struct {
    int64_t rows, columns, stride, positions, first_visible;
} tile_shape;

typedef struct {
    /* scores_rc becomes exp(scores_rc - highest_r); highest, total and shrink go on from the tiles before: what was
     * summed before has to be multiplied by shrink_r. */
    void (*softmax)(float *scores, tile_shape shape, float *highest, float *total, float *shrink);
    /* scores_rc becomes P = exp(scores_rc - row_sum_r), grads_rc (dP) becomes P (dP - delta_r). */
    void (*softmax_backward)(float *scores, float *grads, tile_shape shape, const float *row_sums, const float *delta);
    /* Σ_i a_i b_i */
    float (*dot)(const float *a, const float *b, int64_t count);
    /* x_i = factor · x_i */
    void (*scale)(float *x, float factor, int64_t count);
} attention_rows;

extern const attention_rows attention_rows_plain;
extern const attention_rows attention_rows_avx2;
extern const attention_rows attention_rows_avx512;
extern const attention_rows attention_rows_neon;

#endif
