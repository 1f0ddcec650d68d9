/* The network in integer arithmetic, as `charwright generate --precision q8` computes it: the same logits, bit for bit.

   The arithmetic is defined in docs/explanation/q8.md; names are those of generation/quantized.py. The sum of a product
   fits into 32 bits. Wider values are doubles, which hold integers up to 2^53 exactly; the only larger values are
   products that are clipped to the same result whatever their last bits are. */
"use strict";

const PRE_LIMIT = 32767;
const CELL_LIMIT = 2 ** 21 - 1;
const PRODUCT_LIMIT = 2 ** 30 - 1;

const clip = (x, limit) => (x > limit ? limit : x < -limit ? -limit : x);

/** Divide a product by 2^bits, rounding to nearest with halves up; exact for every value that is not clipped after. */
const rounded = (product, bits) => Math.floor((product + 2 ** (bits - 1)) / 2 ** bits);

/** tanh at 0, 1/128 ... with 15 fraction bits, and one more entry for the last interval. */
const TANH = Int32Array.from({ length: 1026 }, (_, i) => Math.min(Math.round(Math.tanh(i / 128) * 32768), 32767));

/** tanh of a value with 12 fraction bits; the result has 15. */
function tanhAt(v) {
  const size = v < 0 ? (v < -32767 ? 32767 : -v) : v > 32767 ? 32767 : v;
  const low = TANH[size >> 5];
  const value = low + (((TANH[(size >> 5) + 1] - low) * (size & 31) + 16) >> 5);
  return v < 0 ? -value : value;
}

const tanh = (pre) => tanhAt(2 * pre);
const sigmoid = (pre) => (32768 + tanhAt(pre)) >> 1;

/** Requantize the sum of a row. */
const scaled = (sum, multiplier) => clip(rounded(sum * multiplier, 20), PRODUCT_LIMIT);

const HALF = 2 ** 26; // two weights are packed into one double: the upper one times this, plus the lower one
const BLOCK = 2048; // columns whose packed sums cannot overlap: 2048 * 127 * 127 is less than HALF / 2
const TOGETHER = 8; // rows that are summed at once, in four doubles

/** Lay out an 8-bit matrix (rows, columns) for `multiply`: two rows per double, eight rows and one block at a time.

    One multiplication does the work of two, and every sum is still an integer that a double holds exactly. */
function paired(weights, rows, columns) {
  const groups = Math.ceil(rows / TOGETHER);
  const pairs = new Float64Array(groups * columns * 4);
  const weight = (row, column) => (row < rows ? weights[row * columns + column] : 0);
  let at = 0;
  for (let begin = 0; begin < columns; begin += BLOCK) {
    const end = Math.min(begin + BLOCK, columns);
    for (let row = 0; row < rows; row += TOGETHER) {
      for (let column = begin; column < end; column++) {
        for (let pair = 0; pair < TOGETHER; pair += 2) {
          pairs[at++] = weight(row + pair, column) * HALF + weight(row + pair + 1, column);
        }
      }
    }
  }
  return pairs;
}

/** Multiply the matrix by activations and requantize each row. */
function multiply(matrix, activations, out) {
  const { pairs, multipliers, columns, sums } = matrix;
  const rows = out.length;
  let at = 0;
  sums.fill(0);
  for (let begin = 0; begin < columns; begin += BLOCK) {
    const end = Math.min(begin + BLOCK, columns);
    for (let row = 0; row < rows; row += TOGETHER) {
      let a = 0, b = 0, c = 0, d = 0;
      for (let column = begin; column < end; column++, at += 4) {
        const x = activations[column];
        a += x * pairs[at];
        b += x * pairs[at + 1];
        c += x * pairs[at + 2];
        d += x * pairs[at + 3];
      }
      unpack(a, sums, row);
      unpack(b, sums, row + 2);
      unpack(c, sums, row + 4);
      unpack(d, sums, row + 6);
    }
  }
  for (let row = 0; row < rows; row++) out[row] = scaled(sums[row], multipliers[row]);
}

/** Split a packed sum and add its halves to the sums of two rows. */
function unpack(both, sums, row) {
  const upper = Math.round(both / HALF);
  sums[row] += upper;
  sums[row + 1] += both - upper * HALF;
}

/** Quantize a hidden state to -127 ... 127. */
function activate(state, out) {
  for (let k = 0; k < state.length; k++) out[k] = (state[k] * 127 + 16384) >> 15;
}

/** The same, with each unit times a share of 15 fraction bits, from index `at` of `scale`. */
function activateScaled(state, scale, at, out) {
  for (let k = 0; k < state.length; k++) out[k] = (((state[k] * scale[at + k] + 16384) >> 15) * 127 + 16384) >> 15;
}

/** The multipliers of the hash of the last 2, 3, ... tokens, from the last token backwards; those of ngrams.py. */
const MULTIPLIERS = [
  [0x7984a8ab, 0x71e273a9],
  [0x081c5253, 0x9fb93535, 0xabd2d9f3],
  [0xf93fe42f, 0x14be09ab, 0xdb149e47, 0x4a95902b],
  [0xe7d80069, 0xb9096a05, 0xafae5a3b, 0xc963cfe1, 0xc439f34b],
  [0xe1454c41, 0xe794ee15, 0x26b563b1, 0x42840d2b, 0xac8be7d7, 0xa2beee31],
  [0xd96e5adf, 0xe7aa8577, 0x19fcfc65, 0xdf43efb3, 0x53d23c0b, 0x92ac3d43, 0xe7ca430f],
  [0x2b5c5cd1, 0x06e82a01, 0x69599355, 0x6820212d, 0xfe6c2b03, 0x1333bc1d, 0x1a6e72b9, 0x20050ed3],
];

/** Add the n-grams to logits; `marks` are 1 + the ids of the last tokens, the last one first, 0 where none is. */
function vote({ bits, order, votes }, marks, logits) {
  for (const row of MULTIPLIERS.slice(0, order - 1)) {
    const sum = row.reduce((total, multiplier, k) => (total + Math.imul(marks[k], multiplier)) | 0, 0);
    // All contexts that begin before the text share the last offset.
    const offset = marks[row.length - 1] ? sum >>> (32 - bits) : 2 ** bits;
    for (let id = 0; id < logits.length; id++) logits[id] += 32 * votes[offset + id];
  }
}

/** The network, one step at a time. */
class Network {
  constructor(model) {
    this.model = model;
    const { units, gates, tokens } = model;
    this.activations = new Float64Array(units);
    this.inputs = new Int32Array(gates * units);
    this.products = new Int32Array(model.recurrent[0].multipliers.length);
    this.logits = new Float64Array(tokens); // integers; with n-grams they may need more than 32 bits
    this.reset();
  }

  /** Set all states to zero. */
  reset() {
    const { layers, units } = this.model;
    this.h = Array.from({ length: layers }, () => new Int32Array(units));
    this.c = Array.from({ length: layers }, () => new Int32Array(units));
    this.marks = new Array(this.model.ngrams ? this.model.ngrams.order : 0).fill(0);
  }

  /** Feed one id to the network; if `wanted`, set `logits`, with 16 fraction bits. */
  step(id, wanted) {
    const { model, activations } = this;
    const width = this.inputs.length;
    for (let k = 0; k < width; k++) this.inputs[k] = model.table[id * width + k];
    for (let layer = 0; layer < model.layers; layer++) {
      if (layer > 0) {
        activate(this.h[layer - 1], activations);
        multiply(model.inputs[layer - 1], activations, this.inputs);
        const bias = model.inputBias[layer - 1];
        for (let k = 0; k < width; k++) this.inputs[k] = clip(this.inputs[k] + bias[k], PRE_LIMIT);
      }
      if (layer === 0 && model.scale) activateScaled(this.h[0], model.scale, id * model.units, activations);
      else activate(this.h[layer], activations);
      multiply(model.recurrent[layer], activations, this.products);
      this[model.cell](layer);
    }
    if (model.ngrams) this.marks = [id + 1, ...this.marks.slice(0, -1)];
    if (!wanted) return;
    activate(this.h[model.layers - 1], activations);
    multiply(model.head, activations, this.logits);
    for (let other = 0; other < model.tokens; other++) this.logits[other] += model.headBias[other];
    if (model.ngrams) vote(model.ngrams, this.marks, this.logits);
  }

  gru(layer) {
    const { inputs, products } = this;
    const h = this.h[layer], bias = this.model.candidateBias[layer], units = h.length;
    for (let k = 0; k < units; k++) {
      const r = sigmoid(clip(inputs[k] + products[k], PRE_LIMIT));
      const z = sigmoid(clip(inputs[units + k] + products[units + k], PRE_LIMIT));
      const u = clip(products[2 * units + k] + bias[k], PRE_LIMIT);
      const n = tanh(clip(inputs[2 * units + k] + rounded(r * u, 15), PRE_LIMIT));
      h[k] = n + rounded(z * (h[k] - n), 15);
    }
  }

  /** A GRU whose reset gate reads the input alone, so that the products are those of z and n. */
  igru(layer) {
    const { inputs, products } = this;
    const h = this.h[layer], bias = this.model.candidateBias[layer], units = h.length;
    for (let k = 0; k < units; k++) {
      const r = sigmoid(clip(inputs[k], PRE_LIMIT));
      const z = sigmoid(clip(inputs[units + k] + products[k], PRE_LIMIT));
      const u = clip(products[units + k] + bias[k], PRE_LIMIT);
      const n = tanh(clip(inputs[2 * units + k] + rounded(r * u, 15), PRE_LIMIT));
      h[k] = n + rounded(z * (h[k] - n), 15);
    }
  }

  lstm(layer) {
    const { inputs, products } = this;
    const h = this.h[layer], c = this.c[layer], units = h.length;
    const pre = (gate, k) => clip(inputs[gate * units + k] + products[gate * units + k], PRE_LIMIT);
    for (let k = 0; k < units; k++) {
      const i = sigmoid(pre(0, k)), f = sigmoid(pre(1, k)), g = tanh(pre(2, k)), o = sigmoid(pre(3, k));
      c[k] = clip(rounded(f * c[k] + i * g, 15), CELL_LIMIT);
      h[k] = rounded(o * tanhAt((c[k] + 4) >> 3), 15);
    }
  }

  rnn(layer) {
    const h = this.h[layer];
    for (let k = 0; k < h.length; k++) h[k] = tanh(clip(this.inputs[k] + this.products[k], PRE_LIMIT));
  }
}

/** Build the model from its description and the bytes of its arrays. */
function readModel(description, bytes) {
  const kinds = { int8: Int8Array, int16: Int16Array, int32: Int32Array };
  const array = ({ kind, at, length }) => new kinds[kind](bytes.buffer, bytes.byteOffset + at, length);
  const matrix = ({ weights, multipliers }) => {
    const held = array(weights), rows = array(multipliers).length, columns = held.length / rows;
    const sums = new Float64Array(Math.ceil(rows / TOGETHER) * TOGETHER);
    return { pairs: paired(held, rows, columns), multipliers: array(multipliers), columns, sums };
  };
  const characters = Array.from(description.characters);
  return {
    ...description,
    characters,
    firstLabel: description.tokens - description.labels.length,
    ids: new Map(characters.map((character, index) => [character, index + 1])),
    table: array(description.table),
    scale: description.scale && array(description.scale),
    recurrent: description.recurrent.map(matrix),
    candidateBias: description.candidateBias.map(array),
    inputs: description.inputs.map(matrix),
    inputBias: description.inputBias.map(array),
    head: matrix(description.head),
    headBias: array(description.headBias),
    ngrams: description.ngrams && { ...description.ngrams, votes: array(description.ngrams.votes) },
  };
}

/** Decode base64 to bytes. */
function fromBase64(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
