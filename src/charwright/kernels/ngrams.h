/* The offsets of a model's n-grams, as ngrams.py of the package defines them. */
#ifndef CHARWRIGHT_NGRAMS_H
#define CHARWRIGHT_NGRAMS_H

#include <stdint.h>

enum { CW_ORDER = 8 }; /* the highest */

/* `marks` are c_0, c_1, ...: the ids of the last `order` tokens plus 1, the latest first, and 0 where there is none.
 * `order` is from 2 to CW_ORDER, `bits` from 1 to 28; there are order - 1 offsets. */
static inline void cw_ngram_offsets(const uint32_t *marks, int order, int bits, uint32_t *offsets) {
    static const uint32_t multipliers[CW_ORDER - 1][CW_ORDER] = {
        {0x7984A8AB, 0x71E273A9},
        {0x081C5253, 0x9FB93535, 0xABD2D9F3},
        {0xF93FE42F, 0x14BE09AB, 0xDB149E47, 0x4A95902B},
        {0xE7D80069, 0xB9096A05, 0xAFAE5A3B, 0xC963CFE1, 0xC439F34B},
        {0xE1454C41, 0xE794EE15, 0x26B563B1, 0x42840D2B, 0xAC8BE7D7, 0xA2BEEE31},
        {0xD96E5ADF, 0xE7AA8577, 0x19FCFC65, 0xDF43EFB3, 0x53D23C0B, 0x92AC3D43, 0xE7CA430F},
        {0x2B5C5CD1, 0x06E82A01, 0x69599355, 0x6820212D, 0xFE6C2B03, 0x1333BC1D, 0x1A6E72B9, 0x20050ED3},
    };
    for (int n = 2; n <= order; n++) {
        uint32_t sum = 0;
        for (int k = 0; k < n; k++) sum += multipliers[n - 2][k] * marks[k];
        /* All contexts that begin before the text share the last offset. */
        offsets[n - 2] = marks[n - 1] ? sum >> (32 - bits) : 1u << bits;
    }
}

#endif
