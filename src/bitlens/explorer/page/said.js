// What the model says as it is and with latents held: next tokens, what moved, continuations.

import { bar } from "./charts.js";
import { h } from "./dom.js";
import { number, percent, plain, visible } from "./format.js";

const ROWS = 8; // next tokens shown
const TAIL = 60; // letters of the text before a continuation

export function whatIsSaid(text, { before, after, kl_div: divergence, changes, milliseconds }) {
  const goesOn = before.continuation !== undefined && before.continuation !== null;
  return [
    h(
      "h3",
      null,
      "The next token ",
      h("span.legend", null, h("i.before"), "as it is ", h("i.after"), "held"),
    ),
    paired(before.next, after.next),
    h(
      "p.small",
      null,
      `KL divergence ${number(divergence, ".3g")} nats, ${number(milliseconds, ".0f")} ms.`,
    ),
    goesOn
      ? h(
          "div.two.continued",
          null,
          continued(text, "It goes on", "before", before),
          continued(text, "Held, it goes on", "after", after),
        )
      : "",
    changes?.length ? h("div", null, h("h3", null, "Moved most"), moved(changes)) : "",
  ];
}

function continued(text, title, kind, { continuation }) {
  const tail = plain(text.slice(-TAIL));
  return h(
    `div.said-${kind}`,
    null,
    h("h3", null, title),
    h(
      "blockquote",
      null,
      h("span.small", null, text.length > TAIL ? `… ${tail}` : tail),
      h("b", null, plain(continuation ?? "")),
    ),
  );
}

function paired(before, after) {
  const rows = new Map();
  const same =
    before.length === after.length && before.every(({ t }, index) => t === after[index].t);
  const put =
    (side) =>
    ({ t, p }, index) => {
      const key = same ? index : t;
      rows.set(key, { ...(rows.get(key) ?? { t }), [side]: p });
    };
  before.forEach(put("before"));
  after.forEach(put("after"));
  const list = [...rows.values()]
    .sort((a, b) => Math.max(b.before ?? 0, b.after ?? 0) - Math.max(a.before ?? 0, a.after ?? 0))
    .slice(0, ROWS);
  const most = Math.max(1e-9, ...list.flatMap((row) => [row.before ?? 0, row.after ?? 0]));
  return h(
    "ol.paired",
    null,
    list.map((row) =>
      h(
        "li",
        { data: { token: row.t } },
        h("span.tok", null, visible(row.t)),
        h(
          "span.pair",
          null,
          bar((row.before ?? 0) / most, "before"),
          bar((row.after ?? 0) / most, "after"),
        ),
        h(
          "span.number",
          null,
          h("span.p-before", null, percent(row.before)),
          h("span.p-after", null, percent(row.after)),
        ),
      ),
    ),
  );
}

function moved(changes) {
  return h(
    "ul.moved",
    null,
    changes
      .slice(0, 8)
      .map(({ t, before, after }) =>
        h(
          "li",
          { class: after > before ? "rose" : "fell" },
          h("span.tok", null, visible(t)),
          h("span.number", null, `${percent(before)} → ${percent(after)}`),
        ),
      ),
  );
}
