/* The operations that are compiled once for every instruction set: X(result, name, parameters, arguments).
 *
 * vector.c, layer_norm.c and activation.c, once for every dtype too, and nf4.c define them; dispatch.c exports
 * strop_name, which calls the chosen one. The Python file
 * of an operation says what it computes. Matrices are row-major, columns next to each other, rows `stride` elements
 * apart; matrices of one call do not overlap unless they are one.
 */
#ifndef STROP_OPERATIONS_H
#define STROP_OPERATIONS_H

#include "strop.h"

/* What 16-bit and 32-bit numbers are read as. */
enum { KIND_FLOAT32 = 0, KIND_BFLOAT16 = 1, KIND_FLOAT16 = 2 };

/* What the MLP's unit applies. */
enum { SILU = 0, GELU = 1, GELU_TANH = 2 };

typedef uint16_t bfloat16;
typedef float float32;

/* On rows of `number`: name_float32 and name_bfloat16. */
#define STROP_ROW_OPERATIONS(X, number)                                                                             \
    X(void, normalize_##number,                                                                                     \
      (const number *x, int64_t x_stride, const float *weight, float eps, number *out, int64_t out_stride,          \
       int64_t rows, int64_t columns),                                                                              \
      (x, x_stride, weight, eps, out, out_stride, rows, columns))                                                   \
    X(void, normalize_backward_##number,                                                                            \
      (const number *grad, int64_t grad_stride, const number *x, int64_t x_stride, const float *weight, float eps,  \
       number *into, int64_t into_stride, int64_t rows, int64_t columns),                                           \
      (grad, grad_stride, x, x_stride, weight, eps, into, into_stride, rows, columns))                              \
    X(void, rotate_##number,                                                                                        \
      (number *x, int64_t stride, int64_t head_stride, const float *cosine, const float *sine, int64_t rows,        \
       int64_t heads, int64_t half, int interleaved, int inverse),                                                  \
      (x, stride, head_stride, cosine, sine, rows, heads, half, interleaved, inverse))                              \
    X(void, gate_##number,                                                                                          \
      (const number *gate_up, int64_t stride, number *out, int64_t out_stride, int64_t rows, int64_t columns),      \
      (gate_up, stride, out, out_stride, rows, columns))                                                            \
    X(void, gate_backward_##number,                                                                                 \
      (const number *grad, int64_t grad_stride, number *gate_up, int64_t stride, int64_t rows, int64_t columns),    \
      (grad, grad_stride, gate_up, stride, rows, columns))                                                          \
    X(void, softmax_loss_##number,                                                                                  \
      (const number *logits, int64_t stride, const int64_t *targets, double *losses, int64_t rows, int64_t columns),\
      (logits, stride, targets, losses, rows, columns))                                                             \
    X(void, softmax_gradient_##number,                                                                              \
      (number *logits, int64_t stride, const int64_t *targets, double *losses, int64_t rows, int64_t columns),      \
      (logits, stride, targets, losses, rows, columns))                                                             \
    X(void, drop_##number,                                                                                          \
      (const number *x, int64_t x_stride, const int64_t *keys, uint32_t salt, uint32_t threshold, float scale,      \
       number *out, int64_t out_stride, int64_t rows, int64_t columns),                                             \
      (x, x_stride, keys, salt, threshold, scale, out, out_stride, rows, columns))                                  \
    X(void, add_dropped_##number,                                                                                   \
      (const number *x, int64_t x_stride, const int64_t *keys, uint32_t salt, uint32_t threshold, float scale,      \
       number *into, int64_t into_stride, int64_t rows, int64_t columns),                                           \
      (x, x_stride, keys, salt, threshold, scale, into, into_stride, rows, columns))                                \
    X(void, widen_##number, (const void *numbers, int kind, number *out, int64_t count), (numbers, kind, out, count))

/* The same where float32 is torch's, whose bits stay. */
#define STROP_LOW_OPERATIONS(X, number)                                                                             \
    X(void, layer_norm_##number,                                                                                    \
      (const number *x, int64_t x_stride, const float *weight, const float *bias, float eps, number *out,           \
       int64_t out_stride, int64_t rows, int64_t columns),                                                          \
      (x, x_stride, weight, bias, eps, out, out_stride, rows, columns))                                             \
    X(void, layer_norm_backward_##number,                                                                           \
      (const number *grad, int64_t grad_stride, const number *x, int64_t x_stride, const float *weight, float eps,  \
       number *into, int64_t into_stride, int64_t rows, int64_t columns),                                           \
      (grad, grad_stride, x, x_stride, weight, eps, into, into_stride, rows, columns))                              \
    X(void, unit_##number,                                                                                          \
      (const number *inputs, int64_t stride, number *out, int64_t out_stride, int64_t rows, int64_t columns,        \
       int activation, int gated),                                                                                  \
      (inputs, stride, out, out_stride, rows, columns, activation, gated))                                          \
    X(void, unit_backward_##number,                                                                                 \
      (const number *grad, int64_t grad_stride, number *inputs, int64_t stride, int64_t rows, int64_t columns,      \
       int activation, int gated),                                                                                  \
      (grad, grad_stride, inputs, stride, rows, columns, activation, gated))

#define STROP_OPERATIONS(X)                                                                                         \
    STROP_ROW_OPERATIONS(X, float32)                                                                                \
    STROP_ROW_OPERATIONS(X, bfloat16)                                                                               \
    STROP_LOW_OPERATIONS(X, bfloat16)                                                                               \
    X(void, nf4_quantize,                                                                                           \
      (const void *weights, int kind, int64_t count, const float *midpoints, uint8_t *packed, float *absmax),       \
      (weights, kind, count, midpoints, packed, absmax))                                                            \
    X(void, nf4_quantize_absmax,                                                                                    \
      (const float *values, int64_t count, const uint8_t *grid_codes, uint8_t *codes, float *nested_absmax),        \
      (values, count, grid_codes, codes, nested_absmax))                                                            \
    X(void, nf4_dequantize,                                                                                         \
      (const uint8_t *packed, const uint8_t *absmax8, const float *nested_absmax, float offset,                     \
       const float *nf4_code, const float *dynamic_code, int64_t first_block, int64_t count, void *out, int kind),  \
      (packed, absmax8, nested_absmax, offset, nf4_code, dynamic_code, first_block, count, out, kind))

#endif
