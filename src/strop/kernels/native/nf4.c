/* NF4 with double quantisation: weights to codes and back. kernels/nf4.py says what the bytes mean and owns the tables.
 *
 * Compiled once for every instruction set. Quantising is plain C that the compiler vectorises; a look-up in a table of
 * 16 floats is not something that it finds, so dequantising a block is written for each instruction set. All multiply
 * the 16 codes by the block's absmax first, one multiplication a code instead of one a weight: the same products.
 */
#include "lanes.h"
#include "operations.h"

#if defined(ISA_AVX2) || defined(ISA_AVX512)
#include <immintrin.h>
#elif defined(ISA_NEON)
#include <arm_neon.h>
#endif

#define BLOCK 64         /* weights an absmax */
#define NESTED_BLOCK 256 /* absmax values a nested absmax */
#define TASK_BLOCKS 512  /* blocks a task: 32,768 weights, 128 KiB of float32 */

static inline int64_t tasks_of(int64_t blocks) { return (blocks + TASK_BLOCKS - 1) / TASK_BLOCKS; }

/* --- weights to codes -------------------------------------------------------------------------------------------- */

typedef struct {
    const void *weights;
    int kind;
    int64_t count;
    const float *midpoints;
    uint8_t *packed;
    float *absmax;
} quantize_call;

static inline void read_block(const quantize_call *c, int64_t first, int64_t count, float *values) {
    const uint16_t *half = (const uint16_t *)c->weights + first;
    if (c->kind == KIND_FLOAT32)
        memcpy(values, (const float *)c->weights + first, (size_t)count * sizeof *values);
    else if (c->kind == KIND_BFLOAT16)
        for (int64_t i = 0; i < count; i++) values[i] = from_bfloat16(half[i]);
    else
        for (int64_t i = 0; i < count; i++) values[i] = from_float16(half[i]);
}

static inline float largest_magnitude(const float *values) {
    uint32_t part[LANES] = {0}, largest = 0;
    /* Without their sign, finite floats are ordered as the integers that their bits are. */
    for (int i = 0; i < BLOCK; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            const uint32_t magnitude = bits_of(values[i + lane]) & 0x7FFFFFFFu;
            part[lane] = magnitude > part[lane] ? magnitude : part[lane];
        }
    for (int lane = 0; lane < LANES; lane++) largest = part[lane] > largest ? part[lane] : largest;
    return float_of(largest);
}

/* Codes of scaled values: how many midpoints lie below. Packed, the first of two in the high bits. */
static inline void pack_codes(const float *scaled, const float *midpoints, uint8_t *packed, int64_t bytes) {
    int32_t codes[BLOCK];
    for (int i = 0; i < BLOCK; i++) {
        int32_t code = 0;
        for (int m = 0; m < 15; m++) code += scaled[i] > midpoints[m];
        codes[i] = code;
    }
    uint8_t both[BLOCK / 2];
    for (int i = 0; i < BLOCK / 2; i++) both[i] = (uint8_t)(codes[2 * i] << 4 | codes[2 * i + 1]);
    memcpy(packed, both, (size_t)bytes);
}

static inline float within_one(float x) { return x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x; }

static void quantize_task(void *context, int task, int worker) {
    const quantize_call *c = context;
    const int64_t blocks = (c->count + BLOCK - 1) / BLOCK;
    float midpoints[15];
    memcpy(midpoints, c->midpoints, sizeof midpoints);
    (void)worker;
    const int64_t first = (int64_t)task * TASK_BLOCKS, end = smaller(first + TASK_BLOCKS, blocks);
    for (int64_t block = first; block < end; block++) {
        const int64_t count = smaller(BLOCK, c->count - block * BLOCK);
        float values[BLOCK] = {0};
        read_block(c, block * BLOCK, count, values);
        float absmax = largest_magnitude(values);
        const float divisor = absmax > 1e-38f ? absmax : 1e-38f;
        /* bitsandbytes multiplies whole blocks by the reciprocal and divides the last, partial one. */
        if (count == BLOCK) {
            const float reciprocal = 1.0f / divisor;
            for (int i = 0; i < BLOCK; i++) values[i] = within_one(values[i] * reciprocal);
        } else {
            absmax = divisor;
            for (int i = 0; i < BLOCK; i++) values[i] = within_one(values[i] / divisor);
        }
        c->absmax[block] = absmax;
        pack_codes(values, midpoints, c->packed + block * (BLOCK / 2), (count + 1) / 2);
    }
}

void ISA_NAME(nf4_quantize)(const void *weights, int kind, int64_t count, const float *midpoints, uint8_t *packed,
                            float *absmax) {
    quantize_call c = {weights, kind, count, midpoints, packed, absmax};
    strop_parallel((int)tasks_of((count + BLOCK - 1) / BLOCK), quantize_task, &c);
}

/* --- absmax values, less their mean, to codes --------------------------------------------------------------------- */

typedef struct {
    const float *values;
    int64_t count;
    const uint8_t *grid_codes;
    uint8_t *codes;
    float *nested_absmax;
} nested_call;

/* The nearest of 65,536 grid points on [-1, 1]; the sum is rounded once, as by a fused multiply-add. */
static inline int32_t grid_index(float scaled) {
    const float half = (scaled + 1.0f) * 0.5f;
    return (int32_t)(float)((double)half * 65535.0 + 0.5);
}

static void quantize_absmax_task(void *context, int task, int worker) {
    const nested_call *c = context;
    const int64_t first = (int64_t)task * NESTED_BLOCK, count = smaller(NESTED_BLOCK, c->count - first);
    float absmax = 0.0f;
    (void)worker;
    for (int64_t i = 0; i < count; i++) {
        const float magnitude = fabsf(c->values[first + i]);
        absmax = magnitude > absmax ? magnitude : absmax;
    }
    c->nested_absmax[task] = absmax;
    const float reciprocal = absmax > 0.0f ? 1.0f / absmax : 0.0f;
    for (int64_t i = 0; i < count; i++) {
        const float scaled = c->values[first + i] * reciprocal;
        /* A denormal absmax has an infinite reciprocal, and zero times that is no number: it counts as zero. */
        const int32_t index = grid_index(scaled == scaled ? within_one(scaled) : 0.0f);
        c->codes[first + i] = absmax > 0.0f ? c->grid_codes[index] : 0;
    }
}

void ISA_NAME(nf4_quantize_absmax)(const float *values, int64_t count, const uint8_t *grid_codes, uint8_t *codes,
                                   float *nested_absmax) {
    nested_call c = {values, count, grid_codes, codes, nested_absmax};
    strop_parallel((int)((count + NESTED_BLOCK - 1) / NESTED_BLOCK), quantize_absmax_task, &c);
}

/* --- codes to weights -------------------------------------------------------------------------------------------- */

/* A block's 64 weights are looked up in its own table: the 16 codes times absmax, in the dtype that is asked for. What
 * float32 reads as numbers, 16 bits read as a number's bytes: unpack_halves serves bfloat16 and float16. */

#if defined(ISA_AVX512)

/* 16 weights: the four bytes of lanes 0 to 7 and of lanes 8 to 15, each lane shifted to its own four bits; the look-up
 * reads no more than those. */
static inline void unpack_floats(const uint8_t *packed, const float *table, float *out) {
    const __m512 codes = _mm512_loadu_ps(table);
    const __m512i shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
    for (int i = 0; i < BLOCK; i += 16) {
        int32_t low, high;
        memcpy(&low, packed + i / 2, 4);
        memcpy(&high, packed + i / 2 + 4, 4);
        const __m512i bytes = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xFF00, high);
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(_mm512_srlv_epi32(bytes, shifts), codes));
    }
}

/* 32 weights: a byte in each 32 bits, its high four in the lower half and the byte in the upper. The look-up reads five
 * bits of a half: with the table twice in the register, the fifth does not matter. */
static inline void unpack_halves(const uint8_t *packed, const uint16_t *table, uint16_t *out) {
    const __m512i codes = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)table));
    for (int i = 0; i < BLOCK; i += 32) {
        const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(packed + i / 2)));
        const __m512i places = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
        _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(places, codes));
    }
}

#elif defined(ISA_AVX2)

/* Eight weights: as above, with a table of two halves; the fourth bit of a code, moved to the sign, chooses. */
static inline void unpack_floats(const uint8_t *packed, const float *table, float *out) {
    const __m256 low_table = _mm256_loadu_ps(table), high_table = _mm256_loadu_ps(table + 8);
    const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    for (int i = 0; i < BLOCK; i += 8) {
        int32_t bytes;
        memcpy(&bytes, packed + i / 2, 4);
        const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(bytes), shifts);
        const __m256 low = _mm256_permutevar8x32_ps(low_table, codes);
        const __m256 high = _mm256_permutevar8x32_ps(high_table, codes);
        const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
        _mm256_storeu_ps(out + i, _mm256_blendv_ps(low, high, choice));
    }
}

/* 32 weights: their codes in a byte each, looked up twice, in the table's low and in its high bytes. */
static inline void unpack_halves(const uint8_t *packed, const uint16_t *table, uint16_t *out) {
    const __m256i even_first = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,
                                                0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m256i parted = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)table), even_first);
    const __m256i low_table = _mm256_permute4x64_epi64(parted, 0x88);
    const __m256i high_table = _mm256_permute4x64_epi64(parted, 0xDD);
    for (int i = 0; i < BLOCK; i += 32) {
        const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(packed + i / 2)));
        const __m256i seconds = _mm256_and_si256(_mm256_slli_epi16(bytes, 8), _mm256_set1_epi16(0x0F00));
        const __m256i codes = _mm256_or_si256(_mm256_srli_epi16(bytes, 4), seconds);
        const __m256i lows = _mm256_shuffle_epi8(low_table, codes), highs = _mm256_shuffle_epi8(high_table, codes);
        /* Weights 0 to 7 and 16 to 23; 8 to 15 and 24 to 31. */
        const __m256i even = _mm256_unpacklo_epi8(lows, highs), odd = _mm256_unpackhi_epi8(lows, highs);
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256((__m256i *)(out + i + 16), _mm256_permute2x128_si256(even, odd, 0x31));
    }
}

#elif defined(ISA_NEON)

/* The codes of 16 weights, a byte each. */
static inline uint8x16_t codes_of(const uint8_t *packed) {
    const uint8x8_t bytes = vld1_u8(packed);
    const uint8x8x2_t pairs = vzip_u8(vshr_n_u8(bytes, 4), vand_u8(bytes, vdup_n_u8(15)));
    return vcombine_u8(pairs.val[0], pairs.val[1]);
}

/* 16 weights: the table as four planes, byte k of every float in plane k; four look-ups, stored side by side again. */
static inline void unpack_floats(const uint8_t *packed, const float *table, float *out) {
    const uint8x16x4_t planes = vld4q_u8((const uint8_t *)table);
    for (int i = 0; i < BLOCK; i += 16) {
        const uint8x16_t codes = codes_of(packed + i / 2);
        uint8x16x4_t weights;
        for (int plane = 0; plane < 4; plane++) weights.val[plane] = vqtbl1q_u8(planes.val[plane], codes);
        vst4q_u8((uint8_t *)(out + i), weights);
    }
}

/* The same with two planes. */
static inline void unpack_halves(const uint8_t *packed, const uint16_t *table, uint16_t *out) {
    const uint8x16x2_t planes = vld2q_u8((const uint8_t *)table);
    for (int i = 0; i < BLOCK; i += 16) {
        const uint8x16_t codes = codes_of(packed + i / 2);
        uint8x16x2_t weights;
        for (int plane = 0; plane < 2; plane++) weights.val[plane] = vqtbl1q_u8(planes.val[plane], codes);
        vst2q_u8((uint8_t *)(out + i), weights);
    }
}

#else

static inline void unpack_floats(const uint8_t *packed, const float *table, float *out) {
    for (int i = 0; i < BLOCK / 2; i++) {
        out[2 * i] = table[packed[i] >> 4];
        out[2 * i + 1] = table[packed[i] & 15];
    }
}

static inline void unpack_halves(const uint8_t *packed, const uint16_t *table, uint16_t *out) {
    for (int i = 0; i < BLOCK / 2; i++) {
        out[2 * i] = table[packed[i] >> 4];
        out[2 * i + 1] = table[packed[i] & 15];
    }
}

#endif

typedef struct {
    const uint8_t *packed, *absmax8;
    const float *nested_absmax, *nf4_code, *dynamic_code;
    float offset;
    int64_t first_block, count;
    void *out;
    int kind;
} dequantize_call;

/* Blocks whose tables are made at one time: 16 codes are too few for a loop of their own. */
#define GROUP 16

typedef struct {
    float floats[GROUP * 16];
    uint16_t halves[GROUP * 16];
} tables_type;

/* The tables of some blocks. */
static inline void make_tables(const dequantize_call *c, int64_t first, int64_t blocks, tables_type *tables) {
    float *floats = tables->floats;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t block = first + i;
        const float absmax = c->dynamic_code[c->absmax8[block]] * c->nested_absmax[block / NESTED_BLOCK] + c->offset;
        for (int code = 0; code < 16; code++) floats[16 * i + code] = c->nf4_code[code] * absmax;
    }
    if (c->kind == KIND_BFLOAT16)
        for (int64_t i = 0; i < 16 * blocks; i++) tables->halves[i] = to_bfloat16(floats[i]);
    else if (c->kind == KIND_FLOAT16)
        for (int64_t i = 0; i < 16 * blocks; i++) tables->halves[i] = to_float16(floats[i]);
}

/* The 64 weights of a block, by the n-th of the tables. */
static inline void unpack_block(int kind, const uint8_t *packed, const tables_type *tables, int64_t n, void *out) {
    if (kind == KIND_FLOAT32)
        unpack_floats(packed, tables->floats + 16 * n, out);
    else
        unpack_halves(packed, tables->halves + 16 * n, out);
}

static void dequantize_task(void *context, int task, int worker) {
    const dequantize_call *c = context;
    const int64_t whole = c->count / BLOCK, rest = c->count % BLOCK, size = c->kind == KIND_FLOAT32 ? 4 : 2;
    const int64_t first = (int64_t)task * TASK_BLOCKS, end = smaller(first + TASK_BLOCKS, whole);
    const uint8_t *packed = c->packed + c->first_block * (BLOCK / 2);
    tables_type tables;
    (void)worker;
    for (int64_t i = first; i < end; i += GROUP) {
        const int64_t blocks = smaller(GROUP, end - i);
        make_tables(c, c->first_block + i, blocks, &tables);
        for (int64_t n = 0; n < blocks; n++)
            unpack_block(c->kind, packed + (i + n) * (BLOCK / 2), &tables, n,
                         (char *)c->out + (i + n) * BLOCK * size);
    }
    if (rest > 0 && first <= whole && whole < first + TASK_BLOCKS) {
        uint8_t bytes[BLOCK / 2] = {0};
        float weights[BLOCK];
        memcpy(bytes, packed + whole * (BLOCK / 2), (size_t)(rest + 1) / 2);
        make_tables(c, c->first_block + whole, 1, &tables);
        unpack_block(c->kind, bytes, &tables, 0, weights);
        memcpy((char *)c->out + whole * BLOCK * size, weights, (size_t)(rest * size));
    }
}

void ISA_NAME(nf4_dequantize)(const uint8_t *packed, const uint8_t *absmax8, const float *nested_absmax, float offset,
                              const float *nf4_code, const float *dynamic_code, int64_t first_block, int64_t count,
                              void *out, int kind) {
    dequantize_call c = {packed, absmax8, nested_absmax, nf4_code, dynamic_code, offset, first_block, count, out, kind};
    strop_parallel((int)tasks_of((count + BLOCK - 1) / BLOCK), dequantize_task, &c);
}
