// What was measured of the run, how it was learned and made.

import { get } from "./api.js";
import { lineChart } from "./charts.js";
import { copyButton, h, style } from "./dom.js";
import { counted, lastPart, number } from "./format.js";

/** The command line that measures this run. */
function measuring(commands) {
  const line = (commands ?? []).find((command) => command.startsWith("bitlens evaluate "));
  return h("code", null, line ?? "bitlens evaluate RUN STORE");
}

function numbers(list, commands) {
  if (!list?.length)
    return h(
      "p.note",
      null,
      "Nothing was measured yet. ",
      measuring(commands),
      " does it; then load this page again.",
    );
  return h(
    "table.numbers",
    null,
    h(
      "tbody",
      null,
      list.map(({ name, value, low, high, meaning, shown }) => {
        const half =
          low === null || low === undefined || high === null || high === undefined
            ? null
            : (high - low) / 2;
        return h(
          "tr",
          null,
          h("th", { scope: "row" }, name),
          h(
            "td.number",
            { title: half === null ? null : `${number(low)} to ${number(high)}` },
            shown ?? number(value),
          ),
          h("td.small", null, meaning ?? ""),
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
  const rows = BOUNDS.filter(([key]) => typeof it?.[key] === "number").map(([key, text, kind]) =>
    floats && kind === "ours"
      ? { key, text: `${text}, and bits_magnitudes`, kind, value: it[key] + floats }
      : { key, text, kind, value: it[key] },
  );
  if (!rows.length) return null;
  const most = 1.08 * Math.max(...rows.map(({ value }) => value));
  return h(
    "section.card",
    null,
    h("h2", null, "Entropy"),
    h(
      "p.small",
      null,
      "Bits a hidden state, beside what a Gaussian of its spectrum takes for the same error.",
    ),
    h(
      "ol.entropy",
      null,
      rows.map(({ key, text, kind, value }) =>
        h(
          `li.${kind}`,
          null,
          h("span", null, h("b", null, key), h("span.small", null, text)),
          h(
            "span.measure",
            { "aria-hidden": "true" },
            style(h("i"), { width: `${(100 * value) / most}%` }),
          ),
          h("span.number", null, `${number(value, ",.1f")} bits`),
        ),
      ),
    ),
    typeof it.bits_gaussian === "number"
      ? null
      : h(
          "p.small.under",
          null,
          bits === false ? "What the values of the latents cost is not counted yet. " : "",
          "The Gaussian bound is among the numbers that are not measured yet.",
        ),
  );
}

function made(list, settings = []) {
  if (!list?.length && !settings.length) return null;
  const shown = (value) => (typeof value === "number" ? number(value) : String(value));
  return h(
    "section.card.made",
    null,
    h("h2", null, "How it was made"),
    h(
      "dl.pairs",
      null,
      list.map(([label, value]) => [h("dt", null, label), h("dd", null, shown(value))]),
    ),
    settings.length
      ? h(
          "details",
          null,
          h("summary", null, `Settings of the training (${settings.length})`),
          h(
            "dl.pairs",
            null,
            settings.map(([label, value]) =>
              h("div", null, h("dt", null, label), h("dd", null, shown(value))),
            ),
          ),
        )
      : null,
  );
}

function curves({ curves: it, curves_meaning: meanings = {} }) {
  const { step, ...rest } = it ?? {};
  const charts = Object.entries(rest)
    .map(([name, ys]) => lineChart({ name, meaning: meanings[name], xs: step, ys }))
    .filter(Boolean);
  if (!charts.length) return null;
  return h(
    "section.card.curves-card",
    null,
    h("h2", null, "Training"),
    h("div.curves", null, charts),
  );
}

export async function showRun(root, route, { run }) {
  const it = await get("api/run.json");
  const all = (it.commands ?? []).join("\n");
  root.append(
    h(
      "header.run-head",
      null,
      h("h1", null, it.title),
      h(
        "p",
        null,
        h("span.kind", null, it.kind),
        ` ${counted(it.n_latents, "latent")} from ${counted(it.d_in, "float")} of `,
        h("b", { title: it.model }, lastPart(it.model)),
        ` at ${it.hook}`,
        it.rows ? `, ${counted(it.rows, "row")}` : "",
      ),
    ),
    h(
      "div.run-body",
      null,
      h(
        "div",
        null,
        h(
          "section.card",
          null,
          h("h2", null, "Numbers"),
          it.measured?.length ? h("p.small", null, it.measured.join(" ")) : null,
          numbers(it.numbers, it.commands),
        ),
        made(it.made, it.settings),
      ),
      h(
        "div",
        null,
        entropy(it),
        curves(it),
        it.commands?.length
          ? h(
              "section.card",
              null,
              h(
                "div.row.between",
                null,
                h("h2", null, "Commands"),
                copyButton("Copy all", all, "Commands"),
              ),
              it.commands.map((command) =>
                h(
                  "div.command",
                  null,
                  h("pre", { tabindex: 0 }, command),
                  copyButton("Copy", command, "The command"),
                ),
              ),
            )
          : null,
      ),
    ),
  );
  return { title: `Run ${run.title}` };
}
