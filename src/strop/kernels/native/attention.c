/* Causal attention inside documents, forward and backward; kernels/attention.py has the maths.
 *
 * The queries of a document are cut into blocks. A block holds the same positions of all query heads that share a
 * key-value head, one below the other, so that one product serves them all:
 *
 *     block [R, E], R = heads sharing × positions       keys it sees, in tiles of about KEYS:
 *                                                       prefix │ own document up to the block's last position
 *     forward, a tile:    S = scale · Q Kᵀ    P = exp(S - highest)    O = shrink · O + P V
 *     backward, a tile:   P = exp(S - row sum)    dP = dO Vᵀ    dS = P (dP - Σ dO·O)
 *                         dV += Pᵀ dO    dK += scale · dSᵀ Q    dQ += scale · dS K
 *
 * Forward, every block of every key-value head is a task. Backward, blocks that add to the same dK and dV go one after
 * another: a family is a document alone, or a prefix and all that continue it. A family that is a large share of the
 * work is cut into chunks; all but the first add into memory of their own, which is added up in order. Blocks, tiles
 * and chunks follow from the spans alone, so the same bits come out with any number of threads.
 */
#include "attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "matmul.h"

/* Rows of a block: tiles are sgemm calls, which are slow when they are small (OpenBLAS on one Zen 4 core, k = 64:
 * 54 GFLOP/s at 64 × 128, 80 at 192 × 192), and half of what a block computes of its own positions is in vain. Between
 * 96 and 192 rows the two make up for each other. */
enum { ROWS = 128, FEWEST_POSITIONS = 16, MOST_POSITIONS = 96 };
enum { KEYS = 512 };   /* a tile of 128 × 512 scores is 256 KiB: it stays in the second cache */
enum { CHUNKS = 16 };  /* backward tasks worth having */
static const double SHORT_CHUNK = 4e7; /* multiplications and additions, about 0.4 ms */

typedef struct {
    int64_t start, end, prefix_start, prefix_end;
} span_type;

typedef struct {
    span_type span;
    int64_t first, end; /* positions, rows of the pack */
    int family;         /* the span that is its prefix, or its own */
    double work;        /* positions × keys they see */
} block_type;

typedef struct {
    int first, end;        /* blocks */
    double work;
    /* Rows of dK and dV that it adds to: of the family's first span, and of those that continue it. */
    int64_t root, root_end, rest, rest_end;
    float *sums;           /* [kv_heads, rows, 2E], or NULL: the gradients themselves */
} chunk_type;

typedef struct {
    const attention_rows *rows;
    int64_t heads, kv_heads, width, sharing, positions;
    float factor;
    const float *qkv, *out, *grad;
    float *out_to, *grad_to, *row_sums;
    int64_t qkv_stride, out_stride, grad_stride, grad_to_stride, row_sums_stride, tokens;
    const block_type *blocks;
    const chunk_type *chunks;
    int chunk_count;
    const int *order;
    int failed; /* no scratch memory */
} attention_type;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t whole_lanes(int64_t count) { return (count + 15) / 16 * 16; }

static const attention_rows *rows_of_level(void) {
#if defined(__x86_64__)
    if (strop_level() == LEVEL_AVX512) return &attention_rows_avx512;
    if (strop_level() == LEVEL_VECTOR) return &attention_rows_avx2;
#elif defined(__aarch64__)
    if (strop_level() == LEVEL_VECTOR) return &attention_rows_neon;
#endif
    return &attention_rows_plain;
}

/* --- blocks and tiles --------------------------------------------------------------------------------------------- */

static int64_t block_positions(int64_t sharing) {
    return smaller(MOST_POSITIONS, larger(FEWEST_POSITIONS, ROWS / sharing / 8 * 8));
}

/* The blocks of all spans, a document's near equal in length. *blocks is the caller's to free. */
static int make_blocks(const span_type *spans, int64_t count, int64_t positions, block_type **blocks) {
    int64_t needed = 0;
    int made = 0;
    for (int64_t s = 0; s < count; s++) needed += (spans[s].end - spans[s].start + positions - 1) / positions;
    *blocks = malloc((size_t)(needed + 1) * sizeof **blocks);
    if (*blocks == NULL) return -1;
    for (int64_t s = 0; s < count; s++) {
        const span_type span = spans[s];
        const int64_t length = span.end - span.start, parts = (length + positions - 1) / positions;
        int64_t family = s;
        if (span.prefix_end > span.prefix_start)
            for (family = 0; family < s && spans[family].start != span.prefix_start;) family++;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = span.start + part * length / parts, end = span.start + (part + 1) * length / parts;
            const double keys = (double)(span.prefix_end - span.prefix_start + end - span.start);
            (*blocks)[made++] = (block_type){span, first, end, (int)family, keys * (double)(end - first)};
        }
    }
    return made;
}

typedef struct {
    int64_t first, columns; /* keys, rows of the pack */
    int64_t first_visible;  /* how many of them the block's first position sees, if not all */
} tile_type;

/* The tile of keys after `tile` (columns 0 before the first); 0 when there is none. The last one holds the block's own
 * positions, all of them: what would be cut off below them is left in, so that every position sees a key. */
static int next_tile(const block_type *block, int64_t positions, tile_type *tile) {
    const span_type *span = &block->span;
    int64_t first = tile->first + tile->columns;
    if (tile->columns == 0) first = span->prefix_end > span->prefix_start ? span->prefix_start : span->start;
    if (first == span->prefix_end && span->prefix_end > span->prefix_start) first = span->start;
    if (first >= span->prefix_start && first < span->prefix_end) {
        const int64_t columns = smaller(KEYS, span->prefix_end - first);
        *tile = (tile_type){first, columns, columns};
        return 1;
    }
    const int64_t left = block->end - first;
    if (left <= 0) return 0;
    const int last = left <= KEYS + positions;
    *tile = (tile_type){first, last ? left : KEYS, last ? block->first + 1 - first : KEYS};
    return 1;
}

/* From the most work to the least, so that the last tasks are short. */
typedef struct {
    double work;
    int index;
} weighed;

static int compare_weighed(const void *a, const void *b) {
    const weighed *x = a, *y = b;
    if (x->work != y->work) return x->work < y->work ? 1 : -1;
    return x->index - y->index;
}

static int *ordered(weighed *items, int count) {
    int *order = malloc((size_t)(count + 1) * sizeof *order);
    if (order == NULL) return NULL;
    qsort(items, (size_t)count, sizeof *items, compare_weighed);
    for (int i = 0; i < count; i++) order[i] = items[i].index;
    return order;
}

/* --- what both directions do -------------------------------------------------------------------------------------- */

/* A block's rows [sharing × positions, E] from columns of the pack, and back. */
static void gather(const attention_type *c, const float *from, int64_t stride, const block_type *block, int64_t head,
                   float *to) {
    for (int64_t g = 0; g < c->sharing; g++)
        for (int64_t t = block->first; t < block->end; t++, to += c->width)
            memcpy(to, from + t * stride + (head + g) * c->width, (size_t)c->width * sizeof *to);
}

static void scatter(const attention_type *c, const float *from, float *to, int64_t stride, const block_type *block,
                    int64_t head) {
    for (int64_t g = 0; g < c->sharing; g++)
        for (int64_t t = block->first; t < block->end; t++, from += c->width)
            memcpy(to + t * stride + (head + g) * c->width, from, (size_t)c->width * sizeof *to);
}

/* Floats of the largest tile of scores; a tile's rows are padded to whole lanes. */
static int64_t tile_floats(const attention_type *c, int64_t block_rows) {
    return block_rows * whole_lanes(KEYS + c->positions);
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

static void attend_block(void *context, int task, int worker) {
    attention_type *c = context;
    const block_type *block = &c->blocks[c->order[task] / c->kv_heads];
    const int64_t kv_head = c->order[task] % c->kv_heads, head = kv_head * c->sharing, width = c->width;
    const int64_t positions = block->end - block->first, most = c->sharing * c->positions;
    float *scores = strop_scratch(worker, (size_t)(tile_floats(c, most) + most * (2 * width + 3)) * sizeof *scores);
    if (scores == NULL) {
        c->failed = 1;
        return;
    }
    float *q = scores + tile_floats(c, most), *out = q + most * width;
    float *highest = out + most * width, *total = highest + most, *shrink = total + most;
    const float *keys = c->qkv + (c->heads + kv_head) * width, *values = keys + c->kv_heads * width;
    tile_shape shape = {.rows = c->sharing * positions, .positions = positions};

    gather(c, c->qkv, c->qkv_stride, block, head, q);
    for (int64_t row = 0; row < shape.rows; row++) highest[row] = -INFINITY, total[row] = 0.0f;
    int tiles = 0;
    for (tile_type tile = {0}; next_tile(block, c->positions, &tile); tiles++) {
        const int64_t from = tile.first * c->qkv_stride;
        shape.columns = tile.columns;
        shape.stride = whole_lanes(tile.columns);
        shape.first_visible = tile.first_visible;
        strop_sgemm_tile(0, 1, shape.rows, tile.columns, width, c->factor, q, width, keys + from, c->qkv_stride, 0.0f,
                         scores, shape.stride);
        c->rows->softmax(scores, shape, highest, total, shrink);
        if (tiles > 0)
            for (int64_t row = 0; row < shape.rows; row++) c->rows->scale(out + row * width, shrink[row], width);
        strop_sgemm_tile(0, 0, shape.rows, width, tile.columns, 1.0f, scores, shape.stride, values + from,
                         c->qkv_stride, tiles > 0 ? 1.0f : 0.0f, out, width);
    }
    for (int64_t row = 0; row < shape.rows; row++) {
        c->rows->scale(out + row * width, 1.0f / total[row], width);
        c->row_sums[(head + row / positions) * c->row_sums_stride + block->first + row % positions] =
            highest[row] + logf(total[row]);
    }
    scatter(c, out, c->out_to, c->out_stride, block, head);
}

static attention_type describe(const float *qkv, int64_t qkv_stride, int64_t heads, int64_t kv_heads, int64_t width,
                               double factor) {
    return (attention_type){.rows = rows_of_level(), .heads = heads, .kv_heads = kv_heads, .width = width,
                            .sharing = heads / kv_heads, .positions = block_positions(heads / kv_heads),
                            .factor = (float)factor, .qkv = qkv, .qkv_stride = qkv_stride};
}

/* qkv is [T, (heads + 2 kv_heads) width]; spans is [count, 4] (start, end, prefix start, prefix end) and covers T rows;
 * out is [T, heads · width], row_sums [heads, T]. 0, or 1 when there is no memory. */
STROP_API int strop_attend(const float *qkv, int64_t qkv_stride, const int64_t *spans, int64_t count, int64_t heads,
                           int64_t kv_heads, int64_t width, double factor, float *out, int64_t out_stride,
                           float *row_sums, int64_t row_sums_stride) {
    attention_type c = describe(qkv, qkv_stride, heads, kv_heads, width, factor);
    c.out_to = out;
    c.out_stride = out_stride;
    c.row_sums = row_sums;
    c.row_sums_stride = row_sums_stride;
    block_type *blocks = NULL;
    int *order = NULL;
    const int made = make_blocks((const span_type *)spans, count, c.positions, &blocks);
    const int tasks = made * (int)kv_heads;
    weighed *items = made < 0 ? NULL : malloc((size_t)(tasks + 1) * sizeof *items);
    if (items != NULL) {
        for (int i = 0; i < tasks; i++) items[i] = (weighed){blocks[i / kv_heads].work, i};
        order = ordered(items, tasks);
    }
    if (order != NULL) {
        c.blocks = blocks;
        c.order = order;
        strop_parallel(tasks, attend_block, &c);
    }
    const int failed = order == NULL || c.failed;
    free(blocks);
    free(items);
    free(order);
    return failed;
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

static int64_t chunk_rows(const chunk_type *chunk) {
    return chunk->root_end - chunk->root + chunk->rest_end - chunk->rest;
}

/* Where a chunk adds up dK of a row of the pack; dV is `*to_values` floats further. */
static float *key_sums(const attention_type *c, const chunk_type *chunk, int64_t kv_head, int64_t row,
                       int64_t *stride, int64_t *to_values) {
    if (chunk->sums == NULL) {
        *stride = c->grad_to_stride;
        *to_values = c->kv_heads * c->width;
        return c->grad_to + row * *stride + (c->heads + kv_head) * c->width;
    }
    *stride = 2 * c->width;
    *to_values = c->width;
    const int in_root = row >= chunk->root && row < chunk->root_end;
    const int64_t index = in_root ? row - chunk->root : chunk->root_end - chunk->root + row - chunk->rest;
    return chunk->sums + (kv_head * chunk_rows(chunk) + index) * *stride;
}

/* Scratch memory of a backward task. */
typedef struct {
    float *scores, *grads, *q, *grad_out, *grad_q, *row_sums, *delta;
} backward_memory;

static void backward_block(const attention_type *c, const chunk_type *chunk, const block_type *block, int64_t kv_head,
                           const backward_memory *m) {
    const int64_t positions = block->end - block->first, head = kv_head * c->sharing, width = c->width;
    const float *keys = c->qkv + (c->heads + kv_head) * width, *values = keys + c->kv_heads * width;
    tile_shape shape = {.rows = c->sharing * positions, .positions = positions};
    gather(c, c->qkv, c->qkv_stride, block, head, m->q);
    gather(c, c->grad, c->grad_stride, block, head, m->grad_out);
    for (int64_t row = 0; row < shape.rows; row++) {
        const int64_t own_head = head + row / positions, t = block->first + row % positions;
        m->row_sums[row] = c->row_sums[own_head * c->row_sums_stride + t];
        m->delta[row] = c->rows->dot(m->grad_out + row * width, c->out + t * c->out_stride + own_head * width, width);
    }
    float kept = 0.0f;
    for (tile_type tile = {0}; next_tile(block, c->positions, &tile); kept = 1.0f) {
        const int64_t from = tile.first * c->qkv_stride, n = tile.columns, rows = shape.rows;
        const int64_t stride = whole_lanes(n);
        int64_t sums_stride, to_values;
        float *sums = key_sums(c, chunk, kv_head, tile.first, &sums_stride, &to_values);
        shape.columns = n;
        shape.stride = stride;
        shape.first_visible = tile.first_visible;
        strop_sgemm_tile(0, 1, rows, n, width, c->factor, m->q, width, keys + from, c->qkv_stride, 0.0f, m->scores,
                         stride);
        strop_sgemm_tile(0, 1, rows, n, width, 1.0f, m->grad_out, width, values + from, c->qkv_stride, 0.0f, m->grads,
                         stride);
        c->rows->softmax_backward(m->scores, m->grads, shape, m->row_sums, m->delta);
        strop_sgemm_tile(1, 0, n, width, rows, 1.0f, m->scores, stride, m->grad_out, width, 1.0f, sums + to_values,
                         sums_stride);
        strop_sgemm_tile(1, 0, n, width, rows, c->factor, m->grads, stride, m->q, width, 1.0f, sums, sums_stride);
        strop_sgemm_tile(0, 0, rows, width, n, c->factor, m->grads, stride, keys + from, c->qkv_stride, kept,
                         m->grad_q, width);
    }
    scatter(c, m->grad_q, c->grad_to, c->grad_to_stride, block, head);
}

static void backward_chunk(void *context, int task, int worker) {
    attention_type *c = context;
    const chunk_type *chunk = &c->chunks[c->order[task] / c->kv_heads];
    const int64_t kv_head = c->order[task] % c->kv_heads, most = c->sharing * c->positions;
    const int64_t tile = tile_floats(c, most);
    backward_memory m;
    m.scores = strop_scratch(worker, (size_t)(2 * tile + most * (3 * c->width + 2)) * sizeof *m.scores);
    if (m.scores == NULL) {
        c->failed = 1;
        return;
    }
    m.grads = m.scores + tile;
    m.q = m.grads + tile;
    m.grad_out = m.q + most * c->width;
    m.grad_q = m.grad_out + most * c->width;
    m.row_sums = m.grad_q + most * c->width;
    m.delta = m.row_sums + most;
    if (chunk->sums != NULL) {
        const size_t floats = (size_t)(chunk_rows(chunk) * 2 * c->width);
        memset(chunk->sums + (size_t)kv_head * floats, 0, floats * sizeof *chunk->sums);
    }
    for (int b = chunk->first; b < chunk->end; b++) backward_block(c, chunk, &c->blocks[b], kv_head, &m);
}

enum { ROWS_CLEARED = 128 };

static void clear_rows(void *context, int task, int worker) {
    const attention_type *c = context;
    const int64_t first = (int64_t)task * ROWS_CLEARED, end = smaller(c->tokens, first + ROWS_CLEARED);
    (void)worker;
    for (int64_t row = first; row < end; row++)
        memset(c->grad_to + row * c->grad_to_stride + c->heads * c->width, 0,
               (size_t)(2 * c->kv_heads * c->width) * sizeof *c->grad_to);
}

/* One key-value head: adds what chunks summed on their own, in their order. */
static void add_chunks(void *context, int task, int worker) {
    const attention_type *c = context;
    (void)worker;
    for (int i = 0; i < c->chunk_count; i++) {
        const chunk_type *chunk = &c->chunks[i];
        if (chunk->sums == NULL) continue;
        const float *from = chunk->sums + task * chunk_rows(chunk) * 2 * c->width;
        const int64_t root_rows = chunk->root_end - chunk->root;
        for (int64_t index = 0; index < chunk_rows(chunk); index++, from += 2 * c->width) {
            const int64_t row = index < root_rows ? chunk->root + index : chunk->rest + index - root_rows;
            float *keys = c->grad_to + row * c->grad_to_stride + (c->heads + task) * c->width;
            float *values = keys + c->kv_heads * c->width;
            for (int64_t e = 0; e < c->width; e++) keys[e] += from[e];
            for (int64_t e = 0; e < c->width; e++) values[e] += from[c->width + e];
        }
    }
}

static int compare_families(const void *a, const void *b) {
    const block_type *x = a, *y = b;
    if (x->family != y->family) return x->family - y->family;
    return (x->first > y->first) - (x->first < y->first);
}

/* How many chunks a family is worth: its share of the tasks that there should be, if they are not too short. */
static int64_t family_chunks(const attention_type *c, double work, double all) {
    const double fair = ceil(CHUNKS * work / (all * (double)c->kv_heads));
    const double longest = floor(10.0 * work * (double)(c->sharing * c->width) / SHORT_CHUNK);
    return larger(1, (int64_t)(fair < longest ? fair : longest));
}

/* Adds a block's rows to what its chunk sums. */
static void widen_chunk(chunk_type *chunk, const block_type *block) {
    const span_type *span = &block->span;
    chunk->end++;
    chunk->work += block->work;
    if (span->prefix_end > span->prefix_start) {
        if (chunk->rest_end == 0) chunk->rest = span->start;
        chunk->root = span->prefix_start;
        chunk->root_end = larger(chunk->root_end, span->prefix_end);
        chunk->rest_end = block->end;
    } else {
        chunk->root = span->start;
        chunk->root_end = larger(chunk->root_end, block->end);
    }
}

/* Sorts the blocks by family and cuts them into chunks of near equal work; chunks holds one for every block. */
static int make_chunks(const attention_type *c, block_type *blocks, int count, chunk_type *chunks) {
    double all = 0.0;
    int made = 0;
    qsort(blocks, (size_t)count, sizeof *blocks, compare_families);
    for (int b = 0; b < count; b++) all += blocks[b].work;
    for (int first = 0, end; first < count; first = end) {
        double work = 0.0, before = 0.0;
        for (end = first; end < count && blocks[end].family == blocks[first].family; end++) work += blocks[end].work;
        const int64_t parts = family_chunks(c, work, all);
        int64_t part = -1;
        for (int b = first; b < end; b++) {
            const int64_t now = (int64_t)((before + blocks[b].work / 2) * (double)parts / work);
            if (now != part) chunks[made++] = (chunk_type){.first = b, .end = b};
            part = now;
            widen_chunk(&chunks[made - 1], &blocks[b]);
            before += blocks[b].work;
        }
    }
    return made;
}

/* Gives every chunk but a family's first memory to sum in; one allocation, the caller's to free. */
static int lend_sums(const attention_type *c, const block_type *blocks, chunk_type *chunks, int count, float **sums) {
    int64_t floats = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && floats > 0 && (*sums = malloc((size_t)floats * sizeof **sums)) == NULL) return 0;
        floats = 0;
        for (int i = 1; i < count; i++) {
            if (blocks[chunks[i].first].family != blocks[chunks[i - 1].first].family) continue;
            if (pass == 1) chunks[i].sums = *sums + floats;
            floats += c->kv_heads * chunk_rows(&chunks[i]) * 2 * c->width;
        }
    }
    return 1;
}

/* out, row_sums: what strop_attend wrote; grad is [T, heads · width]. All of grad_qkv [T, (heads + 2 kv_heads) width]
 * is written. 0, or 1 when there is no memory. */
STROP_API int strop_attend_backward(const float *qkv, int64_t qkv_stride, const float *out, int64_t out_stride,
                                    const float *grad, int64_t grad_stride, const float *row_sums,
                                    int64_t row_sums_stride, const int64_t *spans, int64_t count, int64_t heads,
                                    int64_t kv_heads, int64_t width, double factor, float *grad_qkv,
                                    int64_t grad_qkv_stride) {
    attention_type c = describe(qkv, qkv_stride, heads, kv_heads, width, factor);
    c.out = out;
    c.out_stride = out_stride;
    c.grad = grad;
    c.grad_stride = grad_stride;
    c.row_sums = (float *)row_sums; /* only read */
    c.row_sums_stride = row_sums_stride;
    c.grad_to = grad_qkv;
    c.grad_to_stride = grad_qkv_stride;
    c.tokens = count > 0 ? spans[4 * (count - 1) + 1] : 0;
    block_type *blocks = NULL;
    float *sums = NULL;
    int *order = NULL;
    const int made = make_blocks((const span_type *)spans, count, c.positions, &blocks);
    chunk_type *chunks = made < 0 ? NULL : calloc((size_t)made + 1, sizeof *chunks);
    weighed *items = made < 0 ? NULL : malloc(((size_t)made * (size_t)kv_heads + 1) * sizeof *items);
    if (chunks != NULL && items != NULL) {
        c.chunk_count = make_chunks(&c, blocks, made, chunks);
        for (int i = 0; i < c.chunk_count * kv_heads; i++) items[i] = (weighed){chunks[i / kv_heads].work, i};
        if (lend_sums(&c, blocks, chunks, c.chunk_count, &sums)) order = ordered(items, c.chunk_count * (int)kv_heads);
    }
    if (order != NULL) {
        c.blocks = blocks;
        c.chunks = chunks;
        c.order = order;
        strop_parallel((int)((c.tokens + ROWS_CLEARED - 1) / ROWS_CLEARED), clear_rows, &c);
        strop_parallel(c.chunk_count * (int)kv_heads, backward_chunk, &c);
        if (sums != NULL && !c.failed) strop_parallel((int)kv_heads, add_chunks, &c);
    }
    const int failed = order == NULL || c.failed;
    free(blocks);
    free(chunks);
    free(items);
    free(sums);
    free(order);
    return failed;
}
