/* What both directions of attention share on AMX: products of tiles, rows laid otherwise, powers of 2.
 *
 * A tile of AMX is 16 rows of 64 bytes. One instruction adds A [16, 32] · B [32, 16] to C [16, 16]: A and B in bfloat16,
 * A as it lies, B in pairs of rows (a word holds two rows' numbers of one column), C and its sums in float32. A matrix
 * [n, m] in pairs is [m / 32][n / 2][32 words]; 32 columns are a strip.
 *
 * Included where the compiler has been given the flags of AMX.
 */
#ifndef STROP_ATTENTION_AMX_H
#define STROP_ATTENTION_AMX_H

#include <immintrin.h>

#include "amx_pairs.h"
#include "attention_blocks.h"

enum { SIXTEEN = 16, STRIP = 32 };

typedef uint16_t bf16;

static const float LOG2_E = 1.44269504f;

/* --- rows of the pack (attention_amx.c) --------------------------------------------------------------------------- */

/* Rows `first` and on of the pack, laid once for all blocks that see them: keys [rows, wide], values alike where they
 * are read as they lie, and turned over, [rows / 32][wide][32]: values forward, keys backward. Whole 32s of rows, with
 * zeros. */
typedef struct {
    int64_t first, rows; /* rows 0: nothing yet */
    bf16 *keys, *values, *turned;
} laid_type;

/* Memory for `rows` rows. */
laid_type attention_amx_laid(const attention_type *c, int64_t rows, int with_values, uintptr_t *memory);

/* Lays what a block of a chunk sees and has not been laid: its prefix, and its document as far as the chunk goes. */
void attention_amx_lay(const attention_type *c, const chunk_type *chunk, int index, int64_t kv_head,
                       laid_type *prefix, laid_type *own);

/* Thirty-two of a block's rows, [32, wide], from `row` on: the numbers of heads that share a key-value head, with zeros
 * where there are no more. */
void attention_amx_gather(const attention_type *c, const void *from, int64_t stride, const block_type *block,
                          int64_t head, int64_t row, bf16 *to);

/* from is thirty-two rows turned over, [wide, 32]: each times its factor, rounded, to the pack. */
void attention_amx_scatter(const attention_type *c, const float *from, const float *factors, void *to, int64_t stride,
                           const block_type *block, int64_t head, int64_t row);

static inline const laid_type *laid_of(const block_type *block, const tile_type *tile, const laid_type *prefix,
                                       const laid_type *own) {
    const span_type *span = &block->span;
    return tile->first >= span->prefix_start && tile->first < span->prefix_end ? prefix : own;
}

/* What a strip of a block's rows sees of a tile of keys. */
typedef struct {
    int64_t keys, seen_by_all; /* by any of its rows, whole 32s; by each of them */
    __m512i limits[2];         /* the keys that each of its rows sees */
} strip_shape;

static inline strip_shape shape_of(const attention_type *c, const tile_type *tile, int64_t rows, int64_t row) {
    int32_t limits[STRIP] __attribute__((aligned(64)));
    for (int64_t i = 0; i < STRIP; i++) {
        const int64_t position = smaller_of(row + i, rows - 1) / c->sharing;
        limits[i] = (int32_t)smaller_of(tile->columns, tile->first_visible + position);
    }
    return (strip_shape){whole(limits[STRIP - 1], STRIP), limits[0],
                         {_mm512_load_si512(limits), _mm512_load_si512(limits + SIXTEEN)}};
}

static inline __mmask16 sees(__m512i limits, int64_t key) {
    return _mm512_cmpgt_epi32_mask(limits, _mm512_set1_epi32((int)key));
}

/* `count` elements of `size` bytes from what is left of the scratch memory, whole lines of the cache. */
static inline void *take(uintptr_t *memory, int64_t count, size_t size) {
    const uintptr_t start = *memory;
    *memory += (uintptr_t)whole(count * (int64_t)size, 64);
    return (void *)start;
}

static inline int64_t most_rows(const attention_type *c) { return whole(c->sharing * c->positions, STRIP); }

static inline int64_t most_keys(const attention_type *c) { return whole(c->keys + c->positions, STRIP); }

/* --- products ------------------------------------------------------------------------------------------------------ */

/* A thread says what its tiles are before it uses them, and lets them go. */
static inline void start_tiles(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) eight_whole_tiles = {
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&eight_whole_tiles);
}

static inline void end_tiles(void) { _tile_release(); }

/* Loads of tiles do not tell the compiler what they read. */
#define SETTLE_MEMORY() __asm__ volatile("" ::: "memory")

/* c [32, 32] = a [32, k] · b, or c + a · b; b is a strip in pairs. a goes on to the next 32 columns after a_step, to the
 * next row after lda, c after ldc elements. */
static inline void square(int64_t k, const bf16 *a, int64_t lda, int64_t a_step, const uint32_t *b, int add, float *c,
                          int64_t ldc) {
    SETTLE_MEMORY();
    if (add) {
        _tile_loadd(0, c, ldc * 4);
        _tile_loadd(1, c + SIXTEEN, ldc * 4);
        _tile_loadd(2, c + SIXTEEN * ldc, ldc * 4);
        _tile_loadd(3, c + SIXTEEN * ldc + SIXTEEN, ldc * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t p = 0; p < k; p += 32, a += a_step, b += 32 / 2 * STRIP) {
        _tile_loadd(4, a, lda * 2);
        _tile_loadd(6, b, STRIP * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + SIXTEEN, STRIP * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + SIXTEEN * lda, lda * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, ldc * 4);
    _tile_stored(1, c + SIXTEEN, ldc * 4);
    _tile_stored(2, c + SIXTEEN * ldc, ldc * 4);
    _tile_stored(3, c + SIXTEEN * ldc + SIXTEEN, ldc * 4);
}

/* The strip c [m, 32] = a [m, k] · b, or c + a · b; m and k whole 32s. */
static inline void strip_product(int64_t m, int64_t k, const bf16 *a, int64_t lda, int64_t a_step, const uint32_t *b,
                                 int add, float *c) {
    for (int64_t i = 0; i < m; i += STRIP) square(k, a + i * lda, lda, a_step, b, add, c + i * STRIP, STRIP);
    SETTLE_MEMORY();
}

/* --- rows laid otherwise ------------------------------------------------------------------------------------------ */

/* Sixteen columns of two rows, rounded, as pairs. */
static inline __m512i rounded_pairs(__m512 even, __m512 odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* Thirty-two rows of `width`, whole 32s, to their transposition in pairs: a strip. */
static inline void turn(const bf16 *from, int64_t width, uint32_t *to) {
    for (int64_t row = 0; row < STRIP; row += SIXTEEN)
        for (int64_t e = 0; e < width; e += STRIP) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + (row + i) * width + e);
            transpose(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (e / 2 + i) * STRIP + row, r[i]);
        }
}

/* The numbers from e on that a row of `width` has, of 32. */
static inline __mmask32 there(int64_t width, int64_t e) {
    return width - e >= STRIP ? 0xFFFFFFFFu : width <= e ? 0 : (1u << (width - e)) - 1;
}

/* --- exponentials ------------------------------------------------------------------------------------------------- */

/* 2^x for x that is not above a few: a polynomial over [0, 1) that is 1 at 0 (a least greatest relative error of 8.2e-8),
 * and the whole part as the exponent. Below 2^-126 it stays there: what is smaller would take the CPU's slow way, and no sum that
 * holds a 1 sees it. NaN stays NaN. */
static inline __m512 power_of_2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    const __m512 r = _mm512_reduce_ps(x, 1); /* x - floor(x) */
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.8671302e-3f), r, _mm512_set1_ps(9.01703e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5799913e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4016444e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931513e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x); /* p · 2^floor(x) */
}

#endif
