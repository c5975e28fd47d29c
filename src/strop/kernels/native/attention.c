/* Causal attention inside documents, forward and backward; kernels/attention.py has the maths.
 *
 * The queries of a document are cut into blocks. A block holds the same positions of all query heads that share a
 * key-value head, one below the other, so that one product serves them all:
 *
 *     block [R, E], R = heads sharing × positions       keys it sees, in tiles of about KEYS:
 *                                                       prefix │ own document up to the block's last position
 *     forward, a tile:    Sᵀ = K (scale · Q)ᵀ    Pᵀ = exp(Sᵀ - highest)    O = shrink · O + P V
 *     backward, a tile:   Pᵀ = exp(Sᵀ - row sum)    dPᵀ = V dOᵀ    dSᵀ = Pᵀ (dPᵀ - Σ dO·O)
 *                         dV += Pᵀ dO    dK += dSᵀ (scale · Q)    dQ += scale · dS K
 *
 * Tiles lie turned over, keys down and queries across: what is turned is the block's queries, once for all its tiles.
 * Where a product reads keys or values again and again, they are copied together first: rows of a pack can lie so that
 * few of them fit into a cache at a time.
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

/* Rows of a block: half of what a block computes of its own positions is in vain, and every block turns its queries. */
enum { ROWS = 128, FEWEST_POSITIONS = 16, MOST_POSITIONS = 96 };
enum { KEYS = 256 };   /* a tile of 256 × 128 scores is 128 KiB: two of them stay in the second cache */
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
    attention_product product;
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

static void use_level(attention_type *c) {
#define USE(isa) c->rows = &attention_rows_##isa, c->product = attention_product_##isa
    USE(plain);
#if defined(__x86_64__)
    if (strop_level() == LEVEL_VECTOR) USE(avx2);
    if (strop_level() == LEVEL_AVX512) USE(avx512);
#elif defined(__aarch64__)
    if (strop_level() == LEVEL_VECTOR) USE(neon);
#endif
#undef USE
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

/* A block's rows [sharing × positions, E] from columns of the pack, and back. A position's heads lie side by side in the
 * pack, and memory likes to be read as it lies. */
static void gather(const attention_type *c, const float *from, int64_t stride, const block_type *block, int64_t head,
                   float *to) {
    const int64_t positions = block->end - block->first, width = c->width;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t g = 0; g < c->sharing; g++)
            memcpy(to + (g * positions + p) * width, from + (block->first + p) * stride + (head + g) * width,
                   (size_t)width * sizeof *to);
}

static void scatter(const attention_type *c, const float *from, float *to, int64_t stride, const block_type *block,
                    int64_t head) {
    const int64_t positions = block->end - block->first, width = c->width;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t g = 0; g < c->sharing; g++)
            memcpy(to + (block->first + p) * stride + (head + g) * width, from + (g * positions + p) * width,
                   (size_t)width * sizeof *to);
}

/* Rows of a block in whole lanes: the stride of its tiles. */
static int64_t block_stride(const attention_type *c) { return whole_lanes(c->sharing * c->positions); }

/* Floats of the largest tile of scores. */
static int64_t tile_floats(const attention_type *c) { return block_stride(c) * (KEYS + c->positions); }

/* Floats of a tile's keys. */
static int64_t keys_floats(const attention_type *c) { return c->width * (KEYS + c->positions); }

/* A tile's shape; the keys that each row of the block sees are written to limits. */
static tile_shape shape_of(const tile_type *tile, int64_t rows, int64_t positions, int64_t stride, int32_t *limits) {
    for (int64_t row = 0; row < stride; row++) {
        const int64_t seen = tile->first_visible + row % positions;
        limits[row] = (int32_t)(row < rows ? smaller(tile->columns, seen) : tile->columns);
    }
    return (tile_shape){tile->columns, stride, smaller(tile->columns, tile->first_visible), limits};
}

/* The rows of a tile, from columns of the pack, close together. */
static const float *together(const attention_type *c, const float *from, int64_t rows, float *to) {
    for (int64_t row = 0; row < rows; row++)
        memcpy(to + row * c->width, from + row * c->qkv_stride, (size_t)c->width * sizeof *to);
    return to;
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

static void attend_block(void *context, int task, int worker) {
    attention_type *c = context;
    const block_type *block = &c->blocks[c->order[task] / c->kv_heads];
    const int64_t kv_head = c->order[task] % c->kv_heads, head = kv_head * c->sharing, width = c->width;
    const int64_t positions = block->end - block->first, rows = c->sharing * positions;
    const int64_t most = block_stride(c), stride = whole_lanes(rows);
    const int64_t floats = tile_floats(c) + keys_floats(c) + most * (2 * width + 4);
    float *scores = strop_scratch(worker, (size_t)floats * sizeof *scores);
    if (scores == NULL) {
        c->failed = 1;
        return;
    }
    float *copied = scores + tile_floats(c), *turned = copied + keys_floats(c), *out = turned + most * width;
    float *highest = out + most * width, *total = highest + most, *shrink = total + most;
    int32_t *limits = (int32_t *)(shrink + most);
    const float *keys = c->qkv + (c->heads + kv_head) * width, *values = keys + c->kv_heads * width;

    gather(c, c->qkv, c->qkv_stride, block, head, out);
    c->rows->turn(out, rows, width, c->factor, turned, stride);
    for (int64_t row = 0; row < stride; row++) highest[row] = -INFINITY, total[row] = 0.0f;
    int tiles = 0;
    for (tile_type tile = {0}; next_tile(block, c->positions, &tile); tiles++) {
        const int64_t from = tile.first * c->qkv_stride, n = tile.columns;
        const tile_shape shape = shape_of(&tile, rows, positions, stride, limits);
        c->product(n, stride, width, together(c, keys + from, n, copied), width, 1, turned, stride, 0, scores, stride);
        c->rows->softmax(scores, shape, highest, total, shrink);
        if (tiles > 0)
            for (int64_t row = 0; row < rows; row++) c->rows->scale(out + row * width, shrink[row], width);
        c->product(rows, width, n, scores, 1, stride, together(c, values + from, n, copied), width, tiles > 0, out,
                   width);
    }
    for (int64_t row = 0; row < rows; row++) {
        c->rows->scale(out + row * width, 1.0f / total[row], width);
        c->row_sums[(head + row / positions) * c->row_sums_stride + block->first + row % positions] =
            highest[row] + logf(total[row]);
    }
    scatter(c, out, c->out_to, c->out_stride, block, head);
}

static attention_type describe(const float *qkv, int64_t qkv_stride, int64_t heads, int64_t kv_heads, int64_t width,
                               double factor) {
    attention_type c = {.heads = heads, .kv_heads = kv_heads, .width = width, .sharing = heads / kv_heads,
                        .positions = block_positions(heads / kv_heads), .factor = (float)factor, .qkv = qkv,
                        .qkv_stride = qkv_stride};
    use_level(&c);
    return c;
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
    float *scores, *grads, *keys, *values, *q, *turned_q, *grad_out, *turned_grad_out, *grad_q, *row_sums, *delta;
    int32_t *limits;
} backward_memory;

static int lend_memory(const attention_type *c, int worker, backward_memory *m) {
    const int64_t tile = tile_floats(c), most = block_stride(c), of_block = most * c->width;
    const int64_t floats = 2 * tile + 2 * keys_floats(c) + 5 * of_block + 3 * most;
    float *memory = strop_scratch(worker, (size_t)floats * sizeof *memory);
    if (memory == NULL) return 0;
    m->scores = memory;
    m->grads = m->scores + tile;
    m->keys = m->grads + tile;
    m->values = m->keys + keys_floats(c);
    m->q = m->values + keys_floats(c);
    m->turned_q = m->q + of_block;
    m->grad_out = m->turned_q + of_block;
    m->turned_grad_out = m->grad_out + of_block;
    m->grad_q = m->turned_grad_out + of_block;
    m->row_sums = m->grad_q + of_block;
    m->delta = m->row_sums + most;
    m->limits = (int32_t *)(m->delta + most);
    return 1;
}

/* What a block needs of itself: its queries, scaled, and the gradients of what they gathered, as they are and turned. */
static void read_block(const attention_type *c, const block_type *block, int64_t head, const backward_memory *m) {
    const int64_t positions = block->end - block->first, rows = c->sharing * positions, width = c->width;
    const int64_t stride = whole_lanes(rows);
    gather(c, c->qkv, c->qkv_stride, block, head, m->q);
    gather(c, c->grad, c->grad_stride, block, head, m->grad_out);
    c->rows->scale(m->q, c->factor, rows * width);
    c->rows->turn(m->q, rows, width, 1.0f, m->turned_q, stride);
    c->rows->turn(m->grad_out, rows, width, 1.0f, m->turned_grad_out, stride);
    for (int64_t row = 0; row < stride; row++) m->row_sums[row] = m->delta[row] = 0.0f;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t g = 0; g < c->sharing; g++) {
            const int64_t row = g * positions + p, t = block->first + p;
            const float *out = c->out + t * c->out_stride + (head + g) * width;
            m->row_sums[row] = c->row_sums[(head + g) * c->row_sums_stride + t];
            m->delta[row] = c->rows->dot(m->grad_out + row * width, out, width);
        }
}

static void backward_block(const attention_type *c, const chunk_type *chunk, const block_type *block, int64_t kv_head,
                           const backward_memory *m) {
    const int64_t positions = block->end - block->first, rows = c->sharing * positions, width = c->width;
    const int64_t head = kv_head * c->sharing, stride = whole_lanes(rows);
    const float *keys = c->qkv + (c->heads + kv_head) * width, *values = keys + c->kv_heads * width;
    read_block(c, block, head, m);
    int add = 0;
    for (tile_type tile = {0}; next_tile(block, c->positions, &tile); add = 1) {
        const int64_t from = tile.first * c->qkv_stride, n = tile.columns;
        const tile_shape shape = shape_of(&tile, rows, positions, stride, m->limits);
        int64_t sums_stride, to_values;
        float *sums = key_sums(c, chunk, kv_head, tile.first, &sums_stride, &to_values);
        const float *near = together(c, keys + from, n, m->keys);
        const float *near_values = together(c, values + from, n, m->values);
        c->product(n, stride, width, near, width, 1, m->turned_q, stride, 0, m->scores, stride);
        c->product(n, stride, width, near_values, width, 1, m->turned_grad_out, stride, 0, m->grads, stride);
        c->rows->softmax_backward(m->scores, m->grads, shape, m->row_sums, m->delta);
        c->product(n, width, rows, m->scores, stride, 1, m->grad_out, width, 1, sums + to_values, sums_stride);
        c->product(n, width, rows, m->grads, stride, 1, m->q, width, 1, sums, sums_stride);
        c->product(rows, width, n, m->grads, 1, stride, near, width, add, m->grad_q, width);
    }
    c->rows->scale(m->grad_q, c->factor, rows * width);
    scatter(c, m->grad_q, c->grad_to, c->grad_to_stride, block, head);
}

static void backward_chunk(void *context, int task, int worker) {
    attention_type *c = context;
    const chunk_type *chunk = &c->chunks[c->order[task] / c->kv_heads];
    const int64_t kv_head = c->order[task] % c->kv_heads;
    backward_memory m;
    if (!lend_memory(c, worker, &m)) {
        c->failed = 1;
        return;
    }
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
