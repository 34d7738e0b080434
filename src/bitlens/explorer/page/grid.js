// A table of any number of rows, of which only those in sight are on the page.

import { h, perFrame, style } from "./dom.js";

const SPARE = 6; // rows kept ready above and below what is in sight
let grids = 0;

/**
 * columns: [{ key, label, title, width (pixels), grow, number }], most important
 * first (`stack`: also where rows are stacked, on a narrow page);
 * cell(row, column, node) fills a cell. The grid shows as many columns as fit.
 */
export class Grid {
  constructor({ label, columns, cell, open, sort, stacked, note }) {
    Object.assign(this, { columns, cell, open, sort, heights: [34, stacked] });
    this.id = `grid-${++grids}`;
    this.rows = [];
    this.at = -1; // the active row, as an index into rows
    this.pool = [];
    this.head = h("div.grid-head", { role: "row", "aria-rowindex": 1 });
    this.space = h("div.grid-space", { role: "presentation" });
    this.note = h("p.note", note);
    this.body = h(
      "div.grid-body",
      { role: "rowgroup", onscroll: perFrame(() => this.draw()) },
      this.space,
    );
    this.node = h(
      "div.grid",
      { role: "grid", "aria-label": label, tabindex: 0, "aria-readonly": "true" },
      this.head,
      this.body,
    );
    this.node.addEventListener("keydown", (event) => this.key(event) && event.preventDefault());
    this.body.addEventListener("click", (event) => this.clicked(event));
    this.watch = new ResizeObserver(perFrame(() => this.fit()));
    this.watch.observe(this.body);
  }

  close() {
    this.watch.disconnect();
  }

  /** Show these rows; the active one stays if it is among them. */
  setRows(rows) {
    const active = this.rows[this.at];
    this.rows = rows;
    this.at = active !== undefined ? rows.indexOf(active) : -1;
    this.node.setAttribute("aria-rowcount", rows.length + 1);
    style(this.space, { height: `${rows.length * this.rowHeight}px` });
    this.stale = true;
    this.note.remove();
    if (!rows.length) this.body.append(this.note);
    this.draw();
  }

  get rowHeight() {
    return this.heights[this.narrow ? 1 : 0];
  }

  /** Choose the columns that fit, and lay out again. */
  fit() {
    const width = this.body.clientWidth;
    if (!width) return;
    const narrow = width < 600;
    const shown = narrow
      ? this.columns.filter((column) => column.stack)
      : fitting(this.columns, width);
    const names = shown.map((column) => column.key).join();
    if (names !== this.names || narrow !== this.narrow) {
      Object.assign(this, { names, narrow, shown });
      this.node.classList.toggle("narrow", narrow);
      const tracks = shown
        .map(({ width: w, grow }) => (grow ? `minmax(${w}px, ${grow}fr)` : `${w}px`))
        .join(" ");
      style(this.node, { "--tracks": tracks, "--row": `${this.rowHeight}px` });
      style(this.space, { height: `${this.rows.length * this.rowHeight}px` });
      this.drawHead();
      for (const { node } of this.pool) node.remove();
      this.pool = [];
    }
    this.draw();
  }

  drawHead() {
    const { key: sorted, down } = this.sorted ?? {};
    this.node.setAttribute("aria-colcount", this.shown.length);
    this.head.replaceChildren(
      ...this.shown.map((column) => {
        const here = column.key === sorted;
        return h(
          `div.cell${column.number ? ".number" : ""}`,
          {
            role: "columnheader",
            title: column.title,
            data: { key: column.key },
            "aria-sort": here ? (down ? "descending" : "ascending") : "none",
          },
          h(
            "button",
            { type: "button", tabindex: -1, onclick: () => this.sort(column.key) },
            column.label,
            here && h("i", { "aria-hidden": "true" }, down ? "↓" : "↑"),
          ),
        );
      }),
    );
  }

  /** Say which column is sorted. */
  setSorted(key, down) {
    this.sorted = { key, down };
    if (this.shown) this.drawHead();
  }

  /** Put the rows in sight on the page, reusing those that left it. */
  draw() {
    if (!this.shown) return;
    const { scrollTop, clientHeight } = this.body;
    const first = Math.max(0, Math.floor(scrollTop / this.rowHeight) - SPARE);
    const last = Math.min(
      this.rows.length,
      Math.ceil((scrollTop + clientHeight) / this.rowHeight) + SPARE,
    );
    const free = this.pool.filter((slot) => this.stale || slot.index < first || slot.index >= last);
    const there = new Set(this.stale ? [] : this.pool.map((slot) => slot.index));
    this.stale = false;
    for (let index = first; index < last; index++) {
      if (!there.has(index)) this.place(free.pop() ?? this.slot(), index);
    }
    for (const slot of free) {
      slot.index = -1;
      slot.node.hidden = true;
    }
    this.mark();
  }

  slot() {
    const cells = this.shown.map((column) =>
      h(`div.cell${column.number ? ".number" : ""}`, {
        role: "gridcell",
        data: { key: column.key },
      }),
    );
    const slot = { index: -1, cells, node: h("div.grid-row", { role: "row" }, cells) };
    this.pool.push(slot);
    this.space.append(slot.node);
    return slot;
  }

  place(slot, index) {
    slot.index = index;
    slot.node.hidden = false;
    slot.node.id = `${this.id}-${index}`;
    slot.node.setAttribute("aria-rowindex", index + 2);
    style(slot.node, { transform: `translateY(${index * this.rowHeight}px)` });
    this.shown.forEach((column, number) => {
      slot.cells[number].textContent = "";
      this.cell(this.rows[index], column, slot.cells[number]);
    });
  }

  mark() {
    for (const { node, index } of this.pool) {
      const active = index === this.at && index >= 0;
      node.classList.toggle("active", active);
      node.setAttribute("aria-selected", active);
    }
    if (this.at >= 0) this.node.setAttribute("aria-activedescendant", `${this.id}-${this.at}`);
    else this.node.removeAttribute("aria-activedescendant");
  }

  /** Make a row the active one, and bring it into sight. */
  move(index) {
    if (!this.rows.length) return;
    this.at = Math.min(Math.max(index, 0), this.rows.length - 1);
    const top = this.at * this.rowHeight;
    const { scrollTop, clientHeight } = this.body;
    if (top < scrollTop) this.body.scrollTop = top;
    else if (top + this.rowHeight > scrollTop + clientHeight)
      this.body.scrollTop = top + this.rowHeight - clientHeight;
    this.draw();
    this.onmove?.(this.rows[this.at]);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.rowHeight) - 1);
    const steps = {
      ArrowDown: 1,
      j: 1,
      ArrowUp: -1,
      k: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    if (event.key in steps) {
      this.move(this.at < 0 && steps[event.key] < Infinity ? 0 : this.at + steps[event.key]);
      return true;
    }
    if (event.key === "Enter" && this.at >= 0 && !event.target.closest("a, button")) {
      this.open(this.rows[this.at]);
      return true;
    }
    return false;
  }

  clicked(event) {
    const row = event.target.closest(".grid-row");
    const slot = this.pool.find(({ node }) => node === row);
    if (!slot || event.target.closest("a, button")) return;
    if (String(getSelection())) return; // text was selected, not a row chosen
    this.move(slot.index);
    this.open(this.rows[slot.index]);
  }
}

function fitting(columns, width) {
  let left = width - 16;
  return columns.filter((column) => (left -= column.width + 16) > 0 || column.must);
}
