/* The page's controls, and the texts that the service writes. */
"use strict";

const STORE = `charwright playground ${location.pathname}`;
const SLICE_MS = 24; // of reading between two screen and keyboard updates
const NUMBERS = ["max_tokens", "temperature", "n", "top_p", "top_k", "min_p", "repetition_penalty"];

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const keys = page.form.dataset.keys === "true";
let panes = [];
let labels = new Map(); // of each model
let running = null; // the AbortController of the request being answered
let frame = 0; // the animation frame in which the texts will be drawn

const grouped = (number) => Math.round(number).toLocaleString("en");
const counted = (characters) =>
  translated(characters === 1 ? "1 character" : "{number} characters", { number: grouped(characters) });
const say = (line) => sayIn(page.status, line);
const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

/** One text on the page. If the service measured it, it has the surprise in bits of each character. */
class Pane extends SurpriseText {
  constructor(number, prompt) {
    const element = page.pane.content.firstElementChild.cloneNode(true);
    const parts = element.querySelectorAll("h2, p, button, div.text, span");
    const [title, facts, button, text, before, generated] = parts;
    super({ text, generated, readout: page.readout });
    Object.assign(this, { element, title, facts, button, number, count: 0, waiting: [] });
    text.setAttribute("aria-busy", "true");
    this.describe();
    before.textContent = prompt;
    button.addEventListener("click", () => copyAndSay(text.textContent));
  }

  /** Show what the pane says in the language of the page. */
  describe() {
    const { number } = this;
    this.title.textContent = translated("Text {number}", { number });
    this.text.setAttribute("aria-label", this.title.textContent);
    this.button.textContent = translated("Copy");
    this.button.setAttribute("aria-label", translated("Copy text {number}", { number }));
    this.facts.textContent = this.summary();
    this.readAgain();
  }

  /** Take a fragment of the text; it is drawn in the next frame. */
  receive({ text, logprobs, finish_reason: reason, label }) {
    const characters = Array.from(text);
    this.waiting.push({ text, characters, bits: logprobs?.token_logprobs.map((lnp) => Math.max(0, -lnp / Math.LN2)) });
    this.count += characters.length;
    this.reason = reason ?? this.reason;
    this.label = label ?? this.label;
  }

  /** Draw what has arrived since the last frame. */
  draw() {
    const { scrollHeight, scrollTop, clientHeight } = this.text;
    for (const { text, characters, bits } of this.waiting) {
      if (bits) characters.forEach((character, at) => this.append(character, bits[at] ?? 0));
      else this.generated.append(text);
    }
    this.waiting = [];
    this.facts.textContent = this.summary();
    if (scrollHeight - scrollTop - clientHeight < 40) this.text.scrollTop = this.text.scrollHeight;
  }

  /** What the text's title says about it. */
  summary() {
    const facts = [counted(this.count)];
    if (this.bits.length) {
      facts.push(translated("{bits} bits per character", { bits: (this.total / this.bits.length).toFixed(2) }));
    }
    if (this.label) facts.push(translated("label: {label}", this));
    if (this.reason) facts.push(translated("finish: {reason}", this));
    return facts.join(translated(", "));
  }

  /** No more will arrive. */
  end() {
    this.draw();
    this.text.setAttribute("aria-busy", "false");
  }

}

/** The request that the controls describe. What is left empty is left out. */
function requestOf() {
  const request = { model: page.model.value, prompt: page.prompt.value };
  for (const name of NUMBERS) if (page[name].value !== "") request[name] = page[name].valueAsNumber;
  const stops = page.stop.value.split("\n").filter((line) => line !== "").map(unescaped);
  if (stops.length) request.stop = stops;
  if (page.until.value.trim()) request.until = page.until.value.trim();
  if (/^\s*\d+\s*$/.test(page.seed.value)) request.seed = BigInt(page.seed.value).toString();
  if (page.logprobs.checked) request.logprobs = 0;
  if (page.label.value) request.label = page.label.value;
  return request;
}

/** A stop string as it is typed: \n is a newline, \t a tab, \\ a backslash. */
const unescaped = (line) => line.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t" })[letter] ?? letter);

/** Ask the service for texts and show them while they are written. */
async function generate() {
  running = new AbortController();
  const { signal } = running, begun = performance.now();
  let current = [], seed, unknown, sliceEnd = begun + SLICE_MS;
  busy(true);
  complain(null);
  say("Waiting for the service …");
  try {
    if (!page.model.value) await loadModels(signal);
    const request = requestOf();
    const chunks = await complete(request, signal);
    // The texts before stay until the service has accepted the request for new ones.
    current = newPanes(request);
    say("Generating …");
    for await (const chunk of chunks) {
      seed = chunk.seed ?? seed;
      unknown = chunk.unknown_characters ?? unknown;
      for (const choice of chunk.choices) current[choice.index]?.receive(choice);
      drawSoon(begun);
      if (performance.now() > sliceEnd) sliceEnd = (await pause()) + SLICE_MS;
    }
    ended("Done", current, begun, seed, unknown);
  } catch (error) {
    ended(signal.aborted ? "Stopped" : "Failed", current, begun, seed, unknown);
    if (!signal.aborted) complain(error);
  }
}

/** Let the browser draw and handle input, also while text arrives faster than it is read; return the time after. */
const pause = () =>
  new Promise((resume) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resume(performance.now());
    };
    channel.port2.postMessage(null);
  });

/** Replace the texts on the page by empty ones. */
function newPanes(request) {
  panes = Array.from({ length: request.n }, (_, index) => new Pane(index + 1, request.prompt));
  page.texts.replaceChildren(...panes.map((pane) => pane.element));
  sayIn(page.readout, "Point at a character, or go to a text with Tab and press the arrow keys.");
  return panes;
}

/** Draw once per frame, however many fragments arrive. A hidden page has no frames and draws at the end. */
function drawSoon(begun) {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const pane of panes) pane.draw();
    page.progress.textContent = speed(panes, begun, performance.now());
  });
}

/** How much is written, and how fast. */
function speed(written, begun, now) {
  const characters = total(written.map((pane) => pane.count));
  const seconds = Math.max(now - begun, 1) / 1000;
  const rate = translated("{number} characters/s", { number: grouped(characters / seconds) });
  return counted(characters) + translated(", ") + rate;
}

/** Draw the rest and say how it ended. */
function ended(state, written, begun, seed, unknown) {
  cancelAnimationFrame(frame);
  frame = 0;
  running = null;
  for (const pane of written) pane.end();
  busy(false);
  page.progress.textContent = "";
  const now = performance.now();
  say(() => resultOf(state, written, { begun, now, seed, unknown }));
  page.keepSeed.dataset.seed = seed ?? page.keepSeed.dataset.seed ?? "";
  page.keepSeed.hidden = page.keepSeed.dataset.seed === "";
}

/** What a request came to, in words; `state` is the first of them. */
function resultOf(state, written, { begun, now, seed, unknown }) {
  const reasons = [...new Set(written.map((pane) => pane.reason).filter(Boolean))];
  const facts = written.length ? [speed(written, begun, now)] : [];
  if (reasons.length) facts.push(translated("finish: {reason}", { reason: reasons.join(translated(" and ")) }));
  if (seed) facts.push(translated("seed {seed}", { seed }));
  const values = { state: translated(state), facts: facts.join(translated(", ")) };
  const result = translated(facts.length ? "{state}: {facts}." : "{state}.", values);
  const note = " The model has never seen these characters of the prompt: {unknown}";
  return unknown ? result + translated(note, { unknown }) : result;
}

/** Show an error, and mark the control that it is about; null removes both. */
function complain(error) {
  const foreign = error && !(error instanceof ServiceError); // such as a page of a proxy where JSON was expected
  const unread = () => translated("The answer cannot be read: {message}", error);
  sayIn(page.alert, error ? (foreign ? unread : error.say) : "");
  for (const control of page.form.elements) control.removeAttribute("aria-invalid");
  const control = error?.param && page.form.elements.namedItem(error.param);
  control?.setAttribute("aria-invalid", "true");
  control?.closest("details")?.setAttribute("open", "");
  // The models of a service that was started again may be others.
  if (error?.code === "model_not_found") loadModels().catch(() => {});
}

/** Switch the controls between writing and waiting. `disabled` would drop the keyboard focus from a button. */
function busy(isBusy) {
  page.generate.setAttribute("aria-disabled", String(isBusy));
  page.stopButton.setAttribute("aria-disabled", String(!isBusy));
}

/** Fill the list of models; the one that was chosen before stays chosen. */
async function loadModels(signal) {
  labels = await labelsByModel(signal);
  const wanted = page.model.value || restored().model;
  page.model.replaceChildren(...[...labels.keys()].map((name) => new Option(name, name, false, name === wanted)));
  offerLabels();
  show();
}

/** Offer the labels of the chosen model, if it has any; the one that was chosen before stays chosen. */
function offerLabels() {
  const names = labels.get(page.model.value) ?? [], wanted = page.label.value || restored().label;
  const options = names.map((name) => new Option(name, name, false, name === wanted));
  const random = new Option("", "");
  sayIn(random, "drawn at random");
  page.label.replaceChildren(random, ...options);
  page.labelRow.hidden = names.length === 0;
}

/** The inputs that the page was left with. */
function restored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    return {}; // The storage is blocked.
  }
}

/** Fill in the inputs that the page was left with. */
function restore() {
  for (const [id, value] of Object.entries(restored())) {
    if (page[id]?.type === "checkbox") page[id].checked = value;
    else if (page[id]?.matches("input, textarea")) page[id].value = value;
    else if (page[id]?.matches("details")) page[id].open = value;
  }
}

/** Keep the inputs for the case that the page is loaded again. */
function keep() {
  const inputs = page.form.querySelectorAll("input, textarea, select");
  const values = [...inputs].map((input) => [input.id, input.type === "checkbox" ? input.checked : input.value]);
  const opened = [page.more, page.code].map((details) => [details.id, details.open]);
  // Without a list of models there is no choice to keep.
  if (!page.model.value) values.push(["model", restored().model], ["label", restored().label]);
  try {
    sessionStorage.setItem(STORE, JSON.stringify(Object.fromEntries([...values, ...opened])));
  } catch {
    // The storage is blocked or full: the page works without it.
  }
}

/** Bring everything that follows from the inputs up to date. */
function show() {
  const request = requestOf();
  page.shownTemperature.textContent = page.temperature.valueAsNumber.toFixed(2);
  page.surprise.hidden = !page.logprobs.checked;
  page.texts.classList.toggle("plain", !page.logprobs.checked);
  page.curl.textContent = curlOf(request, keys);
  page.python.textContent = pythonOf(request, keys);
  keep();
}

/** Copy text to the clipboard and say so. */
function copyAndSay(text) {
  copy(text).then(
    () => say("Copied."),
    () => say("The browser does not allow copying; select the text and copy it yourself."),
  );
}

/** Copy text to the clipboard. A page that came over plain HTTP has no clipboard API. */
async function copy(text) {
  if (navigator.clipboard?.writeText) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"), focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!done) throw new Error("not allowed");
}

/** React to the controls and the keyboard. */
function connect() {
  page.form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) generate();
  });
  page.model.addEventListener("input", offerLabels);
  page.form.addEventListener("input", show);
  // A control inside of closed details could not show its message.
  page.form.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
  for (const details of [page.more, page.code]) details.addEventListener("toggle", keep);
  page.stopButton.addEventListener("click", () => running?.abort());
  page.keepSeed.addEventListener("click", () => {
    page.seed.value = page.keepSeed.dataset.seed;
    page.more.open = true;
    show();
  });
  page.copyCurl.addEventListener("click", () => copyAndSay(page.curl.textContent));
  page.copyPython.addEventListener("click", () => copyAndSay(page.python.textContent));
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") running?.abort();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) page.form.requestSubmit();
  });
}

startLanguages(page.language, () => panes.forEach((pane) => pane.describe()));
page.docs.href = `${BASE}docs`;
page.keyNote.hidden = !keys;
restore();
connect();
show();
loadModels().then(
  () => running || say("Ready."),
  (error) => {
    if (running) return; // That request loads the models too.
    complain(error);
    say("Not connected.");
  },
);
