/* The matrix product in bfloat16 by AMX: sums in float32, rounded once.
 *
 *     c_mn = alpha · op(a) · op(b)  (+ c_mn)          op(x) = x or xᵀ, all row-major
 *
 * A tile holds sixteen rows of 32 numbers along k; of b it wants pairs: for one column after another, two numbers that
 * follow each other along k. A panel is 32 columns of b, packed so.
 *
 *     task (rows × columns of c):  for a piece of k:  for a group of panels:  pack them
 *                                      for 32 rows:  for a panel:  32 × 32 sums = rows · panel
 *                                                                  (what the block before still needs, meanwhile)
 *
 * Thirty-two rows of a piece stay in the first cache and the group in the second. Panels are read past the first cache
 * (tileloaddt1): read like anything else they push the rows out of it, at 2.3 instead of 3.1 TFLOP/s a core.
 *
 * A sum over k is cut at places that follow from k alone, and between its pieces it is kept in float32: the same bits
 * come out with any number of threads. A library that compiles a product for every shape takes 4 ms and half a MiB for
 * each, and packs of whole documents have another shape every time.
 */
#include "strop.h"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__)
#include <immintrin.h>
#include <string.h>

#include "amx_pairs.h"

enum { SIDE = 32 };           /* rows and columns of a block of sums: two by two tiles */
enum { STEP = 32 };           /* numbers along k in a tile */
enum { GROUP = 8 * SIDE };    /* columns whose panels are packed together */
enum { DEPTH = 640 };         /* most of a piece of k */
enum { CACHED = 384 * 1024 }; /* bytes of a, and of sums between pieces, that stay in the second cache beside a group */
enum { TASKS = 4 };           /* a thread, where they are not too short */
static const double SHORT_TASK = 1e8; /* multiplications and additions, 40 µs */

typedef struct {
    int trans_a, trans_b, add, wide;
    int64_t m, n, k, lda, ldb, ldc;
    float alpha;
    const uint16_t *a, *b;
    void *c;
    int64_t rows, columns; /* of a task, multiples of SIDE */
    int64_t depth;         /* of a piece of k, a multiple of STEP */
    int across;            /* tasks side by side */
    int copies;            /* of a's rows: as they lie, too many of them share a place of the first cache */
    int failed;            /* no scratch memory */
} product;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

static inline int64_t round_up(int64_t x, int64_t multiple) { return parts(x, multiple) * multiple; }

/* --- packing ------------------------------------------------------------------------------------------------------ */

static inline __mmask32 first_of_32(int64_t count) {
    return count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0 : (__mmask32)((1u << count) - 1);
}

static inline __mmask16 first_of_16(int64_t count) { return (__mmask16)first_of_32(count); }

/* Where the pairs of a step begin in a panel: those of its first sixteen columns, then those of the others. */
static inline uint16_t *pairs_of(uint16_t *panel, int64_t k) { return panel + k / STEP * STEP * SIDE; }

/* b is given as its transpose: its columns lie as rows. */
static void pack_turned(const uint16_t *b, int64_t ldb, int64_t columns, int64_t depth, uint16_t *panel) {
    for (int64_t k = 0; k < depth; k += STEP)
        for (int half = 0; half < 2; half++) {
            const uint16_t *from = b + half * 16 * ldb + k;
            uint16_t *to = pairs_of(panel, k) + half * 16 * STEP;
            __m512i r[16];
            if (columns == SIDE && depth - k >= STEP) {
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * ldb);
            } else {
                const __mmask32 there = first_of_32(depth - k);
                for (int i = 0; i < 16; i++)
                    r[i] = half * 16 + i < columns ? _mm512_maskz_loadu_epi16(there, from + i * ldb)
                                                   : _mm512_setzero_si512();
            }
            transpose(r);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 32, r[i]);
        }
}

static void pack_plain(const uint16_t *b, int64_t ldb, int64_t columns, int64_t depth, uint16_t *panel) {
    const __mmask32 there = first_of_32(columns);
    const int64_t whole = round_up(depth, STEP);
    for (int64_t k = 0; k < whole; k += 2) {
        __m512i even = _mm512_setzero_si512(), odd = even;
        if (k < depth) even = _mm512_maskz_loadu_epi16(there, b + k * ldb);
        if (k + 1 < depth) odd = _mm512_maskz_loadu_epi16(there, b + (k + 1) * ldb);
        __builtin_prefetch(b + (k + 16) * ldb);
        __builtin_prefetch(b + (k + 17) * ldb);
        uint16_t *to = pairs_of(panel, k) + k % STEP / 2 * 32;
        _mm512_store_si512(to, first_pairs(even, odd));
        _mm512_store_si512(to + 16 * STEP, last_pairs(even, odd));
    }
}

/* Up to 32 rows of op(a), a piece of them, close together and filled up with zeros. */
static void pack_rows(const product *p, int64_t row, int64_t rows, int64_t first, int64_t depth, uint16_t *to) {
    const int64_t whole = round_up(depth, STEP);
    if (rows < SIDE || whole > depth) memset(to, 0, (size_t)(SIDE * whole) * sizeof *to);
    for (int64_t i = 0; i < rows; i++, to += whole) {
        if (p->trans_a)
            for (int64_t k = 0; k < depth; k++) to[k] = p->a[(first + k) * p->lda + row + i];
        else
            memcpy(to, p->a + (row + i) * p->lda + first, (size_t)depth * sizeof *to);
    }
}

/* --- a block of sums ----------------------------------------------------------------------------------------------- */

typedef struct {
    const float *sums; /* [SIDE, SIDE] of one piece of k */
    float *kept;       /* alike, of the pieces before it and for those after it; NULL where k is one piece */
    int first, last;   /* of the pieces */
    int64_t row, column, rows, columns; /* of c; rows 0: there is no block */
} block_type;

static inline __attribute__((always_inline)) __m512 sixteen(const block_type *block, int64_t at, const char *c,
                                                           __mmask16 there, __m512 alpha, int add, int wide) {
    __m512 value = _mm512_load_ps(block->sums + at);
    if (block->kept != NULL) value = _mm512_add_ps(_mm512_load_ps(block->kept + at), value);
    value = _mm512_mul_ps(alpha, value);
    if (!add) return value;
    if (wide) return _mm512_add_ps(value, _mm512_maskz_loadu_ps(there, c));
    const __m512i old = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, c));
    return _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(old, 16)));
}

static inline __attribute__((always_inline)) void write_rows(const product *p, const block_type *block, int64_t from,
                                                             int64_t to, int add, int wide) {
    const int64_t size = wide ? 4 : 2;
    char *c = (char *)p->c + ((block->row + from) * p->ldc + block->column) * size;
    const __m512 alpha = _mm512_set1_ps(p->alpha);
    const __mmask16 first = first_of_16(block->columns), second = first_of_16(block->columns - 16);
    for (int64_t i = from; i < to; i++, c += p->ldc * size) {
        const __m512 low = sixteen(block, i * SIDE, c, first, alpha, add, wide);
        const __m512 high = sixteen(block, i * SIDE + 16, c + 16 * size, second, alpha, add, wide);
        if (wide) {
            _mm512_mask_storeu_ps(c, first, low);
            _mm512_mask_storeu_ps(c + 64, second, high);
        } else {
            _mm512_mask_storeu_epi16(c, first_of_32(block->columns), (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    }
}

/* Some rows of a block: to c, or added to what is kept. */
static inline __attribute__((always_inline)) void finish_rows(const product *p, const block_type *block, int64_t from,
                                                              int64_t to) {
    to = smaller(to, block->rows);
    if (from >= to) return;
    if (!block->last) {
        for (int64_t i = from * SIDE; i < to * SIDE; i += 16) {
            __m512 value = _mm512_load_ps(block->sums + i);
            if (!block->first) value = _mm512_add_ps(_mm512_load_ps(block->kept + i), value);
            _mm512_store_ps(block->kept + i, value);
        }
    } else if (p->wide) {
        if (p->add)
            write_rows(p, block, from, to, 1, 1);
        else
            write_rows(p, block, from, to, 0, 1);
    } else if (p->add) {
        write_rows(p, block, from, to, 1, 0);
    } else {
        write_rows(p, block, from, to, 0, 0);
    }
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_settings;

/* Static: gcc's _tile_loadconfig tells the compiler of its first bytes alone. */
static const tile_settings eight_tiles = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

/* sums [SIDE, SIDE] = 32 rows of a (16 where `half`) · panel. Meanwhile the block before is finished: its numbers have
 * left the tiles, and the units that tiles do not use are free. `c` are the rows that this block goes to. */
static void multiply_block(const product *p, const uint16_t *a, int64_t lda, const uint16_t *panel, int64_t depth,
                           int half, float *sums, const block_type *before, const char *c, int64_t c_bytes) {
    const size_t bytes = SIDE * sizeof *sums, a_bytes = (size_t)lda * sizeof *a;
    const int64_t share = parts(SIDE, depth / STEP);
    const uint16_t *below = a + 16 * lda;
    int64_t row = 0;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k += STEP, panel += STEP * SIDE, row += share) {
        _tile_loadd(4, a + k, a_bytes);
        _tile_stream_loadd(6, panel, 64);
        _tile_stream_loadd(7, panel + 16 * STEP, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        __builtin_prefetch(c, 1);
        __builtin_prefetch(c + c_bytes, 1);
        c += 2 * c_bytes;
        if (!half) {
            _tile_loadd(5, below + k, a_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        finish_rows(p, before, row, row + share);
    }
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + 16, bytes);
    if (half) return;
    _tile_stored(2, sums + 16 * SIDE, bytes);
    _tile_stored(3, sums + 16 * SIDE + 16, bytes);
}

/* --- tasks --------------------------------------------------------------------------------------------------------- */

/* A task's part of c, and its scratch memory. */
typedef struct {
    const product *p;
    int64_t row, column, rows, columns;
    int64_t pieces, deep; /* of k; the depth of a panel in memory */
    uint16_t *panels, *together;
    float *sums, *kept;   /* two blocks in turn; all blocks, where k has more than one piece */
    int turn;
    block_type before;
} work_type;

static void pack_group(const work_type *w, int64_t first, int64_t depth, int64_t group, int64_t columns) {
    const product *p = w->p;
    for (int64_t j = 0; j < columns; j += SIDE) {
        const int64_t column = w->column + group + j, across = smaller(SIDE, columns - j);
        if (p->trans_b)
            pack_turned(p->b + column * p->ldb + first, p->ldb, across, depth, w->panels + j * w->deep);
        else
            pack_plain(p->b + first * p->ldb + column, p->ldb, across, depth, w->panels + j * w->deep);
    }
}

/* Thirty-two rows and a group of panels. */
static void multiply_rows(work_type *w, int64_t piece, int64_t depth, int64_t group, int64_t columns, int64_t i) {
    const product *p = w->p;
    const int64_t first = piece * p->depth, whole = round_up(depth, STEP), down = smaller(SIDE, w->rows - i);
    const int64_t size = p->wide ? 4 : 2, row = w->row + i, across = round_up(w->columns, SIDE);
    const uint16_t *a = p->a + row * p->lda + first;
    const int last = piece == w->pieces - 1;
    int64_t lda = p->lda;
    if (p->copies || down < SIDE || depth % STEP) {
        uint16_t *to = w->together + (p->copies ? i * whole : 0);
        if (!p->copies || group == 0) pack_rows(p, row, down, first, depth, to);
        a = to;
        lda = whole;
    }
    for (int64_t j = group; j < group + columns; j += SIDE) {
        float *sums = w->sums + (w->turn ^= 1) * SIDE * SIDE;
        const char *c = (const char *)p->c + (row * p->ldc + w->column + j) * size;
        multiply_block(p, a, lda, w->panels + (j - group) * w->deep, whole, down <= 16, sums, &w->before, c,
                       last ? p->ldc * size : 0);
        w->before = (block_type){sums, w->kept == NULL ? NULL : w->kept + i * across + j * SIDE, piece == 0, last,
                                 row, w->column + j, down, smaller(SIDE, w->columns - j)};
    }
}

static void run_task(void *context, int task, int worker) {
    product *p = context;
    work_type w = {.p = p, .row = task / p->across * p->rows, .column = task % p->across * p->columns};
    w.rows = smaller(p->rows, p->m - w.row);
    w.columns = smaller(p->columns, p->n - w.column);
    w.pieces = parts(p->k, p->depth);
    w.deep = round_up(smaller(p->depth, p->k), STEP);
    const int64_t rows_kept = p->copies ? round_up(w.rows, SIDE) : SIDE;
    const int64_t numbers = (smaller(GROUP, round_up(w.columns, SIDE)) + rows_kept) * w.deep;
    const int64_t floats = 2 * SIDE * SIDE + (w.pieces > 1 ? round_up(w.rows, SIDE) * round_up(w.columns, SIDE) : 0);
    w.sums = strop_scratch(worker, (size_t)floats * sizeof *w.sums + (size_t)numbers * sizeof *w.panels);
    if (w.sums == NULL) {
        p->failed = 1;
        return;
    }
    w.kept = w.pieces > 1 ? w.sums + 2 * SIDE * SIDE : NULL;
    w.together = (uint16_t *)(w.sums + floats);
    w.panels = w.together + rows_kept * w.deep;
    _tile_loadconfig(&eight_tiles);
    for (int64_t piece = 0; piece < w.pieces; piece++) {
        const int64_t depth = smaller(p->depth, p->k - piece * p->depth);
        for (int64_t group = 0; group < w.columns; group += GROUP) {
            const int64_t columns = smaller(GROUP, w.columns - group);
            pack_group(&w, piece * p->depth, depth, group, columns);
            for (int64_t i = 0; i < w.rows; i += SIDE) multiply_rows(&w, piece, depth, group, columns, i);
        }
    }
    finish_rows(p, &w.before, 0, SIDE);
    _tile_release();
}

/* Rows as many as stay cached, a part for every thread where there are enough (each part packs b anew); columns so that
 * there are tasks enough. No bit depends on it. */
static void choose_tasks(product *p) {
    const int64_t threads = strop_threads();
    p->depth = round_up(parts(p->k, parts(p->k, DEPTH)), STEP);
    /* 32 rows lie in the 64 sets of the first cache: rows that are multiples of 2 KiB apart fill one or two of them. */
    p->copies = p->trans_a || p->lda % 1024 == 0;
    int64_t down = parts(p->m, larger(SIDE, CACHED / p->depth));
    if (down < threads) down = larger(down, smaller(threads, p->m / 256));
    p->rows = round_up(parts(p->m, down), SIDE);
    down = parts(p->m, p->rows);
    const double work = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    const int64_t wanted = smaller((int64_t)(work / SHORT_TASK) + 1, threads * TASKS);
    int64_t across = parts(wanted, down);
    /* Rows of b lie pages apart: they are read a group's width at a time, but for threads that would have nothing. */
    across = smaller(across, larger(parts(threads, down), p->n / GROUP));
    if (p->k > p->depth) across = larger(across, parts(p->n * p->rows * (int64_t)sizeof(float), 2 * CACHED));
    p->columns = round_up(parts(p->n, across), SIDE);
    p->across = (int)parts(p->n, p->columns);
}

/* a is [m, k] ([k, m] where trans_a) and b [k, n] ([n, k] where trans_b), bfloat16; c [m, n] is float32 where `wide`,
 * else bfloat16; none is empty. ld* are numbers from one row to the next. c overlaps neither a nor b. Only where
 * strop_amx(). 0, or 1 when there is no memory. */
STROP_API int strop_matmul_bfloat16(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                                    const uint16_t *a, int64_t lda, const uint16_t *b, int64_t ldb, int add, void *c,
                                    int64_t ldc, int wide) {
    product p = {.trans_a = trans_a, .trans_b = trans_b, .add = add, .wide = wide, .m = m, .n = n, .k = k, .lda = lda,
                 .ldb = ldb, .ldc = ldc, .alpha = alpha, .a = a, .b = b, .c = c};
    choose_tasks(&p);
    const int tasks = (int)parts(m, p.rows) * p.across;
    strop_parallel(tasks, run_task, &p);
    return p.failed;
}
#else /* never called: strop_amx() is 0 */
STROP_API int strop_matmul_bfloat16(int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, float alpha,
                                    const uint16_t *a, int64_t lda, const uint16_t *b, int64_t ldb, int add, void *c,
                                    int64_t ldc, int wide) {
    (void)trans_a, (void)trans_b, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)lda, (void)b, (void)ldb;
    (void)add, (void)c, (void)ldc, (void)wide;
    return 1;
}
#endif
