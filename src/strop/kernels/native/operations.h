/* The operations that are compiled once for every instruction set: X(result, name, parameters, arguments).
 *
 * vector.c and nf4.c define ISA_NAME(name); dispatch.c exports strop_name, which calls the chosen one. The Python file
 * of an operation says what it computes. Matrices are row-major, columns next to each other, rows `stride` elements
 * apart; matrices of one call do not overlap unless they are one.
 */
#ifndef STROP_OPERATIONS_H
#define STROP_OPERATIONS_H

#include "strop.h"

/* What 16-bit and 32-bit numbers are read as. */
enum { KIND_FLOAT32 = 0, KIND_BFLOAT16 = 1, KIND_FLOAT16 = 2 };

#define STROP_OPERATIONS(X)                                                                                         \
    X(void, normalize,                                                                                              \
      (const float *x, int64_t x_stride, const float *weight, float eps, float *out, int64_t out_stride,            \
       int64_t rows, int64_t columns),                                                                              \
      (x, x_stride, weight, eps, out, out_stride, rows, columns))                                                   \
    X(void, normalize_backward,                                                                                     \
      (const float *grad, int64_t grad_stride, const float *x, int64_t x_stride, const float *weight, float eps,    \
       float *into, int64_t into_stride, int64_t rows, int64_t columns),                                            \
      (grad, grad_stride, x, x_stride, weight, eps, into, into_stride, rows, columns))                              \
    X(void, rotate,                                                                                                 \
      (float *x, int64_t stride, int64_t head_stride, const float *cosine, const float *sine, int64_t rows,         \
       int64_t heads, int64_t half, int interleaved, int inverse),                                                  \
      (x, stride, head_stride, cosine, sine, rows, heads, half, interleaved, inverse))                                                      \
    X(void, gate,                                                                                                   \
      (const float *gate_up, int64_t stride, float *out, int64_t out_stride, int64_t rows, int64_t columns),        \
      (gate_up, stride, out, out_stride, rows, columns))                                                            \
    X(void, gate_backward,                                                                                          \
      (const float *grad, int64_t grad_stride, float *gate_up, int64_t stride, int64_t rows, int64_t columns),      \
      (grad, grad_stride, gate_up, stride, rows, columns))                                                          \
    X(void, softmax_loss,                                                                                           \
      (const float *logits, int64_t stride, const int64_t *targets, double *losses, int64_t rows, int64_t columns), \
      (logits, stride, targets, losses, rows, columns))                                                             \
    X(void, softmax_gradient,                                                                                       \
      (float *logits, int64_t stride, const int64_t *targets, double *losses, int64_t rows, int64_t columns),       \
      (logits, stride, targets, losses, rows, columns))                                                             \
    X(void, drop,                                                                                                   \
      (const float *x, int64_t x_stride, const int64_t *keys, uint32_t salt, uint32_t threshold, float scale,       \
       float *out, int64_t out_stride, int64_t rows, int64_t columns),                                              \
      (x, x_stride, keys, salt, threshold, scale, out, out_stride, rows, columns))                                  \
    X(void, add_dropped,                                                                                            \
      (const float *x, int64_t x_stride, const int64_t *keys, uint32_t salt, uint32_t threshold, float scale,       \
       float *into, int64_t into_stride, int64_t rows, int64_t columns),                                            \
      (x, x_stride, keys, salt, threshold, scale, into, into_stride, rows, columns))                                \
    X(void, widen, (const void *numbers, int kind, float *out, int64_t count), (numbers, kind, out, count))         \
    X(void, nf4_quantize,                                                                                           \
      (const void *weights, int kind, int64_t count, const float *midpoints, uint8_t *packed, float *absmax),       \
      (weights, kind, count, midpoints, packed, absmax))                                                            \
    X(void, nf4_quantize_absmax,                                                                                    \
      (const float *values, int64_t count, const uint8_t *grid_codes, uint8_t *codes, float *nested_absmax),        \
      (values, count, grid_codes, codes, nested_absmax))                                                            \
    X(void, nf4_dequantize,                                                                                         \
      (const uint8_t *packed, const uint8_t *absmax8, const float *nested_absmax, float offset,                     \
       const float *nf4_code, const float *dynamic_code, int64_t first_block, int64_t count, float *out),           \
      (packed, absmax8, nested_absmax, offset, nf4_code, dynamic_code, first_block, count, out))

#endif
