// The text of a specification: a plain text area with numbered lines, and marks where problems are.

import { byId, html } from "./dom.js";

export class Editor {
  #text = byId("spec-text");
  #gutter = byId("spec-gutter");
  #marked = new Set();
  #numLines = 0;

  /** @param {() => void} onInput called after every change that is typed */
  constructor(onInput) {
    this.#text.addEventListener("input", () => {
      this.#number();
      onInput();
    });
    this.#text.addEventListener("scroll", () => {
      this.#gutter.scrollTop = this.#text.scrollTop;
    });
  }

  get text() {
    return this.#text.value;
  }

  set text(text) {
    if (text === this.#text.value) return;
    this.#text.value = text;
    this.#number();
  }

  /** @param {Iterable<number>} lines from 0, those with a problem */
  mark(lines) {
    this.#marked = new Set(lines);
    this.#text.setAttribute("aria-invalid", String(this.#marked.size > 0));
    [...this.#gutter.children].forEach((item, line) => {
      item.classList.toggle("has-problem", this.#marked.has(line));
    });
  }

  /** Select a line and bring it into view. */
  select(line) {
    const lines = this.text.split("\n");
    const start = lines.slice(0, line).reduce((sum, each) => sum + each.length + 1, 0);
    this.#text.focus();
    this.#text.setSelectionRange(start, start + lines[line].length);
    const height = this.#text.scrollHeight / lines.length;
    this.#text.scrollTop = Math.max(0, line * height - this.#text.clientHeight / 2);
  }

  #number() {
    const wanted = this.text.split("\n").length;
    if (wanted === this.#numLines) return;
    this.#numLines = wanted;
    const items = Array.from({ length: wanted }, (_, line) =>
      html("span", { class: this.#marked.has(line) ? "has-problem" : null }, String(line + 1)),
    );
    this.#gutter.replaceChildren(...items);
    this.#gutter.scrollTop = this.#text.scrollTop;
  }
}
