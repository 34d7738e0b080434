// What the model says as it is and with latents held: next tokens, what moved, continuations.

import { bar } from "./charts.js";
import { h } from "./dom.js";
import { known, number, percent, plain, visible } from "./format.js";

const ROWS = 8; // next tokens shown
const TAIL = 60; // letters of the text before a continuation

export function whatIsSaid(text, { before, after, kl_div: divergence, changes, milliseconds }) {
  return [
    h("h3", "The next token ", h("span.legend", h("i.before"), "as it is ", h("i.after"), "held")),
    paired(before.next, after.next),
    h(
      "p.small",
      `KL divergence ${number(divergence, ".3g")} nats, ${number(milliseconds, ".0f")} ms.`,
    ),
    known(before.continuation)
      ? h(
          "div.two.continued",
          continued(text, "It goes on", "before", before),
          continued(text, "Held, it goes on", "after", after),
        )
      : "",
    changes.length ? h("div", h("h3", "Moved most"), moved(changes)) : "",
  ];
}

function continued(text, title, kind, { continuation }) {
  const tail = plain(text.slice(-TAIL));
  return h(
    `div.said-${kind}`,
    h("h3", title),
    h(
      "blockquote",
      h("span.small", text.length > TAIL ? `… ${tail}` : tail),
      h("b", plain(continuation)),
    ),
  );
}

/** before, after: the same tokens in the same order */
function paired(before, after) {
  const list = before
    .map(({ t, p }, index) => ({ t, before: p, after: after[index].p }))
    .sort((a, b) => Math.max(b.before, b.after) - Math.max(a.before, a.after))
    .slice(0, ROWS);
  const most = Math.max(1e-9, ...list.flatMap((row) => [row.before, row.after]));
  return h(
    "ol.paired",
    list.map((row) =>
      h(
        "li",
        { data: { token: row.t } },
        h("span.tok", visible(row.t)),
        h("span.pair", bar(row.before / most, "before"), bar(row.after / most, "after")),
        h(
          "span.number",
          h("span.p-before", percent(row.before)),
          h("span.p-after", percent(row.after)),
        ),
      ),
    ),
  );
}

function moved(changes) {
  return h(
    "ul.moved",
    changes
      .slice(0, 8)
      .map(({ t, before, after }) =>
        h(
          "li",
          { class: after > before ? "rose" : "fell" },
          h("span.tok", visible(t)),
          h("span.number", `${percent(before)} → ${percent(after)}`),
        ),
      ),
  );
}
