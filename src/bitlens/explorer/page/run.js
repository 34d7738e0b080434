// What was measured of the run, how it was learned and made.

import { get } from "./api.js";
import { lineChart } from "./charts.js";
import { card } from "./cards.js";
import { copyButton, h, pairs } from "./dom.js";
import { counted, known, lastPart, number } from "./format.js";

/** The command line that measures this run. */
function measuring(commands) {
  const line = commands.find((command) => command.startsWith("bitlens evaluate "));
  return h("code", line ?? "bitlens evaluate RUN STORE");
}

function numbers(list, commands) {
  if (!list?.length)
    return h(
      "p.note",
      "Nothing was measured yet. ",
      measuring(commands),
      " does it; then load this page again.",
    );
  return h(
    "table.numbers",
    h(
      "tbody",
      list.map(({ name, low, high, meaning, shown }) => {
        const interval = known(low) ? `${number(low)} to ${number(high)}` : null;
        return h(
          "tr",
          h("th", { scope: "row" }, name),
          h("td.number", { title: interval }, shown),
          h("td.small", meaning),
        );
      }),
    ),
  );
}

const BOUNDS = [
  ["bits_marginal", "each latent by itself", "ours"],
  ["bits_tree", "each given one other", "ours"],
  ["bits_joint", "each given all before it", "ours"],
  ["bits_gaussian", "Gaussian bound", "theirs"],
];

function entropy({ entropy: it, bits }) {
  // The values of a sparse autoencoder's latents are a part of what its codes cost.
  const floats = it?.bits_magnitudes ?? 0;
  const rows = BOUNDS.filter(([key]) => known(it?.[key])).map(([key, text, kind]) =>
    floats && kind === "ours"
      ? { key, text: `${text}, and bits_magnitudes`, kind, value: it[key] + floats }
      : { key, text, kind, value: it[key] },
  );
  if (!rows.length) return null;
  const most = 1.08 * Math.max(...rows.map(({ value }) => value));
  return card(
    "Entropy",
    "Bits a hidden state, beside what a Gaussian of its spectrum takes for the same error.",
    h(
      "ol.entropy",
      rows.map(({ key, text, kind, value }) =>
        h(
          `li.${kind}`,
          h("span", h("b", key), h("span.small", text)),
          h(
            "span.measure",
            { "aria-hidden": "true" },
            h("i", { css: { width: `${(100 * value) / most}%` } }),
          ),
          h("span.number", `${number(value, ",.1f")} bits`),
        ),
      ),
    ),
    !known(it.bits_gaussian) &&
      h(
        "p.small.under",
        bits ? "" : "What the values of the latents cost is not counted yet. ",
        "The Gaussian bound is among the numbers that are not measured yet.",
      ),
  );
}

function made(list, settings = []) {
  if (!list?.length && !settings.length) return null;
  return h(
    "section.card.made",
    h("h2", "How it was made"),
    pairs(list),
    settings.length > 0 &&
      h(
        "details",
        h("summary", `Settings of the training (${settings.length})`),
        h(
          "dl.pairs",
          settings.map(([label, value]) => h("div", h("dt", label), h("dd", value))),
        ),
      ),
  );
}

function curves({ curves: it, curves_meaning: meanings = {} }) {
  const { step, ...rest } = it ?? {};
  const charts = Object.entries(rest)
    .map(([name, ys]) => lineChart({ name, meaning: meanings[name], xs: step, ys }))
    .filter(Boolean);
  if (!charts.length) return null;
  return h("section.card.curves-card", h("h2", "Training"), h("div.curves", charts));
}

export async function showRun(root, route, { run }) {
  const it = await get("api/run.json");
  const all = it.commands.join("\n");
  root.append(
    h(
      "header.run-head",
      h("h1", it.title),
      h(
        "p",
        h("span.kind", it.kind),
        ` ${counted(it.n_latents, "latent")} from ${counted(it.d_in, "float")} of `,
        h("b", { title: it.model }, lastPart(it.model)),
        ` at ${it.hook}`,
        it.rows ? `, ${counted(it.rows, "row")}` : "",
      ),
    ),
    h(
      "div.run-body",
      h(
        "div",
        card("Numbers", it.measured?.join(" "), numbers(it.numbers, it.commands)),
        made(it.made, it.settings),
      ),
      h(
        "div",
        entropy(it),
        curves(it),
        it.commands.length > 0 &&
          h(
            "section.card",
            h("div.row.between", h("h2", "Commands"), copyButton("Copy all", all, "Commands")),
            it.commands.map((command) =>
              h(
                "div.command",
                h("pre", { tabindex: 0 }, command),
                copyButton("Copy", command, "The command"),
              ),
            ),
          ),
      ),
    ),
  );
  return { title: `Run ${run.title}` };
}
