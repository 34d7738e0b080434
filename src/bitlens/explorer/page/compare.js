// Two runs: their matched latents side by side.

import { get } from "./api.js";
import { latentSummary } from "./cards.js";
import { tokenBars } from "./charts.js";
import { examples, tokenChips } from "./contexts.js";
import { button, h, later, pairs } from "./dom.js";
import { known, number, percent, thousands, visible } from "./format.js";
import { Grid } from "./grid.js";
import { keep, latentAddress } from "./route.js";

const NUMBERS = ["a_rate", "b_rate", "jaccard", "cosine"];
const column = (key, label, width, title, more) => ({ key, label, width, title, ...more });
const COLUMNS = [
  column("a", "a", 42, "latent of the first run", { must: true }),
  column("a_tokens", "tokens", 120, "on which tokens it is on", { grow: 2, must: true }),
  column("b", "b", 42, "its match in the second run", { must: true }),
  column("b_tokens", "tokens", 120, "on which tokens the match is on", { grow: 2, must: true }),
  column(
    "jaccard",
    "jaccard",
    64,
    "tokens at which both are on, of those at which either is; corrected for chance",
    { number: true },
  ),
  column("category", "category", 76, "what a is to b"),
  column("cosine", "cosine", 58, "of the two decoders", { number: true }),
  column("a_rate", "rate a", 70, null, { number: true }),
  column("b_rate", "rate b", 70, null, { number: true }),
];

const MEANINGS = {
  same: "both are on at the same tokens: Jaccard of .5 or more",
  contained: "it is on where one latent of the other run is, which is on elsewhere, too",
  contains: "latents of the other run are on only where it is",
  absent: "no latent of the other run is like it",
  dead: "on in under .01 % of the tokens",
  stuck: "off in under .01 % of the tokens",
};

const words = (tokens) => tokens.map(visible).join(" ").toLowerCase();

class View {
  constructor(root, route, { a, b, rows, counts }) {
    Object.assign(this, { root, a, b, rows, counts });
    this.query = route.query.get("q") ?? "";
    this.category = route.query.get("category") ?? "";
    const sort = route.query.get("sort") ?? "-jaccard";
    this.key = COLUMNS.some(({ key }) => key === sort.replace(/^-/, ""))
      ? sort.replace(/^-/, "")
      : "jaccard";
    this.down = sort.startsWith("-");
    this.at = Number(route.query.get("at") ?? -1);
    this.words = rows.map(
      (row) => `${row.a ?? ""} ${row.b ?? ""} ${words(row.a_tokens)} ${words(row.b_tokens)}`,
    );
    this.build();
    this.update();
  }

  build() {
    const search = h("input", {
      type: "search",
      value: this.query,
      autocomplete: "off",
      placeholder: "Search tokens or numbers",
      "aria-label": "Search matched latents",
      oninput: later(60, () => this.change({ query: search.value })),
    });
    this.search = search;
    this.chips = h("div.chips");
    this.count = h("output.count", { "aria-live": "polite" });
    const there = COLUMNS.filter(({ key }) => this.rows.some((row) => known(row[key])));
    this.grid = new Grid({
      label: "Matched latents",
      columns: there.map((column) => ({ ...column, stack: !column.key.endsWith("rate") })),
      note: "No pair fits.",
      stacked: 84,
      cell: (row, column, node) => this.cell(this.rows[row], column.key, node),
      open: (row) => this.open(row),
      sort: (key) =>
        this.change(key === this.key ? { down: !this.down } : { key, down: NUMBERS.includes(key) }),
    });
    this.grid.onmove = later(90, (row) => row !== this.at && this.open(row));
    this.pair = h(
      "div.pair-panel",
      { "aria-live": "polite" },
      h("p.note", "Choose a pair to see both latents side by side."),
      pairs(Object.entries(MEANINGS).filter(([category]) => this.counts[category])),
    );
    this.root.append(
      h(
        "header.run-head",
        h("h1", "Compare"),
        h(
          "p",
          h("span.kind", "a"),
          ` ${this.a.title}, ${this.a.kind} `,
          h("span.kind", "b"),
          ` ${this.b.title}, ${this.b.kind}`,
        ),
      ),
      h("div.seek", { role: "search" }, h("div.find", search), this.chips, this.count),
      h("div.split.compare-split", this.grid.node, this.pair),
    );
  }

  change(values) {
    Object.assign(this, values);
    this.update();
  }

  update() {
    const query = this.query.toLowerCase();
    const value = (row) => (this.key.endsWith("tokens") ? words(row[this.key]) : row[this.key]);
    const list = [...this.rows.keys()].filter(
      (row) =>
        (!this.category || this.rows[row].category === this.category) &&
        this.words[row].includes(query),
    );
    const side = this.down ? -1 : 1;
    list.sort((x, y) => {
      const [a, b] = [value(this.rows[x]), value(this.rows[y])];
      if (!known(a) || !known(b)) return known(b) - known(a) || x - y;
      return side * (a < b ? -1 : a > b ? 1 : 0) || x - y;
    });
    this.grid.setSorted(this.key, this.down);
    this.grid.setRows(list);
    this.count.textContent = `${thousands(list.length)} of ${thousands(this.rows.length)} pairs`;
    const categories = Object.entries(this.counts).filter(([category]) =>
      this.rows.some((row) => row.category === category),
    );
    this.chips.replaceChildren(
      ...categories.map(([category, count]) =>
        button(
          [category, h("b", thousands(count))],
          () => this.change({ category: category === this.category ? "" : category }),
          {
            class: "chip",
            "aria-pressed": category === this.category,
            title: MEANINGS[category],
          },
        ),
      ),
    );
    this.remember();
  }

  remember() {
    keep("compare", "", {
      q: this.query,
      category: this.category,
      sort: this.key === "jaccard" && this.down ? "" : `${this.down ? "-" : ""}${this.key}`,
      at: this.at < 0 ? "" : this.at,
    });
  }

  cell(row, key, node) {
    const value = row[key];
    if (key.endsWith("tokens")) node.append(...tokenChips(value, 4));
    else if (key.endsWith("rate")) node.textContent = percent(value);
    else if (NUMBERS.includes(key)) node.textContent = number(value, ".2f");
    else node.textContent = value ?? "–";
    if (NUMBERS.includes(key))
      node.dataset.label = COLUMNS.find((column) => column.key === key).label;
  }

  async open(index) {
    const row = this.rows[index];
    this.at = index;
    this.remember();
    const ask = (path, latent) => (known(latent) ? get(`${path}/${latent}.json`) : null);
    const sides = await Promise.allSettled([ask("api/latents", row.a), ask("api/beside", row.b)]);
    if (this.at !== index) return;
    const names = [this.a.title, this.b.title];
    this.pair.replaceChildren(
      h(
        "div.pair-facts",
        h("b", { title: MEANINGS[row.category] }, row.category),
        h("span", `jaccard ${number(row.jaccard, ".2f")}`),
        h("span", `cosine ${number(row.cosine, ".2f")}`),
      ),
      h(
        "div.two",
        sides.map(({ value, reason }, side) => this.side(names[side], side, value, reason)),
      ),
    );
  }

  side(name, side, latent, reason) {
    if (reason) return h("div.card", h("h2", name), h("p.note.failed", reason.message));
    if (!latent) return h("div.card", h("h2", name), h("p.note", "No latent of this run matches."));
    const title =
      side === 0
        ? h("a", { href: latentAddress(latent.latent) }, String(latent.latent))
        : String(latent.latent);
    return h(
      "div.card",
      h("p.small", name),
      h("h2", "Latent ", title),
      latentSummary(latent),
      latent.explanation && h("p", latent.explanation.text),
      latent.preferred.length > 0 &&
        tokenBars(
          latent.preferred
            .slice(0, 6)
            .map(({ text, share }) => ({ text, value: share, shown: percent(share) })),
        ),
      latent.examples.length
        ? examples(latent.examples.slice(0, 6))
        : h("p.note", "It is on nowhere in these codes."),
    );
  }

  ready() {
    this.grid.fit();
    if (this.at >= 0 && this.at < this.rows.length) {
      this.grid.move(this.grid.rows.indexOf(this.at));
      this.open(this.at);
    }
    this.grid.node.focus({ preventScroll: true });
  }

  keys(event) {
    if (event.key === "/") return (this.search.focus(), true);
    return this.grid.key(event);
  }

  close() {
    this.grid.close();
  }
}

export async function showCompare(root, route, { run }) {
  if (!run.beside) {
    root.append(
      h("h1", "Compare"),
      h(
        "p.note",
        "There is one run here. Start ",
        h("code", "bitlens explore RUN --beside OTHER_RUN"),
        " to see its latents beside those of another.",
      ),
    );
    return null;
  }
  return new View(root, route, await get("api/compare.json"));
}
