// Finds and changes single values in the text of a specification, and leaves everything else as it was
// written: order, comments, blank lines. It knows block mappings and one-line `{…}` mappings, which is
// what people write; the service is the judge of all else.

const KEY_LINE = /^(\s*)([A-Za-z_][\w-]*):(?:\s+(.*)|)$/;

/**
 * @typedef {{line: number, start: number, end: number, value: string}} Place where a value stands:
 *          its line, columns, and text without a comment; empty if it is a block below
 */

/**
 * @param {string} text
 * @returns {Map<string, Place>} by dotted path, such as `training.steps`
 */
export function readValues(text) {
  const values = new Map();
  const open = []; // the mappings around the line: {indent, path}
  text.split("\n").forEach((content, line) => {
    const match = KEY_LINE.exec(content);
    if (!match) return;
    const indent = match[1].length;
    while (open.length && open.at(-1).indent >= indent) open.pop();
    const path = open.length ? `${open.at(-1).path}.${match[2]}` : match[2];
    const raw = withoutComment(match[3] ?? "");
    const start = match[3] === undefined ? content.length : content.length - match[3].length;
    values.set(path, { line, start, end: start + raw.length, value: raw });
    if (raw.startsWith("{")) readFlow(values, path, raw, line, start);
    open.push({ indent, path });
  });
  return values;
}

/**
 * Return the text with another value at a path; the keys that lack are added.
 * @param {string} text
 * @param {string} path such as `groups.wanted`
 * @param {string} value as it is to be written
 */
export function withValue(text, path, value) {
  const values = readValues(text);
  const lines = text.split("\n");
  const known = values.get(path);
  if (known) {
    const content = lines[known.line];
    const gap = known.start && content[known.start - 1] === ":" ? " " : "";
    lines[known.line] = content.slice(0, known.start) + gap + value + content.slice(known.end);
    return lines.join("\n");
  }
  const [section, key] = path.split(".");
  const parent = key && values.get(section);
  if (parent?.value.startsWith("{")) {
    const at = parent.start + 1;
    const content = lines[parent.line];
    lines[parent.line] = `${content.slice(0, at)}${key}: ${value}, ${content.slice(at)}`;
  } else if (parent) {
    lines.splice(parent.line + 1, 0, `${indentBelow(values, lines, section)}${key}: ${value}`);
  } else {
    const added = key ? [`${section}:`, `  ${key}: ${value}`] : [`${path}: ${value}`];
    return `${text.trimEnd()}\n${added.join("\n")}\n`;
  }
  return lines.join("\n");
}

/**
 * The line that a problem is about: that of its field, or of the nearest part around it.
 * @param {{field: string, rule: string}} problem
 * @returns {number | null} from 0
 */
export function lineOf(text, { field, rule }) {
  const named = /\bline (\d+)/.exec(rule);
  if (field.startsWith("(")) return named ? Number(named[1]) - 1 : null;
  const values = readValues(text);
  for (let path = field; path; path = path.slice(0, Math.max(0, path.lastIndexOf(".")))) {
    const place = values.get(path);
    if (place) return place.line;
  }
  return null;
}

/** A text as YAML writes it: plain where that is safe, else quoted. */
export function quoted(text) {
  const isPlain = /^[A-Za-z_/][\w./*-]*(?: [\w./*-]+)*$/.test(text);
  return isPlain && !/^(?:true|false|yes|no|on|off|null)$/i.test(text) ? text : JSON.stringify(text);
}

/** The text that a YAML scalar stands for. */
export function unquoted(value) {
  if (/^".*"$/.test(value)) {
    try {
      return JSON.parse(value);
    } catch {
      return value;
    }
  }
  return /^'.*'$/.test(value) ? value.slice(1, -1).replaceAll("''", "'") : value;
}

function withoutComment(raw) {
  const end = /^(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'#]|(?<!\s)#)*/.exec(raw)[0];
  return (end || raw).trimEnd();
}

function readFlow(values, path, raw, line, start) {
  const pattern = /([A-Za-z_][\w-]*):\s*("[^"]*"|'[^']*'|\[[^\]]*\]|[^,{}]*)/g;
  for (const match of raw.matchAll(pattern)) {
    const value = match[2].trimEnd();
    const from = start + match.index + match[0].length - match[2].length;
    values.set(`${path}.${match[1]}`, { line, start: from, end: from + value.length, value });
  }
}

function indentBelow(values, lines, section) {
  for (const [path, { line }] of values) {
    if (path.startsWith(`${section}.`) && !path.slice(section.length + 1).includes(".")) {
      return /^\s*/.exec(lines[line])[0];
    }
  }
  return "  ";
}
