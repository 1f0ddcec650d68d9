/* The page in the reader's language. It is written in English, and `words` has its sentences in other languages. */
"use strict";

const words = JSON.parse(document.getElementById("words").textContent);
const LANGUAGES = { en: "English", "zh-Hant": "正體中文" };
const LANGUAGE_STORE = "charwright language";
const said = new Map(); // from element to what returns its text
let language = "en";

/** A sentence in the language of the page, with its {values} filled in. */
function translated(sentence, values = {}) {
  const table = words[language] ?? {};
  const said = Object.hasOwn(table, sentence) ? table[sentence] : sentence;
  return said.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Show a sentence in an element, and again whenever the language changes; a function returns one that is translated. */
function sayIn(element, sentence) {
  const render = typeof sentence === "function" ? sentence : () => translated(sentence);
  said.set(element, render);
  element.textContent = render();
}

/** The sentences in the page's HTML: functions that show each of them in the language of the page. What stands in an
    element with translate="no" is none. */
function sentencesOfPage() {
  const shows = [];
  const nodes = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) {
    const node = nodes.currentNode, text = node.data.trim();
    if (!isKnown(text) || node.parentElement.closest("script, style, [translate=no]")) continue;
    const [before, behind] = node.data.split(text);
    shows.push(() => (node.data = before + translated(text) + behind));
  }
  for (const name of ["aria-label", "placeholder", "title"]) {
    for (const element of document.querySelectorAll(`[${name}]`)) {
      const text = element.getAttribute(name);
      if (isKnown(text)) shows.push(() => element.setAttribute(name, translated(text)));
    }
  }
  for (const element of document.querySelectorAll("[data-sentence]")) {
    const parts = JSON.parse(element.dataset.sentence), { attribute } = element.dataset;
    if (attribute) shows.push(() => element.setAttribute(attribute, madeOf(parts)));
    else shows.push(() => (element.textContent = madeOf(parts)));
  }
  return shows;
}

/** The text of a sentence whose values are sentences too, or names and numbers; those of webpage/sentence.py. */
const madeOf = (parts) =>
  typeof parts === "string"
    ? parts
    : translated(parts.sentence, Object.fromEntries(Object.entries(parts.values).map(([k, v]) => [k, madeOf(v)])));

const isKnown = (sentence) => Object.values(words).some((table) => Object.hasOwn(table, sentence));

/** Show the page in a language. */
function speak(chosen, shows, button) {
  language = chosen;
  document.documentElement.lang = language;
  for (const show of shows) show();
  for (const [element, render] of said) {
    if (element.isConnected) element.textContent = render();
    else said.delete(element);
  }
  button.lang = otherLanguage();
  button.textContent = LANGUAGES[button.lang];
}

const otherLanguage = () => Object.keys(LANGUAGES).find((other) => other !== language);

/** The language that was chosen here before, or the first of the browser's that the page has. */
function preferredLanguage() {
  try {
    const stored = localStorage.getItem(LANGUAGE_STORE);
    if (stored && Object.hasOwn(LANGUAGES, stored)) return stored;
  } catch {
    // The storage is blocked.
  }
  const known = (tag) => Object.keys(LANGUAGES).find((name) => tag.toLowerCase().split("-")[0] === name.split("-")[0]);
  return navigator.languages.map(known).find(Boolean) ?? "en";
}

/** Show the page in the reader's language, and let a button change it, after which `changed` is called. */
function startLanguages(button, changed = () => {}) {
  const shows = sentencesOfPage();
  speak(preferredLanguage(), shows, button);
  button.addEventListener("click", () => {
    speak(otherLanguage(), shows, button);
    changed();
    try {
      localStorage.setItem(LANGUAGE_STORE, language);
    } catch {
      // The storage is blocked: the page forgets the choice.
    }
  });
}
