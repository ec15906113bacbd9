// The specification of a job as the service has it, with every default filled in.

import { byId, setText } from "./dom.js";

export function drawSpecification(detail) {
  setText(byId("spec"), yamlOf(detail.spec, 0).trimStart());
}

/** Plain values as block YAML, which is easier to read than JSON and can be submitted again. */
function yamlOf(value, depth) {
  const indent = "  ".repeat(depth);
  if (Array.isArray(value)) return ` [${value.map((each) => scalarOf(each)).join(", ")}]\n`;
  if (value === null || typeof value !== "object") return ` ${scalarOf(value)}\n`;
  const entries = Object.entries(value).filter(([, each]) => each !== null);
  if (!entries.length) return " {}\n";
  return `\n${entries.map(([key, each]) => `${indent}${key}:${yamlOf(each, depth + 1)}`).join("")}`;
}

const scalarOf = (value) =>
  typeof value === "string" && /^[A-Za-z_/][\w./-]*$/.test(value) ? value : JSON.stringify(value);
