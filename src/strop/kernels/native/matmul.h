/* One product on one thread, for the files that lay out their own tasks (attention.c). */
#ifndef STROP_MATMUL_H
#define STROP_MATMUL_H

#include "strop.h"

/* c_mn = alpha · op(a) · op(b) + beta · c_mn on the caller's thread; c is not read where beta is 0. Row-major, the
 * arguments of strop_sgemm. */
void strop_sgemm_tile(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                      int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* Whether there is a library to call. */
int strop_has_sgemm(void);

#endif
