// A histogram and a scatter on canvas, in which a drag selects.

import { h, perFrame, style } from "./dom.js";
import { number } from "./format.js";
import { axis } from "./charts.js";

const EDGE = { left: 8, right: 8, top: 8, bottom: 22 };

/** Colours of the page as they are now, light or dark, by way of the canvas's own. */
function colours(canvas) {
  const css = getComputedStyle(canvas);
  const of = (name) => {
    canvas.style.color = `var(${name})`;
    return css.color;
  };
  return {
    ink: of("--muted"),
    line: of("--line"),
    faint: of("--faint"),
    accent: of("--accent"),
    wash: of("--wash"),
    font: `11px ${css.getPropertyValue("--sans")}`,
  };
}

class Plot {
  constructor(height) {
    this.canvas = h("canvas", { role: "img" });
    this.tip = h("div.tip", { hidden: true });
    this.node = h("div.plot", this.canvas, this.tip);
    style(this.node, { height: `${height}px` });
    this.height = height;
    this.redraw = perFrame(() => this.draw());
    this.watch = new ResizeObserver(this.redraw);
    this.watch.observe(this.node);
    window.addEventListener("bitlens-theme", this.redraw);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.scheme.addEventListener("change", this.redraw);
    this.listen();
  }

  close() {
    this.watch.disconnect();
    window.removeEventListener("bitlens-theme", this.redraw);
    this.scheme.removeEventListener("change", this.redraw);
  }

  listen() {
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      this.from = at(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.from) return this.hover(at(event));
      this.to = at(event);
      return this.redraw();
    });
    canvas.addEventListener("pointerup", (event) => {
      const [from, to] = [this.from, at(event)];
      this.from = this.to = null;
      if (!from) return;
      const moved = Math.hypot(to[0] - from[0], to[1] - from[1]) > 4;
      if (moved) this.brushed(from, to);
      else this.clicked(to);
    });
    canvas.addEventListener("pointercancel", () => {
      this.from = this.to = null;
      this.redraw();
    });
    canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
  }

  /** A context of the canvas at the screen's own resolution, and the box within the axes. */
  begin() {
    const width = this.node.clientWidth;
    if (!width) return null;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas, {
      width: Math.round(width * ratio),
      height: Math.round(this.height * ratio),
    });
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    this.box = {
      left: EDGE.left + (this.leftRoom ?? 0),
      right: width - EDGE.right,
      top: EDGE.top,
      bottom: this.height - EDGE.bottom,
    };
    return pen;
  }

  xAxis(pen, colour) {
    pen.font = colour.font;
    pen.fillStyle = colour.ink;
    pen.strokeStyle = colour.line;
    pen.textBaseline = "top";
    const { left, right, bottom, top } = this.box;
    for (const tick of this.x.ticks) {
      const x = Math.round(this.px(tick)) + 0.5;
      pen.beginPath();
      pen.moveTo(x, top);
      pen.lineTo(x, bottom + 3);
      pen.stroke();
      const text = this.x.text(tick);
      const half = pen.measureText(text).width / 2;
      pen.textAlign = x - half < 2 ? "left" : x + half > right + 6 ? "right" : "center";
      pen.fillText(text, x, bottom + 6);
    }
    pen.beginPath();
    pen.moveTo(left, bottom + 0.5);
    pen.lineTo(right, bottom + 0.5);
    pen.stroke();
  }

  px(value) {
    return this.box.left + this.x.at(value) * (this.box.right - this.box.left);
  }

  xAt(pixel) {
    return this.x.back((pixel - this.box.left) / (this.box.right - this.box.left));
  }

  point(text, x, y) {
    this.tip.hidden = false;
    this.tip.textContent = text;
    const left = Math.min(
      Math.max(x - this.tip.offsetWidth / 2, 0),
      this.node.clientWidth - this.tip.offsetWidth,
    );
    style(this.tip, { left: `${left}px`, top: `${y > 50 ? y - 34 : y + 16}px` });
  }
}

/** How often each value occurs, of all and of the selected; `onbrush(low, high)` or null. */
export class Histogram extends Plot {
  constructor({ onbrush }) {
    super(150);
    this.onbrush = onbrush;
  }

  set(column, values, rows, range) {
    Object.assign(this, { column, values, rows, range });
    this.x = axis(values, column.format);
    const bins = 48;
    const count = (list) => {
      const counts = new Array(bins).fill(0);
      for (const value of list)
        if (value !== null)
          counts[Math.min(bins - 1, Math.max(0, Math.floor(this.x.at(value) * bins)))]++;
      return counts;
    };
    this.all = count(values);
    this.some = count(rows.map((row) => values[row]));
    this.canvas.setAttribute(
      "aria-label",
      `Histogram of ${column.label}, from ${this.x.text(this.x.low)} to ` +
        `${this.x.text(this.x.high)}. To select by keyboard, search for ${column.key}>….`,
    );
    this.redraw();
  }

  draw() {
    const pen = this.values && this.begin();
    if (!pen) return;
    const colour = colours(this.canvas);
    this.xAxis(pen, colour);
    const { left, right, top, bottom } = this.box;
    const width = (right - left) / this.all.length;
    const most = Math.max(1, ...this.all);
    // A square root keeps bars of a few latents in sight beside one of hundreds.
    const bars = (counts, fill) => {
      pen.fillStyle = fill;
      counts.forEach((count, bin) => {
        const high = Math.sqrt(count / most) * (bottom - top);
        if (count)
          pen.fillRect(
            left + bin * width + 0.5,
            bottom - Math.max(high, 1.5),
            Math.max(width - 1, 1),
            Math.max(high, 1.5),
          );
      });
    };
    bars(this.all, colour.faint);
    bars(this.some, colour.accent);
    const brush =
      this.from && this.to
        ? [this.from[0], this.to[0]].sort((a, b) => a - b)
        : this.range && [
            Math.max(left, this.px(this.range.low)),
            Math.min(right, this.px(this.range.high)),
          ];
    if (brush) {
      pen.fillStyle = colour.wash;
      pen.fillRect(brush[0], top, brush[1] - brush[0], bottom - top);
    }
  }

  brushed(from, to) {
    const [low, high] = [from[0], to[0]].sort((a, b) => a - b);
    this.onbrush(
      low <= this.box.left ? -Infinity : this.xAt(low),
      high >= this.box.right ? Infinity : this.xAt(high),
    );
  }

  clicked() {
    this.onbrush(null);
  }

  hover([x, y]) {
    if (!this.box) return;
    const bins = this.all.length;
    const bin = Math.floor(((x - this.box.left) / (this.box.right - this.box.left)) * bins);
    if (bin < 0 || bin >= bins) return;
    const [low, high] = [bin / bins, (bin + 1) / bins].map((share) =>
      number(this.x.back(share), this.column.format),
    );
    this.point(`${low} to ${high}: ${this.some[bin]} of ${this.all[bin]}`, x, y);
  }
}

/** Two columns against each other; `onbrush(x range, y range)` or null, `onpick(row)`. */
export class Scatter extends Plot {
  constructor({ onbrush, onpick, name }) {
    super(250);
    Object.assign(this, { onbrush, onpick, name, leftRoom: 34 });
  }

  set({ xColumn, yColumn, xs, ys, rows, ranges }) {
    Object.assign(this, { xColumn, yColumn, xs, ys, ranges, chosen: rows });
    this.x = axis(xs, xColumn.format);
    this.y = axis(ys, yColumn.format);
    this.canvas.setAttribute(
      "aria-label",
      `${yColumn.label} against ${xColumn.label}, a point a latent.`,
    );
    this.redraw();
  }

  py(value) {
    return this.box.bottom - this.y.at(value) * (this.box.bottom - this.box.top);
  }

  yAt(pixel) {
    return this.y.back((this.box.bottom - pixel) / (this.box.bottom - this.box.top));
  }

  draw() {
    const pen = this.xs && this.begin();
    if (!pen) return;
    const colour = colours(this.canvas);
    this.xAxis(pen, colour);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const tick of this.y.ticks) {
      const y = Math.round(this.py(tick)) + 0.5;
      pen.beginPath();
      pen.moveTo(this.box.left, y);
      pen.lineTo(this.box.right, y);
      pen.stroke();
      pen.fillText(this.y.text(tick), this.box.left - 5, y);
    }
    const all = this.chosen.length === this.xs.length;
    if (!all) this.dots(pen, this.xs.keys(), colour.faint);
    this.dots(pen, this.chosen, colour.accent);
    this.drawBrush(pen, colour);
  }

  dots(pen, rows, fill) {
    pen.fillStyle = fill;
    pen.globalAlpha = 0.55;
    for (const row of rows) {
      if (this.xs[row] === null || this.ys[row] === null) continue;
      pen.fillRect(this.px(this.xs[row]) - 1.5, this.py(this.ys[row]) - 1.5, 3, 3);
    }
    pen.globalAlpha = 1;
  }

  drawBrush(pen, colour) {
    const of = (key) => this.ranges.find((range) => range.key === key);
    const [rx, ry] = [of(this.xColumn.key), of(this.yColumn.key)];
    const { left, right, top, bottom } = this.box;
    let corners = null;
    if (this.from && this.to) corners = [this.from, this.to];
    else if (rx && ry) {
      const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
      corners = [
        [clamp(this.px(rx.low), left, right), clamp(this.py(ry.low), top, bottom)],
        [clamp(this.px(rx.high), left, right), clamp(this.py(ry.high), top, bottom)],
      ];
    }
    if (!corners) return;
    const [[x, y], [x2, y2]] = corners;
    pen.fillStyle = colour.wash;
    pen.fillRect(x, y, x2 - x, y2 - y);
    pen.strokeStyle = colour.accent;
    pen.strokeRect(x, y, x2 - x, y2 - y);
  }

  brushed(from, to) {
    const { left, right, top, bottom } = this.box;
    const [x, x2] = [from[0], to[0]].sort((a, b) => a - b);
    const [y, y2] = [from[1], to[1]].sort((a, b) => a - b);
    this.onbrush(
      [x <= left ? -Infinity : this.xAt(x), x2 >= right ? Infinity : this.xAt(x2)],
      [y2 >= bottom ? -Infinity : this.yAt(y2), y <= top ? Infinity : this.yAt(y)],
    );
  }

  nearest([x, y]) {
    let best = null;
    let least = 10;
    for (const row of this.chosen) {
      if (this.xs[row] === null || this.ys[row] === null) continue;
      const far = Math.hypot(this.px(this.xs[row]) - x, this.py(this.ys[row]) - y);
      if (far < least) [best, least] = [row, far];
    }
    return best;
  }

  clicked(at) {
    const row = this.nearest(at);
    if (row === null) this.onbrush(null);
    else this.onpick(row);
  }

  hover(at) {
    const row = this.box ? this.nearest(at) : null;
    this.canvas.classList.toggle("over", row !== null);
    if (row === null) this.tip.hidden = true;
    else this.point(this.name(row), ...at);
  }
}
