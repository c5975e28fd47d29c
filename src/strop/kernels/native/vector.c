/* The operations on rows: norm, rotary embedding, gated unit, softmax with its loss, dropout, 16-bit numbers.
 *
 * Compiled once for every instruction set and dtype (number.h). Rows are independent, so threads change nothing of the
 * result.
 */
#include "number.h"

/* The arguments of a call, for its tasks; what an operation has none of stays empty. */
typedef struct {
    const number *in, *x;
    const float *weight;
    number *out;
    int64_t in_stride, x_stride, out_stride, rows, columns;
    float eps, scale;
    const int64_t *numbers;
    double *losses;
    uint32_t salt, threshold;
    const float *cosine, *sine;
    int64_t heads, head_stride;
    int interleaved, inverse;
    int kind;
    const void *source;
} call;

/* --- root mean square norm --------------------------------------------------------------------------------------- */

static inline float reciprocal_rms(const number *x, int64_t columns, float eps) {
    lanes squares = {0};
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES) squares = add(squares, multiply(get_lanes(x + i), get_lanes(x + i)));
    const lanes last = get_some(x + i, columns - i);
    return 1.0f / sqrtf(fold(add(squares, multiply(last, last))) / (float)columns + eps);
}

static void normalize_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    EACH_ROW(c, c->columns) {
        const number *restrict x = c->x + row * c->x_stride;
        const float *restrict weight = c->weight;
        number *restrict out = c->out + row * c->out_stride;
        const float r = reciprocal_rms(x, c->columns, c->eps);
        for (int64_t i = 0; i < c->columns; i++) out[i] = put(get(x[i]) * r * weight[i]);
    }
}

void NUMBER_NAME(normalize)(const number *x, int64_t x_stride, const float *weight, float eps, number *out,
                            int64_t out_stride, int64_t rows, int64_t columns) {
    call c = {.x = x, .x_stride = x_stride, .weight = weight, .eps = eps, .out = out, .out_stride = out_stride,
              .rows = rows, .columns = columns};
    run_rows(normalize_task, &c, rows, columns);
}

static void normalize_backward_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    EACH_ROW(c, c->columns) {
        const number *restrict x = c->x + row * c->x_stride, *restrict grad = c->in + row * c->in_stride;
        const float *restrict weight = c->weight;
        number *restrict into = c->out + row * c->out_stride;
        const float r = reciprocal_rms(x, c->columns, c->eps);
        lanes products = {0};
        int64_t i = 0;
        for (; i + LANES <= c->columns; i += LANES) {
            const lanes weighted = multiply(get_lanes(grad + i), load_lanes(weight + i));
            products = add(products, multiply(weighted, get_lanes(x + i)));
        }
        const int64_t rest = c->columns - i;
        const lanes weighted = multiply(get_some(grad + i, rest), load_some(weight + i, rest));
        products = add(products, multiply(weighted, get_some(x + i, rest)));
        const float slope = r * r * r * (fold(products) / (float)c->columns);
        for (i = 0; i < c->columns; i++)
            into[i] = put(get(into[i]) + (get(grad[i]) * weight[i] * r - get(x[i]) * slope));
    }
}

void NUMBER_NAME(normalize_backward)(const number *grad, int64_t grad_stride, const number *x, int64_t x_stride,
                                     const float *weight, float eps, number *into, int64_t into_stride, int64_t rows,
                                     int64_t columns) {
    call c = {.in = grad, .in_stride = grad_stride, .x = x, .x_stride = x_stride, .weight = weight, .eps = eps,
              .out = into, .out_stride = into_stride, .rows = rows, .columns = columns};
    run_rows(normalize_backward_task, &c, rows, columns);
}

/* --- rotary embedding -------------------------------------------------------------------------------------------- */

static inline void rotate_halves(number *restrict first, number *restrict second, const float *restrict cosine,
                                 const float *restrict sine, float sign, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = get(first[i]), b = get(second[i]), s = sine[i] * sign;
        first[i] = put(a * cosine[i] - b * s);
        second[i] = put(b * cosine[i] + a * s);
    }
}

static inline void rotate_neighbours(number *restrict x, const float *restrict cosine, const float *restrict sine,
                                     float sign, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = get(x[2 * i]), b = get(x[2 * i + 1]), s = sine[i] * sign;
        x[2 * i] = put(a * cosine[i] - b * s);
        x[2 * i + 1] = put(b * cosine[i] + a * s);
    }
}

static void rotate_task(void *context, int task, int worker) {
    const call *c = context;
    const int64_t half = c->columns;
    const float sign = c->inverse ? -1.0f : 1.0f;
    (void)worker;
    EACH_ROW(c, 2 * half * c->heads) {
        const float *cosine = c->cosine + row * half, *sine = c->sine + row * half;
        for (int64_t head = 0; head < c->heads; head++) {
            number *x = c->out + row * c->out_stride + head * c->head_stride;
            if (c->interleaved)
                rotate_neighbours(x, cosine, sine, sign, half);
            else
                rotate_halves(x, x + half, cosine, sine, sign, half);
        }
    }
}

void NUMBER_NAME(rotate)(number *x, int64_t stride, int64_t head_stride, const float *cosine, const float *sine,
                         int64_t rows, int64_t heads, int64_t half, int interleaved, int inverse) {
    call c = {.out = x, .out_stride = stride, .head_stride = head_stride, .cosine = cosine, .sine = sine,
              .rows = rows, .heads = heads, .columns = half, .interleaved = interleaved, .inverse = inverse};
    run_rows(rotate_task, &c, rows, 2 * half * heads);
}

/* --- gated unit -------------------------------------------------------------------------------------------------- */

static void gate_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    EACH_ROW(c, c->columns) {
        const number *restrict gate = c->in + row * c->in_stride, *restrict up = gate + c->columns;
        number *restrict out = c->out + row * c->out_stride;
        for (int64_t i = 0; i < c->columns; i++) out[i] = put(get(gate[i]) * sigmoid(get(gate[i])) * get(up[i]));
    }
}

void NUMBER_NAME(gate)(const number *gate_up, int64_t stride, number *out, int64_t out_stride, int64_t rows,
                       int64_t columns) {
    call c = {.in = gate_up, .in_stride = stride, .out = out, .out_stride = out_stride, .rows = rows,
              .columns = columns};
    run_rows(gate_task, &c, rows, columns);
}

static void gate_backward_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    EACH_ROW(c, c->columns) {
        const number *restrict grad = c->in + row * c->in_stride;
        number *restrict gate = c->out + row * c->out_stride, *restrict up = gate + c->columns;
        for (int64_t i = 0; i < c->columns; i++) {
            const float g = get(gate[i]), u = get(up[i]), d = get(grad[i]);
            const float sigma = sigmoid(g), silu = g * sigma;
            const float slope = sigma + silu * (1.0f - sigma);
            gate[i] = put(slope * u * d);
            up[i] = put(d * silu);
        }
    }
}

void NUMBER_NAME(gate_backward)(const number *grad, int64_t grad_stride, number *gate_up, int64_t stride, int64_t rows,
                                int64_t columns) {
    call c = {.in = grad, .in_stride = grad_stride, .out = gate_up, .out_stride = stride, .rows = rows,
              .columns = columns};
    run_rows(gate_backward_task, &c, rows, columns);
}

/* --- softmax and its loss ---------------------------------------------------------------------------------------- */

/* Numbers whose exponentials are made and summed at one time: they stay in the first cache. */
#define EXP_BLOCK 512

/* Several registers at a time: each waits for its own last comparison alone. */
#define MAX_LANES (4 * LANES)

static inline float largest(const number *x, int64_t columns) {
    float part[MAX_LANES], result = get(x[0]);
    for (int lane = 0; lane < MAX_LANES; lane++) part[lane] = get(x[0]);
    int64_t i = 0;
    for (; i + MAX_LANES <= columns; i += MAX_LANES)
        for (int lane = 0; lane < MAX_LANES; lane++) {
            const float value = get(x[i + lane]);
            part[lane] = value > part[lane] ? value : part[lane];
        }
    for (; i < columns; i++) result = get(x[i]) > result ? get(x[i]) : result;
    for (int lane = 0; lane < MAX_LANES; lane++) result = part[lane] > result ? part[lane] : result;
    return result;
}

/* e^(x - highest) of a row, and their sum. `out` has room for the row, which it may be itself, or is NULL. */
static inline float exponentials(const number *x, int64_t columns, float highest, float *out) {
    float block[EXP_BLOCK];
    lanes sums = {0};
    for (int64_t start = 0; start < columns; start += EXP_BLOCK) {
        const int64_t count = smaller(EXP_BLOCK, columns - start);
        const number *from = x + start;
        float *to = out == NULL ? block : out + start;
        for (int64_t i = 0; i < count; i++) to[i] = exp_float(get(from[i]) - highest);
        sums = add_block(sums, to, count);
    }
    return fold(sums);
}

static inline double loss_of(float total, float highest, float wanted) {
    return log((double)total) + ((double)highest - (double)wanted);
}

static void softmax_loss_task(void *context, int task, int worker) {
    const call *c = context;
    (void)worker;
    EACH_ROW(c, c->columns) {
        const number *x = c->in + row * c->in_stride;
        const float highest = largest(x, c->columns), total = exponentials(x, c->columns, highest, NULL);
        c->losses[row] = loss_of(total, highest, get(x[c->numbers[row]]));
    }
}

void NUMBER_NAME(softmax_loss)(const number *logits, int64_t stride, const int64_t *targets, double *losses,
                               int64_t rows, int64_t columns) {
    call c = {.in = logits, .in_stride = stride, .numbers = targets, .losses = losses, .rows = rows,
              .columns = columns};
    run_rows(softmax_loss_task, &c, rows, columns);
}

static void softmax_gradient_task(void *context, int task, int worker) {
    const call *c = context;
    EACH_ROW(c, c->columns) {
        number *x = c->out + row * c->out_stride;
        float *kept = room_for_floats(x, worker, c->columns);
        const int64_t target = c->numbers[row];
        const float highest = largest(x, c->columns), wanted = get(x[target]);
        const float total = exponentials(x, c->columns, highest, kept), share = 1.0f / total;
        const float probability = exp_float(wanted - highest) * share;
        if (kept != NULL)
            for (int64_t i = 0; i < c->columns; i++) x[i] = put(kept[i] * share);
        else
            for (int64_t i = 0; i < c->columns; i++) x[i] = put(exp_float(get(x[i]) - highest) * share);
        x[target] = put(probability - 1.0f);
        c->losses[row] = loss_of(total, highest, wanted);
    }
}

void NUMBER_NAME(softmax_gradient)(number *logits, int64_t stride, const int64_t *targets, double *losses, int64_t rows,
                                   int64_t columns) {
    call c = {.out = logits, .out_stride = stride, .numbers = targets, .losses = losses, .rows = rows,
              .columns = columns};
    run_rows(softmax_gradient_task, &c, rows, columns);
}

/* --- dropout ----------------------------------------------------------------------------------------------------- */

/* Features whose hashes are made at one time, once for all rows of a task. */
#define FEATURE_BLOCK 512

/* hash32 of kernels/random.py. */
static inline uint32_t hash32(uint32_t value) {
    value ^= value >> 16;
    value *= 0x7FEB352Du;
    value ^= value >> 15;
    value *= 0x846CA68Bu;
    return value ^ value >> 16;
}

static inline void drop_rows(const call *c, int task, int add) {
    uint32_t features[FEATURE_BLOCK];
    for (int64_t start = 0; start < c->columns; start += FEATURE_BLOCK) {
        const int64_t count = smaller(FEATURE_BLOCK, c->columns - start);
        for (int64_t i = 0; i < count; i++) features[i] = hash32((uint32_t)(start + i));
        EACH_ROW(c, c->columns) {
            const number *restrict x = c->x + row * c->x_stride + start;
            number *restrict out = c->out + row * c->out_stride + start;
            const uint32_t key = hash32((uint32_t)c->numbers[row] ^ c->salt), threshold = c->threshold;
            const float scale = c->scale;
            for (int64_t i = 0; i < count; i++) {
                const float kept = get(x[i]) * (hash32(key ^ features[i]) >= threshold ? scale : 0.0f);
                out[i] = put(add ? get(out[i]) + kept : kept);
            }
        }
    }
}

static void drop_task(void *context, int task, int worker) {
    (void)worker;
    drop_rows(context, task, 0);
}

static void add_dropped_task(void *context, int task, int worker) {
    (void)worker;
    drop_rows(context, task, 1);
}

void NUMBER_NAME(drop)(const number *x, int64_t x_stride, const int64_t *keys, uint32_t salt, uint32_t threshold,
                       float scale, number *out, int64_t out_stride, int64_t rows, int64_t columns) {
    call c = {.x = x, .x_stride = x_stride, .numbers = keys, .salt = salt, .threshold = threshold, .scale = scale,
              .out = out, .out_stride = out_stride, .rows = rows, .columns = columns};
    run_rows(drop_task, &c, rows, columns);
}

void NUMBER_NAME(add_dropped)(const number *x, int64_t x_stride, const int64_t *keys, uint32_t salt, uint32_t threshold,
                              float scale, number *into, int64_t into_stride, int64_t rows, int64_t columns) {
    call c = {.x = x, .x_stride = x_stride, .numbers = keys, .salt = salt, .threshold = threshold, .scale = scale,
              .out = into, .out_stride = into_stride, .rows = rows, .columns = columns};
    run_rows(add_dropped_task, &c, rows, columns);
}

/* --- 16-bit numbers ---------------------------------------------------------------------------------------------- */

#define WIDEN_BLOCK 16384

static void widen_task(void *context, int task, int worker) {
    const call *c = context;
    const int64_t start = (int64_t)task * WIDEN_BLOCK, count = smaller(WIDEN_BLOCK, c->columns - start);
    const uint16_t *restrict numbers = (const uint16_t *)c->source + start;
    number *restrict out = c->out + start;
    (void)worker;
    if (c->kind == KIND_BFLOAT16)
        for (int64_t i = 0; i < count; i++) out[i] = put(from_bfloat16(numbers[i]));
    else
        for (int64_t i = 0; i < count; i++) out[i] = put(from_float16(numbers[i]));
}

void NUMBER_NAME(widen)(const void *numbers, int kind, number *out, int64_t count) {
    call c = {.source = numbers, .kind = kind, .out = out, .columns = count};
    strop_parallel((int)((count + WIDEN_BLOCK - 1) / WIDEN_BLOCK), widen_task, &c);
}
