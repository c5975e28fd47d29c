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
 * few of them fit into a cache at a time. The same copies widen bfloat16 and round to it: what follows is float32. On
 * CPUs that multiply bfloat16 in tiles, attention_amx.c computes a chunk of blocks instead.
 *
 * Forward, every block of every key-value head is a task. Backward, blocks that add to the same dK and dV go one after
 * another: a family is a document alone, or a prefix and all that continue it. A family that is a large share of the
 * work is cut into chunks; all but the first add into memory of their own, which is added up in order. Gradients in
 * bfloat16 are rounded once, from sums in float32: a chunk that is its family's only one sums in scratch memory.
 * Blocks, tiles and chunks follow from the spans alone, so the same bits come out with any number of threads.
 */
#include "attention_blocks.h"

#include <math.h>
#include <stdlib.h>

/* Rows of a block: half of what a block computes of its own positions is in vain, and every block turns its queries. */
enum { ROWS = 128, FEWEST_POSITIONS = 16, MOST_POSITIONS = 96 };
enum { KEYS = 256 };     /* a tile of 256 × 128 scores is 128 KiB: two of them stay in the second cache */
/* With AMX 32 columns of a tile go all their way in the first cache, and see no more of the block's own positions than
 * they have to: blocks can be larger, so that dK and dV are read and written less often. */
enum { AMX_ROWS = 256, AMX_KEYS = 128 };
enum { CHUNKS = 16 }; /* backward tasks worth having */

static void use_level(attention_type *c) {
#define USE(isa) c->rows = &attention_rows_##isa, c->product = attention_product_##isa
    USE(plain);
#if defined(__x86_64__)
    if (strop_level() == LEVEL_VECTOR) USE(avx2);
    if (strop_level() >= LEVEL_AVX512) USE(avx512);
#elif defined(__aarch64__)
    if (strop_level() == LEVEL_VECTOR) USE(neon);
#endif
#undef USE
}

static int64_t block_positions(int64_t sharing, int amx) {
    if (amx) return larger_of(FEWEST_POSITIONS, AMX_ROWS / sharing);
    return smaller_of(MOST_POSITIONS, larger_of(FEWEST_POSITIONS, ROWS / sharing / 8 * 8));
}

static attention_type describe(int kind, const void *qkv, int64_t qkv_stride, int64_t heads, int64_t kv_heads,
                               int64_t width, double factor, const span_type *spans, int64_t count) {
    /* Tiles of AMX find the highest score before they scale it. */
    const int amx = kind == KIND_BFLOAT16 && strop_level() == LEVEL_AMX && factor > 0.0;
    attention_type c = {.kind = kind, .amx = amx, .heads = heads, .kv_heads = kv_heads, .width = width,
                        .sharing = heads / kv_heads, .positions = block_positions(heads / kv_heads, amx),
                        .keys = amx ? AMX_KEYS : KEYS, .sums_width = amx ? whole(width, 32) : width,
                        .factor = (float)factor, .qkv = qkv, .qkv_stride = qkv_stride};
    use_level(&c);
    for (int64_t s = 0; s < count; s++) {
        c.longest = larger_of(c.longest, spans[s].end - spans[s].start);
        c.longest_prefix = larger_of(c.longest_prefix, spans[s].prefix_end - spans[s].prefix_start);
    }
    return c;
}

/* --- what both directions do in float32 --------------------------------------------------------------------------- */

/* `width` numbers of the pack, from the element `index`, and back. */
static void read_row(const attention_type *c, const void *from, int64_t index, float *to) {
    if (c->kind == KIND_BFLOAT16)
        c->rows->widen((const uint16_t *)from + index, to, c->width);
    else
        memcpy(to, (const float *)from + index, (size_t)c->width * sizeof *to);
}

static void write_row(const attention_type *c, const float *from, void *to, int64_t index) {
    if (c->kind == KIND_BFLOAT16)
        c->rows->narrow(from, (uint16_t *)to + index, c->width);
    else
        memcpy((float *)to + index, from, (size_t)c->width * sizeof *from);
}

/* A block's rows [sharing × positions, E] from columns of the pack, and back. A position's heads lie side by side in the
 * pack, and memory likes to be read as it lies. */
static void gather(const attention_type *c, const void *from, int64_t stride, const block_type *block, int64_t head,
                   float *to) {
    const int64_t positions = block->end - block->first, width = c->width;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t g = 0; g < c->sharing; g++)
            read_row(c, from, (block->first + p) * stride + (head + g) * width, to + (g * positions + p) * width);
}

static void scatter(const attention_type *c, const float *from, void *to, int64_t stride, const block_type *block,
                    int64_t head) {
    const int64_t positions = block->end - block->first, width = c->width;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t g = 0; g < c->sharing; g++)
            write_row(c, from + (g * positions + p) * width, to, (block->first + p) * stride + (head + g) * width);
}

/* Rows of a block in whole lanes: the stride of its tiles. */
static int64_t block_stride(const attention_type *c) { return whole(c->sharing * c->positions, 16); }

/* Floats of the largest tile of scores. */
static int64_t tile_floats(const attention_type *c) { return block_stride(c) * (c->keys + c->positions); }

/* Floats of a tile's keys. */
static int64_t keys_floats(const attention_type *c) { return c->width * (c->keys + c->positions); }

/* A tile's shape; the keys that each row of the block sees are written to limits. */
static tile_shape shape_of(const tile_type *tile, int64_t rows, int64_t positions, int64_t stride, int32_t *limits) {
    for (int64_t row = 0; row < stride; row++) {
        const int64_t seen = tile->first_visible + row % positions;
        limits[row] = (int32_t)(row < rows ? smaller_of(tile->columns, seen) : tile->columns);
    }
    return (tile_shape){tile->columns, stride, smaller_of(tile->columns, tile->first_visible), limits};
}

/* The rows of a tile, from columns of the pack that start with the element `index`, close together. */
static const float *together(const attention_type *c, int64_t index, int64_t rows, float *to) {
    for (int64_t row = 0; row < rows; row++)
        read_row(c, c->qkv, index + row * c->qkv_stride, to + row * c->width);
    return to;
}

/* --- forward ------------------------------------------------------------------------------------------------------ */

static size_t attend_memory(const attention_type *c) {
    return (size_t)(tile_floats(c) + keys_floats(c) + block_stride(c) * (2 * c->width + 4)) * sizeof(float);
}

static void attend_block(const attention_type *c, const block_type *block, int64_t kv_head, void *memory) {
    const int64_t head = kv_head * c->sharing, width = c->width;
    const int64_t positions = block->end - block->first, rows = c->sharing * positions;
    const int64_t most = block_stride(c), stride = whole(rows, 16);
    float *scores = memory, *copied = scores + tile_floats(c), *turned = copied + keys_floats(c);
    float *out = turned + most * width;
    float *highest = out + most * width, *total = highest + most, *shrink = total + most;
    int32_t *limits = (int32_t *)(shrink + most);
    const int64_t keys = (c->heads + kv_head) * width, values = keys + c->kv_heads * width;

    gather(c, c->qkv, c->qkv_stride, block, head, out);
    c->rows->turn(out, rows, width, c->factor, turned, stride);
    for (int64_t row = 0; row < stride; row++) highest[row] = -INFINITY, total[row] = 0.0f;
    int tiles = 0;
    for (tile_type tile = {0}; attention_next_tile(c, block, &tile); tiles++) {
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

static void attend_task(void *context, int task, int worker) {
    attention_type *c = context;
    const int index = c->order[task] / (int)c->kv_heads;
    const int64_t kv_head = c->order[task] % c->kv_heads;
    void *memory = strop_scratch(worker, c->amx ? attention_amx_memory(c) : attend_memory(c));
    if (memory == NULL)
        c->failed = 1;
    else if (c->amx)
        attention_amx_chunk(c, &c->chunks[index], kv_head, memory);
    else
        attend_block(c, &c->blocks[index], kv_head, memory);
}

/* Forward, a block's numbers are its own: how many of them make a task may follow from the threads. */
enum { TASKS_A_THREAD = 8 };

/* kind says what qkv and out are: float32 or bfloat16. qkv is [T, (heads + 2 kv_heads) width]; spans is [count, 4]
 * (start, end, prefix start, prefix end) and covers T rows; out is [T, heads · width], row_sums [heads, T]. 0, or 1 when
 * there is no memory. */
STROP_API int strop_attend(int kind, const void *qkv, int64_t qkv_stride, const int64_t *spans, int64_t count,
                           int64_t heads, int64_t kv_heads, int64_t width, double factor, void *out,
                           int64_t out_stride, float *row_sums, int64_t row_sums_stride) {
    attention_type c =
        describe(kind, qkv, qkv_stride, heads, kv_heads, width, factor, (const span_type *)spans, count);
    c.out_to = out;
    c.out_stride = out_stride;
    c.row_sums = row_sums;
    c.row_sums_stride = row_sums_stride;
    block_type *blocks = NULL;
    int *order = NULL;
    int made = attention_blocks((const span_type *)spans, count, c.positions, &blocks);
    chunk_type *chunks = made < 0 ? NULL : calloc((size_t)made + 1, sizeof *chunks);
    weighed *items = made < 0 ? NULL : malloc(((size_t)made * (size_t)kv_heads + 1) * sizeof *items);
    if (chunks != NULL && items != NULL) {
        if (c.amx) made = attention_chunks(&c, blocks, made, TASKS_A_THREAD * strop_threads(), chunks);
        for (int i = 0; i < made * kv_heads; i++)
            items[i] = (weighed){c.amx ? chunks[i / kv_heads].work : blocks[i / kv_heads].work, i};
        order = attention_order(items, made * (int)kv_heads);
    }
    if (order != NULL) {
        c.blocks = blocks;
        c.chunks = chunks;
        c.order = order;
        strop_parallel(made * (int)kv_heads, attend_task, &c);
    }
    const int failed = order == NULL || c.failed;
    free(blocks);
    free(chunks);
    free(items);
    free(order);
    return failed;
}

/* --- backward ----------------------------------------------------------------------------------------------------- */

/* Where a chunk adds up dK of a row of the pack; dV is `*to_values` floats further. `sums` is the chunk's memory for
 * this key-value head, NULL where it sums straight into the gradients. */
static float *key_sums(const attention_type *c, const chunk_type *chunk, float *sums, int64_t kv_head, int64_t row,
                       int64_t *stride, int64_t *to_values) {
    if (sums == NULL) {
        *stride = c->grad_to_stride;
        *to_values = c->kv_heads * c->width;
        return (float *)c->grad_to + row * *stride + (c->heads + kv_head) * c->width;
    }
    *stride = 2 * c->sums_width;
    *to_values = c->sums_width;
    return sums + chunk_row(chunk, row) * *stride;
}

/* Scratch memory of a backward block. */
typedef struct {
    float *scores, *grads, *keys, *values, *q, *turned_q, *grad_out, *turned_grad_out, *grad_q, *row_sums, *delta;
    int32_t *limits;
} backward_memory;

static size_t block_memory(const attention_type *c) {
    const int64_t most = block_stride(c), of_block = most * c->width;
    return (size_t)whole(2 * tile_floats(c) + 2 * keys_floats(c) + 5 * of_block + 3 * most, 16) * sizeof(float);
}

static backward_memory parts_of(const attention_type *c, float *memory) {
    const int64_t tile = tile_floats(c), most = block_stride(c), of_block = most * c->width;
    backward_memory m;
    m.scores = memory;
    m.grads = m.scores + tile;
    m.keys = m.grads + tile;
    m.values = m.keys + keys_floats(c);
    m.q = m.values + keys_floats(c);
    m.turned_q = m.q + of_block;
    m.grad_out = m.turned_q + of_block;
    m.turned_grad_out = m.grad_out + of_block;
    m.grad_q = m.turned_grad_out + of_block;
    m.row_sums = m.grad_q + of_block;
    m.delta = m.row_sums + most;
    m.limits = (int32_t *)(m.delta + most);
    return m;
}

/* What a block needs of itself: its queries, scaled, and the gradients of what they gathered, as they are and turned. */
static void read_block(const attention_type *c, const block_type *block, int64_t head, const backward_memory *m) {
    const int64_t positions = block->end - block->first, rows = c->sharing * positions, width = c->width;
    const int64_t stride = whole(rows, 16);
    gather(c, c->qkv, c->qkv_stride, block, head, m->q);
    gather(c, c->grad, c->grad_stride, block, head, m->grad_out);
    gather(c, c->out, c->out_stride, block, head, m->grad_q); /* not needed for itself yet */
    c->rows->scale(m->q, c->factor, rows * width);
    c->rows->turn(m->q, rows, width, 1.0f, m->turned_q, stride);
    c->rows->turn(m->grad_out, rows, width, 1.0f, m->turned_grad_out, stride);
    for (int64_t row = 0; row < stride; row++) m->row_sums[row] = m->delta[row] = 0.0f;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t t = block->first + row % positions;
        m->row_sums[row] = c->row_sums[(head + row / positions) * c->row_sums_stride + t];
        m->delta[row] = c->rows->dot(m->grad_out + row * width, m->grad_q + row * width, width);
    }
}

static void backward_block(const attention_type *c, const chunk_type *chunk, const block_type *block, int64_t kv_head,
                           float *chunk_sums, const backward_memory *m) {
    const int64_t positions = block->end - block->first, rows = c->sharing * positions, width = c->width;
    const int64_t head = kv_head * c->sharing, stride = whole(rows, 16);
    const int64_t keys = (c->heads + kv_head) * width, values = keys + c->kv_heads * width;
    read_block(c, block, head, m);
    int add = 0;
    for (tile_type tile = {0}; attention_next_tile(c, block, &tile); add = 1) {
        const int64_t from = tile.first * c->qkv_stride, n = tile.columns;
        const tile_shape shape = shape_of(&tile, rows, positions, stride, m->limits);
        int64_t sums_stride, to_values;
        float *sums = key_sums(c, chunk, chunk_sums, kv_head, tile.first, &sums_stride, &to_values);
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

static size_t sums_bytes(const attention_type *c, const chunk_type *chunk) {
    return (size_t)(chunk_rows(chunk) * 2 * c->sums_width) * sizeof(float);
}

/* A row's dK and dV to the gradients in bfloat16. Tiles of AMX have summed with queries that nobody scaled. */
static void round_row(const attention_type *c, float *row_sums, int64_t row, int64_t kv_head) {
    const int64_t to = row * c->grad_to_stride + (c->heads + kv_head) * c->width;
    if (c->amx) c->rows->scale(row_sums, c->factor, c->width);
    write_row(c, row_sums, c->grad_to, to);
    write_row(c, row_sums + c->sums_width, c->grad_to, to + c->kv_heads * c->width);
}

static void backward_task(void *context, int task, int worker) {
    attention_type *c = context;
    const chunk_type *chunk = &c->chunks[c->order[task] / c->kv_heads];
    const int64_t kv_head = c->order[task] % c->kv_heads;
    const int lent = c->kind == KIND_BFLOAT16 && chunk->sums == NULL;
    const size_t bytes = c->amx ? attention_amx_backward_memory(c) : block_memory(c);
    char *memory = strop_scratch(worker, bytes + (lent ? sums_bytes(c, chunk) : 0));
    if (memory == NULL) {
        c->failed = 1;
        return;
    }
    float *sums = NULL;
    if (lent) sums = (float *)(memory + bytes);
    if (chunk->sums != NULL) sums = chunk->sums + kv_head * chunk_rows(chunk) * 2 * c->sums_width;
    if (sums != NULL) memset(sums, 0, sums_bytes(c, chunk));
    const backward_memory m = parts_of(c, (float *)memory);
    if (c->amx) attention_amx_backward_chunk(c, chunk, kv_head, sums, memory);
    for (int b = chunk->first; !c->amx && b < chunk->end; b++)
        backward_block(c, chunk, &c->blocks[b], kv_head, sums, &m);
    for (int b = chunk->first; lent && b < chunk->end; b++)
        for (int64_t row = c->blocks[b].first; row < c->blocks[b].end; row++)
            round_row(c, sums + chunk_row(chunk, row) * 2 * c->sums_width, row, kv_head);
}

enum { ROWS_CLEARED = 128 };

static void clear_rows(void *context, int task, int worker) {
    const attention_type *c = context;
    const int64_t first = (int64_t)task * ROWS_CLEARED, end = smaller_of(c->tokens, first + ROWS_CLEARED);
    (void)worker;
    for (int64_t row = first; row < end; row++)
        memset((float *)c->grad_to + row * c->grad_to_stride + c->heads * c->width, 0,
               (size_t)(2 * c->kv_heads * c->width) * sizeof(float));
}

/* One key-value head in float32: adds what chunks summed on their own, in their order. */
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
            float *keys = (float *)c->grad_to + row * c->grad_to_stride + (c->heads + task) * c->width;
            float *values = keys + c->kv_heads * c->width;
            for (int64_t e = 0; e < c->width; e++) keys[e] += from[e];
            for (int64_t e = 0; e < c->width; e++) values[e] += from[c->width + e];
        }
    }
}

/* One chunk and key-value head in bfloat16: the rows of the chunk's blocks, added up over the family's chunks in their
 * order, and rounded. The sums of the first that has the row are added to: no other task reads them. */
static void round_chunk(void *context, int task, int worker) {
    const attention_type *c = context;
    const int index = task / (int)c->kv_heads;
    const int64_t kv_head = task % c->kv_heads, width = 2 * c->sums_width;
    const chunk_type *own = &c->chunks[index];
    (void)worker;
    if (own->sums == NULL) return;
    const int family = c->blocks[own->first].family;
    int first = index;
    while (first > 0 && c->blocks[c->chunks[first - 1].first].family == family) first--;
    for (int b = own->first; b < own->end; b++)
        for (int64_t row = c->blocks[b].first; row < c->blocks[b].end; row++) {
            float *total = NULL;
            for (int i = first; i < c->chunk_count && c->blocks[c->chunks[i].first].family == family; i++) {
                const chunk_type *chunk = &c->chunks[i];
                const int64_t at = chunk_row(chunk, row);
                if (at < 0) continue;
                float *from = chunk->sums + (kv_head * chunk_rows(chunk) + at) * width;
                if (total == NULL)
                    total = from;
                else
                    for (int64_t e = 0; e < width; e++) total[e] += from[e];
            }
            round_row(c, total, row, kv_head);
        }
}

static void backward(attention_type *c, const float *sums) {
    const int kv_heads = (int)c->kv_heads;
    if (c->kind == KIND_FLOAT32)
        strop_parallel((int)((c->tokens + ROWS_CLEARED - 1) / ROWS_CLEARED), clear_rows, c);
    strop_parallel(c->chunk_count * kv_heads, backward_task, c);
    if (sums == NULL || c->failed) return;
    if (c->kind == KIND_FLOAT32)
        strop_parallel(kv_heads, add_chunks, c);
    else
        strop_parallel(c->chunk_count * kv_heads, round_chunk, c);
}

/* kind: of qkv, out and both gradients. out, row_sums: what strop_attend wrote; grad is [T, heads · width]. All of
 * grad_qkv [T, (heads + 2 kv_heads) width] is written. 0, or 1 when there is no memory. */
STROP_API int strop_attend_backward(int kind, const void *qkv, int64_t qkv_stride, const void *out, int64_t out_stride,
                                    const void *grad, int64_t grad_stride, const float *row_sums,
                                    int64_t row_sums_stride, const int64_t *spans, int64_t count, int64_t heads,
                                    int64_t kv_heads, int64_t width, double factor, void *grad_qkv,
                                    int64_t grad_qkv_stride) {
    attention_type c = describe(kind, qkv, qkv_stride, heads, kv_heads, width, factor, (const span_type *)spans, count);
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
    const int made = attention_blocks((const span_type *)spans, count, c.positions, &blocks);
    chunk_type *chunks = made < 0 ? NULL : calloc((size_t)made + 1, sizeof *chunks);
    weighed *items = made < 0 ? NULL : malloc(((size_t)made * (size_t)kv_heads + 1) * sizeof *items);
    if (chunks != NULL && items != NULL) {
        c.chunk_count = attention_chunks(&c, blocks, made, CHUNKS, chunks);
        for (int i = 0; i < c.chunk_count * kv_heads; i++) items[i] = (weighed){chunks[i / kv_heads].work, i};
        if (attention_lend_sums(&c, blocks, chunks, c.chunk_count, &sums))
            order = attention_order(items, c.chunk_count * (int)kv_heads);
    }
    if (order != NULL) {
        c.blocks = blocks;
        c.chunks = chunks;
        c.order = order;
        backward(&c, sums);
    }
    const int failed = order == NULL || c.failed;
    free(blocks);
    free(chunks);
    free(items);
    free(sums);
    free(order);
    return failed;
}
