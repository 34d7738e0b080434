// All latents: a table to search, filter and sort, and two plots that select.

import { get } from "./api.js";
import { fillCell, gridColumns } from "./columns.js";
import { button, h, later } from "./dom.js";
import { Latents, parseRanges, writeRanges } from "./filter.js";
import { number, plain, thousands } from "./format.js";
import { Grid } from "./grid.js";
import { Histogram, Scatter } from "./plots.js";
import { go, keep, latentAddress } from "./route.js";

let kept = null; // the columns, made once
let scrolled = 0; // where the table was left

async function columns() {
  kept ??= new Latents(await get("api/latents.json"));
  return kept;
}

class View {
  constructor(root, route, context, latents) {
    Object.assign(this, { root, latents, app: context.app });
    const keys = latents.numbers.map(({ key }) => key);
    const { query } = route;
    const one = (name, fallback) => (keys.includes(query.get(name)) ? query.get(name) : fallback);
    const sort = query.get("sort") ?? "";
    this.query = query.get("q") ?? "";
    this.key = latents.byKey.has(sort.replace(/^-/, "")) ? sort.replace(/^-/, "") : "latent";
    this.down = sort.startsWith("-");
    this.flags = (query.get("flags") ?? "")
      .split(",")
      .filter((flag) => latents.flagCounts.has(flag));
    this.ranges = parseRanges(query.get("range") ?? "", keys);
    this.histogramOf = one("h", keys[0]);
    this.xOf = one("x", keys[0]);
    this.yOf = one("y", keys[1] ?? keys[0]);
    this.build();
    this.update({ keepScroll: true });
  }

  build() {
    const { latents } = this;
    this.search = h("input", {
      type: "search",
      id: "search",
      value: this.query,
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "Search tokens and explanations, or write rate>1%",
      "aria-label":
        "Search latents by words of tokens and explanations, or by conditions such as rate>1%",
      oninput: later(60, () => this.change({ query: this.search.value })),
      onkeydown: (event) => this.searchKey(event),
    });
    this.count = h("output.count", { "aria-live": "polite" });
    this.chips = h("div.chips");
    this.sortBy = h(
      "select",
      {
        "aria-label": "Sort by",
        onchange: () =>
          this.change({ key: this.sortBy.value, down: this.sortBy.value !== "latent" }),
      },
      latents.columns
        .filter(({ key }) => key !== "flags")
        .map(({ key, label }) => h("option", { value: key }, label)),
    );
    this.turn = button("", () => this.change({ down: !this.down }), {
      class: "small",
      "aria-label": "Turn the order round",
    });
    this.grid = new Grid({
      label: "Latents",
      columns: gridColumns(latents),
      stacked: latents.byKey.has("explanation") ? 82 : 60,
      note: "No latent fits. Remove a filter, or search for less.",
      cell: (row, column, node) => fillCell(latents, row, column, node),
      open: (row) => go(latentAddress(latents.latent(row))),
      sort: (key) =>
        this.change(
          key === this.key
            ? { down: !this.down }
            : { key, down: latents.byKey.get(key).kind === "number" && key !== "latent" },
        ),
    });
    this.root.append(
      h("h1.unseen", "Latents"),
      h(
        "div.seek",
        { role: "search" },
        h("div.find", this.search, h("kbd", { "aria-hidden": "true" }, "/")),
        this.chips,
        this.count,
        h("div.sorting", h("span", "Sorted by "), this.sortBy, this.turn),
      ),
      h("div.split", this.grid.node, latents.numbers.length ? this.plots() : null),
    );
  }

  plots() {
    const { latents } = this;
    const pick = (label, name) =>
      h(
        "select",
        {
          "aria-label": `Column of the ${label}`,
          onchange: (event) => this.change({ [name]: event.target.value }),
        },
        latents.numbers.map(({ key, label: text, meaning }) =>
          h("option", { value: key, selected: key === this[name], title: meaning }, text),
        ),
      );
    this.histogram = new Histogram({
      onbrush: (low, high) => this.brush([[this.histogramOf, low === null ? null : [low, high]]]),
    });
    this.scatter = new Scatter({
      onbrush: (x, y) =>
        this.brush([
          [this.xOf, x],
          [this.yOf, x && y],
        ]),
      onpick: (row) => this.pick(row),
      name: (row) => this.name(row),
    });
    return h(
      "details.plots",
      { open: window.innerWidth > 900 },
      h("summary", "Plots"),
      h(
        "figure",
        h("figcaption", "Histogram of ", pick("histogram", "histogramOf")),
        this.histogram.node,
      ),
      h(
        "figure",
        h("figcaption", pick("vertical axis", "yOf"), " against ", pick("horizontal axis", "xOf")),
        this.scatter.node,
      ),
      h(
        "p.small",
        "Drag to select; click an empty place to let go. A point is a latent; the height of a bar " +
          "is the square root of its number of latents.",
      ),
    );
  }

  name(row) {
    const tokens = this.latents.data.tokens[row].slice(0, 2);
    const shown = tokens.map((token) => plain(token).replace(/^ /, "·")).join(" ");
    return `${this.latents.latent(row)}  ${shown}`;
  }

  change(values) {
    Object.assign(this, values);
    this.update();
  }

  brush(list) {
    const keys = list.map(([key]) => key);
    const fresh = list
      .filter(([, range]) => range)
      .map(([key, [low, high]]) => ({ key, low, high }));
    this.change({ ranges: this.ranges.filter(({ key }) => !keys.includes(key)).concat(fresh) });
  }

  pick(row) {
    this.grid.move(this.rows.indexOf(row));
    this.grid.node.focus();
  }

  update({ keepScroll = false } = {}) {
    const { latents } = this;
    const state = JSON.stringify([this.query, this.ranges, this.flags]);
    if (state !== this.selectedBy) this.selected = latents.select(this);
    this.selectedBy = state;
    this.rows = latents.sort(this.selected, this.key, this.down);
    this.app.order = this.rows.map((row) => latents.latent(row));
    if (!keepScroll) this.grid.body.scrollTop = 0;
    this.grid.setSorted(this.key, this.down);
    this.grid.setRows(this.rows);
    this.sortBy.value = this.key;
    this.turn.textContent = this.down ? "↓" : "↑";
    this.count.textContent =
      this.rows.length === latents.count
        ? `${thousands(latents.count)} latents`
        : `${thousands(this.rows.length)} of ${thousands(latents.count)} latents`;
    this.drawChips();
    this.drawPlots();
    this.remember();
  }

  remember() {
    const first = this.latents.numbers[0]?.key;
    const second = this.latents.numbers[1]?.key ?? first;
    keep("latents", "", {
      q: this.query,
      sort: this.key === "latent" && !this.down ? "" : `${this.down ? "-" : ""}${this.key}`,
      flags: this.flags.join(),
      range: writeRanges(this.ranges),
      h: this.histogramOf === first ? "" : this.histogramOf,
      x: this.xOf === first ? "" : this.xOf,
      y: this.yOf === second ? "" : this.yOf,
    });
    this.app.latentsAt = location.hash || "#/latents";
    document.querySelector("#tabs a")?.setAttribute("href", this.app.latentsAt);
  }

  drawChips() {
    const flags = [...this.latents.flagCounts].map(([flag, count]) => {
      const on = this.flags.includes(flag);
      const flags = on ? this.flags.filter((other) => other !== flag) : [...this.flags, flag];
      return button([flag, h("b", thousands(count))], () => this.change({ flags }), {
        class: `chip flag-${flag}`,
        "aria-pressed": on,
        title: this.latents.byKey.get("flags").meaning,
      });
    });
    const ranges = this.ranges.map((range) => {
      const { label, format } = this.latents.byKey.get(range.key);
      const end = (value) => number(value, format);
      const text =
        range.low === -Infinity
          ? `${label} ≤ ${end(range.high)}`
          : range.high === Infinity
            ? `${label} ≥ ${end(range.low)}`
            : `${label} ${end(range.low)} to ${end(range.high)}`;
      const cross = h("b", { "aria-hidden": "true" }, "×");
      return button([text, cross], () => this.brush([[range.key, null]]), {
        class: "chip",
        "aria-pressed": "true",
        "aria-label": `Remove: ${text}`,
      });
    });
    this.chips.replaceChildren(...flags, ...ranges);
  }

  drawPlots() {
    if (!this.histogram) return;
    const { data, byKey } = this.latents;
    const range = this.ranges.find(({ key }) => key === this.histogramOf);
    this.histogram.set(byKey.get(this.histogramOf), data[this.histogramOf], this.rows, range);
    this.scatter.set({
      xColumn: byKey.get(this.xOf),
      yColumn: byKey.get(this.yOf),
      xs: data[this.xOf],
      ys: data[this.yOf],
      rows: this.rows,
      ranges: this.ranges,
    });
  }

  searchKey(event) {
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      this.grid.node.focus();
      if (this.grid.at < 0) this.grid.move(0);
    } else if (event.key === "Escape" && this.search.value) {
      event.preventDefault();
      event.stopPropagation();
      this.search.value = "";
      this.change({ query: "" });
    }
  }

  ready() {
    this.grid.fit();
    this.grid.body.scrollTop = scrolled;
    const last = this.app.lastLatent;
    const at = last === undefined ? -1 : this.rows.indexOf(this.latents.rowOf.get(last));
    if (at >= 0) this.grid.move(at);
    if (this.app.focusSearch) this.search.focus();
    else this.grid.node.focus({ preventScroll: true });
    this.app.focusSearch = false;
  }

  keys(event) {
    if (event.key === "/") {
      this.search.focus();
      this.search.select();
      return true;
    }
    if (event.key === "Escape" && (this.ranges.length || this.flags.length || this.query)) {
      this.search.value = "";
      this.change({ ranges: [], flags: [], query: "" });
      return true;
    }
    if (event.target.closest?.("select, button, summary") && event.key === "Enter") return false;
    return this.grid.key(event);
  }

  close() {
    scrolled = this.grid.body.scrollTop;
    for (const part of [this.grid, this.histogram, this.scatter]) part?.close();
  }
}

export async function showLatents(root, route, context) {
  const latents = await columns();
  if (!latents.count) {
    root.append(h("h1.unseen", "Latents"), h("p.note", "This run has no latents."));
    return null;
  }
  return new View(root, route, context, latents);
}
