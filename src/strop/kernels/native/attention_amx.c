/* A chunk of attention's blocks in bfloat16 by tiles of AMX, forward (attention.c says what they are, attention_amx.h
 * how AMX multiplies).
 *
 * A block's rows are its positions one below the other, each with its heads, as in the pack. Tiles of scores are turned
 * over, keys down and queries across, and go in strips of 32 queries that stay in the first cache:
 *
 *     Sᵀ[keys, 32] = K · Qᵀ        Pᵀ in pairs of keys        Oᵀ[E, 32] = shrink · Oᵀ + Vᵀ · Pᵀ
 *
 * Of a block's own positions a strip reads no further than its last query sees. Scores, exponentials and sums are
 * float32; P is rounded for the product that follows. All sizes are made whole with zeros: keys, rows and widths of
 * heads to 32.
 *
 * Compiled with the flags that hatch_build.py names, where the compiler knows them; else amx.c says that it is not here.
 */
#include "attention_blocks.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <math.h>

#include "attention_amx.h"

const int attention_amx_compiled = 1;

/* --- rows of the pack --------------------------------------------------------------------------------------------- */

static inline void copy_row(const bf16 *from, int64_t width, int64_t wide, bf16 *to) {
    for (int64_t e = 0; e < wide; e += STRIP)
        _mm512_storeu_si512(to + e, _mm512_maskz_loadu_epi16(there(width, e), from + e));
}

/* Rows of a pack may lie pages apart, where the CPU does not read ahead by itself. */
static inline void read_ahead(const bf16 *from, int64_t count) {
    for (int64_t e = 0; e < count; e += STRIP) _mm_prefetch((const char *)(from + e), _MM_HINT_T0);
}

/* Thirty-two rows [32, wide] to their transposition [wide, 32]. */
static void turn_rows(const bf16 *from, int64_t wide, bf16 *to) {
    for (int64_t e = 0; e < wide; e += STRIP)
        for (int half = 0; half < 2; half++) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                const bf16 *at = from + 2 * i * wide + e;
                const __m512i even = _mm512_loadu_si512(at), odd = _mm512_loadu_si512(at + wide);
                r[i] = half ? last_pairs(even, odd) : first_pairs(even, odd);
            }
            transpose(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (e + half * SIXTEEN + i) * STRIP, r[i]);
        }
}

laid_type attention_amx_laid(const attention_type *c, int64_t rows, int with_values, uintptr_t *memory) {
    const int64_t numbers = whole(rows, STRIP) * c->sums_width;
    laid_type laid = {0};
    laid.keys = take(memory, numbers, 2);
    if (with_values) laid.values = take(memory, numbers, 2);
    laid.turned = take(memory, numbers, 2);
    return laid;
}

static void copy_panel(const attention_type *c, const bf16 *from, int64_t rows, bf16 *to) {
    const int64_t wide = c->sums_width;
    for (int64_t row = 0; row < rows; row++, from += c->qkv_stride) {
        read_ahead(from + 4 * c->qkv_stride, row + 4 < rows ? c->width : 0);
        copy_row(from, c->width, wide, to + row * wide);
    }
    memset(to + rows * wide, 0, (size_t)((STRIP - rows) * wide) * sizeof *to);
}

static void lay_rows(const attention_type *c, laid_type *laid, int64_t first, int64_t rows, int64_t kv_head) {
    const int64_t wide = c->sums_width, to_values = c->kv_heads * c->width;
    const bf16 *from = (const bf16 *)c->qkv + first * c->qkv_stride + (c->heads + kv_head) * c->width;
    laid->first = first;
    laid->rows = rows;
    for (int64_t row = 0; row < rows; row += STRIP, from += STRIP * c->qkv_stride) {
        const int64_t count = smaller_of(STRIP, rows - row);
        bf16 *keys = laid->keys + row * wide;
        if (laid->values != NULL) {
            copy_panel(c, from, count, keys);
            copy_panel(c, from + to_values, count, laid->values + row * wide);
            turn_rows(keys, wide, laid->turned + row * wide);
        } else { /* the place of the keys holds the values until they are turned */
            copy_panel(c, from + to_values, count, keys);
            turn_rows(keys, wide, laid->turned + row * wide);
            copy_panel(c, from, count, keys);
        }
    }
}

void attention_amx_lay(const attention_type *c, const chunk_type *chunk, int index, int64_t kv_head,
                       laid_type *prefix, laid_type *own) {
    const span_type *span = &c->blocks[index].span;
    const int64_t shared = span->prefix_end - span->prefix_start;
    if (shared > 0 && (prefix->first != span->prefix_start || prefix->rows < shared))
        lay_rows(c, prefix, span->prefix_start, shared, kv_head);
    if (own->rows > 0 && own->first == span->start) return;
    int last = index;
    while (last + 1 < chunk->end && c->blocks[last + 1].span.start == span->start) last++;
    lay_rows(c, own, span->start, c->blocks[last].end - span->start, kv_head);
}

void attention_amx_gather(const attention_type *c, const void *from, int64_t stride, const block_type *block,
                          int64_t head, int64_t row, bf16 *to) {
    const int64_t width = c->width, wide = c->sums_width, left = (block->end - block->first) * c->sharing - row;
    const int64_t rows = smaller_of(STRIP, left), ahead = smaller_of(2 * STRIP, left);
    const bf16 *position = (const bf16 *)from + (block->first + row / c->sharing) * stride + head * width;
    int64_t g = row % c->sharing;
    for (int64_t i = 0; i < ahead; i++) {
        if (i < rows)
            copy_row(position + g * width, width, wide, to + i * wide);
        else
            read_ahead(position + g * width, width);
        if (++g == c->sharing) g = 0, position += stride;
    }
    memset(to + rows * wide, 0, (size_t)((STRIP - rows) * wide) * sizeof *to);
}

void attention_amx_scatter(const attention_type *c, const float *from, const float *factors, void *to, int64_t stride,
                           const block_type *block, int64_t head, int64_t row) {
    const int64_t width = c->width, rows = (block->end - block->first) * c->sharing;
    for (int64_t end = smaller_of(row + STRIP, rows); row < end; row += SIXTEEN, from += SIXTEEN) {
        const __m512 factor = _mm512_loadu_ps(factors + row);
        bf16 *out[SIXTEEN];
        for (int64_t i = 0; i < SIXTEEN; i++) {
            const int64_t at = smaller_of(row + i, rows - 1);
            out[i] = (bf16 *)to + (block->first + at / c->sharing) * stride + (head + at % c->sharing) * width;
        }
        for (int64_t e = 0; e < c->sums_width; e += STRIP) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                const float *two = from + (e + 2 * i) * STRIP;
                r[i] = rounded_pairs(_mm512_mul_ps(_mm512_loadu_ps(two), factor),
                                     _mm512_mul_ps(_mm512_loadu_ps(two + STRIP), factor));
            }
            transpose(r);
            for (int64_t i = 0; i < smaller_of(SIXTEEN, end - row); i++)
                _mm512_mask_storeu_epi16(out[i] + e, there(width, e), r[i]);
        }
    }
}

/* --- softmax ------------------------------------------------------------------------------------------------------ */

/* Sixteen columns of a strip: pairs of keys of P = exp(factor · (S - highest)), 0 for what is not seen. `scale` is the
 * factor for powers of 2; highest, total and shrink as in attention.h. */
static void softmax_columns(const float *scores, const strip_shape *shape, __m512i limits, float scale, float *highest,
                            float *total, float *shrink, uint32_t *pairs) {
    const __m512 before = _mm512_loadu_ps(highest), factor = _mm512_set1_ps(scale);
    const int64_t all = shape->seen_by_all / 4 * 4;
    __m512 most[4] = {before, before, before, before};
    for (int64_t key = 0; key < all; key += 4) /* NaN is passed over */
        for (int i = 0; i < 4; i++) most[i] = _mm512_max_ps(_mm512_loadu_ps(scores + (key + i) * STRIP), most[i]);
    for (int64_t key = all; key < shape->keys; key++)
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
    for (int64_t key = all; key < shape->keys; key += 2) {
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

static void shrink_strip(float *out, const float *shrink, int64_t wide) {
    const __m512 one = _mm512_set1_ps(1.0f), left = _mm512_loadu_ps(shrink), right = _mm512_loadu_ps(shrink + SIXTEEN);
    if (!(_mm512_cmp_ps_mask(left, one, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(right, one, _CMP_NEQ_UQ))) return;
    for (int64_t e = 0; e < wide; e++, out += STRIP) {
        _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_loadu_ps(out), left));
        _mm512_storeu_ps(out + SIXTEEN, _mm512_mul_ps(_mm512_loadu_ps(out + SIXTEEN), right));
    }
}

/* --- blocks ------------------------------------------------------------------------------------------------------- */

typedef struct {
    laid_type prefix, own;
    bf16 *rows;
    uint32_t *turned_q, *pairs;
    float *scores, *out, *highest, *total, *shrink;
} forward_parts;

static size_t lay_out(const attention_type *c, void *memory, forward_parts *f) {
    const int64_t wide = c->sums_width, most = most_rows(c), keys = most_keys(c);
    uintptr_t next = (uintptr_t)memory;
    f->prefix = attention_amx_laid(c, c->longest_prefix, 0, &next);
    f->own = attention_amx_laid(c, c->longest, 0, &next);
    f->rows = take(&next, STRIP * wide, 2);
    f->turned_q = take(&next, most * wide / 2, 4);
    f->scores = take(&next, keys * STRIP, 4);
    f->pairs = take(&next, keys / 2 * STRIP, 4);
    f->out = take(&next, most * wide, 4);
    f->highest = take(&next, most, 4);
    f->total = take(&next, most, 4);
    f->shrink = take(&next, most, 4);
    return (size_t)(next - (uintptr_t)memory);
}

size_t attention_amx_memory(const attention_type *c) {
    forward_parts f;
    return lay_out(c, NULL, &f);
}

static void attend_tile(const attention_type *c, const forward_parts *f, const laid_type *laid, const tile_type *tile,
                        int64_t rows, int add) {
    const int64_t wide = c->sums_width, from = (tile->first - laid->first) * wide;
    for (int64_t row = 0; row < rows; row += STRIP) {
        const strip_shape shape = shape_of(c, tile, rows, row);
        float *out = f->out + row * wide;
        strip_product(shape.keys, wide, laid->keys + from, wide, STRIP, f->turned_q + row * wide / 2, 0, f->scores);
        for (int half = 0; half < 2; half++) {
            const int64_t at = half * SIXTEEN;
            softmax_columns(f->scores + at, &shape, shape.limits[half], c->factor * LOG2_E, f->highest + row + at,
                            f->total + row + at, f->shrink + row + at, f->pairs + at);
        }
        if (add) shrink_strip(out, f->shrink + row, wide);
        strip_product(wide, shape.keys, laid->turned + from, STRIP, STRIP * wide, f->pairs, add, out);
    }
}

static void attend_block(const attention_type *c, const forward_parts *f, const block_type *block, int64_t kv_head) {
    const int64_t head = kv_head * c->sharing, wide = c->sums_width;
    const int64_t rows = c->sharing * (block->end - block->first), stride = whole(rows, STRIP);
    for (int64_t row = 0; row < rows; row += STRIP) {
        attention_amx_gather(c, c->qkv, c->qkv_stride, block, head, row, f->rows);
        turn(f->rows, wide, f->turned_q + row * wide / 2);
    }
    for (int64_t row = 0; row < stride; row++) f->highest[row] = -INFINITY, f->total[row] = 0.0f;
    int add = 0;
    for (tile_type tile = {0}; attention_next_tile(c, block, &tile); add = 1)
        attend_tile(c, f, laid_of(block, &tile, &f->prefix, &f->own), &tile, rows, add);
    for (int64_t row = 0; row < stride; row++) f->shrink[row] = 1.0f / f->total[row];
    for (int64_t row = 0; row < rows; row += STRIP)
        attention_amx_scatter(c, f->out + row * wide, f->shrink, c->out_to, c->out_stride, block, head, row);
    for (int64_t row = 0; row < rows; row++)
        c->row_sums[(head + row % c->sharing) * c->row_sums_stride + block->first + row / c->sharing] =
            f->highest[row] * c->factor + logf(f->total[row]);
}

void attention_amx_chunk(const attention_type *c, const chunk_type *chunk, int64_t kv_head, void *memory) {
    forward_parts f;
    lay_out(c, memory, &f);
    start_tiles();
    for (int b = chunk->first; b < chunk->end; b++) {
        attention_amx_lay(c, chunk, b, kv_head, &f.prefix, &f.own);
        attend_block(c, &f, &c->blocks[b], kv_head);
    }
    end_tiles();
}

#else /* never called: strop_amx() is 0 */

const int attention_amx_compiled = 0;

size_t attention_amx_memory(const attention_type *c) { return c == NULL; }

void attention_amx_chunk(const attention_type *c, const chunk_type *chunk, int64_t kv_head, void *memory) {
    (void)c, (void)chunk, (void)kv_head, (void)memory;
}
#endif
