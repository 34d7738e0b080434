// Axes, small line charts in SVG, and bars.

import { h, s } from "./dom.js";
import { known, number, short, visible } from "./format.js";

function linearTicks(low, high, about) {
  const rough = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  if (Math.floor(high / step) <= Math.ceil(low / step)) step /= 2; // one line alone is no scale
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step)
    ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

function logTicks(low, high) {
  const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const step = Math.max(1, Math.ceil((last - first + 1) / 5));
  const ticks = [];
  for (let power = first; power <= last; power += step) ticks.push(10 ** power);
  return ticks.length > 1 ? ticks : [low, high];
}

/**
 * From values to 0 … 1 and back. Values above zero that span orders of magnitude, most of them
 * small, get a logarithmic axis, at whose left end the zeros are.
 */
export function axis(values, format = "", { about = 4, log } = {}) {
  const sorted = Float64Array.from(values.filter(Number.isFinite)).sort();
  let [low, high] = sorted.length ? [sorted[0], sorted.at(-1)] : [0, 1];
  const least = sorted.find((value) => value > 0) ?? Infinity;
  const skewed = high / least > 100 && sorted[sorted.length >> 1] < high / 10;
  const logarithmic = log ?? (low >= 0 && skewed);
  const text = (value) => (format.endsWith("%") ? `${short(100 * value, 2)} %` : short(value, 2));
  if (logarithmic) {
    low = least;
    const [a, b] = [Math.log(low), Math.log(high)];
    const at = (value) => (value <= low ? 0 : Math.min(1, (Math.log(value) - a) / (b - a || 1)));
    const back = (share) => Math.exp(a + share * (b - a));
    return { low, high, at, back, ticks: logTicks(low, high), text };
  }
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const at = (value) => Math.min(1, Math.max(0, (value - low) / (high - low)));
  const back = (share) => low + share * (high - low);
  return { low, high, at, back, ticks: linearTicks(low, high, about), text };
}

/** A curve with its last value, as a figure; null for a term that is not used. */
export function lineChart({ name, meaning, xs, ys }) {
  const points = ys
    .map((value, index) => [xs[index], value])
    .filter(([, value]) => Number.isFinite(value));
  const values = points.map(([, value]) => value);
  if (points.length < 2 || values.every((value) => value === 0)) return null;
  const [width, height, left, bottom] = [300, 120, 40, 100];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const flat = most - least < 0.01 * Math.abs(most); // what is all but the same is drawn so
  const y = axis(flat ? [...values, 0.9 * most, 1.1 * most] : values, "", { about: 3, log: false });
  const x = axis(
    points.map(([step]) => step),
    "",
    { log: false },
  );
  const px = (value) => left + x.at(value) * (width - left - 4);
  const py = (value) => bottom - y.at(value) * (bottom - 8);
  const path = points
    .map(
      ([step, value], index) =>
        `${index ? "L" : "M"}${px(step).toFixed(1)} ${py(value).toFixed(1)}`,
    )
    .join("");
  const [end, last] = points.at(-1);
  const label = `${name} from ${number(values[0])} to ${number(last)} in ${number(x.high)} steps`;
  return h(
    "figure.curve",
    h("figcaption", h("span", name), h("b", number(last))),
    s(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
      y.ticks.map((tick) => [
        s("line", { x1: left, x2: width, y1: py(tick), y2: py(tick) }),
        s(
          "text",
          { x: left - 6, y: py(tick) + 3.5, "text-anchor": "end" },
          tick >= 10000 ? `${short(tick / 1000)}k` : short(tick, 3),
        ),
      ]),
      [x.low, x.high].map((step, right) =>
        s(
          "text",
          { x: px(step), y: height - 4, "text-anchor": right ? "end" : "start" },
          number(step, ",d"),
        ),
      ),
      s("path", { d: path }),
      s("circle", { cx: px(end), cy: py(last), r: 2.5 }),
    ),
    meaning && h("p.small", meaning),
  );
}

/** A share within 0 … 1, as a length in CSS. */
const length = (share) => `${(100 * Math.min(1, Math.max(0, share || 0))).toFixed(2)}%`;

/** A bar of a share 0 … 1. */
export function bar(share, kind = "") {
  const filled = h("span", { css: { width: length(share) } });
  return h("span.bar", { class: `bar ${kind}`, "aria-hidden": "true" }, filled);
}

/** Tokens with bars: [{ text, value, shown, title }]. */
export function tokenBars(rows, kind) {
  if (!rows.length) return h("p.small", "None.");
  const most = Math.max(...rows.map(({ value }) => Math.abs(value))) || 1;
  return h(
    "ol.bars",
    rows.map(({ text, value, shown, title }) =>
      h(
        "li",
        { title },
        h("span.tok", visible(text)),
        bar(Math.abs(value) / most, kind),
        h("span.number", shown),
      ),
    ),
  );
}

/** A value with its interval on a line from 0 to 1. */
export function intervalBar(value, low, high) {
  const ends = known(low) && { left: length(low), right: `calc(100% - ${length(high)})` };
  return h(
    "span.interval",
    { "aria-hidden": "true" },
    ends && h("i", { css: ends }),
    h("b", { css: { left: length(value) } }),
  );
}
