/* The page's controls: a form that starts a Writer, and the text that it generates. */
"use strict";

const SLICE_MS = 24; // of work between two screen and keyboard updates

/** The page's elements by id. */
function elements() {
  return Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
}

/** Connect the page to a model. */
function start(model) {
  const page = elements();
  const colours = new Colours(page);
  const labelled = model.labels.length > 0;
  let running = null; // the request being generated
  let following = true; // the reader is at the end of the text

  const say = (line) => sayIn(page.status, line);

  // `disabled` would drop the keyboard focus from the button.
  const allow = (button, allowed) => button.setAttribute("aria-disabled", String(!allowed));

  const busy = (isBusy) => {
    allow(page.generate, !isBusy);
    allow(page.newSeed, !isBusy);
    allow(page.stop, isBusy);
    page.text.setAttribute("aria-busy", String(isBusy));
  };

  const ended = (line) => {
    running = null;
    busy(false);
    say(line);
  };

  /** What the controls ask for. */
  const requestOf = () => ({
    prompt: page.prompt.value,
    temperature: page.temperature.valueAsNumber,
    seed: page.seed.valueAsNumber,
    label: page.label.value === "" ? null : Number(page.label.value),
    length: page.length.valueAsNumber,
    texts: labelled ? page.records.valueAsNumber : 1,
    measured: page.see.checked,
    stopped: false,
  });

  async function generate() {
    const request = requestOf();
    if (labelled && request.prompt.includes(model.recordEnd)) {
      return say("The prompt has the end of a record; give the beginning of one record.");
    }
    running = request;
    following = true;
    busy(true);
    colours.clear();
    page.promptText.textContent = labelled ? "" : request.prompt;
    say("Reading the prompt …");
    await pause();
    const slice = new Slice(), started = performance.now();
    const { count, records } = await (labelled ? writeRecords : writeText)(request, slice);
    await refresh(slice);
    const seconds = Math.max(performance.now() - started, 1) / 1000;
    const bits = request.measured && count ? colours.total / count : undefined;
    ended(() => resultOf(request, { count, records, speed: count / seconds, bits }));
  }

  /** Generate one text. */
  async function writeText(request, slice) {
    const writer = new Writer(model, request);
    await read(writer, request, slice);
    say("Generating …");
    return { count: await write(writer, request, slice) };
  }

  /** Generate one record after another; one that is stopped before its end is removed. */
  async function writeRecords(request, slice) {
    say("Generating …");
    let count = 0, records = 0;
    for (; records < request.texts; records++) {
      const writer = new Writer(model, { ...request, stream: records });
      await read(writer, request, slice);
      if (request.stopped) break;
      beginRecord(writer, request);
      const written = await write(writer, request, slice);
      if (request.stopped) {
        colours.removePart();
        break;
      }
      page.generated.append(model.recordEnd);
      count += written;
    }
    return { count, records };
  }

  /** Read the prompt. */
  async function read(writer, request, slice) {
    while (!request.stopped && writer.read()) if (slice.isOver()) await refresh(slice);
  }

  /** What a request came to, in words. */
  function resultOf({ prompt, stopped }, { count, records, speed, bits }) {
    const facts = [
      ...(records === undefined ? [] : [counted(records, "record")]),
      counted(count, "character"),
      translated("{number} characters/s", { number: grouped(speed) }),
      ...(bits === undefined ? [] : [translated("{bits} bits per character", { bits: bits.toFixed(2) })]),
    ].join(translated(", "));
    const result = translated(stopped ? "Stopped after {facts}." : "Done: {facts}.", { facts });
    const number = unknownIn(model, prompt);
    return number ? result + translated(" Unknown prompt characters: {number}.", { number }) : result;
  }

  /** Begin a record on the page; a label that was drawn stands before it, and is no part of the text. */
  function beginRecord(writer, request) {
    const record = document.createElement("span"), prompt = document.createElement("span");
    if (request.label === null) record.dataset.label = model.labels[writer.label];
    prompt.className = "prompt";
    prompt.append(request.prompt);
    record.append(prompt);
    colours.beginPart(record);
  }

  /** Generate one text, to its end or its length, and return how many characters it has. */
  async function write(writer, request, slice) {
    let count = 0, taken = [];
    while (count < request.length && !writer.ended && !request.stopped) {
      taken.push(...writer.next());
      if (!writer.ended && count + taken.length + writer.held.length >= request.length) taken.push(...writer.rest());
      const full = count + taken.length >= request.length;
      if (!full && !writer.ended && !slice.isOver()) continue;
      taken = taken.slice(0, request.length - count);
      append(taken, request.measured);
      count += taken.length;
      taken = [];
      if (slice.isOver()) await refresh(slice);
    }
    return count;
  }

  /** Append characters with their surprise to the page. */
  function append(taken, measured) {
    if (measured) for (const [character, bits] of taken) colours.append(character, bits);
    else colours.part.append(taken.map(([character]) => character).join(""));
  }

  /** Let the browser draw; a reader who has scrolled back stays there. */
  async function refresh(slice) {
    if (following) page.text.scrollTop = page.text.scrollHeight;
    await pause();
    following = page.text.scrollHeight - page.text.scrollTop - page.text.clientHeight < 40;
    slice.begin();
  }

  page.form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) generate().catch((error) => ended(() => translated("Error: {message}", error)));
  });
  page.stop.addEventListener("click", () => running && (running.stopped = true));
  page.newSeed.addEventListener("click", () => {
    if (running) return;
    page.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
    page.form.requestSubmit();
  });
  page.copy.addEventListener("click", () => {
    copy(page.promptText.textContent + page.generated.textContent).then(
      () => say("Copied."),
      () => say("The browser does not allow copying; select the text and copy it yourself."),
    );
  });
  page.temperature.addEventListener("input", () => {
    page.shownTemperature.textContent = page.temperature.valueAsNumber.toFixed(2);
  });
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape" && running) running.stopped = true;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) page.form.requestSubmit();
  });
  page.see.addEventListener("change", () => {
    colours.show(page.see.checked);
    if (page.see.checked && !running && page.generated.textContent && !colours.bits.length) {
      say("The next text is coloured as it is generated.");
    }
  });
  page.labelRow.hidden = page.recordsRow.hidden = !labelled;
  page.lengthRow.hidden = labelled;
  startLanguages(page.language, () => colours.readAgain());
  page.label.append(...model.labels.map((name, index) => new Option(name, index)));
  busy(false);
  say("Ready.");
}

const grouped = (number) => Math.round(number).toLocaleString("en");

/** A number of records or characters, in words. */
const counted = (number, name) => translated(number === 1 ? `1 ${name}` : `{number} ${name}s`, { number: grouped(number) });

/** The time between two screen and keyboard updates. */
class Slice {
  constructor() {
    this.begin();
  }

  begin() {
    this.end = performance.now() + SLICE_MS;
  }

  isOver() {
    return performance.now() >= this.end;
  }
}

/** Let the browser render and handle input. A message resumes at once; timers are throttled in background tabs. */
const pause = () =>
  new Promise((resume) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resume();
    };
    channel.port2.postMessage(null);
  });

/** Copy text to the clipboard, including in browsers without a clipboard API for file: pages. */
async function copy(text) {
  if (navigator.clipboard?.writeText) {
    try {
      return await navigator.clipboard.writeText(text);
    } catch {
      // The API exists but is denied; execCommand may still work.
    }
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not allowed");
}
