/* The products of attention's tiles: small, and on one thread.
 *
 * A block of rows of c stays in registers while k runs; b is read a panel of columns at a time, which stays in the
 * first cache, and a number by number. Nothing is packed: a library's sgemm, which packs both of its operands first,
 * reaches half as much on tiles of this size. This file alone is compiled with fused multiply-adds: an element of c is
 * one chain over k whatever the width of the registers, so AVX2, AVX-512 and NEON give the same bytes; plain C on
 * x86-64 has none and rounds every product.
 */
#include "attention.h"

typedef float wide __attribute__((vector_size(4 * ATTENTION_WIDTH)));

/* Registers: sums of MOST_SUMS, as many rows as there is room for beside MOST_WIDE of b and one of a. */
#if defined(ISA_AVX512) || defined(__aarch64__)
enum { MOST_SUMS = 24, MOST_WIDE = 4 }; /* of 32 */
#else
enum { MOST_SUMS = 12, MOST_WIDE = 2 }; /* of 16 */
#endif

static inline wide load(const float *x) {
    wide value;
    memcpy(&value, x, sizeof value);
    return value;
}

static inline void store(float *x, wide value) { memcpy(x, &value, sizeof value); }

/* One block of registers; rows and registers are constants wherever it is called, so that its loops unroll. */
static inline __attribute__((always_inline)) void block(int rows, int registers, int64_t k, const float *a,
                                                        int64_t a_row, int64_t a_column, const float *b, int64_t ldb,
                                                        int add, float *c, int64_t ldc) {
    wide sums[MOST_SUMS][MOST_WIDE];
#pragma GCC unroll 24
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 24
        for (int j = 0; j < registers; j++)
            sums[i][j] = add ? load(c + i * ldc + j * ATTENTION_WIDTH) : (wide){0};
    if (add) { /* the rows that come next: they may be pages apart */
#pragma GCC unroll 24
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 24
            for (int j = 0; j < registers; j++) __builtin_prefetch(c + (rows + i) * ldc + j * ATTENTION_WIDTH, 1);
    }
    for (int64_t p = 0; p < k; p++) {
        wide from_b[MOST_WIDE];
#pragma GCC unroll 24
        for (int j = 0; j < registers; j++) from_b[j] = load(b + p * ldb + j * ATTENTION_WIDTH);
#pragma GCC unroll 24
        for (int i = 0; i < rows; i++) {
            const float number = a[i * a_row + p * a_column];
#pragma GCC unroll 24
            for (int j = 0; j < registers; j++) sums[i][j] += number * from_b[j];
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 24
        for (int j = 0; j < registers; j++) store(c + i * ldc + j * ATTENTION_WIDTH, sums[i][j]);
}

typedef struct {
    int64_t m, k, a_row, a_column, ldb, ldc;
    int add;
} sizes;

static inline __attribute__((always_inline)) void panel(int registers, sizes s, const float *a, const float *b,
                                                        float *c) {
    const int most = MOST_SUMS / registers;
    int64_t i = 0;
    for (; i + most <= s.m; i += most)
        block(most, registers, s.k, a + i * s.a_row, s.a_row, s.a_column, b, s.ldb, s.add, c + i * s.ldc, s.ldc);
    for (; i + 4 <= s.m; i += 4)
        block(4, registers, s.k, a + i * s.a_row, s.a_row, s.a_column, b, s.ldb, s.add, c + i * s.ldc, s.ldc);
    for (; i < s.m; i++)
        block(1, registers, s.k, a + i * s.a_row, s.a_row, s.a_column, b, s.ldb, s.add, c + i * s.ldc, s.ldc);
}

/* What is left of the columns where a register does not fit. */
static void few_columns(int64_t n, sizes s, const float *a, const float *b, float *c) {
    for (int64_t i = 0; i < s.m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = s.add ? c[i * s.ldc + j] : 0.0f;
            for (int64_t p = 0; p < s.k; p++) sum += a[i * s.a_row + p * s.a_column] * b[p * s.ldb + j];
            c[i * s.ldc + j] = sum;
        }
}

static void product(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_column, const float *b,
                    int64_t ldb, int add, float *c, int64_t ldc) {
    const sizes s = {m, k, a_row, a_column, ldb, ldc, add};
    int64_t j = 0;
    for (; j + MOST_WIDE * ATTENTION_WIDTH <= n; j += MOST_WIDE * ATTENTION_WIDTH) panel(MOST_WIDE, s, a, b + j, c + j);
#if defined(ISA_AVX512) || defined(__aarch64__)
    if (j + 3 * ATTENTION_WIDTH <= n) {
        panel(3, s, a, b + j, c + j);
        j += 3 * ATTENTION_WIDTH;
    } else if (j + 2 * ATTENTION_WIDTH <= n) {
        panel(2, s, a, b + j, c + j);
        j += 2 * ATTENTION_WIDTH;
    }
#endif
    if (j + ATTENTION_WIDTH <= n) {
        panel(1, s, a, b + j, c + j);
        j += ATTENTION_WIDTH;
    }
    if (j < n) few_columns(n - j, s, a, b + j, c + j);
}

const attention_product ISA_NAME(attention_product) = product;
