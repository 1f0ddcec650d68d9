/* The text of an explanation: colours, and what is known about one character at a time. */
"use strict";

const BOUNDS = [1, 2, 4, 8]; // bits; a character's level is how many of these its surprise reaches
const STEPS = 10; // of the colours of neurons, from the least activation in the text to the largest
const SURPRISING = 8; // bits
const RIGHT_TO_LEFT = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;
const NAMES = { "\n": "newline", " ": "space", "\t": "tab", "\u00a0": "no-break space", "\u3000": "ideographic space" };
const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const data = JSON.parse(page.data.textContent);
const characters = Array.from(data.text);
const tokens = Array.from(data.tokens); // five for each character, U+0000 where there are fewer
const shares = new Uint16Array(bytesOf(data.shares).buffer); // in 1/65535
const activations = new Int8Array(bytesOf(page.activations.textContent).buffer); // in 1/127, neuron after neuron
const unknown = new Set(data.unknown);
let spans = [];
const places = new Map(); // of the spans
let current = 0;
let neuron = -1; // -1 shows surprise

/** Decode base64 to bytes. */
function bytesOf(text) {
  const raw = atob(text.trim());
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/** The code point of a character that has no look, such as a control character. */
const coded = (character) =>
  /^\p{C}$/u.test(character) ? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}` : undefined;

/** A character by name; the isolates keep one that is written from right to left from reordering the line. */
const named = (character) => nameOf(character) ?? translated("“{character}”", { character: `\u2068${character}\u2069` });
const nameOf = (character) => (character in NAMES ? translated(NAMES[character]) : coded(character));
const percent = (share) => (share < 0.0005 ? translated("under 0.1 %") : `${(100 * share).toFixed(1)} %`);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
const activation = (index, at) => activations[index * characters.length + at] / 127;

const nameOfNeuron = (index) => translated("Neuron {number}", { number: data.numbers[index] });
const featuresOf = (index) => data.features[index].map((feature) => translated(feature)).join(translated("; "));

/** Build the text: a span for each character. */
function build() {
  const all = document.createDocumentFragment();
  spans = characters.map((character, at) => {
    const span = document.createElement("span");
    span.append(character);
    places.set(span, at);
    all.append(span);
    return span;
  });
  page.text.replaceChildren(all);
}

/** The least and the largest activation of a neuron in the text. */
function rangeOf(index) {
  const track = activations.subarray(index * characters.length, (index + 1) * characters.length);
  const low = track.reduce((a, b) => Math.min(a, b)) / 127, high = track.reduce((a, b) => Math.max(a, b)) / 127;
  return [low, Math.max(high, low + 1 / 127)];
}

/** Colour the text by surprise, or by a neuron. */
function paint() {
  page.text.classList.toggle("neuron", neuron >= 0);
  const [low, high] = neuron >= 0 ? rangeOf(neuron) : [0, 1];
  for (let at = 0; at < spans.length; at++) {
    const colour =
      neuron >= 0
        ? `n${Math.round(((activation(neuron, at) - low) / (high - low)) * STEPS)}`
        : `level${BOUNDS.filter((bound) => data.bits[at] >= bound).length}`;
    spans[at].className = characters[at] === "\n" ? `${colour} newline` : colour;
  }
  spans[current].classList.add("here");
  page.surpriseLegend.hidden = neuron >= 0;
  page.neuronLegend.hidden = neuron < 0;
  for (const swatch of page.neuronLegend.querySelectorAll(".swatch")) {
    const step = Number(swatch.className.match(/n(\d+)/)[1]);
    swatch.textContent = signed(low + ((high - low) * step) / STEPS);
  }
  page.neuronMeaning.textContent = neuron >= 0 ? featuresOf(neuron) : "";
  for (const button of document.querySelectorAll("button[data-neuron]")) {
    const shown = Number(button.dataset.neuron) === neuron;
    button.setAttribute("aria-pressed", String(shown));
  }
}

/** What is known about a character, in sentences. */
function sentences(at) {
  const bits = data.bits[at];
  const [number, all] = [at + 1, characters.length].map((count) => count.toLocaleString("en"));
  const what = translated("{name}, character {number} of {all}", { name: named(characters[at]), number, all });
  const values = { bits: bits?.toFixed(2), share: percent(2 ** -bits) };
  const cost = translated(
    bits === null ? "Nothing predicts the first character." : "Surprise {bits} bits, probability {share}.",
    values,
  );
  const notes = [];
  if (unknown.has(at)) notes.push(translated("Outside the vocabulary."));
  if (neuron >= 0) {
    notes.push(translated("{name}: {value}.", { name: nameOfNeuron(neuron), value: signed(activation(neuron, at)) }));
  }
  return { what, cost: [cost, ...notes].join(translated(" ")) };
}

/** The likeliest characters at a place with their probabilities. */
function expected(at) {
  const found = [];
  for (let k = at * data.width; k < (at + 1) * data.width; k++) {
    if (tokens[k] !== "\u0000") found.push([tokens[k], shares[k] / 65535]);
  }
  return found;
}

/** Show a character in the readout. */
function show(at) {
  const { what, cost } = sentences(at);
  page.what.textContent = what;
  page.cost.textContent = cost;
  const items = expected(at).map(([token, share]) => {
    const item = document.createElement("li"), name = document.createElement("b");
    name.textContent = nameOf(token) ?? `\u2068${token}\u2069`;
    item.append(name, ` ${percent(share)}${token === characters[at] ? " ✓" : ""}`);
    return item;
  });
  page.expectedTitle.hidden = items.length === 0;
  page.expected.replaceChildren(...items);
}

/** Make a character the current one, and announce it. */
function move(at, focused) {
  at = Math.min(Math.max(at, 0), spans.length - 1);
  spans[current].classList.remove("here");
  spans[current].removeAttribute("tabindex");
  current = at;
  spans[at].tabIndex = 0;
  spans[at].classList.add("here");
  if (focused) spans[at].focus({ preventScroll: true });
  spans[at].scrollIntoView({ block: "nearest" });
  show(at);
  const { what, cost } = sentences(at);
  const likely = expected(at).map(([token, share]) => `${named(token)} ${percent(share)}`);
  const others = likely.length ? translated("Expected: {likely}.", { likely: likely.join(translated("; ")) }) : "";
  page.announce.textContent = translated("{what}. {cost} {others}", { what, cost, others }).trim();
}

/** Whether the line of a character is written from right to left: its first letter decides. */
function isRightToLeft(at) {
  let begin = at;
  while (begin > 0 && characters[begin - 1] !== "\n") begin--;
  for (; begin < characters.length && characters[begin] !== "\n"; begin++) {
    if (/\p{L}/u.test(characters[begin])) return RIGHT_TO_LEFT.test(characters[begin]);
  }
  return false;
}

/** The character above or below, in the line as it is drawn. */
function vertical(at, step) {
  const middle = (box) => (box.left + box.right) / 2;
  const start = spans[at].getBoundingClientRect();
  let best = at, distance = Infinity, row = null;
  for (let other = at + step; other >= 0 && other < spans.length; other += step) {
    const box = spans[other].getClientRects()[0] ?? spans[other].getBoundingClientRect();
    if (Math.abs(box.top - start.top) < start.height / 2) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) > start.height / 2) break;
    const off = Math.abs(middle(box) - middle(start));
    if (off < distance) [best, distance] = [other, off];
  }
  return best;
}

/** Where a key leads from the current character; undefined for a key that leads nowhere. */
function target(event) {
  const forward = isRightToLeft(current) ? -1 : 1;
  const edge = (step) => {
    let at = current;
    const stops = (other) => (step < 0 ? characters[other] === "\n" : characters[other - 1] === "\n");
    while (spans[at + step] && !stops(at + step)) at += step;
    return at;
  };
  const whole = event.ctrlKey || event.metaKey;
  if (event.altKey || (whole && !["Home", "End"].includes(event.key))) return undefined;
  const leads = {
    ArrowRight: () => current + forward,
    ArrowLeft: () => current - forward,
    ArrowDown: () => vertical(current, 1),
    ArrowUp: () => vertical(current, -1),
    Home: () => (whole ? 0 : edge(-1)),
    End: () => (whole ? spans.length - 1 : edge(1)),
  };
  return leads[event.key]?.();
}

/** Fill the list of what the colours can show. */
function fill() {
  const option = (value, label) => Object.assign(document.createElement("option"), { value, textContent: label });
  const group = (label, options) => {
    const element = Object.assign(document.createElement("optgroup"), { label });
    element.append(...options);
    return element;
  };
  page.view.replaceChildren(option("-1", translated("Surprise")));
  const options = data.numbers.map((_, index) => {
    const values = { name: nameOfNeuron(index), features: featuresOf(index) };
    return option(String(index), values.features ? translated("{name}: {features}", values) : values.name);
  });
  const found = options.splice(0, data.found);
  if (found.length) page.view.append(group(translated("Neurons that mean something"), found));
  if (options.length) page.view.append(group(translated("Other neurons, those that vary most first"), options));
  page.view.value = String(neuron);
}

/** Show a neuron, or surprise. */
function choose(index) {
  neuron = index;
  page.view.value = String(index);
  paint();
  show(current);
}

startLanguages(page.language, () => {
  fill();
  paint();
  show(current);
  page.announce.textContent = "";
});
fill();
build();
paint();
move(0, false);
page.announce.textContent = "";
page.text.scrollTop = 0;
page.view.addEventListener("change", () => choose(Number(page.view.value)));
page.text.addEventListener("pointermove", (event) => {
  const at = places.get(event.target);
  if (at !== undefined) show(at);
});
page.text.addEventListener("pointerleave", () => show(current));
page.text.addEventListener("click", (event) => {
  const at = places.get(event.target);
  if (at !== undefined) move(at, true);
});
page.text.addEventListener("keydown", (event) => {
  const at = target(event);
  if (at === undefined) return;
  event.preventDefault();
  move(at, true);
});
page.previous.addEventListener("click", () => move(current - 1, false));
page.next.addEventListener("click", () => move(current + 1, false));
page.surprising.addEventListener("click", () => {
  const from = (at) => data.bits.findIndex((bits, index) => index > at && bits >= SURPRISING);
  const next = from(current);
  const at = next >= 0 ? next : from(-1);
  if (at >= 0) move(at, false);
  else page.announce.textContent = page.cost.textContent = translated("No character has {bits} bits or more.", { bits: SURPRISING });
});
for (const button of document.querySelectorAll("button[data-neuron]")) {
  button.addEventListener("click", () => {
    choose(Number(button.dataset.neuron) === neuron ? -1 : Number(button.dataset.neuron));
    page.view.scrollIntoView({ block: "start" });
  });
}
document.documentElement.dataset.ready = "true";
