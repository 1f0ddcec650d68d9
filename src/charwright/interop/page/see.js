/* The view that shows how surprised the model is by what it writes. */
"use strict";

/** The generated text, with colours that can be hidden. */
class Colours extends SurpriseText {
  constructor(page) {
    super({ text: page.text, generated: page.generated, readout: page.readout, shown: () => page.see.checked });
    this.page = page;
    this.clear();
    this.show(page.see.checked);
  }

  /** Remove the text. */
  clear() {
    this.forget();
    this.generated.textContent = "";
    this.readout.textContent = "";
  }

  /** Show or hide the colours; the text stays. */
  show(shown) {
    this.generated.classList.toggle("plain", !shown);
    this.page.surprise.hidden = !shown;
  }
}
