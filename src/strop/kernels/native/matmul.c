/* The matrix product: a BLAS's single-threaded sgemm, shared out over the pool.
 *
 *     c_mn = alpha · op(a) · op(b) + beta · c_mn          op(x) = x or xᵀ, all row-major
 *
 * c is cut into a grid of pieces and each piece is one call of the library's sgemm. The grid follows from the shape
 * alone, never from the number of threads, and no sum over k is cut: the same bits come out however many threads there
 * are. Pieces are taken one by one, so that a core that another program uses takes fewer of them; a library's own
 * threads give each core its half and spin while they wait.
 *
 * Every piece packs its rows of a and its columns of b anew, and a packed element is used as often as the piece has
 * columns (rows). On one Zen 4 core OpenBLAS does 90 to 97 GFLOP/s from 256 × 256 on where k is 576, and from
 * 512 × 512 on where it is 4,096; 86 with 512 × 256, 81 with 256 × 256, 80 with 2,048 × 128. On two such cores the
 * pieces come to 92 to 95 % of what OpenBLAS does with two threads of its own and nothing else on the machine.
 */
#include "strop.h"

enum { CBLAS_ROW_MAJOR = 101, CBLAS_PLAIN = 111, CBLAS_TRANSPOSED = 112 };

typedef void (*sgemm_function)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a,
                               int lda, const float *b, int ldb, float beta, float *c, int ldc);

static sgemm_function library_sgemm; /* set once, before the first product */

/* A cblas_sgemm with 32-bit sizes that runs on its caller's thread and may be called by many threads at once. */
STROP_API void strop_set_sgemm(void *function) {
    library_sgemm = (sgemm_function)function;
}

/* One product on the caller's thread; c is not read where beta is 0. */
static void sgemm_tile(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                       int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    library_sgemm(CBLAS_ROW_MAJOR, trans_a ? CBLAS_TRANSPOSED : CBLAS_PLAIN, trans_b ? CBLAS_TRANSPOSED : CBLAS_PLAIN,
                  (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

/* A piece's rows and columns are halved only while the halves have as many as this. */
enum { FEWEST_ROWS = 256, FEWEST_COLUMNS = 128 };
enum { PIECES = 16 };                  /* enough for a machine of 16 threads */
static const double SHORT_PIECE = 4e6; /* multiplications and additions, 40 µs: less is not worth waking a thread */

typedef struct {
    int trans_a, trans_b;
    int64_t m, n, k, lda, ldb, ldc;
    float alpha, beta;
    const float *a, *b;
    float *c;
    int64_t rows, columns; /* of a piece; the last ones are smaller */
    int across;            /* pieces side by side */
} product;

static int64_t cut(int64_t length, int64_t pieces, int64_t multiple) {
    return ((length + pieces - 1) / pieces + multiple - 1) / multiple * multiple;
}

/* Halves the pieces until there are enough, the rows first where there are more of them. */
static void choose_pieces(product *p) {
    int64_t down = 1, across = 1;
    const double work = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    while (down * across < PIECES && work / (double)(down * across) >= 2 * SHORT_PIECE) {
        const int64_t rows = p->m / down, columns = p->n / across;
        const int fewer_rows = rows >= 2 * FEWEST_ROWS, fewer_columns = columns >= 2 * FEWEST_COLUMNS;
        if (!fewer_rows && !fewer_columns) break;
        if (fewer_rows && (rows > 2 * columns || !fewer_columns)) {
            down *= 2;
        } else {
            across *= 2;
        }
    }
    p->rows = cut(p->m, down, 16);
    p->columns = cut(p->n, across, 16);
    p->across = (int)((p->n + p->columns - 1) / p->columns);
}

static void piece(void *context, int task, int worker) {
    const product *p = context;
    const int64_t row = task / p->across * p->rows, column = task % p->across * p->columns;
    const int64_t rows = p->m - row < p->rows ? p->m - row : p->rows;
    const int64_t columns = p->n - column < p->columns ? p->n - column : p->columns;
    (void)worker;
    sgemm_tile(p->trans_a, p->trans_b, rows, columns, p->k, p->alpha, p->a + (p->trans_a ? row : row * p->lda), p->lda,
               p->b + (p->trans_b ? column * p->ldb : column), p->ldb, p->beta, p->c + row * p->ldc + column, p->ldc);
}

/* a is [m, k] ([k, m] where trans_a), b [k, n] ([n, k] where trans_b), c [m, n]; ld* are the elements from one row to
 * the next. Sizes and strides below 2³¹. c overlaps neither a nor b. */
STROP_API void strop_sgemm(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                           int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    product p = {.trans_a = trans_a, .trans_b = trans_b, .m = m, .n = n, .k = k, .lda = lda, .ldb = ldb, .ldc = ldc,
                 .alpha = alpha, .beta = beta, .a = a, .b = b, .c = c};
    choose_pieces(&p);
    const int tasks = (int)((m + p.rows - 1) / p.rows) * p.across;
    if (tasks == 1) {
        piece(&p, 0, 0);
    } else {
        strop_parallel(tasks, piece, &p);
    }
}
