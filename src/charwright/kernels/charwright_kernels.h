/* The interface of the kernels: plain C, arrays in, arrays out. Independent of Python and PyTorch.
 *
 * Shapes: T time steps, B rows of the batch, H units (a multiple of 16; callers pad with zeros), G gates, of which the
 * last P read the state too: all, but the reset gate of an input-reset GRU (CW_IGRU).
 * "Storage" is float32 or bfloat16 (as uint16_t), selected by `bf16`. Gate order: r, z, n (GRUs) or i, f, g, o (LSTM).
 */
#ifndef CHARWRIGHT_KERNELS_H
#define CHARWRIGHT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define CW_PUBLIC __declspec(dllexport)
#else
#define CW_PUBLIC __attribute__((visibility("default")))
#endif

enum { CW_GRU = 0, CW_LSTM = 1, CW_RNN = 2, CW_IGRU = 3 };

#define CW_ABI 19

/* The storage type of weights and activations, and of the products' operands. */
#define CW_F32 0
#define CW_BF16 1
#define CW_Q8 2 /* 8-bit integers: docs/explanation/q8.md */

typedef struct {
    int32_t cell, bf16, steps, batch, units, threads;
    int32_t tokens;         /* the rows of the table; 0 without ids. The same in all calls for a layer */
    /* Input: rows of a table selected by ids, or one row per position. */
    const float *table;     /* (tokens, G * H), or NULL */
    const int64_t *ids;     /* (T, B) with the table */
    const void *inputs;     /* (T, B, G * H) storage, without a table */
    const float *bias;      /* (P * H) recurrent bias, or NULL */
    const float *mask;      /* (B, H), multiplies the state in the recurrent product; or NULL */
    const float *scale;     /* (tokens, H) with ids: the row of a step's token multiplies the state too; or NULL */
    const void *packed;     /* from cw_pack, forward or backward */
    void *hidden;           /* (T + 1, B, H) storage; [t] is the state before step t */
    void *masked;           /* (T + 1, B, H) storage: `hidden` times mask and scale, but for the last; with one */
    void *gates;            /* written by forward, overwritten with gradients by backward; see `cw_slots` */
    void *cells;            /* (T + 1) * B * H numbers in storage, in the order of layers.h; LSTM only */
    float *state_h;         /* (B, H): the initial state in, the final state out */
    float *state_c;         /* (B, H), LSTM only */
    /* Backward only. */
    const void *d_outputs;  /* (T, B, H) storage */
    float *d_h;             /* (B, H): gradient of the final state in, of the initial state out; or NULL: zeros in, none out */
    float *d_c;             /* (B, H), LSTM only; or NULL */
    float *d_table;         /* (tokens, G * H), with a table */
    float *d_scale;         /* (tokens, H), with a scale */
    float *d_bias;          /* (P * H), with a bias */
} cw_layer;

/* The number of slots in `gates`: T * B * H / 16 of (slots, 16) in storage, in the order of layers.h.
 * GRU: r, z, n, U_n h + c_n; after backward: d(n) * r, d(r), d(z), d(n), so that the first three are the gradient
 * of the recurrent product and the last three that of the input. Input-reset GRU: the same; after backward: d(n) * r,
 * d(z), d(n), d(r), of which the first two are that of the product. LSTM: i, f, g, o and their gradients. RNN: its
 * gradient. */
static inline int cw_slots(int cell) { return cell == CW_RNN ? 1 : 4; }
static inline int cw_is_gru(int cell) { return cell == CW_GRU || cell == CW_IGRU; }
static inline int cw_gate_count(int cell) { return cell == CW_RNN ? 1 : cell == CW_LSTM ? 4 : 3; }
static inline int cw_product_count(int cell) { return cell == CW_IGRU ? 2 : cw_gate_count(cell); }

CW_PUBLIC int cw_abi(void);
/* The variants that run on this machine, as a bit set over the indices of cw_variant_name, best first. */
CW_PUBLIC int cw_variants(void);
CW_PUBLIC const char *cw_variant_name(int variant);
/* Use the threads of an OpenMP runtime: its GOMP_parallel, omp_get_thread_num and omp_get_num_threads, or NULLs. */
CW_PUBLIC void cw_use_openmp(void *parallel, void *thread_number, void *thread_count);
/* The size of packed weights in bytes. */
CW_PUBLIC size_t cw_packed_bytes(int variant, int cell, int units, int bf16);
/* Pack the recurrent weights (P * H, H) for the forward or the backward product. */
CW_PUBLIC void cw_pack(int variant, int cell, int units, int bf16, int backward, int threads, const float *weights,
                       void *packed);
/* Both return 0, or 1 if memory allocation fails. */
CW_PUBLIC int cw_forward(int variant, const cw_layer *layer);
CW_PUBLIC int cw_backward(int variant, const cw_layer *layer);
/* After backward: the gradient of the inputs (T, B, G * H), in storage. */
CW_PUBLIC void cw_input_gradient(int variant, const cw_layer *layer, void *d_inputs);
/* After backward: the gradient of the recurrent weights (P * H, H) float32. `scratch` has cw_outer_bytes for
 * n = T * B, m = P * H and H columns. */
CW_PUBLIC void cw_weight_gradient(int variant, const cw_layer *layer, void *scratch, float *d_weights);
/* The gradient of weights: c (m, columns) float32 = a (n, m) transposed times b (n, columns), both in storage with row
 * strides a_row and b_row in elements; `columns` is a multiple of 16. `scratch` has cw_outer_bytes. */
CW_PUBLIC size_t cw_outer_bytes(int variant, int bf16, int threads, int n, int m, int columns);
CW_PUBLIC void cw_outer(int variant, int bf16, int threads, int n, int m, int columns, const void *a, size_t a_row,
                        const void *b, size_t b_row, void *scratch, float *c);
/* A linear layer, y = x times the transposed weight, + bias; `inputs` and `outputs` are multiples of 16, and there is at least
 * one row. x is always in storage; y, d_y and d_x are too, or with `wide` float32. */
typedef struct {
    int32_t bf16, threads, rows, inputs, outputs, wide;
    int32_t curved;      /* y = 1 + tanh of that; wide only */
    int32_t adding;      /* d_x is added to; wide only */
    const void *x;       /* (rows, inputs) */
    const float *weight; /* (outputs, inputs) */
    const float *bias;   /* (outputs), or NULL */
    void *y;             /* (rows, outputs): written forward; read backward if `curved` */
    /* Backward only. */
    const void *d_y;
    void *d_x;           /* or NULL */
    float *d_weight;
    float *d_bias;       /* or NULL */
    void *scratch;       /* cw_linear_bytes, forward too */
} cw_linear;
CW_PUBLIC size_t cw_linear_bytes(int variant, const cw_linear *layer, int backward);
CW_PUBLIC void cw_linear_forward(int variant, const cw_linear *layer);
CW_PUBLIC void cw_linear_backward(int variant, const cw_linear *layer);
/* N-grams of a training step: numbers of an array that add to the logits; see ngrams.py. */
typedef struct {
    float *array;
    const int64_t *offsets; /* (count, rows): where the numbers for each row of logits begin */
    int64_t size;           /* of the array: every offset + vocabulary is at most this */
    int32_t count;
} cw_ngrams;
/* The offsets (order - 1, T * B) after each of ids (T, B), as ngrams.h has them. `before` (B, order - 1) are the marks of
 * the tokens before the first one, the latest first, and `after` those before what follows; both may be one array. */
CW_PUBLIC void cw_contexts(int steps, int batch, int order, int bits, const int64_t *ids, const float *before,
                           int64_t *offsets, float *after);
/* Whether all ids are from 0 to vocabulary - 1. */
CW_PUBLIC int cw_ids_fit(const int64_t *ids, int64_t count, int64_t vocabulary);
/* Losses (rows) in nats of logits (rows, vocabulary) + bias against targets, with the numbers of n-grams, or NULL. With
 * d_bias (vocabulary), which is added to, the gradients of `scale` times the sum of the losses replace the logits.
 * Scratch: threads * (vocabulary + 16) floats. Returns the sum of the losses. */
CW_PUBLIC double cw_cross_entropy(int variant, int bf16, int threads, int rows, int vocabulary, void *logits,
                                  const float *bias, const cw_ngrams *ngrams, const int64_t *targets, float scale,
                                  float *losses, float *d_bias, void *scratch);
/* The output layer and the loss in one: the losses of x * mask times the transposed weight, + bias + the numbers of
 * n-grams, against targets. With d_bias, the gradients of `scale` times the sum of the losses are written too. x, d_logits
 * and d_x are in storage, all else float32. `units` is a multiple of 16. */
typedef struct {
    int32_t bf16, threads, rows, batch, units, vocabulary;
    float scale;
    const void *x;           /* (rows, units) */
    const float *mask;       /* (batch, units), of which row % batch is that of a row; or NULL */
    const float *weight;     /* (vocabulary, units) */
    const float *bias;       /* (vocabulary) */
    const cw_ngrams *ngrams; /* or NULL */
    const int64_t *targets;  /* (rows) */
    float *losses;           /* (rows), in nats */
    void *scratch;           /* cw_head_bytes */
    /* With gradients only. */
    void *d_logits;          /* (rows, vocabulary) */
    void *d_x;
    float *d_weight;
    float *d_bias;           /* added to */
} cw_output_layer;
/* The size of its scratch memory; reads the sizes, and whether there are a mask and d_bias. */
CW_PUBLIC size_t cw_head_bytes(int variant, const cw_output_layer *layer);
/* Returns the sum of the losses. */
CW_PUBLIC double cw_head(int variant, const cw_output_layer *layer);
/* Gradient descent of the n-grams: subtract `rate` times the gradients of the logits (rows, vocabulary), in storage, from
 * the numbers that added to them. */
CW_PUBLIC void cw_descend(int variant, int bf16, int threads, int rows, int vocabulary, const cw_ngrams *ngrams,
                          const void *d_logits, float rate);

/* --- The network: its layers, the output layer and all gradients in one call --- */

/* A layer of a network, and what computes its inputs. */
typedef struct {
    cw_layer layer;
    cw_linear input;          /* the table, from the embedding; or the inputs at each position, from the outputs before */
    cw_linear scale;          /* the scale, from the embedding; with layer.scale */
    const float *weights;     /* (P * H, H): the recurrent ones, which are packed into layer.packed */
    float *d_weights;
    const float *output_mask; /* (B, H), multiplies what the next layer reads; or NULL, as in the last layer */
    void *masked_outputs;     /* (T, B, H) storage, with that mask */
    void *scratch;            /* cw_outer_bytes, as for cw_weight_gradient */
} cw_network_layer;

typedef struct {
    int32_t layers, ngram_order, ngram_bits; /* the order is 0 without n-grams */
    cw_network_layer *layer;    /* (layers) */
    cw_output_layer head;       /* its mask multiplies the outputs of the last layer */
    cw_ngrams ngrams;           /* of the head */
    float *tokens;              /* (B, order - 1): the marks before the batch in, those after it out; see cw_contexts */
    const int64_t *ids;         /* (T, B) */
} cw_network;

/* The sum of the losses of a batch, and all gradients of `head.scale` times it. What one call above writes and another
 * reads is at the same address in the description of both; d_bias of the head is written. Returns 0, or 1 if memory
 * allocation fails. */
CW_PUBLIC int cw_differentiate(int variant, const cw_network *network, double *sum);

/* --- The optimizer --- */

/* A parameter of a model, float32, and its state in Adam. */
typedef struct {
    float *weight, *mean, *square; /* (count): the numbers, and the averages of the gradient and of its square */
    const float *gradient;         /* (count) */
    float *step;                   /* one number: the updates so far */
    int64_t count;
    double rate, beta1, beta2, epsilon, decay;
    int32_t decoupled; /* whether decay acts on the weights (AdamW) or is added to the gradient (Adam) */
    int32_t cautious;  /* whether only those numbers move whose mean gradient agrees with this one, and further for it */
} cw_parameter;

/* The sum of the squares of all gradients: in float32 within chunks of 4,096, whose sums are added in double precision.
 * Scratch: cw_norm_bytes. */
CW_PUBLIC size_t cw_norm_bytes(const cw_parameter *parameters, int count);
CW_PUBLIC double cw_norm(int variant, int threads, const cw_parameter *parameters, int count, void *scratch);
/* One step of Adam for all parameters, with gradients times `scale`; counts the step.
 * Scratch: cw_norm_bytes if any parameter is cautious, otherwise NULL. */
CW_PUBLIC void cw_adam(int variant, int threads, const cw_parameter *parameters, int count, float scale, void *scratch);

/* --- Generation: the network one step at a time, and sampling --- */

/* A matrix (rows, K) packed by the caller. A vector is `lanes` rows. A panel of the head is a number of vectors; one of
 * a layer's matrix is the vectors of a number of blocks of `lanes` units, ordered by block, then by gate. cw_layout has
 * both numbers; the last panel may have fewer. Its order is k in groups of `depth`, then vector, lane, depth. */
typedef struct {
    const void *packed;
    const int32_t *multipliers; /* (rows), 8-bit only */
    const int32_t *corrections; /* (rows), 8-bit only: added to each sum */
    const void *bias;           /* (rows) float, or int32 for 8-bit; or NULL */
} cw_matrix;

typedef struct {
    int32_t storage, cell, layers, units, vocabulary; /* units: a multiple of 16; the head's rows: padded to one */
    const void *table;          /* (V, G * H) storage, or int16 for 8-bit: the first layer's input per token */
    const cw_matrix *recurrent; /* (layers) of P gates; a GRU's biases of r and z are part of the input's */
    const cw_matrix *inputs;    /* (layers) of G gates; the first one is unused */
    const cw_matrix *head;
    const int16_t *tanh_table;  /* 8-bit only */
    const void *ngrams;         /* (2^ngram_bits + V) float, or int16 for 8-bit: see ngrams.h; or NULL */
    int32_t ngram_bits, ngram_order; /* with `ngrams`: 1 to 28, and 2 to 8 */
    const void *scale;          /* (V, H) float, or int16 for 8-bit: the row of a step's token multiplies the state in
                                   the first layer's recurrent product; or NULL */
} cw_model;

typedef struct {
    double temperature; /* 0: greedy */
    double top_p;       /* 1: all */
    double min_p;       /* 0: all */
    double penalty;     /* ln of the factor that divides the probability of continuing a repetition; 0: none */
    int32_t top_k;      /* 0: all */
    int32_t penalty_from, penalty_window; /* the shortest repeat that counts, and the number of last ids searched */
    const uint8_t *masked; /* (V): 1 for ids that must not be sampled; or NULL */
    uint64_t seed, stream, drawn; /* the key of the random numbers, and the number used */
} cw_sampler;

/* One stream of text: its state and ids. */
typedef struct {
    void *state;        /* (L, S, H) float, or int32 for 8-bit; changed in place. With n-grams (L + 1, S, H): the last
                           row begins with the marks (ngrams.h) of the ngram_order - 1 tokens before the next one */
    int32_t *ids;       /* with room for the sampled ids */
    int64_t length, at; /* the number of ids; the index of the next to read */
    double *scores;     /* scores[i] = ln p(ids[i] | the ids before), for every i > at; or NULL */
    int32_t *likeliest; /* (capacity, K): for every i > at, the K most likely ids given the ids before, the likeliest
                           first, of equals the smaller id; or NULL */
    double *likeliest_scores;  /* (capacity, K): ln p of each; with `likeliest` */
    int32_t likeliest_count;   /* K, at most V */
    int32_t drawing;    /* sample when all ids are read */
    double *logits;     /* (V): after the last step; or NULL */
    cw_sampler sampler;
} cw_text;

/* out: lanes; blocks in a layer's panel; vectors in the head's panel; the offset added to 8-bit activations; whether
 * the bytes of four weights are in the order 0, 2, 1, 3. */
CW_PUBLIC void cw_layout(int variant, int storage, int cell, int32_t out[5]);
/* Run `steps` steps of all texts together; each has an id to read at every step, or samples it in the step before.
 * Returns 0, or 1 if memory allocation fails. */
CW_PUBLIC int cw_write(int variant, const cw_model *model, int threads, cw_text *texts, int count, int64_t steps);
/* Sample one id from logits (V), as cw_write does; `ids` (length) are the ids before. Scratch: cw_draw_bytes. */
CW_PUBLIC size_t cw_draw_bytes(int vocabulary);
CW_PUBLIC int cw_draw(int variant, cw_sampler *sampler, const double *logits, int vocabulary, const int32_t *ids,
                      int64_t length, void *scratch);

#endif
