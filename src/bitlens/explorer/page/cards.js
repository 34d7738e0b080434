// What is known of a latent, a card each.

import { intervalBar, tokenBars } from "./charts.js";
import { examples, quoted, tokenChips } from "./contexts.js";
import { h, style } from "./dom.js";
import { counted, number, percent, plain, short } from "./format.js";
import { latentAddress } from "./route.js";

const MOST = { wide: 20, narrow: 6 }; // examples shown before one asks for more

function card(title, note, ...content) {
  return h("section.card", null, h("h2", null, title), note && h("p.small", null, note), content);
}

export function flagChips(flags) {
  return (flags ? [flags].flat().join(" ").split(/[ ,]+/) : []).map((flag) =>
    h(`span.flag.flag-${flag}`, null, flag),
  );
}

export function facts(latent) {
  const list = [
    ["on in", percent(latent.rate), "of the tokens"],
    ["when on", `${number(latent.surprisal, ".3g")} bits`, "of surprise"],
    ["costs", `${number(latent.bits, ".3g")} bits`, "a token"],
  ].filter(([, value]) => !value.startsWith("–"));
  return h(
    "dl.facts",
    null,
    list.map(([before, value, after]) =>
      h("div", null, h("dt", null, before), h("dd", null, value), h("dd.small", null, after)),
    ),
  );
}

function explanation({ explanation: it }) {
  if (!it?.text) return null;
  const verdicts = it.verdicts ?? [];
  const right = verdicts.filter(({ on, said }) => on === said).length;
  const answer = (said) =>
    said === null || said === undefined ? "gave no answer" : `said ${said ? "on" : "off"}`;
  const known = it.score !== null && it.score !== undefined;
  const interval =
    known && it.low !== null && it.low !== undefined
      ? ` (${number(it.low, ".2f")} to ${number(it.high, ".2f")})`
      : "";
  return h(
    "section.explanation",
    { "aria-label": "Explanation" },
    h("p.said-of-it", null, plain(it.text)),
    it.untested ? h("p.small", null, `not tested: ${plain(it.untested)}`) : null,
    known &&
      h(
        "div.score",
        null,
        h(
          "span",
          { title: "balanced accuracy of a judge who reads it; chance is 0.50" },
          "score ",
          h("b", null, number(it.score, ".2f")),
          `${interval}, chance is 0.50`,
        ),
        intervalBar(it.score, it.low, it.high),
        typeof it.interpretable === "boolean" &&
          h(
            `span.flag.${it.interpretable ? "fine" : "poor"}`,
            null,
            it.interpretable ? "interpretable" : "not interpretable",
          ),
        it.judge && h("span.small", null, `by ${plain(it.judge)}`),
      ),
    verdicts.length
      ? h(
          "details",
          null,
          h(
            "summary",
            null,
            `Evidence: the judge was right on ${right} of ${verdicts.length} contexts`,
          ),
          h(
            "ol.examples.verdicts",
            null,
            verdicts.map((verdict) =>
              h(
                "li",
                { class: verdict.on === verdict.said ? "right" : "wrong" },
                h(
                  "span.verdict",
                  {
                    title:
                      `the latent is ${verdict.on ? "on" : "off"}; ` +
                      `the judge ${answer(verdict.said)}`,
                  },
                  verdict.on === verdict.said ? "✓" : "✗",
                  h("span", null, ` ${verdict.on ? "on" : "off"}`),
                ),
                quoted(verdict),
              ),
            ),
          ),
        )
      : null,
  );
}

function exampleCard({ examples: list }) {
  if (!list?.length)
    return card(
      "Examples",
      null,
      h("p.note", null, "This latent is on at no token of these codes."),
    );
  const body = h("div");
  const draw = (count) =>
    body.replaceChildren(
      examples(list.slice(0, count)),
      count < list.length
        ? h(
            "button.small",
            { type: "button", onclick: () => draw(list.length) },
            `All ${list.length}`,
          )
        : "",
    );
  draw(window.innerWidth < 700 ? MOST.narrow : MOST.wide);
  return card(
    "Examples",
    "The marked token is where it is on; shaded are the others at which it is on, too.",
    body,
  );
}

function tokenCard({ preferred, next }) {
  if (!preferred?.length && !next?.length) return null;
  const rows = (list) =>
    (list ?? []).map(({ text, share, count, lift }) => ({
      text,
      value: share,
      shown: percent(share),
      title: `${counted(count, "time")}, ${short(lift, 3)} times as often as among all tokens`,
    }));
  return card(
    "Tokens",
    null,
    h(
      "div.two",
      null,
      h("div", null, h("h3", null, "it is on at"), tokenBars(rows(preferred))),
      h("div", null, h("h3", null, "followed by"), tokenBars(rows(next))),
    ),
  );
}

function positions({ positions: at }) {
  const list = Object.entries(at ?? {});
  if (!list.length) return null;
  const most = Math.max(...list.map(([, value]) => value), 1);
  return card(
    "Positions",
    "How often it is on there, relative to its rate: 1 is everywhere alike.",
    h(
      "ol.columns",
      null,
      list.map(([name, value]) =>
        h(
          "li",
          { title: `positions ${name}: ${number(value, ".2f")} times its rate` },
          h("span.number", null, value >= 10 ? value.toFixed(0) : value.toFixed(1)),
          h(
            "span.column",
            { "aria-hidden": "true" },
            style(h("i"), { height: `${(100 * value) / most}%` }),
          ),
          h("span.small", null, name),
        ),
      ),
    ),
  );
}

function logits({ promotes, suppresses }) {
  if (!promotes?.length && !suppresses?.length) return null;
  const rows = (list) =>
    (list ?? []).map(({ text, logit, value }) => ({
      text,
      value: logit ?? value,
      shown: number(logit ?? value, "+.2f"),
    }));
  return card(
    "Outputs",
    "What its direction adds to the logits of the next token, straight through the unembedding.",
    h(
      "div.two",
      null,
      h("div", null, h("h3", null, "promotes"), tokenBars(rows(promotes), "up")),
      h("div", null, h("h3", null, "suppresses"), tokenBars(rows(suppresses), "down")),
    ),
  );
}

function withInterval(it, name, format) {
  const [low, high] = [it[`${name}_low`], it[`${name}_high`]].map((end) => number(end, format));
  const known = low !== "–" && high !== "–";
  return `${number(it[name], format)} nats${known ? ` (${low} to ${high})` : ""}`;
}

function effect({ effect: it }) {
  if (!it) return null;
  if (!it.rows) {
    return card("Measured effect", "It was not switched: it is on at no token of the contexts.");
  }
  const rows = (list, sign) =>
    (list ?? [])
      .filter(({ logp }) => sign * logp > 0)
      .map(({ text, logp }) => ({ text, value: logp, shown: number(logp, "+.2f") }));
  const turned = it.switched === "on" ? "on where it is off" : "off where it is on";
  const line = (label, value, title) => [h("dt", { title }, label), h("dd", null, value)];
  const control = number(it.kl_control, ".3g");
  return card(
    "Measured effect",
    `Switched ${turned}, at ${counted(it.rows, "token")}. Below: tokens that are more or less ` +
      "likely next with it on, by log-probability in nats; means.",
    h(
      "dl.pairs",
      null,
      line("KL divergence", withInterval(it, "kl_div", ".3g")),
      control === "–"
        ? null
        : line(
            "of a control",
            `${control} nats`,
            "as long a step along another latent, at the same tokens",
          ),
      line(
        "loss, when switched",
        withInterval(it, "loss", "+.3f"),
        "rise of the cross-entropy of the tokens that follow",
      ),
    ),
    h(
      "div.two",
      null,
      h("div", null, h("h3", null, "raises"), tokenBars(rows(it.raises, 1), "up")),
      h("div", null, h("h3", null, "lowers"), tokenBars(rows(it.lowers, -1), "down")),
    ),
    it.downstream?.length
      ? [
          h("h3", null, "latents downstream"),
          h(
            "p.links",
            null,
            it.downstream.map(({ latent, value }) =>
              h("span", null, `${latent} ${number(value, "+.2g")}`),
            ),
          ),
        ]
      : null,
  );
}

function neighbours(latent) {
  const list = (title, note, rows, value) =>
    rows?.length
      ? h(
          "div",
          null,
          h("h3", { title: note }, title),
          h(
            "ul.near",
            null,
            rows.map((row) =>
              h(
                "li",
                null,
                h(
                  "a",
                  { href: latentAddress(row.latent) },
                  h("b", null, String(row.latent)),
                  h("span.toks", null, tokenChips(row.tokens, 3)),
                ),
                value && h("span.number", null, value(row)),
              ),
            ),
          ),
        )
      : null;
  const parts = [
    list("in the tree", "Neighbours in the Chow-Liu tree: they say most about it.", latent.tree),
    list(
      "on together, Jaccard",
      "Tokens at which both are on, of those at which either is; corrected for chance.",
      latent.together,
      ({ value }) => number(value, ".2f"),
    ),
    list(
      "similar directions, cosine",
      "Of the rows of the decoder.",
      latent.similar,
      ({ value }) => number(value, ".2f"),
    ),
  ].filter(Boolean);
  if (!parts.length) return null;
  return h(
    "section.card.neighbours",
    null,
    h("h2", null, "Neighbours"),
    h("div.three", null, parts),
  );
}

/** The column of a latent's cards; the compare view shows two of them. */
export function latentCards(latent) {
  return {
    wide: [explanation(latent), exampleCard(latent), neighbours(latent)],
    side: [tokenCard(latent), logits(latent), effect(latent), positions(latent)].filter(Boolean),
  };
}

export function latentSummary(latent) {
  return [facts(latent), flagChips(latent.flags)];
}
