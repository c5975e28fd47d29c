/* Blocks, tiles and chunks of attention (attention.c has the picture). They follow from the spans alone. */
#include "attention_blocks.h"

#include <math.h>
#include <stdlib.h>

static const double SHORT_CHUNK = 4e7; /* multiplications and additions, about 0.4 ms in float32 */

int attention_blocks(const span_type *spans, int64_t count, int64_t positions, block_type **blocks) {
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

/* The last tile holds the block's own positions, all of them: what would be cut off below them is left in, so that
 * every position sees a key. */
int attention_next_tile(const attention_type *c, const block_type *block, tile_type *tile) {
    const span_type *span = &block->span;
    int64_t first = tile->first + tile->columns;
    if (tile->columns == 0) first = span->prefix_end > span->prefix_start ? span->prefix_start : span->start;
    if (first == span->prefix_end && span->prefix_end > span->prefix_start) first = span->start;
    if (first >= span->prefix_start && first < span->prefix_end) {
        const int64_t columns = smaller_of(c->keys, span->prefix_end - first);
        *tile = (tile_type){first, columns, columns};
        return 1;
    }
    const int64_t left = block->end - first;
    if (left <= 0) return 0;
    const int last = left <= c->keys + c->positions;
    *tile = (tile_type){first, last ? left : c->keys, last ? block->first + 1 - first : c->keys};
    return 1;
}

static int compare_weighed(const void *a, const void *b) {
    const weighed *x = a, *y = b;
    if (x->work != y->work) return x->work < y->work ? 1 : -1;
    return x->index - y->index;
}

int *attention_order(weighed *items, int count) {
    int *order = malloc((size_t)(count + 1) * sizeof *order);
    if (order == NULL) return NULL;
    qsort(items, (size_t)count, sizeof *items, compare_weighed);
    for (int i = 0; i < count; i++) order[i] = items[i].index;
    return order;
}

/* --- chunks ------------------------------------------------------------------------------------------------------- */

static int compare_families(const void *a, const void *b) {
    const block_type *x = a, *y = b;
    if (x->family != y->family) return x->family - y->family;
    return (x->first > y->first) - (x->first < y->first);
}

/* How many chunks a family is worth: its share of the tasks that there should be, if they are not too short. */
static int64_t family_chunks(const attention_type *c, double work, double all, int tasks) {
    const double fair = ceil(tasks * work / (all * (double)c->kv_heads));
    const double longest = floor(10.0 * work * (double)(c->sharing * c->width) / SHORT_CHUNK);
    return larger_of(1, (int64_t)(fair < longest ? fair : longest));
}

/* Adds a block's rows to what its chunk sums. */
static void widen_chunk(chunk_type *chunk, const block_type *block) {
    const span_type *span = &block->span;
    chunk->end++;
    chunk->work += block->work;
    if (span->prefix_end > span->prefix_start) {
        if (chunk->rest_end == 0) chunk->rest = span->start;
        chunk->root = span->prefix_start;
        chunk->root_end = larger_of(chunk->root_end, span->prefix_end);
        chunk->rest_end = block->end;
    } else {
        chunk->root = span->start;
        chunk->root_end = larger_of(chunk->root_end, block->end);
    }
}

int attention_chunks(const attention_type *c, block_type *blocks, int count, int tasks, chunk_type *chunks) {
    double all = 0.0;
    int made = 0;
    qsort(blocks, (size_t)count, sizeof *blocks, compare_families);
    for (int b = 0; b < count; b++) all += blocks[b].work;
    for (int first = 0, end; first < count; first = end) {
        const int before_family = made;
        double work = 0.0, before = 0.0;
        for (end = first; end < count && blocks[end].family == blocks[first].family; end++) work += blocks[end].work;
        const int64_t parts = family_chunks(c, work, all, tasks);
        int64_t part = -1;
        for (int b = first; b < end; b++) {
            const int64_t now = (int64_t)((before + blocks[b].work / 2) * (double)parts / work);
            if (now != part) chunks[made++] = (chunk_type){.first = b, .end = b};
            part = now;
            widen_chunk(&chunks[made - 1], &blocks[b]);
            before += blocks[b].work;
        }
        chunks[before_family].alone = made == before_family + 1;
    }
    return made;
}

/* float32 gradients are summed where they lie by a family's first chunk, 16 bits are no place to sum in. */
static int needs_sums(const attention_type *c, const block_type *blocks, const chunk_type *chunks, int i) {
    if (c->kind == KIND_BFLOAT16) return !chunks[i].alone;
    return i > 0 && blocks[chunks[i].first].family == blocks[chunks[i - 1].first].family;
}

int attention_lend_sums(const attention_type *c, const block_type *blocks, chunk_type *chunks, int count,
                        float **sums) {
    int64_t floats = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1 && floats > 0 && (*sums = malloc((size_t)floats * sizeof **sums)) == NULL) return 0;
        floats = 0;
        for (int i = 0; i < count; i++) {
            if (!needs_sums(c, blocks, chunks, i)) continue;
            if (pass == 1) chunks[i].sums = *sums + floats;
            floats += c->kv_heads * chunk_rows(&chunks[i]) * 2 * c->sums_width;
        }
    }
    return 1;
}
