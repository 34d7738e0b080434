// What is known of a latent, a card each.

import { intervalBar, tokenBars } from "./charts.js";
import { examples, quoted, tokenChips } from "./contexts.js";
import { button, h, pairs } from "./dom.js";
import { counted, known, number, percent, plain, short } from "./format.js";
import { latentAddress } from "./route.js";

const MOST = { wide: 20, narrow: 6 }; // examples shown before one asks for more

export function card(title, note, ...content) {
  return h("section.card", h("h2", title), note && h("p.small", note), content);
}

/** Two lists of tokens side by side: [heading, rows, kind] each. */
function twoLists(...lists) {
  const column = ([title, rows, kind]) => h("div", h("h3", title), tokenBars(rows, kind));
  return h("div.two", lists.map(column));
}

export const flagChip = (flag) => flag && h(`span.flag.flag-${flag}`, flag);

export function facts(latent) {
  const list = [
    ["on in", percent(latent.rate), "of the tokens"],
    ["when on", `${number(latent.surprisal, ".3g")} bits`, "of surprise"],
    ["costs", `${number(latent.bits, ".3g")} bits`, "a token"],
  ].filter(([, value]) => !value.startsWith("–"));
  return h(
    "dl.facts",
    list.map(([before, value, after]) =>
      h("div", h("dt", before), h("dd", value), h("dd.small", after)),
    ),
  );
}

function explanation({ explanation: it }) {
  if (!it?.text) return null;
  const right = it.verdicts.filter(({ on, said }) => on === said).length;
  const interval = known(it.low) ? ` (${number(it.low, ".2f")} to ${number(it.high, ".2f")})` : "";
  return h(
    "section.explanation",
    { "aria-label": "Explanation" },
    h("p.said-of-it", plain(it.text)),
    it.untested && h("p.small", `not tested: ${plain(it.untested)}`),
    known(it.score) &&
      h(
        "div.score",
        h(
          "span",
          { title: "balanced accuracy of a judge who reads it; chance is 0.50" },
          "score ",
          h("b", number(it.score, ".2f")),
          `${interval}, chance is 0.50`,
        ),
        intervalBar(it.score, it.low, it.high),
        typeof it.interpretable === "boolean" &&
          h(
            `span.flag.${it.interpretable ? "fine" : "poor"}`,
            it.interpretable ? "interpretable" : "not interpretable",
          ),
        it.judge && h("span.small", `by ${plain(it.judge)}`),
      ),
    it.verdicts.length > 0 &&
      h(
        "details",
        h("summary", `Evidence: the judge was right on ${right} of ${it.verdicts.length} contexts`),
        h("ol.examples.verdicts", it.verdicts.map(evidence)),
      ),
  );
}

function evidence(verdict) {
  const { on, said } = verdict;
  const state = on ? "on" : "off";
  const answer = known(said) ? `said ${said ? "on" : "off"}` : "gave no answer";
  return h(
    "li",
    { class: on === said ? "right" : "wrong" },
    h(
      "span.verdict",
      { title: `the latent is ${state}; the judge ${answer}` },
      on === said ? "✓" : "✗",
      h("span", ` ${state}`),
    ),
    quoted(verdict),
  );
}

function exampleCard({ examples: list }) {
  if (!list?.length)
    return card("Examples", null, h("p.note", "This latent is on at no token of these codes."));
  const body = h("div");
  const draw = (count) =>
    body.replaceChildren(
      examples(list.slice(0, count)),
      count < list.length
        ? button(`All ${list.length}`, () => draw(list.length), { class: "small" })
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
    twoLists(["it is on at", rows(preferred)], ["followed by", rows(next)]),
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
      list.map(([name, value]) =>
        h(
          "li",
          { title: `positions ${name}: ${number(value, ".2f")} times its rate` },
          h("span.number", value >= 10 ? value.toFixed(0) : value.toFixed(1)),
          h(
            "span.column",
            { "aria-hidden": "true" },
            h("i", { css: { height: `${(100 * value) / most}%` } }),
          ),
          h("span.small", name),
        ),
      ),
    ),
  );
}

function logits({ promotes, suppresses }) {
  if (!promotes?.length && !suppresses?.length) return null;
  const rows = (list) =>
    list.map(({ text, logit }) => ({ text, value: logit, shown: number(logit, "+.2f") }));
  return card(
    "Outputs",
    "What its direction adds to the logits of the next token, straight through the unembedding.",
    twoLists(["promotes", rows(promotes), "up"], ["suppresses", rows(suppresses), "down"]),
  );
}

function withInterval(it, name, format) {
  const [low, high] = [it[`${name}_low`], it[`${name}_high`]].map((end) => number(end, format));
  const interval = low === "–" ? "" : ` (${low} to ${high})`;
  return `${number(it[name], format)} nats${interval}`;
}

function effect({ effect: it }) {
  if (!it) return null;
  if (!it.rows)
    return card("Measured effect", "It was not switched: it is on at no token of the contexts.");
  const rows = (list, sign) =>
    list
      .filter(({ logp }) => sign * logp > 0)
      .map(({ text, logp }) => ({ text, value: logp, shown: number(logp, "+.2f") }));
  const turned = it.switched === "on" ? "on where it is off" : "off where it is on";
  const step = "as long a step along another latent, at the same tokens";
  const rise = "rise of the cross-entropy of the tokens that follow";
  const control = [["of a control", `${number(it.kl_control, ".3g")} nats`, step]];
  return card(
    "Measured effect",
    `Switched ${turned}, at ${counted(it.rows, "token")}. Below: tokens that are more or less ` +
      "likely next with it on, by log-probability in nats; means.",
    pairs([
      ["KL divergence", withInterval(it, "kl_div", ".3g")],
      ...(known(it.kl_control) ? control : []),
      ["loss, when switched", withInterval(it, "loss", "+.3f"), rise],
    ]),
    twoLists(["raises", rows(it.raises, 1), "up"], ["lowers", rows(it.lowers, -1), "down"]),
    it.downstream?.length > 0 && [
      h("h3", "latents downstream"),
      h(
        "p.links",
        it.downstream.map(({ latent, value }) => h("span", `${latent} ${number(value, "+.2g")}`)),
      ),
    ],
  );
}

function neighbour({ latent, tokens, value }) {
  return h(
    "li",
    h(
      "a",
      { href: latentAddress(latent) },
      h("b", String(latent)),
      h("span.toks", tokenChips(tokens, 3)),
    ),
    known(value) && h("span.number", number(value, ".2f")),
  );
}

function neighbours(latent) {
  const list = (title, note, rows) =>
    rows?.length > 0 &&
    h("div", h("h3", { title: note }, title), h("ul.near", rows.map(neighbour)));
  const parts = [
    list("in the tree", "Neighbours in the Chow-Liu tree: they say most about it.", latent.tree),
    list(
      "on together, Jaccard",
      "Tokens at which both are on, of those at which either is; corrected for chance.",
      latent.together,
    ),
    list("similar directions, cosine", "Of the rows of the decoder.", latent.similar),
  ].filter(Boolean);
  if (!parts.length) return null;
  return h("section.card.neighbours", h("h2", "Neighbours"), h("div.three", parts));
}

/** The column of a latent's cards; the compare view shows two of them. */
export function latentCards(latent) {
  return {
    wide: [explanation(latent), exampleCard(latent), neighbours(latent)],
    side: [tokenCard(latent), logits(latent), effect(latent), positions(latent)].filter(Boolean),
  };
}

export function latentSummary(latent) {
  return [facts(latent), flagChip(latent.flags)];
}
