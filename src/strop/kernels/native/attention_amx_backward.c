/* A chunk of attention's blocks in bfloat16 by tiles of AMX, backward (attention_amx.c has the forward pass and says how
 * blocks, strips and tiles lie).
 *
 *     a strip of 32 queries:   Sᵀ = K · Qᵀ    dPᵀ = V · dOᵀ    Pᵀ and dSᵀ, rounded, as they are; dSᵀ in pairs of keys
 *                              dQᵀ[E, 32] += Kᵀ · dSᵀ
 *     then 32 keys:            dV[32, E] += Pᵀ · dO    dK += dSᵀ · Q    over the strips that see them
 */
#include "attention_blocks.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include "attention_amx.h"

typedef struct {
    laid_type prefix, own;
    bf16 *rows, *grad_rows, *p, *ds; /* of a strip; [keys, the block's rows] */
    uint32_t *turned_q, *turned_grad, *q_pairs, *grad_pairs, *ds_pairs;
    float *scores, *grads, *grad_q, *row_sums, *delta, *factors;
} backward_parts;

static size_t lay_out(const attention_type *c, void *memory, backward_parts *b) {
    const int64_t wide = c->sums_width, most = most_rows(c), keys = most_keys(c);
    uintptr_t next = (uintptr_t)memory;
    b->prefix = attention_amx_laid(c, c->longest_prefix, 1, &next);
    b->own = attention_amx_laid(c, c->longest, 1, &next);
    b->rows = take(&next, STRIP * wide, 2);
    b->grad_rows = take(&next, STRIP * wide, 2);
    b->turned_q = take(&next, most * wide / 2, 4);
    b->turned_grad = take(&next, most * wide / 2, 4);
    b->q_pairs = take(&next, most * wide / 2, 4);
    b->grad_pairs = take(&next, most * wide / 2, 4);
    b->p = take(&next, keys * most, 2);
    b->ds = take(&next, keys * most, 2);
    b->ds_pairs = take(&next, keys / 2 * STRIP, 4);
    b->scores = take(&next, keys * STRIP, 4);
    b->grads = take(&next, keys * STRIP, 4);
    b->grad_q = take(&next, most * wide, 4);
    b->row_sums = take(&next, most, 4);
    b->delta = take(&next, most, 4);
    b->factors = take(&next, most, 4);
    return (size_t)(next - (uintptr_t)memory);
}

size_t attention_amx_backward_memory(const attention_type *c) {
    backward_parts b;
    return lay_out(c, NULL, &b);
}

/* Thirty-two rows of `width`, whole 32s, in pairs, into a matrix of `rows` rows from `row` on. */
static void pair_rows(const bf16 *from, int64_t width, int64_t row, int64_t rows, uint32_t *to) {
    for (int64_t e = 0; e < width; e += STRIP)
        for (int64_t i = 0; i < STRIP; i += 2) {
            const __m512i even = _mm512_loadu_si512(from + i * width + e);
            const __m512i odd = _mm512_loadu_si512(from + (i + 1) * width + e);
            uint32_t *out = to + e / STRIP * (rows / 2 * STRIP) + (row + i) / 2 * STRIP;
            _mm512_storeu_si512(out, first_pairs(even, odd));
            _mm512_storeu_si512(out + SIXTEEN, last_pairs(even, odd));
        }
}

static float dot(const bf16 *a, const bf16 *b, int64_t wide) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t e = 0; e < wide; e += STRIP)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a + e), (__m512bh)_mm512_loadu_si512(b + e));
    return _mm512_reduce_add_ps(sum);
}

static void read_block(const attention_type *c, const block_type *block, int64_t head, const backward_parts *b) {
    const int64_t rows = c->sharing * (block->end - block->first), stride = whole(rows, STRIP), wide = c->sums_width;
    for (int64_t row = 0; row < rows; row += STRIP) {
        attention_amx_gather(c, c->qkv, c->qkv_stride, block, head, row, b->rows);
        turn(b->rows, wide, b->turned_q + row * wide / 2);
        pair_rows(b->rows, wide, row, stride, b->q_pairs);
        attention_amx_gather(c, c->grad, c->grad_stride, block, head, row, b->grad_rows);
        turn(b->grad_rows, wide, b->turned_grad + row * wide / 2);
        pair_rows(b->grad_rows, wide, row, stride, b->grad_pairs);
        attention_amx_gather(c, c->out, c->out_stride, block, head, row, b->rows);
        for (int64_t i = 0; i < STRIP; i++) {
            const int64_t at = row + i, t = block->first + at / c->sharing;
            const float *sums = c->row_sums + (head + at % c->sharing) * c->row_sums_stride;
            b->row_sums[at] = at < rows ? sums[t] * LOG2_E : 0.0f;
            b->delta[at] = dot(b->grad_rows + i * wide, b->rows + i * wide, wide);
            b->factors[at] = c->factor;
        }
    }
}

/* Thirty-two columns: rows of P and dS (`stride` numbers apart), and dS in pairs of keys; 0 for what is not seen. */
static void softmax_strip(const backward_parts *b, const strip_shape *shape, int64_t row, int64_t stride, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 less[2], delta[2];
    for (int half = 0; half < 2; half++) {
        less[half] = _mm512_loadu_ps(b->row_sums + row + half * SIXTEEN);
        delta[half] = _mm512_loadu_ps(b->delta + row + half * SIXTEEN);
    }
    for (int64_t key = 0; key < shape->keys; key += 2) {
        const int masked = key + 2 > shape->seen_by_all;
        __m512i both[2];
        for (int i = 0; i < 2; i++) {
            __m512 p[2], slope[2];
            for (int half = 0; half < 2; half++) {
                const int64_t at = (key + i) * STRIP + half * SIXTEEN;
                p[half] = power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(b->scores + at), factor, less[half]));
                slope[half] = _mm512_mul_ps(p[half], _mm512_sub_ps(_mm512_loadu_ps(b->grads + at), delta[half]));
                if (masked) {
                    const __mmask16 seen = sees(shape->limits[half], key + i);
                    p[half] = _mm512_maskz_mov_ps(seen, p[half]);
                    slope[half] = _mm512_maskz_mov_ps(seen, slope[half]);
                }
            }
            both[i] = (__m512i)_mm512_cvtne2ps_pbh(slope[1], slope[0]);
            _mm512_storeu_si512(b->p + (key + i) * stride + row, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
            _mm512_storeu_si512(b->ds + (key + i) * stride + row, both[i]);
        }
        _mm512_storeu_si512(b->ds_pairs + key / 2 * STRIP, first_pairs(both[0], both[1]));
        _mm512_storeu_si512(b->ds_pairs + key / 2 * STRIP + SIXTEEN, last_pairs(both[0], both[1]));
    }
}

/* c [m, wide] += a [m, k] · b from row `from` of k on, for m of up to 32; b in pairs, c rows 2 wide apart. */
static void add_product(int64_t m, int64_t wide, int64_t k, int64_t from, const bf16 *a, const uint32_t *b, float *c) {
    for (int64_t e = 0; e < wide; e += STRIP) {
        const uint32_t *strip = b + (e * k + from * STRIP) / 2;
        if (m == STRIP) {
            square(k - from, a + from, k, STRIP, strip, 1, c + e, 2 * wide);
            continue;
        }
        float rest[STRIP * STRIP] __attribute__((aligned(64)));
        square(k - from, a + from, k, STRIP, strip, 0, rest, STRIP);
        SETTLE_MEMORY();
        for (int64_t row = 0; row < m; row++)
            for (int64_t i = 0; i < STRIP; i++) c[row * 2 * wide + e + i] += rest[row * STRIP + i];
    }
    SETTLE_MEMORY();
}

static void backward_tile(const attention_type *c, const backward_parts *b, const laid_type *laid,
                          const tile_type *tile, int64_t rows, int add, float *sums) {
    const int64_t wide = c->sums_width, from = (tile->first - laid->first) * wide, stride = whole(rows, STRIP);
    int64_t seen_from[32]; /* the strip from which 32 keys are seen; a tile has far fewer than 32 · 32 */
    int64_t known = 0;
    for (int64_t row = 0; row < rows; row += STRIP) {
        const strip_shape shape = shape_of(c, tile, rows, row);
        for (; known * STRIP < shape.keys; known++) seen_from[known] = row;
        strip_product(shape.keys, wide, laid->keys + from, wide, STRIP, b->turned_q + row * wide / 2, 0, b->scores);
        strip_product(shape.keys, wide, laid->values + from, wide, STRIP, b->turned_grad + row * wide / 2, 0,
                      b->grads);
        softmax_strip(b, &shape, row, stride, c->factor * LOG2_E);
        strip_product(wide, shape.keys, laid->turned + from, STRIP, STRIP * wide, b->ds_pairs, add,
                      b->grad_q + row * wide);
    }
    for (int64_t key = 0; key < tile->columns; key += STRIP) {
        const int64_t m = smaller_of(STRIP, tile->columns - key), first = seen_from[key / STRIP];
        float *of_keys = sums + key * 2 * wide;
        add_product(m, wide, stride, first, b->p + key * stride, b->grad_pairs, of_keys + wide);
        add_product(m, wide, stride, first, b->ds + key * stride, b->q_pairs, of_keys);
    }
}

void attention_amx_backward_chunk(const attention_type *c, const chunk_type *chunk, int64_t kv_head, float *sums,
                                  void *memory) {
    backward_parts b;
    lay_out(c, memory, &b);
    const int64_t head = kv_head * c->sharing, wide = c->sums_width;
    start_tiles();
    for (int i = chunk->first; i < chunk->end; i++) {
        const block_type *block = &c->blocks[i];
        const int64_t rows = c->sharing * (block->end - block->first);
        attention_amx_lay(c, chunk, i, kv_head, &b.prefix, &b.own);
        read_block(c, block, head, &b);
        int add = 0;
        for (tile_type tile = {0}; attention_next_tile(c, block, &tile); add = 1)
            backward_tile(c, &b, laid_of(block, &tile, &b.prefix, &b.own), &tile, rows, add,
                          sums + chunk_row(chunk, tile.first) * 2 * wide);
        for (int64_t row = 0; row < rows; row += STRIP)
            attention_amx_scatter(c, b.grad_q + row * wide, b.factors, c->grad_to, c->grad_to_stride, block, head, row);
    }
    end_tiles();
}

#else /* never called: strop_amx() is 0 */

size_t attention_amx_backward_memory(const attention_type *c) { return c == NULL; }

void attention_amx_backward_chunk(const attention_type *c, const chunk_type *chunk, int64_t kv_head, float *sums,
                                  void *memory) {
    (void)c, (void)chunk, (void)kv_head, (void)sums, (void)memory;
}
#endif
