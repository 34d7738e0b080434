// Numbers and tokens as people read them.

const NAMED = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };
const INKLESS = /[\p{C}\p{Z}]/u;

function escaped(c) {
  const code = c.codePointAt(0).toString(16);
  return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : `\\u${code.padStart(4, "0")}`;
}

/** A single token with spaces as dots, and other characters without ink as codes. */
export function visible(text) {
  return [...text].map((c) => NAMED[c] ?? (INKLESS.test(c) ? escaped(c) : c)).join("") || "''";
}

/** Text on one line: line ends become ⏎, other control characters a dot. */
export function plain(text) {
  return [...text].map((c) => (c === "\n" ? "⏎" : c !== " " && INKLESS.test(c) ? "·" : c)).join("");
}

/** Whether there is such a value: what is not known is null, or left out. */
export const known = (value) => value !== null && value !== undefined;

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** A number by a format of Python: `.2%`, `,d`, `.3f`, `.3g`, `+.2f`. */
export function number(value, form = "") {
  if (!known(value) || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  const [, plus, comma, digits, kind] = /^(\+)?(,)?(?:\.(\d+))?([dfge%s])?$/.exec(form) ?? [];
  const text = shaped(value, comma, digits === undefined ? null : Number(digits), kind);
  return (plus && value > 0 ? "+" : "") + text.replace(/^-/, "−");
}

function shaped(value, comma, digits, kind) {
  if (kind === "%") {
    const text = (100 * value).toFixed(digits ?? 0);
    const lost = value !== 0 && Math.abs(Number(text)) * 10 ** (digits ?? 0) < 10;
    return `${lost ? short(100 * value, 2) : text} %`;
  }
  if (kind === "d") return comma ? grouped.format(value) : String(Math.round(value));
  if (kind === "f") {
    const text = value.toFixed(digits ?? 2).replace(/^-(0(\.0*)?)$/, "$1");
    if (!comma) return text;
    const [whole, ...rest] = text.split(".");
    return [grouped.format(Number(whole)), ...rest].join(".");
  }
  if (Number.isInteger(value))
    return Math.abs(value) < 1e15 ? grouped.format(value) : String(value);
  return short(value, digits ?? 3);
}

/** A few significant digits, never in a form that only programs read. */
export function short(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) {
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    const raised = [...String(Number(power))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("");
    return `${Number(mantissa)}·10${raised}`.replace(/^1·/, "");
  }
  return String(Number(value.toPrecision(digits)));
}

/** A share as a percentage with as many digits as matter. */
export function percent(share) {
  if (!known(share)) return "–";
  const value = 100 * share;
  if (value === 0) return "0 %";
  return value >= 0.95 ? `${value.toFixed(1)} %` : `${short(value, 2)} %`;
}

/** `1 latent`, `1,024 latents`. */
export function counted(count, word) {
  return `${grouped.format(count)} ${word}${count === 1 ? "" : "s"}`;
}

/** The last part of a path; a name as it is. */
export const lastPart = (path) =>
  path
    .replace(/[\\/]+$/, "")
    .split(/[\\/]/)
    .at(-1);

export const thousands = (value) => grouped.format(value);
