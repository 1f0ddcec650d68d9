/* The offsets of a model's n-grams, as ngrams.py of the package defines them. */
#ifndef CHARWRIGHT_NGRAMS_H
#define CHARWRIGHT_NGRAMS_H

#include <stdint.h>

enum { CW_NGRAMS = 3, CW_BEFORE = 3 }; /* the offsets of a context; the tokens in it before the last one */

/* `marks` are c_0 ... c_3: the ids of the last tokens plus 1, the latest first, and 0 where there is none. `bits` is from
 * 1 to 28. */
static inline void cw_ngram_offsets(const uint32_t marks[CW_BEFORE + 1], int bits, uint32_t offsets[CW_NGRAMS]) {
    static const uint32_t multipliers[CW_NGRAMS][CW_BEFORE + 1] = {
        {0x7984A8AB, 0x71E273A9, 0, 0},
        {0x081C5253, 0x9FB93535, 0xABD2D9F3, 0},
        {0xF93FE42F, 0x14BE09AB, 0xDB149E47, 0x4A95902B},
    };
    for (int n = 0; n < CW_NGRAMS; n++) {
        uint32_t sum = 0;
        for (int k = 0; k <= CW_BEFORE; k++) sum += multipliers[n][k] * marks[k];
        /* All contexts that begin before the text share the last offset. */
        offsets[n] = marks[n + 1] ? sum >> (32 - bits) : 1u << bits;
    }
}

#endif
