/* The view that shows how surprised the model is by what it writes: colours, and the number of one character. */
"use strict";

const BOUNDS = [1, 2, 4, 8]; // bits; a character's level is how many of these its surprise reaches
const JOINED = /^[\p{M}\p{EMod}\u200c\u200d]/u; // characters that are drawn together with the one before
const NAMES = { "\n": "newline", " ": "space", "\t": "tab" };

/** The characters of a generated text with the surprise of each. */
class Colours {
  constructor(page) {
    this.page = page;
    this.clear();
    for (const kind of ["pointermove", "pointerdown"]) {
      page.text.addEventListener(kind, (event) => this.readOut(this.indexAt(event.clientX, event.clientY)));
    }
    page.text.addEventListener("keydown", (event) => this.readOn(event));
    this.show(page.see.checked);
  }

  /** Forget the text. */
  clear() {
    Object.assign(this, { runs: [], characters: [], bits: [], total: 0, reading: -1 });
    this.page.generated.textContent = "";
    this.page.readout.textContent = "";
  }

  /** Show or hide the colours; the text stays. */
  show(shown) {
    this.page.generated.classList.toggle("plain", !shown);
    this.page.surprise.hidden = !shown;
  }

  /** Append a character; neighbours of one level share an element, so that the page stays light. */
  append(character, bits) {
    const level = BOUNDS.filter((bound) => bits >= bound).length;
    let run = this.runs.at(-1);
    if (run?.level !== level && !(run && (JOINED.test(character) || run.node.data.endsWith("\u200d")))) {
      const span = document.createElement("span"), node = document.createTextNode("");
      span.className = `level${level}`;
      span.append(node);
      this.page.generated.append(span);
      run = { level, node, first: this.bits.length };
      this.runs.push(run);
    }
    run.node.appendData(character);
    this.characters.push(character);
    this.bits.push(bits);
    this.total += bits;
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
    const caret = document.caretPositionFromPoint?.(x, y);
    const range = caret ? undefined : document.caretRangeFromPoint?.(x, y); // Browsers have two names for it.
    const [node, offset] = caret ? [caret.offsetNode, caret.offset] : [range?.startContainer, range?.startOffset];
    const run = this.runs.find((run) => run.node === node);
    if (!run) return undefined;
    const next = run.first + Array.from(run.node.data.slice(0, offset)).length;
    const covers = ({ left, right, top, bottom }) => left <= x && x <= right && top <= y && y <= bottom;
    const drawn = (index) => index >= 0 && index < this.bits.length;
    return [next, next - 1].find((index) => drawn(index) && covers(this.rangeOf(index).getBoundingClientRect()));
  }

  /** Show the surprise of a character. */
  readOut(index) {
    if (index === undefined || !this.page.see.checked) return;
    const character = this.characters[index], bits = this.bits[index];
    // The isolates keep a right-to-left character from reordering the line.
    const name = NAMES[character] ?? `“\u2068${character}\u2069”`;
    const percent = (100 * 2 ** -bits).toLocaleString("en", { maximumSignificantDigits: 2 });
    this.page.readout.textContent = `${name}: ${bits.toFixed(2)} bits, probability ${percent}%`;
  }

  /** Read the text character by character with the arrow keys. */
  readOn(event) {
    const forward = getComputedStyle(this.page.text).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
    const held = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey; // These belong to the browser.
    if (!["ArrowLeft", "ArrowRight"].includes(event.key) || held || !this.bits.length || !this.page.see.checked) return;
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
