/* Writes text with a model in whole numbers, as `charwright generate --precision q8` does: the same seed, the same text.

   The arithmetic is that of docs/explanation/q8.md, and the names are those of generation/quantized.py. A product's sum
   fits into 32 bits. What can be wider is a number in double precision, which holds whole numbers up to 2^53; the only
   ones beyond are products that their clipping makes the same whatever their last bits were. */
"use strict";

const PRE_LIMIT = 32767;
const CELL_LIMIT = 2 ** 21 - 1;
const PRODUCT_LIMIT = 2 ** 30 - 1;
const UNKNOWN = 0;

const clip = (x, limit) => (x > limit ? limit : x < -limit ? -limit : x);

/** A product divided by 2^bits to the nearest whole number, halves upwards; exact for all that a clip lets through. */
const rounded = (product, bits) => Math.floor((product + 2 ** (bits - 1)) / 2 ** bits);

/** tanh at 0, 1/128 ... with 15 fraction bits, and one entry more for the last interval. */
const TANH = Int32Array.from({ length: 1026 }, (_, i) => Math.min(Math.round(Math.tanh(i / 128) * 32768), 32767));

/** The tanh of a number with 12 fraction bits, with 15. */
function tanhAt(v) {
  const size = v < 0 ? (v < -32767 ? 32767 : -v) : v > 32767 ? 32767 : v;
  const low = TANH[size >> 5];
  const value = low + (((TANH[(size >> 5) + 1] - low) * (size & 31) + 16) >> 5);
  return v < 0 ? -value : value;
}

const tanh = (pre) => tanhAt(2 * pre);
const sigmoid = (pre) => (32768 + tanhAt(pre)) >> 1;

/** Bring a row's sum to its goal. */
const scaled = (sum, multiplier) => clip(rounded(sum * multiplier, 20), PRODUCT_LIMIT);

const HALF = 2 ** 26; // two weights in one number: the upper one times this, plus the lower one
const BLOCK = 2048; // columns whose sums stay apart there: 2048 * 127 * 127 is less than HALF / 2
const TOGETHER = 8; // rows that are summed at once, in four numbers

/** An 8-bit matrix (rows, columns) laid out for `multiply`: two rows in one number, eight rows and a block at a time.

    A multiplication then does the work of two, and every sum is still a whole number that a double holds. */
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

/** The matrix times activations, each row brought to its goal. */
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
      apart(a, sums, row);
      apart(b, sums, row + 2);
      apart(c, sums, row + 4);
      apart(d, sums, row + 6);
    }
  }
  for (let row = 0; row < rows; row++) out[row] = scaled(sums[row], multipliers[row]);
}

/** Add the two sums of a number to those of two rows. */
function apart(both, sums, row) {
  const upper = Math.round(both / HALF);
  sums[row] += upper;
  sums[row + 1] += both - upper * HALF;
}

/** A state as products take it: -127 to 127. */
function activate(state, out) {
  for (let k = 0; k < state.length; k++) out[k] = (state[k] * 127 + 16384) >> 15;
}

/** The network, one step at a time. */
class Network {
  constructor(model) {
    this.model = model;
    const { units, gates, tokens } = model;
    this.activations = new Float64Array(units);
    this.inputs = new Int32Array(gates * units);
    this.products = new Int32Array(gates * units);
    this.logits = new Int32Array(tokens);
    this.reset();
  }

  /** Begin anew, from states of zeros. */
  reset() {
    const { layers, units } = this.model;
    this.h = Array.from({ length: layers }, () => new Int32Array(units));
    this.c = Array.from({ length: layers }, () => new Int32Array(units));
  }

  /** Read one id; its logits, with 16 fraction bits, are in `logits` afterwards where they are wanted. */
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
      activate(this.h[layer], activations);
      multiply(model.recurrent[layer], activations, this.products);
      this[model.cell](layer);
    }
    if (!wanted) return;
    activate(this.h[model.layers - 1], activations);
    multiply(model.head, activations, this.logits);
    for (let id = 0; id < model.tokens; id++) this.logits[id] += model.headBias[id];
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

const FACTORIALS = [1];
for (let n = 1; n <= 13; n++) FACTORIALS.push(FACTORIALS[n - 1] * n);

/** e^x for x <= 0 with the same bits everywhere: IEEE 754 defines each of these operations. */
function exponential(x) {
  if (!(x > -708)) return 0;
  const k = x * 1.4426950408889634 + 6755399441055744 - 6755399441055744;
  const r = x - k * 6.93147180369123816490e-1 - k * 1.90821492927058770002e-10;
  let p = 1 / FACTORIALS[13];
  for (let n = 12; n >= 0; n--) p = p * r + 1 / FACTORIALS[n];
  return p * 2 ** k;
}

const MASK = 2n ** 64n - 1n;

/** The words of numpy's Philox 4x64 with ten rounds (Salmon et al., 2011), under a key of two numbers. */
function philox(key0, key1, counter) {
  let [a, b, c, d] = [counter & MASK, (counter >> 64n) & MASK, 0n, 0n];
  for (let round = 0; round < 10; round++) {
    const left = 0xd2e7470ee14c6c93n * a, right = 0xca5a826395121157n * c;
    [a, b, c, d] = [(right >> 64n) ^ b ^ key0, right & MASK, (left >> 64n) ^ d ^ key1, left & MASK];
    key0 = (key0 + 0x9e3779b97f4a7c15n) & MASK;
    key1 = (key1 + 0xbb67ae8584caa73bn) & MASK;
  }
  return [a, b, c, d];
}

/** Uniform numbers from 0 to 1, those that numpy draws for a seed and a stream. */
class Uniform {
  constructor(seed, stream = 0) {
    this.seed = BigInt(seed);
    this.stream = BigInt(stream);
    this.drawn = 0;
  }

  next() {
    if (this.drawn % 4 === 0) this.words = philox(this.seed, this.stream, BigInt(this.drawn / 4 + 1));
    return Number(this.words[this.drawn++ % 4] >> 11n) / 2 ** 53;
  }
}

/** Draw an id from logits with 16 fraction bits; `weights` is room for as many numbers. */
function draw(logits, temperature, uniform, weights) {
  let likeliest = 1;
  for (let id = 2; id < logits.length; id++) if (logits[id] > logits[likeliest]) likeliest = id;
  if (temperature === 0) return likeliest;
  const highest = logits[likeliest] / 65536;
  let total = 0;
  for (let id = 1; id < logits.length; id++) {
    weights[id] = exponential((logits[id] / 65536 - highest) / temperature);
    total += weights[id];
  }
  const goal = uniform.next() * total;
  let sum = 0, last = likeliest;
  for (let id = 1; id < logits.length; id++) {
    sum += weights[id];
    if (sum > goal) return id;
    if (weights[id] > 0) last = id;
  }
  return last;
}

/** One text: `read` goes through its prompt, then each `next` gives a piece of what follows. */
class Writer {
  constructor(model, prompt, temperature, seed) {
    this.model = model;
    this.network = new Network(model);
    this.temperature = temperature;
    this.uniform = new Uniform(seed);
    this.weights = new Float64Array(model.tokens);
    this.decoder = new TextDecoder("utf-8");
    this.unread = encode(model, prompt).reverse();
  }

  /** Read one id of the prompt; false when there is none left. */
  read() {
    if (this.unread.length === 0) return false;
    this.network.step(this.unread.pop(), this.unread.length === 0);
    return true;
  }

  /** Draw an id and read it; the text that is complete with it, "" inside of a character of several bytes. */
  next() {
    const id = draw(this.network.logits, this.temperature, this.uniform, this.weights);
    this.network.step(id, true);
    if (this.model.unit === "character") return this.model.characters[id - 1];
    return this.decoder.decode(Uint8Array.of(id - 1), { stream: true });
  }
}

/** The ids of a prompt; an empty one begins as a line does. */
function encode(model, prompt) {
  if (model.unit === "byte") return Array.from(new TextEncoder().encode(prompt || "\n"), (byte) => byte + 1);
  const begin = prompt || (model.ids.has("\n") ? "\n" : " ");
  return Array.from(begin, (character) => model.ids.get(character) ?? UNKNOWN);
}

/** How many characters of a prompt the model reads as unknown. */
const unknownIn = (model, prompt) => (prompt ? encode(model, prompt).filter((id) => id === UNKNOWN).length : 0);

/** The model from its description and the bytes of all its arrays. */
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
    ids: new Map(characters.map((character, index) => [character, index + 1])),
    table: array(description.table),
    recurrent: description.recurrent.map(matrix),
    candidateBias: description.candidateBias.map(array),
    inputs: description.inputs.map(matrix),
    inputBias: description.inputBias.map(array),
    head: matrix(description.head),
    headBias: array(description.headBias),
  };
}

/** The bytes that base64 stands for. */
function fromBase64(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
