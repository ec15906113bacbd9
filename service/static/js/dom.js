// Makes elements. All text goes through textContent or text nodes, never through innerHTML, so that
// a job's name or an error's words cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id; a missing one is a fault of the page itself. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element #${id}`);
  return element;
}

/** An HTML element. `children` are elements or strings. */
export function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Set text only where it differs: an untouched text node costs no layout and no announcement. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show a message, or hide the element when there is none. */
export function showMessage(element, text) {
  setText(element, text ?? "");
  element.hidden = !text;
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}
