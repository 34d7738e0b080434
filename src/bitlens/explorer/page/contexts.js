// Tokens in a line of text: shaded by how strongly a latent is on, one of them marked.

import { h, style } from "./dom.js";
import { number, plain, visible } from "./format.js";

/** One token; its leading spaces stay outside the shade, line ends show as ⏎. */
function piece({ t, v = 0 }, marked, title) {
  const text = plain(t);
  const space = /^ */.exec(text)[0];
  const core = text.slice(space.length) || (space && (marked || v > 0 ? "·" : " "));
  const node = h(marked ? "mark" : "span", { title: title ?? `${visible(t)}  ${number(v)}` }, core);
  if (v > 0) {
    node.classList.add("on");
    style(node, { "--v": Math.min(1, v).toFixed(3) });
  }
  const before = text.trim() ? space : space.slice(1);
  return before ? [before, node] : [node];
}

/** A context: [{ t, v }] with the token `at` marked. */
export function context({ tokens, at }) {
  const [first, ...rest] = tokens;
  const shown = first ? [{ ...first, t: first.t.replace(/^ +(?=.)/, "") }, ...rest] : [];
  return h(
    "span.context",
    null,
    shown.map((token, index) => piece(token, index === at)),
  );
}

function place({ document, row }) {
  const parts = [];
  if (document !== null && document !== undefined && document !== "")
    parts.push(`document ${document}`);
  if (row !== null && row !== undefined) parts.push(`row ${row}`);
  return parts.join(", ");
}

/** Contexts one below the other. */
export function examples(list, { more } = {}) {
  return h(
    "ol.examples",
    null,
    list.map((example) => h("li", { title: place(example) }, context(example), more?.(example))),
  );
}

/** The same for `before`, `token` and `after` as plain text. */
export function quoted({ before, token, after }) {
  const space = /^\s*/.exec(token)[0];
  return h(
    "span.context",
    null,
    plain(before + space),
    h("mark.on", { css: { "--v": "1" } }, plain(token.slice(space.length)) || visible(token)),
    plain(after),
  );
}

/** Tokens that stand for a latent, as chips in one line. */
export function tokenChips(tokens, most = 5) {
  if (!Array.isArray(tokens)) return [plain(tokens ?? "")];
  return tokens.slice(0, most).map((token) => h("span.tok", null, visible(token)));
}
