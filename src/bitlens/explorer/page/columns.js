// The columns of the table of latents.

import { flagChip } from "./cards.js";
import { tokenChips } from "./contexts.js";
import { h } from "./dom.js";
import { number, plain } from "./format.js";
import { latentAddress } from "./route.js";

const WIDTHS = { latent: 62, tokens: 180, explanation: 200, rate: 74 };
const ORDER = ["latent", "rate", "tokens", "explanation", "score", "f1", "effect"];

/** Columns for the grid, in the order of what is read first. */
export function gridColumns(latents) {
  const rank = ({ key }) => (ORDER.includes(key) ? ORDER.indexOf(key) : ORDER.length);
  const stacked = latents.numbers
    .toSorted((a, b) => rank(a) - rank(b))
    .slice(0, 3)
    .map(({ key }) => key)
    .concat("latent", "tokens", "explanation");
  return latents.columns
    .filter(({ key }) => key !== "flags")
    .sort((a, b) => rank(a) - rank(b))
    .map((column) => ({
      ...column,
      title: column.meaning,
      number: column.kind === "number" && column.key !== "latent",
      width: WIDTHS[column.key] ?? Math.max(60, column.label.length * 7.5 + 14),
      grow: { tokens: 2, explanation: 3 }[column.key],
      stack: stacked.includes(column.key),
      must: ["latent", "tokens"].includes(column.key),
    }));
}

/** Fill the cell of a latent. */
export function fillCell(latents, row, { key, label, format, kind }, node) {
  const value = latents.data[key][row];
  if (key === "latent")
    node.append(h("a", { href: latentAddress(value), tabindex: -1 }, String(value)));
  else if (key === "tokens") node.append(...tokenChips(value), flagChip(latents.flags[row]) ?? "");
  else if (kind === "number") {
    node.textContent = number(value, format);
    node.dataset.label = label;
  } else node.textContent = plain(value ?? "");
  if (key === "explanation" && value) node.title = value;
}
