/* How attention's work is cut up: blocks of queries, tiles of keys, chunks of blocks that add to the same gradients.
 * attention.c has the picture; attention_blocks.c does the cutting, attention.c and attention_amx.c compute.
 */
#ifndef STROP_ATTENTION_BLOCKS_H
#define STROP_ATTENTION_BLOCKS_H

#include "attention.h"
#include "operations.h"

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
    int alone;             /* its family's only one */
    float *sums;           /* [kv_heads, rows, 2 sums_width], or NULL: see `key_sums` */
} chunk_type;

typedef struct {
    int64_t first, columns; /* keys, rows of the pack */
    int64_t first_visible;  /* how many of them the block's first position sees, if not all */
} tile_type;

typedef struct {
    int kind; /* of qkv, out and their gradients: KIND_FLOAT32 or KIND_BFLOAT16 */
    int amx;
    const attention_rows *rows;
    attention_product product;
    int64_t heads, kv_heads, width, sharing;
    int64_t positions, keys; /* of the largest block; of a tile that is not a block's last */
    int64_t longest, longest_prefix; /* rows of a span, of a prefix */
    int64_t sums_width;      /* of a row of dK in a chunk's sums: the width, whole tiles of it with AMX */
    float factor;
    const void *qkv, *out, *grad;
    void *out_to, *grad_to;
    float *row_sums;
    int64_t qkv_stride, out_stride, grad_stride, grad_to_stride, row_sums_stride, tokens;
    const block_type *blocks;
    const chunk_type *chunks;
    int chunk_count;
    const int *order;
    int failed; /* no scratch memory */
} attention_type;

/* A task, and how much of it has been done before. */
typedef struct {
    double work;
    int index;
} weighed;

static inline int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

/* The element `index` of qkv, out or a gradient. */
static inline const void *element(const attention_type *c, const void *from, int64_t index) {
    return (const char *)from + index * (c->kind == KIND_BFLOAT16 ? 2 : 4);
}

static inline void *element_to(const attention_type *c, void *to, int64_t index) {
    return (char *)to + index * (c->kind == KIND_BFLOAT16 ? 2 : 4);
}

static inline int64_t chunk_rows(const chunk_type *chunk) {
    return chunk->root_end - chunk->root + chunk->rest_end - chunk->rest;
}

/* The row of a chunk's sums that is a row of the pack; -1 where it has none. */
static inline int64_t chunk_row(const chunk_type *chunk, int64_t row) {
    if (row >= chunk->root && row < chunk->root_end) return row - chunk->root;
    if (row >= chunk->rest && row < chunk->rest_end) return chunk->root_end - chunk->root + row - chunk->rest;
    return -1;
}

/* --- attention_blocks.c ------------------------------------------------------------------------------------------ */

/* The blocks of all spans, a document's near equal in length. *blocks is the caller's to free; -1 without memory. */
int attention_blocks(const span_type *spans, int64_t count, int64_t positions, block_type **blocks);

/* The tile of keys after `tile` (columns 0 before the first); 0 when there is none. */
int attention_next_tile(const attention_type *c, const block_type *block, tile_type *tile);

/* Indices from the most work to the least, so that the last tasks are short; the caller's to free. */
int *attention_order(weighed *items, int count);

/* Sorts the blocks by family and cuts them into chunks of near equal work, for about `tasks` tasks if none gets too
 * short; chunks holds one for every block. */
int attention_chunks(const attention_type *c, block_type *blocks, int count, int tasks, chunk_type *chunks);

/* Gives chunks memory to sum in; one allocation, the caller's to free. 0 without memory. */
int attention_lend_sums(const attention_type *c, const block_type *blocks, chunk_type *chunks, int count,
                        float **sums);

/* --- attention_amx.c, attention_amx_backward.c: bfloat16 by tiles of AMX, where they are compiled ---------------- */

/* Bytes of scratch memory that a chunk takes. */
size_t attention_amx_memory(const attention_type *c);
size_t attention_amx_backward_memory(const attention_type *c);

void attention_amx_chunk(const attention_type *c, const chunk_type *chunk, int64_t kv_head, void *memory);

/* Adds to dK (not yet times the factor) and dV in sums [rows of the chunk, 2 sums_width]. */
void attention_amx_backward_chunk(const attention_type *c, const chunk_type *chunk, int64_t kv_head, float *sums,
                                  void *memory);

#endif
