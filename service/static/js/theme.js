// The theme: the system's, or light or dark as chosen with the button and remembered in this browser.

import { byId, svg } from "./dom.js";

const KEY = "mics-theme";
const NEXT = { system: "light", light: "dark", dark: "system" };
const WORDS = { system: "as the system", light: "light", dark: "dark" };
const SHAPES = {
  system: "M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11M8 2.5v11M10 3.2v9.6M12 4.4v7.2",
  light: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6M8 1v1.4M8 13.6V15M1 8h1.4M13.6 8H15M3 3l1 1M12 12l1 1M3 13l1-1M12 4l1-1",
  dark: "M13.5 9.6A5.8 5.8 0 0 1 6.4 2.5a5.8 5.8 0 1 0 7.1 7.1",
};

/** Install the button. */
export function startTheme() {
  const button = byId("theme");
  button.addEventListener("click", () => {
    choose(NEXT[chosen()]);
    show(button);
  });
  show(button);
}

/**
 * Call `listener` after every change of the colours, whoever made it.
 * @param {() => void} listener
 */
export function onThemeChange(listener) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", listener);
  new MutationObserver(listener).observe(document.documentElement, { attributeFilter: ["data-theme"] });
}

/**
 * The present value of a colour variable, as the canvas understands it.
 * @param {string} name such as "--ink"
 * @returns {string} `rgb(…)`
 */
export function colourOf(name) {
  // A custom property is text, `light-dark(…)` included; only a real colour property resolves it.
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

const chosen = () => document.documentElement.dataset.theme ?? "system";

function choose(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // Not remembered then; it holds until the page is closed.
  }
}

function show(button) {
  const theme = chosen();
  const words = `Theme: ${WORDS[theme]}. Change to ${WORDS[NEXT[theme]]}.`;
  button.title = words;
  button.setAttribute("aria-label", words);
  const shape = svg("path", { d: SHAPES[theme], fill: "none" });
  button.replaceChildren(svg("svg", { viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true" }, shape));
}
