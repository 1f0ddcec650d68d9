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
  let running = null; // the request being generated

  const say = (line) => (page.status.textContent = line);

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

  async function generate() {
    const prompt = page.prompt.value, temperature = page.temperature.valueAsNumber;
    const length = page.length.valueAsNumber, seed = page.seed.valueAsNumber;
    const request = { stopped: false };
    running = request;
    busy(true);
    const seen = page.see.checked;
    colours.clear();
    page.promptText.textContent = prompt;
    say("Reading the prompt …");
    await pause();
    const started = performance.now();
    const writer = new Writer(model, prompt, temperature, seed, seen);
    while (!request.stopped && inSlice(() => writer.read())) await pause();
    say("Generating …");
    let count = 0;
    while (count < length && !request.stopped) {
      let piece = "";
      inSlice(() => {
        const more = Array.from(writer.next()).slice(0, length - count);
        count += more.length;
        if (seen) more.forEach((character, at) => colours.append(character, at ? 0 : writer.bits));
        else piece += more.join("");
        return count < length;
      });
      const below = page.text.scrollHeight - page.text.scrollTop - page.text.clientHeight;
      if (piece) page.generated.append(piece);
      if (below < 40) page.text.scrollTop = page.text.scrollHeight;
      await pause();
    }
    const speed = Math.round((count / Math.max(performance.now() - started, 1)) * 1000).toLocaleString("en");
    const cost = seen && count ? `, ${(colours.total / count).toFixed(2)} bits per character` : "";
    const unknown = unknownIn(model, prompt);
    const note = unknown ? ` Unknown prompt characters: ${unknown}.` : "";
    const result = `${count.toLocaleString("en")} character${count === 1 ? "" : "s"}, ${speed} characters/s${cost}`;
    ended((request.stopped ? `Stopped after ${result}.` : `Done: ${result}.`) + note);
  }

  page.form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) generate().catch((error) => ended(`Error: ${error.message}`));
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
    if (event.key === "Escape" && running) running.stopped = true;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) page.form.requestSubmit();
  });
  page.see.addEventListener("change", () => {
    colours.show(page.see.checked);
    if (page.see.checked && !running && page.generated.textContent && !colours.bits.length) {
      say("The next text is coloured as it is generated.");
    }
  });
  busy(false);
  say("Ready.");
}

/** Call `work` for one time slice or until it returns false; return whether there is more to do. */
function inSlice(work) {
  const end = performance.now() + SLICE_MS;
  while (work()) if (performance.now() >= end) return true;
  return false;
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
