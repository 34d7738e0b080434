// Tokens in a line of text: shaded by how strongly a latent is on, one of them marked.

import { h, style } from "./dom.js";
import { number, plain, visible } from "./format.js";

/** One token; its leading spaces stay outside the shade, line ends show as ⏎. */
function piece({ t, v }, marked) {
  const text = plain(t);
  const space = /^ */.exec(text)[0];
  const core = text.slice(space.length) || (space && (marked || v > 0 ? "·" : " "));
  const node = h(marked ? "mark" : "span", { title: `${visible(t)}  ${number(v)}` }, core);
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
    shown.map((token, index) => piece(token, index === at)),
  );
}

/** Contexts one below the other. */
export function examples(list) {
  return h(
    "ol.examples",
    list.map((example) => {
      const { document, row } = example;
      return h("li", { title: `document ${document}, row ${row}` }, context(example));
    }),
  );
}

/** The same for `before`, `token` and `after` as plain text. */
export function quoted({ before, token, after }) {
  const space = /^\s*/.exec(token)[0];
  return h(
    "span.context",
    plain(before + space),
    h("mark.on", { css: { "--v": "1" } }, plain(token.slice(space.length)) || visible(token)),
    plain(after),
  );
}

/** Tokens that stand for a latent, as chips in one line. */
export function tokenChips(tokens, most = 5) {
  return tokens.slice(0, most).map((token) => h("span.tok", visible(token)));
}
