/* A variant of the kernels: each function for every storage type. */
#ifndef CHARWRIGHT_VARIANT_H
#define CHARWRIGHT_VARIANT_H

#include "charwright_kernels.h"
#include "ngrams.h"
#include "pool.h"
#include "shares.h"

typedef struct {
    int cell, units, backward;
    const float *weights;
    void *packed;
} cw_packing;

/* A thread's share of the rows and columns of a result; the last of both does not belong to it. */
typedef struct {
    int row, last_row, column, last_column;
} cw_area;

/* What a backward pass adds up over the rows of a batch, or over a group of them. */
typedef struct {
    float *table; /* (H / 16, tokens, G, 16): the gradient of the table, if it is small; or NULL */
    float *scale; /* (tokens, H), or NULL */
    float *bias;  /* (G of the recurrent product, H), or NULL */
} cw_sums;

/* A barrier in a cache line of its own. */
typedef struct {
    _Alignas(64) cw_barrier barrier;
} cw_padded_barrier;

/* A larger table is used as it is: its blocks would not stay in the cache. */
#define CW_SMALL_TABLE 512

/* Up to so many bytes of recurrent weights are taken to fit into the cache of a core, beside all else. */
#define CW_FEW_WEIGHTS 655360

/* The most groups of rows. The rows from `cw_group_rows` on are the second one. */
#define CW_GROUPS 2

/* The rows of the first group. The order of what a layer keeps and the bits of what is added up over all rows depend on
 * it, so it is a matter of the layer's sizes, not of the threads. Groups of fewer rows take longer: the weights are read
 * for each. So would tiles, which multiply 32 rows as fast as 16; and with a large table each group would need another. */
static inline int cw_group_rows(const cw_layer *layer, int tiles) {
    const size_t weights = (size_t)cw_product_count(layer->cell) * layer->units * layer->units * (layer->bf16 ? 2 : 4);
    const int fits = weights <= CW_FEW_WEIGHTS && layer->tokens <= CW_SMALL_TABLE;
    return fits && !tiles && layer->batch % 2 == 0 && layer->batch >= 32 ? layer->batch / CW_GROUPS : layer->batch;
}

/* The working memory of a layer during a call; units are in blocks of 16. See layers.h. */
typedef struct {
    const cw_layer *layer;
    int groups, rows;        /* of rows of the batch; the rows of a group */
    cw_padded_barrier *group_barriers; /* of the threads of each group */
    cw_sums sums[CW_GROUPS]; /* of each group, in a backward pass */
    float *table;            /* (H / 16, tokens, G, 16): the table in a forward pass, if it is small; or NULL */
    float *h, *c;            /* (groups, H / 16, rows, 16): the state or its gradient */
    float *mask;             /* the same shape */
    void *operands;          /* a thread's own operand of the recurrent product, for each */
    size_t operand_bytes;
} cw_layer_job;

/* The group of row b. */
static inline int cw_group_of(const cw_layer_job *job, int b) { return b >= job->rows; }

/* The rows and the blocks of units of a thread in each step: of one group, if the threads can be divided among them. */
static inline cw_area cw_own_area(const cw_layer_job *job, int thread, int threads) {
    const int blocks = job->layer->units / 16, batch = job->layer->batch;
    const int groups = threads % job->groups ? 1 : job->groups;
    const int members = threads / groups, group = thread / members, member = thread % members;
    return (cw_area){batch * group / groups, batch * (group + 1) / groups, blocks * member / members,
                     blocks * (member + 1) / members};
}

/* The barrier of the threads that have the same rows. If it is another one than that of all, these have to meet before it
 * is used, since its first thread prepares it here. */
static inline cw_barrier *cw_group_barrier(const cw_layer_job *job, int thread, int threads, cw_barrier *all) {
    if (job->groups == 1 || threads % job->groups) return all;
    const int members = threads / job->groups;
    cw_barrier *barrier = &job->group_barriers[thread / members].barrier;
    if (thread % members == 0) atomic_store_explicit(&barrier->threads, members, memory_order_relaxed);
    return barrier;
}

typedef struct {
    const cw_layer *layer;
    void *to;
} cw_spread_job;

/* Row n of `from` is multiplied by row n % batch of the mask. */
typedef struct {
    int rows, batch, units;
    const float *mask; /* (batch, units) */
    const void *from;  /* (rows, units) storage */
    void *to;
} cw_mask_job;

/* c (m, columns) float32 = a (n, m) transposed times b (n, columns), both in storage, `depth` values of n at a time.
 * Column i of a gives row (i + first_row) % m of c. With a layer, a is its gates: (T * B, slots * H). */
typedef struct {
    int n, m, columns, depth, first_row;
    const void *a, *b;
    size_t a_row, b_row;
    const cw_layer *layer;
    void *scratch;
    float *c;
} cw_outer_job;

/* With tiles each thread sums blocks of at most 24 groups of 16 rows and 32 vectors of 16 columns: 786 KB, and 300 KB of
 * packed rows and 400 KB of packed columns for it. */
#define CW_BLOCK_GROUPS 24
#define CW_BLOCK_VECTORS 32
#define CW_BLOCK_BYTES(depth) \
    ((size_t)CW_BLOCK_GROUPS * 16 * (depth) * sizeof(uint16_t) + CW_BLOCK_GROUPS * CW_BLOCK_VECTORS * 256 * sizeof(float))
/* How many values of n are packed at once for all columns: whole slices, at most 16 MB unless one slice is larger. */
static inline int cw_packed_together(int n, int depth, int columns) {
    const int slices = (n + depth - 1) / depth, most = (int)(16000000 / sizeof(uint16_t) / columns / depth);
    return (most < 1 ? 1 : most < slices ? most : slices) * depth;
}

typedef struct {
    int rows, vocabulary, wanted;
    void *logits;
    const float *bias;
    const cw_ngrams *ngrams; /* or NULL */
    const int64_t *targets;
    float scale;
    float *losses, *d_bias;
    void *scratch;
} cw_loss_job;

/* Rows of a linear layer, such as the output layer, that are in the cache together. */
#define CW_ROWS_AT_ONCE 64

typedef struct {
    cw_loss_job loss;
    int units, batch;
    const void *x;              /* (rows, units) storage */
    const float *weight, *mask; /* (vocabulary, units); (batch, units) or NULL */
    void *d_x;                  /* (rows, units) storage */
    float *d_weight;
    void *forward, *backward;   /* the packed weights */
    void *masked;               /* (rows, units) bfloat16: x times the mask, for the weights' gradient; or NULL */
    char *scratch;
    size_t scratch_bytes;       /* for each thread */
    void *outer_scratch;        /* bfloat16 only: of the weights' gradient, as in cw_outer_job */
    int outer_depth;
} cw_head_job;

typedef struct {
    const cw_linear *layer;
    void *packed;         /* the weight */
    const void *gradient; /* (rows, outputs) storage: of the sums; d_y itself, if that is the same */
    char *operands;       /* for an operand of each thread */
    size_t operand_bytes;
    void *outer_scratch;  /* of the weight's gradient, as in cw_outer_job */
    int outer_depth;
} cw_linear_job;

typedef struct {
    int rows, vocabulary;
    const cw_ngrams *ngrams;
    const void *d_logits;
    float rate;
} cw_descend_job;

/* The numbers of each parameter are divided into chunks of at most CW_CHUNK. */
#define CW_CHUNK 4096
static inline int64_t cw_chunks(int64_t count) { return (count + CW_CHUNK - 1) / CW_CHUNK; }

typedef struct {
    const cw_parameter *parameters;
    int count;
    int64_t chunks;
    float scale;
    double *partial; /* (chunks): the sums of squares, or how many numbers move; NULL if no parameter is cautious */
} cw_adam_job;

/* A call of cw_write. */
typedef struct {
    int variant;
    const cw_model *model;
    cw_text *texts;
    int count;
    int64_t steps;
    int rows;          /* of activations: texts, and zeros that fill up the last tile */
    cw_shares *shares; /* as they are at the start, and then as they are at the end */
    cw_spent *spent;   /* (threads) */
    int pieces;        /* panels of a layer's units, which the threads share */
    int limited;       /* whether a sum of 8-bit products may exceed the limit when it is requantized */
    int turn;          /* the half of `activations` from before the step */
    void *activations; /* (L, 2, rows, H): the inputs of the products, before and after the step */
    void *scaled;      /* (rows, H): the input of the first layer's recurrent product; NULL without a scale */
    double *logits;    /* (texts, V) */
    uint32_t *offsets; /* (texts, order - 1): of the n-grams in this step; NULL without them */
    char *scratch;     /* cw_draw_bytes for each thread, for sampling and scores */
} cw_writing;

/* Whether any text needs the logits of this step. */
int cw_head_needed(const cw_writing *writing);
/* Advance to the next id of a text, and sample it if none is left to read; find the offsets of its n-grams. */
void cw_read_on(const cw_writing *writing, int text, int thread);

typedef struct {
    int32_t lanes, q8_offset, q8_swapped;
    int32_t tiles; /* whether products in bfloat16 and 8 bits are made of tiles */
} cw_shape;

/* Each of `values` = e^((value - highest) / divisor), where no value is above `highest`; `sums` has the sum of each with
 * those before it, added in their order. See exponentials.c. */
typedef void (*cw_exponentials)(double *values, int count, double highest, double divisor, double *sums);

#if defined(CW_VARIANT)
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
void PASTE(exponentials_, CW_VARIANT)(double *values, int count, double highest, double divisor, double *sums);
#endif

typedef struct {
    const char *name;
    cw_shape shape;
    cw_job pack[2], forward[2], backward[2], spread_inputs[2], mask_outputs[2], outer[2], cross_entropy[2], descend[2];
    cw_job head[2], linear[2], linear_backward[2], write[3], norm, adam;
    cw_exponentials exponentials;
} cw_variant;

/* The blocks of units in a panel of packed weights for single steps: enough sums to keep the processor busy, 6 vectors
 * of a GRU's recurrent product, input-reset or not, 8 of an LSTM's and 4 of an RNN's. */
#define PANEL_BLOCKS(cell) ((cell) == CW_RNN ? 4 : (cell) == CW_IGRU ? 3 : 2)
#define HEAD_PANEL 3

const cw_variant *cw_chosen(int variant);

#endif
