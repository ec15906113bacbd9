// Asks for another number of partition groups, or for other bounds; only what was changed is asked
// of the service.

import { byId, setText, showMessage } from "./dom.js";
import { numGroups } from "./format.js";

const FIELDS = { groups: "scale-groups", minimum: "scale-minimum", maximum: "scale-maximum" };

export class ScaleDialog {
  #now = {};
  #answer = null;

  constructor() {
    const dialog = byId("scale-dialog");
    byId("scale-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#apply();
    });
    byId("scale-cancel").addEventListener("click", () => dialog.close());
    byId("scale-fewer").addEventListener("click", () => this.#step(-1));
    byId("scale-more").addEventListener("click", () => this.#step(1));
    for (const id of Object.values(FIELDS)) byId(id).addEventListener("input", () => this.#sum());
  }

  /**
   * @param {object} detail the job
   * @returns {Promise<{groups?: number, minimum?: number, maximum?: number} | null>} what is to
   *          change; null if the visitor left it
   */
  ask(detail) {
    const minimum = detail.status?.minimum_groups ?? detail.spec.groups.minimum;
    this.#now = { groups: detail.wanted_groups, minimum, maximum: detail.maximum_groups };
    this.#answer = null;
    for (const [name, id] of Object.entries(FIELDS)) byId(id).value = String(this.#now[name]);
    this.#sum();
    const dialog = byId("scale-dialog");
    dialog.showModal();
    byId("scale-groups").select();
    return new Promise((resolve) => {
      dialog.addEventListener("close", () => resolve(this.#answer), { once: true });
    });
  }

  get #asked() {
    return Object.fromEntries(Object.entries(FIELDS).map(([name, id]) => [name, Number(byId(id).value)]));
  }

  #step(by) {
    const field = byId("scale-groups");
    field.value = String(Math.max(1, Number(field.value) + by));
    this.#sum();
  }

  #sum() {
    const { groups } = this.#asked;
    const { groups: before } = this.#now;
    const change = `From ${numGroups(before)} to ${numGroups(groups)}.`;
    const words = groups === before ? `${numGroups(before)} wanted at present.` : change;
    setText(byId("scale-summary"), words);
    showMessage(byId("scale-error"), null);
    for (const id of Object.values(FIELDS)) byId(id).removeAttribute("aria-invalid");
  }

  #apply() {
    const asked = this.#asked;
    for (const [name, value] of Object.entries(asked)) {
      if (!Number.isInteger(value) || value < 1) {
        this.#refuse(name, "Give a whole number of at least 1.");
        return;
      }
    }
    const { groups, minimum, maximum } = asked;
    const rule = `Groups must be from ${minimum} to ${maximum}.`;
    if (minimum > maximum) this.#refuse("minimum", `The minimum (${minimum}) exceeds the maximum (${maximum}).`);
    else if (groups > maximum) this.#refuse("groups", `${rule} Raise the maximum to ask for more.`);
    else if (groups < minimum) this.#refuse("groups", `${rule} Lower the minimum to ask for fewer.`);
    else {
      const changed = Object.entries(asked).filter(([name, value]) => value !== this.#now[name]);
      this.#answer = changed.length ? Object.fromEntries(changed) : null;
      byId("scale-dialog").close();
    }
  }

  #refuse(name, words) {
    showMessage(byId("scale-error"), words);
    byId(FIELDS[name]).setAttribute("aria-invalid", "true");
    byId(FIELDS[name]).focus();
  }
}
