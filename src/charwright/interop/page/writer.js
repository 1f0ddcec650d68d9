/* Generates text with a network, as `charwright generate --precision q8` does: same seed, same text. */
"use strict";

const UNKNOWN = 0;
const DRAWN_LABEL = -1; // stands among the ids to read for a label that will be drawn
const LABEL_DRAW = 2n ** 62n; // the index of the random number that chooses a label

const FACTORIALS = [1];
for (let n = 1; n <= 13; n++) FACTORIALS.push(FACTORIALS[n - 1] * n);

/** e^x for x <= 0, bit-identical on every machine: IEEE 754 defines each of these operations exactly. */
function exponential(x) {
  if (!(x > -708)) return 0;
  const k = x * 1.4426950408889634 + 6755399441055744 - 6755399441055744;
  const r = x - k * 6.93147180369123816490e-1 - k * 1.90821492927058770002e-10;
  let p = 1 / FACTORIALS[13];
  for (let n = 12; n >= 0; n--) p = p * r + 1 / FACTORIALS[n];
  return p * 2 ** k;
}

const MASK = 2n ** 64n - 1n;

/** The four words of NumPy's Philox 4x64-10 (Salmon et al., 2011) for a key of two words and a counter. */
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

/** Uniform numbers in [0, 1), the same as NumPy's for a seed and a stream. */
class Uniform {
  constructor(seed, stream = 0) {
    this.seed = BigInt(seed);
    this.stream = BigInt(stream);
    this.drawn = 0;
  }

  next() {
    if (this.drawn % 4 === 0) this.words = philox(this.seed, this.stream, BigInt(this.drawn / 4 + 1));
    return fraction(this.words[this.drawn++ % 4]);
  }

  /** The number that chooses the label of the stream's record. */
  forLabel() {
    return fraction(philox(this.seed, this.stream, LABEL_DRAW / 4n + 1n)[0]);
  }
}

/** A word of 64 bits as a number in [0, 1). */
const fraction = (word) => Number(word >> 11n) / 2 ** 53;

/** Sample one of the ids from `begin` up to `end` from logits with 16 fraction bits; `uniform` gives the number that
    decides, and `weights` is a scratch buffer of the length of the logits. */
function draw(logits, temperature, uniform, weights, begin, end) {
  let best = begin;
  for (let id = begin + 1; id < end; id++) if (logits[id] > logits[best]) best = id;
  if (temperature === 0) return best;
  const highest = logits[best] / 65536;
  let total = 0;
  for (let id = begin; id < end; id++) {
    weights[id] = exponential((logits[id] / 65536 - highest) / temperature);
    total += weights[id];
  }
  const goal = uniform() * total;
  let sum = 0, last = best;
  for (let id = begin; id < end; id++) {
    sum += weights[id];
    if (sum > goal) return id;
    if (weights[id] > 0) last = id;
  }
  return last;
}

/** The surprise in bits of an id, -log2 of its probability at temperature 1: for the reader, it decides nothing. */
function surpriseOf(logits, id) {
  let highest = logits[0];
  for (let other = 1; other < logits.length; other++) if (logits[other] > highest) highest = logits[other];
  let total = 0;
  for (let other = 0; other < logits.length; other++) total += Math.exp((logits[other] - highest) / 65536);
  return (Math.log(total) - (logits[id] - highest) / 65536) / Math.LN2;
}

/** The generation of one text: call `read` until the prompt is consumed, then `next` for each piece of text, until
    `ended`: a model with labels writes one record, and others go on for ever.

    `label` is the index of the record's label, which is drawn by default. `stream` numbers the texts of one seed. With
    `measured`, characters come with their surprise. */
class Writer {
  constructor(model, { prompt, temperature, seed, stream = 0, label = null, measured = false }) {
    Object.assign(this, { model, temperature, label, measured });
    this.ended = false;
    this.held = []; // characters that may belong to the end of the record
    this.pending = 0; // bits of the bytes of a character that is not complete
    this.network = new Network(model);
    this.uniform = new Uniform(seed, stream);
    this.weights = new Float64Array(model.tokens);
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.unread = opening(model, label, prompt).reverse();
  }

  /** Feed one id of the prompt to the network; return false when none is left. */
  read() {
    const { unread, network } = this;
    if (unread.length === 0) return false;
    const id = unread.pop(), drawsLabel = unread.at(-1) === DRAWN_LABEL;
    network.step(id, unread.length === 0 || drawsLabel);
    if (drawsLabel) {
      const { firstLabel, tokens } = this.model;
      const label = draw(network.logits, 1, () => this.uniform.forLabel(), this.weights, firstLabel, tokens);
      unread[unread.length - 1] = label;
      this.label = label - firstLabel;
    }
    return true;
  }

  /** Sample an id and feed it to the network; return the characters that are complete now, each with its surprise in
      bits: none inside a character of several bytes, or while it may be the end of the record. */
  next() {
    const { model, network } = this;
    const id = draw(network.logits, this.temperature, () => this.uniform.next(), this.weights, 1, model.firstLabel);
    if (this.measured) this.pending += surpriseOf(network.logits, id);
    network.step(id, true);
    const byte = model.unit !== "character";
    const text = byte ? this.decoder.decode(Uint8Array.of(id - 1), { stream: true }) : model.characters[id - 1];
    // A broken byte before a character yields two characters at once: the first gets the sum.
    for (const character of text) {
      this.held.push([character, this.pending]);
      this.pending = 0;
    }
    return model.labels.length ? this.beforeEnd() : this.rest();
  }

  /** Take the characters that cannot belong to the end of the record. */
  beforeEnd() {
    const end = Array.from(this.model.recordEnd), held = this.held.map(([character]) => character);
    const begins = (size) => end.slice(0, size).join("") === held.slice(held.length - size).join("");
    let size = Math.min(end.length, held.length);
    while (!begins(size)) size--;
    this.ended = size === end.length;
    const taken = this.held.splice(0, held.length - size);
    if (this.ended) this.held = [];
    return taken;
  }

  /** Take all characters: the text is not continued. */
  rest() {
    return this.held.splice(0);
  }
}

/** The ids to read before a text: the end of another record, a label if the model has any, and the prompt. An empty
    prompt of a model without records is replaced by a newline, or a space if the vocabulary has no newline. */
function opening(model, label, prompt) {
  const newline = model.unit === "byte" || model.ids.has("\n") ? "\n" : " ";
  const before = encode(model, model.recordEnd), ids = encode(model, prompt);
  if (model.labels.length) return [...before, label === null ? DRAWN_LABEL : model.firstLabel + label, ...ids];
  return before.length + ids.length ? [...before, ...ids] : encode(model, newline);
}

/** Encode a text; a character outside the vocabulary is `UNKNOWN`. */
function encode(model, text) {
  if (model.unit === "byte") return Array.from(new TextEncoder().encode(text), (byte) => byte + 1);
  return Array.from(text, (character) => model.ids.get(character) ?? UNKNOWN);
}

/** Count the characters of a prompt that are not in the vocabulary. */
const unknownIn = (model, prompt) => encode(model, prompt).filter((id) => id === UNKNOWN).length;
