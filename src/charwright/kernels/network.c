/* The loss of a batch and all its gradients: every layer, the output layer, and every layer backward. */
#include <string.h>

#include "charwright_kernels.h"
#include "variant.h"

static void mask_outputs(int variant, const cw_network_layer *part, const void *from, void *to) {
    const cw_layer *layer = &part->layer;
    cw_mask_job job = {layer->steps * layer->batch, layer->batch, layer->units, part->output_mask, from, to};
    cw_parallel(layer->threads, cw_chosen(variant)->mask_outputs[layer->bf16], &job);
}

static void pack(int variant, int backward, const cw_network_layer *part) {
    const cw_layer *layer = &part->layer;
    cw_pack(variant, layer->cell, layer->units, layer->bf16, backward, layer->threads, part->weights,
            (void *)layer->packed);
}

static int forward(int variant, const cw_network_layer *part) {
    const cw_layer *layer = &part->layer;
    const size_t state = (size_t)layer->batch * layer->units * (layer->bf16 ? 2 : 4); /* before the first output */
    if (layer->scale) cw_linear_forward(variant, &part->scale);
    cw_linear_forward(variant, &part->input);
    pack(variant, 0, part);
    if (cw_forward(variant, layer)) return 1;
    if (part->output_mask) mask_outputs(variant, part, (const char *)layer->hidden + state, part->masked_outputs);
    return 0;
}

static int backward(int variant, const cw_network_layer *part) {
    const cw_layer *layer = &part->layer;
    if (part->output_mask) mask_outputs(variant, part, layer->d_outputs, (void *)layer->d_outputs);
    pack(variant, 1, part);
    if (cw_backward(variant, layer)) return 1;
    cw_weight_gradient(variant, layer, part->scratch, part->d_weights);
    if (!layer->d_table) cw_input_gradient(variant, layer, (void *)part->input.d_y);
    cw_linear_backward(variant, &part->input);
    if (layer->scale) cw_linear_backward(variant, &part->scale);
    return 0;
}

int cw_differentiate(int variant, const cw_network *network, double *sum) {
    const cw_layer *first = &network->layer[0].layer;
    for (int i = 0; i < network->layers; i++)
        if (forward(variant, &network->layer[i])) return 1;
    if (network->ngram_order)
        cw_contexts(first->steps, first->batch, network->ngram_order, network->ngram_bits, network->ids,
                    network->tokens, (int64_t *)network->ngrams.offsets, network->tokens);
    memset(network->head.d_bias, 0, (size_t)network->head.vocabulary * sizeof(float));
    *sum = cw_head(variant, &network->head);
    for (int i = network->layers - 1; i >= 0; i--)
        if (backward(variant, &network->layer[i])) return 1;
    return 0;
}
