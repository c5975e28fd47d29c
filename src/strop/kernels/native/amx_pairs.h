/* Rows laid as AMX wants its second operand: in pairs, a word for two numbers of one column that follow each other.
 *
 * Included where the compiler has been given the flags of AMX.
 */
#ifndef STROP_AMX_PAIRS_H
#define STROP_AMX_PAIRS_H

#include <immintrin.h>

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

#endif
