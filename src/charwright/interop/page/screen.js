/* The page's controls: a form that starts a writer, and a text that grows while it works. */
"use strict";

const SLICE_MS = 24; // of work between two looks at the screen and the keyboard

/** Everything of the page that is looked at or changed. */
function parts() {
  return Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
}

/** Set the page up around a model. */
function start(model) {
  const page = parts();
  let writing = null; // what stops the text that is being written

  const say = (line) => (page.status.textContent = line);

  // Not `disabled`, which would take the keyboard's place away from whoever stands on the button.
  const allow = (button, allowed) => button.setAttribute("aria-disabled", String(!allowed));

  const busy = (isBusy) => {
    allow(page.write, !isBusy);
    allow(page.another, !isBusy);
    allow(page.stop, isBusy);
    page.text.setAttribute("aria-busy", String(isBusy));
  };

  const ended = (line) => {
    writing = null;
    busy(false);
    say(line);
  };

  async function write() {
    const prompt = page.prompt.value, temperature = page.temperature.valueAsNumber;
    const length = page.length.valueAsNumber, seed = page.seed.valueAsNumber;
    const stopped = { asked: false };
    writing = stopped;
    busy(true);
    page.written.textContent = "";
    page.begun.textContent = prompt;
    say("Reading the prompt …");
    await pause();
    const began = performance.now();
    const writer = new Writer(model, prompt, temperature, seed);
    while (!stopped.asked && inSlice(() => writer.read())) await pause();
    say("Writing …");
    let count = 0;
    while (count < length && !stopped.asked) {
      let piece = "";
      inSlice(() => {
        const more = Array.from(writer.next()).slice(0, length - count);
        count += more.length;
        piece += more.join("");
        return count < length;
      });
      const below = page.text.scrollHeight - page.text.scrollTop - page.text.clientHeight;
      page.written.append(piece);
      if (below < 40) page.text.scrollTop = page.text.scrollHeight;
      await pause();
    }
    const speed = Math.round((count / Math.max(performance.now() - began, 1)) * 1000).toLocaleString("en");
    const unknown = unknownIn(model, prompt);
    const left = unknown ? ` The model does not know ${unknown} of the characters that it began with.` : "";
    const many = `${count.toLocaleString("en")} characters, ${speed} a second`;
    ended((stopped.asked ? `Stopped after ${many}.` : `Done: ${many}.`) + left);
  }

  page.form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!writing) write().catch((error) => ended(`It failed: ${error.message}`));
  });
  page.stop.addEventListener("click", () => writing && (writing.asked = true));
  page.another.addEventListener("click", () => {
    if (writing) return;
    page.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
    page.form.requestSubmit();
  });
  page.copy.addEventListener("click", () => {
    copy(page.begun.textContent + page.written.textContent).then(
      () => say("Copied."),
      () => say("This browser does not let a page copy; select the text and copy it yourself."),
    );
  });
  page.temperature.addEventListener("input", () => (page.heat.textContent = page.temperature.valueAsNumber.toFixed(2)));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && writing) writing.asked = true;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) page.form.requestSubmit();
  });
  busy(false);
  say("Ready.");
}

/** Work for one slice of time, or until there is no more to do; whether there is. */
function inSlice(work) {
  const end = performance.now() + SLICE_MS;
  while (work()) if (performance.now() >= end) return true;
  return false;
}

/** Let the browser draw and listen. A message comes at once; a timer would be held back where nobody looks. */
const pause = () =>
  new Promise((resume) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resume();
    };
    channel.port2.postMessage(null);
  });

/** Put a text on the clipboard, also where a page from a file has no clipboard of its own. */
async function copy(text) {
  if (navigator.clipboard?.writeText) {
    try {
      return await navigator.clipboard.writeText(text);
    } catch {
      // Some browsers have it and refuse it; the old way may still go.
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
