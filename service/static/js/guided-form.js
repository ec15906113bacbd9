// The essentials of a job as fields. They are read from the text and written into it, so that both
// always say the same.

import { byId, html, setText, showMessage } from "./dom.js";
import { PRESETS } from "./example-job.js";
import { quoted, readValues, unquoted, withValue } from "./yaml-text.js";

const number = { inputmode: "numeric" };
const FIELDS = [
  { path: "name", label: "Name", isText: true, wide: true },
  { path: "model.preset", label: "Model", options: PRESETS, wide: true },
  { path: "data.kind", label: "Data", options: ["text", "jsonl", "parquet", "tokens"] },
  { path: "data.paths", label: "Files", isList: true },
  { path: "training.steps", label: "Steps", ...number },
  { path: "training.sequence_length", label: "Sequence length", ...number },
  { path: "training.global_batch_size", label: "Global batch", ...number },
  { path: "training.micro_batch_size", label: "Micro-batch" },
  { path: "partition_size", label: "Partition size" },
  { path: "groups.wanted", label: "Groups wanted", ...number },
  { path: "groups.minimum", label: "Minimum", ...number },
  { path: "groups.maximum", label: "Maximum", ...number },
];

export class GuidedForm {
  #inputs = new Map();
  #editor;

  /**
   * @param {{text: string}} editor
   * @param {() => void} onInput called after a field has changed the text
   */
  constructor(editor, onInput) {
    this.#editor = editor;
    byId("guide").append(...FIELDS.map((field) => this.#build(field)));
    byId("guide").addEventListener("submit", (event) => event.preventDefault());
    byId("guide").addEventListener("input", ({ target }) => {
      const field = FIELDS.find(({ path }) => this.#inputs.get(path).input === target);
      editor.text = withValue(editor.text, field.path, writtenOf(field, target.value));
      onInput();
    });
  }

  /** Read the fields from the text. */
  read() {
    const isJson = this.#editor.text.trimStart().startsWith("{");
    showMessage(byId("guide-note"), isJson ? "The fields work with YAML; this is JSON." : null);
    const values = isJson ? new Map() : readValues(this.#editor.text);
    for (const field of FIELDS) {
      const { input } = this.#inputs.get(field.path);
      const raw = values.get(field.path)?.value ?? "";
      const value = field.isList ? raw.replace(/^\[|\]$/g, "") : unquoted(raw);
      const isOther = field.options && !field.options.includes(value);
      // A model by its size, a list over several lines: what a field cannot show, it leaves alone.
      const isBlock = field.isList && values.has(field.path) && !raw.startsWith("[");
      if (field.options) input.options[0].hidden = !isOther;
      input.disabled = isJson || isBlock;
      if (document.activeElement !== input) input.value = isOther ? "" : isBlock ? "(in the text)" : value;
    }
  }

  /** @param {{field: string, rule: string, remedy: string}[]} problems */
  mark(problems) {
    for (const { path } of FIELDS) {
      const { input, error } = this.#inputs.get(path);
      const own = problems.find(({ field }) => field === path || field.startsWith(`${path}.`));
      input.setAttribute("aria-invalid", String(Boolean(own)));
      setText(error, own ? `${own.rule} ${own.remedy}` : "");
    }
  }

  #build(field) {
    const id = `guide-${field.path.replaceAll(".", "-")}`;
    const attributes = { id, "aria-describedby": `${id}-error`, autocomplete: "off", spellcheck: "false" };
    const other = html("option", { value: "" }, "as in the text");
    const input = field.options
      ? html("select", attributes, other, ...field.options.map((each) => html("option", {}, each)))
      : html("input", { ...attributes, type: "text", inputmode: field.inputmode });
    const error = html("span", { id: `${id}-error`, class: "field-error" });
    this.#inputs.set(field.path, { input, error });
    const label = html("label", { for: id }, field.label);
    return html("div", { class: field.wide ? "field wide-field" : "field" }, label, input, error);
  }
}

function writtenOf(field, value) {
  if (field.isText) return quoted(value);
  if (field.isList) return `[${value}]`;
  return value.trim() || '""';
}
