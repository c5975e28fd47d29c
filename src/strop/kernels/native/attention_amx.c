/* A block of attention in bfloat16 by tiles of AMX, forward and backward (attention.c says what a block is).
 *
 * A tile of AMX is 16 rows of 64 bytes. One instruction adds A [16, 32] · B [32, 16] to C [16, 16]: A and B in bfloat16,
 * A as it lies, B in pairs of rows (a word holds two rows' numbers of one column), C and its sums in float32. Tiles of
 * scores are turned over, keys down and queries across, and go in strips of 32 queries that stay in the first cache:
 *
 *     forward     Sᵀ[keys, 32] = K · Qᵀ        Pᵀ in pairs of keys      Oᵀ[E, 32] = shrink · Oᵀ + Vᵀ · Pᵀ
 *     backward    Sᵀ = K · Qᵀ, dPᵀ = V · dOᵀ   dSᵀ in pairs of keys     dQᵀ[E, 32] += Kᵀ · dSᵀ
 *                 Pᵀ and dSᵀ as they are, then over all strips          dV[keys, E] += Pᵀ · dO, dK += dSᵀ · Q
 *
 * A matrix [n, m] in pairs is [m / 32][n / 2][32 words]. Qᵀ and dOᵀ in pairs are a transposition of words, Vᵀ and Kᵀ
 * one of pairs of rows. Scores, exponentials and sums are float32; P and dS are rounded for the product that follows.
 * All sizes are made whole with zeros: keys, rows and widths of heads to 32.
 *
 * Compiled with the flags that hatch_build.py names, where the compiler knows them; else amx.c says that it is not here.
 */
#include "attention_blocks.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <immintrin.h>
#include <math.h>

const int attention_amx_compiled = 1;

enum { SIXTEEN = 16, STRIP = 32 };

typedef uint16_t bf16;

/* --- tiles -------------------------------------------------------------------------------------------------------- */

void attention_amx_start(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) eight_whole_tiles = {
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&eight_whole_tiles);
}

void attention_amx_end(void) { _tile_release(); }

/* c [32, 32] = a [32, k] · b, or c + a · b; lda and ldc in elements, b a strip in pairs. */
static inline void square(int64_t k, const bf16 *a, int64_t lda, const uint32_t *b, int add, float *c, int64_t ldc) {
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
    for (int64_t p = 0; p < k; p += 32) {
        const uint32_t *rows_b = b + p / 2 * STRIP;
        _tile_loadd(4, a + p, lda * 2);
        _tile_loadd(6, rows_b, STRIP * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, rows_b + SIXTEEN, STRIP * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + SIXTEEN * lda + p, lda * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, ldc * 4);
    _tile_stored(1, c + SIXTEEN, ldc * 4);
    _tile_stored(2, c + SIXTEEN * ldc, ldc * 4);
    _tile_stored(3, c + SIXTEEN * ldc + SIXTEEN, ldc * 4);
}

/* Loads of tiles do not tell the compiler what they read. */
#define SETTLE_MEMORY() __asm__ volatile("" ::: "memory")

/* c [m, n] = a [m, k] · b, or c + a · b. n and k are whole 32s, and so is what a has of rows; where c has fewer than
 * that, what is left is added beside it. */
static void product(int64_t m, int64_t n, int64_t k, const bf16 *a, int64_t lda, const uint32_t *b, int add, float *c,
                    int64_t ldc) {
    SETTLE_MEMORY();
    for (int64_t j = 0; j < n; j += STRIP, b += k / 2 * STRIP) {
        int64_t i = 0;
        for (; i + STRIP <= m; i += STRIP) square(k, a + i * lda, lda, b, add, c + i * ldc + j, ldc);
        if (i < m) {
            float rest[STRIP * STRIP] __attribute__((aligned(64)));
            square(k, a + i * lda, lda, b, 0, rest, STRIP);
            SETTLE_MEMORY();
            for (int64_t row = i; row < m; row++)
                for (int64_t e = 0; e < STRIP; e++) {
                    float *to = c + row * ldc + j + e;
                    *to = (add ? *to : 0.0f) + rest[(row - i) * STRIP + e];
                }
        }
    }
    SETTLE_MEMORY();
}

/* --- rows laid otherwise ------------------------------------------------------------------------------------------ */

/* 16 × 16 words. */
static inline __attribute__((always_inline)) void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    /* r[4g + i] holds, for each quarter q, column 4q + i of rows 4g … 4g + 3. */
    for (int i = 0; i < 4; i++) {
        const __m512i low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), high = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xDD);
        const __m512i low_2 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        const __m512i high_2 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xDD);
        t[i] = _mm512_shuffle_i32x4(low, low_2, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(low, low_2, 0xDD);
        t[4 + i] = _mm512_shuffle_i32x4(high, high_2, 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(high, high_2, 0xDD);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

/* Two rows of 32 numbers as pairs: the first 16 columns, and the others. */
static inline __m512i first_pairs(__m512i even, __m512i odd) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_permutex2var_epi16(even, order, odd);
}

static inline __m512i last_pairs(__m512i even, __m512i odd) {
    const __m512i order = _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23, 54,
                                           22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
    return _mm512_permutex2var_epi16(even, order, odd);
}

/* Sixteen columns of two rows, rounded, as pairs. */
static inline __m512i rounded_pairs(__m512 even, __m512 odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* from [rows, width], whole 32s, to its transposition in pairs. */
static void turn(const bf16 *from, int64_t rows, int64_t width, uint32_t *to) {
    for (int64_t row = 0; row < rows; row += SIXTEEN)
        for (int64_t e = 0; e < width; e += STRIP) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + (row + i) * width + e);
            transpose(r);
            uint32_t *out = to + row / STRIP * (width / 2 * STRIP) + e / 2 * STRIP + row % STRIP;
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + i * STRIP, r[i]);
        }
}

/* from [rows, width], whole 32s, in pairs of rows. */
static void pair_rows(const bf16 *from, int64_t rows, int64_t width, uint32_t *to) {
    for (int64_t row = 0; row < rows; row += 2)
        for (int64_t e = 0; e < width; e += STRIP) {
            const __m512i even = _mm512_loadu_si512(from + row * width + e);
            const __m512i odd = _mm512_loadu_si512(from + (row + 1) * width + e);
            uint32_t *out = to + e / STRIP * (rows / 2 * STRIP) + row / 2 * STRIP;
            _mm512_storeu_si512(out, first_pairs(even, odd));
            _mm512_storeu_si512(out + SIXTEEN, last_pairs(even, odd));
        }
}

/* from [rows, width], whole 32s, to its transposition [width, rows]. */
static void turn_rows(const bf16 *from, int64_t rows, int64_t width, bf16 *to) {
    for (int64_t row = 0; row < rows; row += STRIP)
        for (int64_t e = 0; e < width; e += STRIP)
            for (int half = 0; half < 2; half++) {
                __m512i r[16];
                for (int i = 0; i < 16; i++) {
                    const bf16 *at = from + (row + 2 * i) * width + e;
                    const __m512i even = _mm512_loadu_si512(at), odd = _mm512_loadu_si512(at + width);
                    r[i] = half ? last_pairs(even, odd) : first_pairs(even, odd);
                }
                transpose(r);
                for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (e + half * SIXTEEN + i) * rows + row, r[i]);
            }
}

/* The numbers from e on that a row of `width` has, of 32. */
static inline __mmask32 there(int64_t width, int64_t e) {
    return width - e >= STRIP ? 0xFFFFFFFFu : width <= e ? 0 : (1u << (width - e)) - 1;
}

static inline void copy_row(const bf16 *from, int64_t width, int64_t wide, bf16 *to) {
    for (int64_t e = 0; e < wide; e += STRIP)
        _mm512_storeu_si512(to + e, _mm512_maskz_loadu_epi16(there(width, e), from + e));
}

/* `rows` rows of a tile, and zeros to whole 32s. */
static void copy_rows(const attention_type *c, int64_t index, int64_t rows, int64_t wide, bf16 *to) {
    const bf16 *from = (const bf16 *)c->qkv + index;
    for (int64_t row = 0; row < rows; row++) copy_row(from + row * c->qkv_stride, c->width, wide, to + row * wide);
    memset(to + rows * wide, 0, (size_t)((whole(rows, STRIP) - rows) * wide) * sizeof *to);
}

/* A block's rows, as attention.c gathers them, and zeros to whole 32s. */
static void gather(const attention_type *c, const void *from, int64_t stride, const block_type *block, int64_t head,
                   int64_t wide, bf16 *to) {
    const int64_t positions = block->end - block->first, rows = c->sharing * positions;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t g = 0; g < c->sharing; g++)
            copy_row((const bf16 *)from + (block->first + p) * stride + (head + g) * c->width, c->width, wide,
                     to + (g * positions + p) * wide);
    memset(to + rows * wide, 0, (size_t)((whole(rows, STRIP) - rows) * wide) * sizeof *to);
}

/* from is a block's rows turned over, [strips][wide][32]: each times its factor, rounded, to the pack. */
static void scatter(const attention_type *c, const float *from, const float *factors, int64_t wide, void *to,
                    int64_t stride, const block_type *block, int64_t head) {
    const int64_t positions = block->end - block->first, rows = c->sharing * positions;
    for (int64_t row = 0; row < rows; row += SIXTEEN) {
        const float *strip = from + row / STRIP * wide * STRIP + row % STRIP;
        const __m512 factor = _mm512_loadu_ps(factors + row);
        for (int64_t e = 0; e < wide; e += STRIP) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                const float *at = strip + (e + 2 * i) * STRIP;
                r[i] = rounded_pairs(_mm512_mul_ps(_mm512_loadu_ps(at), factor),
                                     _mm512_mul_ps(_mm512_loadu_ps(at + STRIP), factor));
            }
            transpose(r);
            for (int64_t i = 0; i < smaller_of(SIXTEEN, rows - row); i++) {
                const int64_t g = (row + i) / positions, p = (row + i) % positions;
                bf16 *out = (bf16 *)to + (block->first + p) * stride + (head + g) * c->width + e;
                _mm512_mask_storeu_epi16(out, there(c->width, e), r[i]);
            }
        }
    }
}

/* --- exponentials ------------------------------------------------------------------------------------------------- */

static const float LOG2_E = 1.44269504f;

/* 2^x for x that is not above a few: a polynomial over [0, 1) of least greatest relative error (7.5e-8), and the whole
 * part as the exponent. Below 2^-126 it stays there: what is smaller would take the CPU's slow way, and no sum that
 * holds a 1 sees it. NaN stays NaN. */
static inline __m512 power_of_2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
    const __m512 r = _mm512_reduce_ps(x, 1); /* x - floor(x) */
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.87757667e-3f), r, _mm512_set1_ps(8.98934009e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.58263180e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40153617e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93153073e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.99999925e-1f));
    return _mm512_scalef_ps(p, x); /* p · 2^floor(x) */
}

static inline __mmask16 sees(__m512i limits, int64_t key) {
    return _mm512_cmpgt_epi32_mask(limits, _mm512_set1_epi32((int)key));
}

/* Sixteen columns of a strip of `keys` rows, whole 32s: pairs of keys of P = exp(factor · (S - highest)). `scale` is
 * the factor for powers of 2; highest, total and shrink as in attention.h. */
static void softmax_columns(const float *scores, tile_shape shape, const int32_t *limits_from, float scale,
                            float *highest, float *total, float *shrink, uint32_t *pairs) {
    const __m512i limits = _mm512_loadu_si512(limits_from);
    const __m512 before = _mm512_loadu_ps(highest), factor = _mm512_set1_ps(scale);
    const int64_t all = shape.seen_by_all / 4 * 4;
    __m512 most[4] = {before, before, before, before};
    for (int64_t key = 0; key < all; key += 4) /* NaN is passed over */
        for (int i = 0; i < 4; i++) most[i] = _mm512_max_ps(_mm512_loadu_ps(scores + (key + i) * STRIP), most[i]);
    for (int64_t key = all; key < shape.keys; key++)
        most[0] = _mm512_mask_max_ps(most[0], sees(limits, key), _mm512_loadu_ps(scores + key * STRIP), most[0]);
    const __m512 now = _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
    const __m512 less = _mm512_mul_ps(now, factor);
    __m512 sum = _mm512_setzero_ps(), sum_odd = sum;
    for (int64_t key = 0; key < all; key += 2) {
        const __m512 even = power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key * STRIP), factor, less));
        const __m512 odd = power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + (key + 1) * STRIP), factor, less));
        sum = _mm512_add_ps(sum, even);
        sum_odd = _mm512_add_ps(sum_odd, odd);
        _mm512_storeu_si512(pairs + key / 2 * STRIP, rounded_pairs(even, odd));
    }
    for (int64_t key = all; key < shape.keys; key += 2) {
        __m512 p[2];
        for (int i = 0; i < 2; i++) {
            const __m512 score = _mm512_loadu_ps(scores + (key + i) * STRIP);
            p[i] = _mm512_maskz_mov_ps(sees(limits, key + i), power_of_2(_mm512_fmsub_ps(score, factor, less)));
        }
        sum = _mm512_add_ps(sum, p[0]);
        sum_odd = _mm512_add_ps(sum_odd, p[1]);
        _mm512_storeu_si512(pairs + key / 2 * STRIP, rounded_pairs(p[0], p[1]));
    }
    const __m512 fewer = power_of_2(_mm512_fmsub_ps(before, factor, less));
    _mm512_storeu_ps(highest, now);
    _mm512_storeu_ps(shrink, fewer);
    _mm512_storeu_ps(total, _mm512_fmadd_ps(_mm512_loadu_ps(total), fewer, _mm512_add_ps(sum, sum_odd)));
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

static int64_t most_rows(const attention_type *c) { return whole(c->sharing * c->positions, STRIP); }

static int64_t most_keys(const attention_type *c) { return whole(c->keys + c->positions, STRIP); }

/* `count` elements of `size` bytes from what is left of the scratch memory, whole lines of the cache. */
static void *take(uintptr_t *memory, int64_t count, size_t size) {
    const uintptr_t start = *memory;
    *memory += (uintptr_t)whole(count * (int64_t)size, 64);
    return (void *)start;
}

typedef struct {
    bf16 *rows, *keys, *turned;
    uint32_t *turned_q, *pairs;
    float *scores, *out, *highest, *total, *shrink;
    int32_t *limits;
} forward_parts;

static size_t lay_forward(const attention_type *c, void *memory, forward_parts *f) {
    const int64_t wide = c->sums_width, most = most_rows(c), keys = most_keys(c);
    uintptr_t next = (uintptr_t)memory;
    f->turned_q = take(&next, most * wide / 2, 4);
    f->keys = take(&next, larger_of(keys, most) * wide, 2);
    f->rows = f->keys; /* the block's rows, until they are turned */
    f->turned = take(&next, keys * wide, 2);
    f->scores = take(&next, keys * STRIP, 4);
    f->pairs = take(&next, keys / 2 * STRIP, 4);
    f->out = take(&next, most * wide, 4);
    f->highest = take(&next, most, 4);
    f->total = take(&next, most, 4);
    f->shrink = take(&next, most, 4);
    f->limits = take(&next, most, 4);
    return (size_t)(next - (uintptr_t)memory);
}

size_t attention_amx_memory(const attention_type *c) {
    forward_parts f;
    return lay_forward(c, NULL, &f);
}

static void shrink_strip(float *out, const float *shrink, int64_t wide) {
    const __m512 one = _mm512_set1_ps(1.0f), left = _mm512_loadu_ps(shrink), right = _mm512_loadu_ps(shrink + SIXTEEN);
    if (!(_mm512_cmp_ps_mask(left, one, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(right, one, _CMP_NEQ_UQ))) return;
    for (int64_t e = 0; e < wide; e++, out += STRIP) {
        _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_loadu_ps(out), left));
        _mm512_storeu_ps(out + SIXTEEN, _mm512_mul_ps(_mm512_loadu_ps(out + SIXTEEN), right));
    }
}

void attention_amx_block(const attention_type *c, const block_type *block, int64_t kv_head, void *memory) {
    forward_parts f;
    lay_forward(c, memory, &f);
    const int64_t head = kv_head * c->sharing, wide = c->sums_width;
    const int64_t positions = block->end - block->first, rows = c->sharing * positions, stride = whole(rows, STRIP);
    const int64_t keys = (c->heads + kv_head) * c->width, values = keys + c->kv_heads * c->width;
    const float scale = c->factor * LOG2_E;
    gather(c, c->qkv, c->qkv_stride, block, head, wide, f.rows);
    turn(f.rows, stride, wide, f.turned_q);
    for (int64_t row = 0; row < stride; row++) f.highest[row] = -INFINITY, f.total[row] = 0.0f;
    int add = 0;
    for (tile_type tile = {0}; attention_next_tile(c, block, &tile); add = 1) {
        const int64_t from = tile.first * c->qkv_stride, n = whole(tile.columns, STRIP);
        tile_shape shape = attention_shape(&tile, rows, positions, stride, f.limits);
        shape.keys = n;
        copy_rows(c, values + from, tile.columns, wide, f.keys);
        turn_rows(f.keys, n, wide, f.turned);
        copy_rows(c, keys + from, tile.columns, wide, f.keys);
        for (int64_t row = 0; row < stride; row += STRIP) {
            float *out = f.out + row * wide;
            product(n, STRIP, wide, f.keys, wide, f.turned_q + row * wide / 2, 0, f.scores, STRIP);
            for (int64_t half = 0; half < STRIP; half += SIXTEEN)
                softmax_columns(f.scores + half, shape, f.limits + row + half, scale, f.highest + row + half,
                                f.total + row + half, f.shrink + row + half, f.pairs + half);
            if (add) shrink_strip(out, f.shrink + row, wide);
            product(wide, STRIP, n, f.turned, n, f.pairs, add, out, STRIP);
        }
    }
    for (int64_t row = 0; row < stride; row++) f.shrink[row] = 1.0f / f.total[row];
    scatter(c, f.out, f.shrink, wide, c->out_to, c->out_stride, block, head);
    for (int64_t row = 0; row < rows; row++)
        c->row_sums[(head + row / positions) * c->row_sums_stride + block->first + row % positions] =
            f.highest[row] * c->factor + logf(f.total[row]);
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

typedef struct {
    bf16 *rows, *keys, *values, *turned_keys, *p, *ds;
    uint32_t *turned_q, *turned_grad, *q_pairs, *grad_pairs, *ds_pairs;
    float *scores, *grads, *grad_q, *row_sums, *delta, *factors;
    int32_t *limits;
} backward_parts;

static size_t lay_backward(const attention_type *c, void *memory, backward_parts *b) {
    const int64_t wide = c->sums_width, most = most_rows(c), keys = most_keys(c);
    uintptr_t next = (uintptr_t)memory;
    b->rows = take(&next, most * wide, 2);
    b->turned_q = take(&next, most * wide / 2, 4);
    b->turned_grad = take(&next, most * wide / 2, 4);
    b->q_pairs = take(&next, most * wide / 2, 4);
    b->grad_pairs = take(&next, most * wide / 2, 4);
    b->keys = take(&next, keys * wide, 2);
    b->values = take(&next, keys * wide, 2);
    b->turned_keys = take(&next, keys * wide, 2);
    b->p = take(&next, keys * most, 2);
    b->ds = take(&next, keys * most, 2);
    b->ds_pairs = take(&next, keys / 2 * STRIP, 4);
    b->scores = take(&next, keys * STRIP, 4);
    b->grads = take(&next, keys * STRIP, 4);
    b->grad_q = take(&next, most * wide, 4);
    b->row_sums = take(&next, most, 4);
    b->delta = take(&next, most, 4);
    b->factors = take(&next, most, 4);
    b->limits = take(&next, most, 4);
    return (size_t)(next - (uintptr_t)memory);
}

size_t attention_amx_backward_memory(const attention_type *c) {
    backward_parts b;
    return lay_backward(c, NULL, &b);
}

static float dot(const bf16 *a, const bf16 *b, int64_t count) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t e = 0; e < count; e += STRIP) {
        const __m512i x = _mm512_maskz_loadu_epi16(there(count, e), a + e);
        const __m512i y = _mm512_maskz_loadu_epi16(there(count, e), b + e);
        sum = _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
    }
    return _mm512_reduce_add_ps(sum);
}

static void read_block(const attention_type *c, const block_type *block, int64_t head, const backward_parts *b) {
    const int64_t positions = block->end - block->first, rows = c->sharing * positions, wide = c->sums_width;
    const int64_t stride = whole(rows, STRIP);
    gather(c, c->qkv, c->qkv_stride, block, head, wide, b->rows);
    turn(b->rows, stride, wide, b->turned_q);
    pair_rows(b->rows, stride, wide, b->q_pairs);
    gather(c, c->grad, c->grad_stride, block, head, wide, b->rows);
    turn(b->rows, stride, wide, b->turned_grad);
    pair_rows(b->rows, stride, wide, b->grad_pairs);
    for (int64_t row = 0; row < stride; row++) {
        const int64_t g = row / positions, t = block->first + row % positions;
        const bf16 *out = (const bf16 *)c->out + t * c->out_stride + (head + g) * c->width;
        b->row_sums[row] = row < rows ? c->row_sums[(head + g) * c->row_sums_stride + t] * LOG2_E : 0.0f;
        b->delta[row] = row < rows ? dot(b->rows + row * wide, out, c->width) : 0.0f;
        b->factors[row] = c->factor;
    }
}

/* Thirty-two columns: rows of P and dS (`stride` numbers apart), and dS in pairs of keys. */
static void softmax_strip(const backward_parts *b, tile_shape shape, int64_t row, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512i limits[2];
    __m512 less[2], delta[2];
    for (int half = 0; half < 2; half++) {
        limits[half] = _mm512_loadu_si512(b->limits + row + half * SIXTEEN);
        less[half] = _mm512_loadu_ps(b->row_sums + row + half * SIXTEEN);
        delta[half] = _mm512_loadu_ps(b->delta + row + half * SIXTEEN);
    }
    for (int64_t key = 0; key < shape.keys; key += 2) {
        const int masked = key + 2 > shape.seen_by_all;
        __m512i both[2];
        for (int i = 0; i < 2; i++) {
            __m512 p[2], slope[2];
            for (int half = 0; half < 2; half++) {
                const int64_t at = (key + i) * STRIP + half * SIXTEEN;
                p[half] = power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(b->scores + at), factor, less[half]));
                slope[half] = _mm512_mul_ps(p[half], _mm512_sub_ps(_mm512_loadu_ps(b->grads + at), delta[half]));
                if (masked) {
                    const __mmask16 seen = sees(limits[half], key + i);
                    p[half] = _mm512_maskz_mov_ps(seen, p[half]);
                    slope[half] = _mm512_maskz_mov_ps(seen, slope[half]);
                }
            }
            both[i] = (__m512i)_mm512_cvtne2ps_pbh(slope[1], slope[0]);
            _mm512_storeu_si512(b->p + (key + i) * shape.stride + row, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
            _mm512_storeu_si512(b->ds + (key + i) * shape.stride + row, both[i]);
        }
        _mm512_storeu_si512(b->ds_pairs + key / 2 * STRIP, first_pairs(both[0], both[1]));
        _mm512_storeu_si512(b->ds_pairs + key / 2 * STRIP + SIXTEEN, last_pairs(both[0], both[1]));
    }
}

void attention_amx_backward_block(const attention_type *c, const chunk_type *chunk, const block_type *block,
                                  int64_t kv_head, float *sums, void *memory) {
    backward_parts b;
    lay_backward(c, memory, &b);
    const int64_t head = kv_head * c->sharing, wide = c->sums_width;
    const int64_t positions = block->end - block->first, rows = c->sharing * positions, stride = whole(rows, STRIP);
    const int64_t keys = (c->heads + kv_head) * c->width, values = keys + c->kv_heads * c->width;
    read_block(c, block, head, &b);
    int add = 0;
    for (tile_type tile = {0}; attention_next_tile(c, block, &tile); add = 1) {
        const int64_t from = tile.first * c->qkv_stride, n = whole(tile.columns, STRIP);
        float *of_keys = sums + chunk_row(chunk, tile.first) * 2 * wide;
        tile_shape shape = attention_shape(&tile, rows, positions, stride, b.limits);
        shape.keys = n;
        copy_rows(c, keys + from, tile.columns, wide, b.keys);
        copy_rows(c, values + from, tile.columns, wide, b.values);
        turn_rows(b.keys, n, wide, b.turned_keys);
        for (int64_t row = 0; row < stride; row += STRIP) {
            product(n, STRIP, wide, b.keys, wide, b.turned_q + row * wide / 2, 0, b.scores, STRIP);
            product(n, STRIP, wide, b.values, wide, b.turned_grad + row * wide / 2, 0, b.grads, STRIP);
            softmax_strip(&b, shape, row, c->factor * LOG2_E);
            product(wide, STRIP, n, b.turned_keys, n, b.ds_pairs, add, b.grad_q + row * wide, STRIP);
        }
        product(tile.columns, wide, stride, b.p, stride, b.grad_pairs, 1, of_keys + wide, 2 * wide);
        product(tile.columns, wide, stride, b.ds, stride, b.q_pairs, 1, of_keys, 2 * wide);
    }
    scatter(c, b.grad_q, b.factors, wide, c->grad_to, c->grad_to_stride, block, head);
}

#else /* never called: strop_amx() is 0 */

const int attention_amx_compiled = 0;

size_t attention_amx_memory(const attention_type *c) { return c == NULL; }

size_t attention_amx_backward_memory(const attention_type *c) { return c == NULL; }

void attention_amx_start(void) {}

void attention_amx_end(void) {}

void attention_amx_block(const attention_type *c, const block_type *block, int64_t kv_head, void *memory) {
    (void)c, (void)block, (void)kv_head, (void)memory;
}

void attention_amx_backward_block(const attention_type *c, const chunk_type *chunk, const block_type *block,
                                  int64_t kv_head, float *sums, void *memory) {
    (void)c, (void)chunk, (void)block, (void)kv_head, (void)sums, (void)memory;
}
#endif
