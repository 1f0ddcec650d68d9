/* A generated text with the surprise of each character: colours, and the number of one character at a time. */
"use strict";

const BOUNDS = [1, 2, 4, 8]; // bits; a character's level is how many of these its surprise reaches
const JOINED = /^[\p{M}\p{EMod}\u200c\u200d]/u; // characters that are drawn together with the one before
const NAMES = { "\n": "newline", " ": "space", "\t": "tab" };

/** The characters in the element `generated`, inside `text`, which takes the pointer and the keys; `readout` has the
 * number, while `shown()`. */
class SurpriseText {
  constructor({ text, generated, readout, shown = () => true }) {
    Object.assign(this, { text, generated, readout, shown });
    this.forget();
    for (const kind of ["pointermove", "pointerdown"]) {
      text.addEventListener(kind, (event) => this.readOut(this.indexAt(event.clientX, event.clientY)));
    }
    text.addEventListener("keydown", (event) => this.readOn(event));
  }

  /** Begin a new text. */
  forget() {
    Object.assign(this, { runs: [], characters: [], bits: [], total: 0, reading: -1, shownIndex: -1, part: this.generated });
  }

  /** Append an element; the characters that follow belong to it. */
  beginPart(element) {
    this.generated.append(element);
    this.part = element;
  }

  /** Append a character; neighbours of one level share an element, so that the page stays light. */
  append(character, bits) {
    const level = BOUNDS.filter((bound) => bits >= bound).length;
    let run = this.runs.at(-1);
    const here = run?.part === this.part;
    if (!here || (run.level !== level && !JOINED.test(character) && !run.node.data.endsWith("\u200d"))) {
      const span = document.createElement("span"), node = document.createTextNode("");
      span.className = `level${level}`;
      span.append(node);
      this.part.append(span);
      run = { level, node, first: this.bits.length, part: this.part };
      this.runs.push(run);
    }
    run.node.appendData(character);
    this.characters.push(character);
    this.bits.push(bits);
    this.total += bits;
  }

  /** Remove the last part with its characters. */
  removePart() {
    const run = this.runs.findIndex(({ part }) => part === this.part);
    if (run >= 0) {
      const { first } = this.runs[run];
      for (const bits of this.bits.splice(first)) this.total -= bits;
      this.characters.splice(first);
      this.runs.splice(run);
    }
    this.part.remove();
    this.part = this.generated;
  }

  /** The range of a drawn character. */
  rangeOf(index) {
    const run = this.runs.findLast((run) => run.first <= index);
    const begin = this.characters.slice(run.first, index).join("").length;
    const range = document.createRange();
    range.setStart(run.node, begin);
    range.setEnd(run.node, begin + this.characters[index].length);
    return range;
  }

  /** The index of the character at a point of the window; undefined if there is none. */
  indexAt(x, y) {
    const caret = caretAt(x, y);
    const run = this.runs.find((run) => run.node === caret?.node);
    if (!run) return undefined;
    const next = run.first + Array.from(run.node.data.slice(0, caret.offset)).length;
    const covers = ({ left, right, top, bottom }) => left <= x && x <= right && top <= y && y <= bottom;
    const drawn = (index) => index >= 0 && index < this.bits.length;
    return [next, next - 1].find((index) => drawn(index) && covers(this.rangeOf(index).getBoundingClientRect()));
  }

  /** Show the surprise of a character. */
  readOut(index) {
    if (!(index in this.bits) || !this.shown()) return;
    this.shownIndex = index;
    const character = this.characters[index], bits = this.bits[index];
    // The isolates keep a right-to-left character from reordering the line.
    const name = character in NAMES ? translated(NAMES[character]) : translated("“{character}”", { character: `\u2068${character}\u2069` });
    const percent = (100 * 2 ** -bits).toLocaleString("en", { maximumSignificantDigits: 2 });
    const values = { name, bits: bits.toFixed(2), percent };
    this.readout.textContent = translated("{name}: {bits} bits, probability {percent}%", values);
  }

  /** Show the number that is shown in the language of the page. */
  readAgain() {
    if (this.readout.textContent) this.readOut(this.shownIndex);
  }

  /** Read the text character by character with the arrow keys. */
  readOn(event) {
    const forward = getComputedStyle(this.text).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
    const held = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey; // These belong to the browser.
    if (!["ArrowLeft", "ArrowRight"].includes(event.key) || held || !this.bits.length || !this.shown()) return;
    event.preventDefault();
    const next = this.reading + (event.key === forward ? 1 : -1);
    this.reading = Math.min(Math.max(next, 0), this.bits.length - 1);
    const range = this.rangeOf(this.reading), selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    range.startContainer.parentElement.scrollIntoView({ block: "nearest" });
    this.readOut(this.reading);
  }
}

/** The place in the text at a point of the window; browsers have two names for it. */
function caretAt(x, y) {
  const caret = document.caretPositionFromPoint?.(x, y);
  if (caret) return { node: caret.offsetNode, offset: caret.offset };
  const range = document.caretRangeFromPoint?.(x, y);
  return range && { node: range.startContainer, offset: range.startOffset };
}
