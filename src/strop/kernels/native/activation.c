/* The MLP's unit, gated or not, and its gradient in place of its input; kernels/activation.py says what it computes.
 *
 * Compiled once for every instruction set, for bfloat16: float32 is torch's, whose bits stay.
 */
#include "number.h"

typedef struct {
    const number *in;
    number *out;
    int64_t in_stride, out_stride, rows, columns;
    int activation, gated;
} call;

/* A function at x and its derivative there. */
typedef struct {
    float value, slope;
} point;

/* x Φ(x). erfc(z) = t exp(-z² + p(t)) with t = 1 / (1 + z / 2), to 1.2e-7 of itself (Press et al., Numerical Recipes,
 * erfcc): the small numbers of the left side are as exact as the large ones. */
static inline point gelu(float x) {
    const float z = fabsf(x) * 0.70710678f, t = 1.0f / (1.0f + 0.5f * z);
    float p = 0.17087277f;
    p = p * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    const float tail = 0.5f * t * exp_float(p - z * z), phi = x < 0.0f ? tail : 1.0f - tail;
    return (point){x * phi, phi + x * 0.39894228f * exp_float(-0.5f * x * x)};
}

/* (1 + tanh u) / 2 = sigmoid(2u), with u = sqrt(2/π) (x + 0.044715 x³). */
static inline point gelu_tanh(float x) {
    const float square = x * x, sigma = sigmoid(x * (1.5957691f + 0.071354816f * square));
    const float value = x * sigma;
    return (point){value, sigma + value * (1.0f - sigma) * (1.5957691f + 0.21406445f * square)};
}

static inline point silu(float x) {
    const float sigma = sigmoid(x), value = x * sigma;
    return (point){value, sigma + value * (1.0f - sigma)};
}

static inline point point_of(int activation, float x) {
    return activation == SILU ? silu(x) : activation == GELU ? gelu(x) : gelu_tanh(x);
}

static inline void unit(const call *c, int task, int activation) {
    EACH_ROW(c, c->columns) {
        const number *restrict x = c->in + row * c->in_stride, *restrict up = x + c->columns;
        number *restrict out = c->out + row * c->out_stride;
        if (c->gated)
            for (int64_t i = 0; i < c->columns; i++) out[i] = put(point_of(activation, get(x[i])).value * get(up[i]));
        else
            for (int64_t i = 0; i < c->columns; i++) out[i] = put(point_of(activation, get(x[i])).value);
    }
}

static inline void unit_backward(const call *c, int task, int activation) {
    EACH_ROW(c, c->columns) {
        const number *restrict grad = c->in + row * c->in_stride;
        number *restrict x = c->out + row * c->out_stride, *restrict up = x + c->columns;
        if (c->gated)
            for (int64_t i = 0; i < c->columns; i++) {
                const point at = point_of(activation, get(x[i]));
                const float d = get(grad[i]);
                x[i] = put(at.slope * get(up[i]) * d);
                up[i] = put(d * at.value);
            }
        else
            for (int64_t i = 0; i < c->columns; i++) x[i] = put(point_of(activation, get(x[i])).slope * get(grad[i]));
    }
}

/* A loop for each function: inside one the choice would be made at every number. */
#define CHOOSE(rows_of, c, task)                                     \
    do {                                                             \
        if ((c)->activation == SILU)                                 \
            rows_of(c, task, SILU);                                  \
        else if ((c)->activation == GELU)                            \
            rows_of(c, task, GELU);                                  \
        else                                                         \
            rows_of(c, task, GELU_TANH);                             \
    } while (0)

static void unit_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    CHOOSE(unit, c, task);
}

static void unit_backward_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    CHOOSE(unit_backward, c, task);
}

void NUMBER_NAME(unit)(const number *inputs, int64_t stride, number *out, int64_t out_stride, int64_t rows,
                       int64_t columns, int activation, int gated) {
    call c = {inputs, out, stride, out_stride, rows, columns, activation, gated};
    run_rows(unit_task, &c, rows, columns);
}

void NUMBER_NAME(unit_backward)(const number *grad, int64_t grad_stride, number *inputs, int64_t stride, int64_t rows,
                                int64_t columns, int activation, int gated) {
    call c = {grad, inputs, grad_stride, stride, rows, columns, activation, gated};
    run_rows(unit_backward_task, &c, rows, columns);
}
