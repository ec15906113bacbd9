// Tabs as the ARIA practices have them: one stop of the Tab key, arrow keys between them.

export class Tabs {
  #tabs;

  /**
   * @param {HTMLElement} list the `tablist`; its tabs name their panels with `aria-controls`
   * @param {() => void} onSelect called after another one was selected
   */
  constructor(list, onSelect) {
    this.#tabs = [...list.querySelectorAll("[role=tab]")];
    this.#select(this.#tabs[0]);
    list.addEventListener("click", ({ target }) => {
      if (target.role !== "tab") return;
      this.#select(target);
      onSelect();
    });
    list.addEventListener("keydown", (event) => {
      const last = this.#tabs.length - 1;
      const at = this.#tabs.indexOf(event.target);
      const goal = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
      if (goal === undefined) return;
      event.preventDefault();
      const tab = this.#tabs[(goal + last + 1) % (last + 1)];
      this.#select(tab);
      tab.focus();
      onSelect();
    });
  }

  /** Name of the selected one: its id without `tab-`. */
  get selected() {
    return this.#tabs.find((tab) => tab.ariaSelected === "true").id.replace("tab-", "");
  }

  #select(chosen) {
    for (const tab of this.#tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  }
}
