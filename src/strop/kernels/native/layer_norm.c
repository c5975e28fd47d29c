/* Layer norm, forward and backward; kernels/layer_norm.py has the formulas.
 *
 * Compiled once for every instruction set, for bfloat16: float32 is torch's, whose bits stay.
 */
#include "number.h"

/* Numbers of a row that are worked on at one time, a multiple of 16: they stay in the first cache. */
#define PART 512

typedef struct {
    const number *grad, *x;
    const float *weight, *bias;
    number *out;
    int64_t grad_stride, x_stride, out_stride, rows, columns;
    float eps;
} call;

typedef struct {
    float mean, r;
} moments;

static inline moments moments_of(const number *x, int64_t columns, float eps) {
    lanes sums = {0}, squares = {0};
    float part[PART];
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) sums = add(sums, get_lanes(x + i));
    const float mean = fold(add(sums, get_some(x + i, columns - i))) / (float)columns;
    for (int64_t start = 0; start < columns; start += PART) {
        const int64_t count = smaller(PART, columns - start);
        for (i = 0; i < count; i++) {
            const float away = get(x[start + i]) - mean;
            part[i] = away * away;
        }
        squares = add_block(squares, part, count);
    }
    return (moments){mean, 1.0f / sqrtf(fold(squares) / (float)columns + eps)};
}

static void layer_norm_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    EACH_ROW(c, c->columns) {
        const number *restrict x = c->x + row * c->x_stride;
        const float *restrict weight = c->weight, *restrict bias = c->bias;
        number *restrict out = c->out + row * c->out_stride;
        const moments m = moments_of(x, c->columns, c->eps);
        for (int64_t i = 0; i < c->columns; i++) out[i] = put((get(x[i]) - m.mean) * m.r * weight[i] + bias[i]);
    }
}

void NUMBER_NAME(layer_norm)(const number *x, int64_t x_stride, const float *weight, const float *bias, float eps,
                             number *out, int64_t out_stride, int64_t rows, int64_t columns) {
    call c = {.x = x, .x_stride = x_stride, .weight = weight, .bias = bias, .eps = eps, .out = out,
              .out_stride = out_stride, .rows = rows, .columns = columns};
    run_rows(layer_norm_task, &c, rows, columns);
}

static void layer_norm_backward_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    EACH_ROW(c, c->columns) {
        const number *restrict x = c->x + row * c->x_stride, *restrict grad = c->grad + row * c->grad_stride;
        const float *restrict weight = c->weight;
        number *restrict into = c->out + row * c->out_stride;
        const moments m = moments_of(x, c->columns, c->eps);
        lanes sums = {0}, products = {0};
        for (int64_t start = 0; start < c->columns; start += PART) {
            const int64_t count = smaller(PART, c->columns - start);
            float weighted[PART], along[PART];
            for (int64_t i = 0; i < count; i++) {
                weighted[i] = get(grad[start + i]) * weight[start + i];
                along[i] = weighted[i] * ((get(x[start + i]) - m.mean) * m.r);
            }
            sums = add_block(sums, weighted, count);
            products = add_block(products, along, count);
        }
        const float shift = fold(sums) / (float)c->columns, slope = fold(products) / (float)c->columns;
        for (int64_t i = 0; i < c->columns; i++) {
            const float normal = (get(x[i]) - m.mean) * m.r;
            into[i] = put(get(into[i]) + (get(grad[i]) * weight[i] - shift - normal * slope) * m.r);
        }
    }
}

void NUMBER_NAME(layer_norm_backward)(const number *grad, int64_t grad_stride, const number *x, int64_t x_stride,
                                      const float *weight, float eps, number *into, int64_t into_stride, int64_t rows,
                                      int64_t columns) {
    call c = {.grad = grad, .grad_stride = grad_stride, .x = x, .x_stride = x_stride, .weight = weight, .eps = eps,
              .out = into, .out_stride = into_stride, .rows = rows, .columns = columns};
    run_rows(layer_norm_backward_task, &c, rows, columns);
}
