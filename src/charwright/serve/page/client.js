/* The page as a client of the service, without its elements: models, streams of completions, errors in words, and a
   request written as code. */
"use strict";

// A proxy may serve the page below a sub-path, with or without a slash at its end.
const BASE = `${location.origin}${location.pathname.replace(/\/*$/, "/")}`;
// Parameters that the openai package does not know.
const OWN = new Set(["label", "top_k", "min_p", "repetition_penalty", "until"]);

/** An error to show, in the words that `say` returns: `param` is the parameter that it is about and `code` its code, if
    the service gave them. */
class ServiceError extends Error {
  constructor(say, { param = null, code = null } = {}) {
    super(say());
    this.say = say;
    this.param = param;
    this.code = code;
  }
}

/** Send a request to the service and return its response. */
async function send(path, options) {
  const response = await fetch(BASE + path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    const message = "The service cannot be reached. Is it running? Nothing is lost: generate again when it is.";
    throw new ServiceError(() => translated(message));
  });
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** The error of a response that is not OK, in the service's own words. */
async function errorOf(response) {
  // A proxy in front of the service may answer with something else than the service's JSON.
  const error = (await response.json().catch(() => null))?.error ?? {};
  const said = error.message ?? response.statusText;
  const seconds = response.headers.get("Retry-After") ?? "";
  const waits = /^\d+$/.test(seconds) && !said.includes("try again");
  const message = () => said || translated("the service gave no reason");
  const again = () => (waits ? translated("; try again in {seconds} s", { seconds }) : "");
  return new ServiceError(() => translated("Error {status}: ", response) + message() + again(), error);
}

/** The labels of each of the service's models, by its name; most have none. */
async function labelsByModel(signal) {
  const answer = await (await send("v1/models", { signal })).json();
  return new Map(answer.data.map((model) => [model.id, model.labels]));
}

/** Start a completion and yield the chunks of its stream: nothing until the service has accepted the request. */
async function complete(request, signal) {
  const body = jsonOf({ ...request, stream: true });
  const headers = { "Content-Type": "application/json" };
  return chunksOf(await send("v1/completions", { method: "POST", headers, body, signal }));
}

/** Yield the chunks of a stream; throw if an error ends it, or if it breaks off. */
async function* chunksOf(response) {
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServiceError(() => translated("The service stopped: {message}", chunk.error), chunk.error);
    yield { ...chunk, seed: seedOf(data) };
  }
  throw brokenOff();
}

const brokenOff = () =>
  new ServiceError(() => translated("The connection broke before the end. The text so far is kept."));

/** Yield the data of server-sent events. The bytes may be split anywhere, even inside a character. */
async function* eventsOf(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let unread = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : brokenOff();
      });
      if (done) return;
      const events = (unread + decoder.decode(value, { stream: true })).split(/\r?\n\r?\n/);
      unread = events.pop();
      yield* events.map(dataOf).filter((data) => data !== "");
    }
  } finally {
    reader.cancel().catch(() => {}); // A reader that failed is closed already.
  }
}

/** The data of one event; "" for a comment, which only keeps the connection open. */
const dataOf = (event) =>
  event
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice("data:".length).replace(/^ /, ""))
    .join("\n");

// A seed has up to 63 bits, too many for a JavaScript number, so it stays a string of digits. Quotes inside of JSON's
// strings are escaped: "seed": with bare quotes can only be the key.

/** The seed in the JSON text of a chunk. */
const seedOf = (json) => /"seed": ?(\d+)/.exec(json)?.[1];

/** A request as JSON; its seed becomes a number. */
const jsonOf = (request, indent) => JSON.stringify(request, null, indent).replace(/("seed": ?)"(\d+)"/, "$1$2");

/** A command for a POSIX shell that sends the request. */
function curlOf(request, keys) {
  const lines = [`curl -sS ${quoted(`${BASE}v1/completions`)}`, `-H ${quoted("Content-Type: application/json")}`];
  if (keys) lines.push('-H "Authorization: Bearer $CHARWRIGHT_API_KEY"');
  return [...lines, `-d ${quoted(jsonOf(request, 2))}`].join(" \\\n  ");
}

/** A string for a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A Python program that sends the request. A JSON string or list of strings is also one in Python. */
function pythonOf(request, keys) {
  const given = Object.entries(request).filter(([, value]) => value !== undefined);
  const literal = (name, value) => (name === "seed" ? value : JSON.stringify(value));
  const known = given.filter(([name]) => !OWN.has(name)).map(([name, value]) => `    ${name}=${literal(name, value)},`);
  const own = given.filter(([name]) => OWN.has(name)).map(([name, value]) => `"${name}": ${literal(name, value)}`);
  if (own.length) known.push(`    extra_body={${own.join(", ")}},`);
  const key = keys ? 'os.environ["CHARWRIGHT_API_KEY"]' : '"none"';
  return [
    ...(keys ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${BASE}v1`)}, api_key=${key})`,
    "completion = client.completions.create(",
    ...known,
    ")",
    "for choice in completion.choices:",
    "    print(choice.text)",
  ].join("\n");
}
