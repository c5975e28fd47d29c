/* What the operations on rows read and write: float32, or bfloat16 where NUMBER_BFLOAT16 is defined.
 *
 * vector.c is compiled for each. Arithmetic is float32 in both: `get` is exact, `put` rounds to the nearest, once.
 */
#ifndef STROP_NUMBER_H
#define STROP_NUMBER_H

#include "lanes.h"
#include "operations.h"

/* NUMBER_NAME(gate) is gate_bfloat16_avx512 where hatch_build.py says -DNUMBER=bfloat16 -DISA=avx512. */
#define NUMBER_NAME(name) ISA_NAME(STROP_JOIN(name, NUMBER))

#if defined(NUMBER_BFLOAT16)

typedef bfloat16 number;

static inline float get(number x) { return from_bfloat16(x); }
static inline number put(float x) { return to_bfloat16(x); }

/* Where a row's numbers fit as float32; NULL where there is no memory. */
static inline float *room_for_floats(number *row, int worker, int64_t columns) {
    (void)row;
    return strop_scratch(worker, (size_t)columns * sizeof(float));
}

typedef uint16_t halves __attribute__((vector_size(2 * WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));

static inline lanes get_lanes(const number *x) {
    lanes value;
    for (int i = 0; i < LANES / WIDTH; i++) {
        halves part;
        memcpy(&part, x + i * WIDTH, sizeof part);
        value.part[i] = (vec)(__builtin_convertvector(part, words) << 16);
    }
    return value;
}

#else

typedef float number;

static inline float get(number x) { return x; }
static inline number put(float x) { return x; }

static inline float *room_for_floats(number *row, int worker, int64_t columns) {
    (void)worker, (void)columns;
    return row;
}

static inline lanes get_lanes(const number *x) { return load_lanes(x); }

#endif

/* The first `count` of 16, and zeros. */
static inline lanes get_some(const number *x, int64_t count) {
    number part[LANES] = {0};
    for (int64_t i = 0; i < count; i++) part[i] = x[i];
    return get_lanes(part);
}

static inline void run_rows(strop_task task, void *call, int64_t rows, int64_t elements_a_row) {
    const int64_t step = rows_per_task(elements_a_row);
    strop_parallel((int)((rows + step - 1) / step), task, call);
}

/* for (row of this task) */
#define EACH_ROW(c, width) \
    for (int64_t row = task * rows_per_task(width), end = smaller(row + rows_per_task(width), (c)->rows); row < end; \
         row++)

#endif
