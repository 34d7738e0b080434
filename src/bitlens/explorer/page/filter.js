// The latents as columns: which of them a search asks for, and in which order.

const CONDITION = /^([a-z_]\w*)(<=|>=|<|>|=)(-?[\d.]+(?:e[+-]?\d+)?)(%?)$/i;
const TESTS = {
  "<": (value, bound) => value < bound,
  ">": (value, bound) => value > bound,
  "<=": (value, bound) => value <= bound,
  ">=": (value, bound) => value >= bound,
  "=": (value, bound) => value === bound,
};

/**
 * `the "of a" rate>1%` -> words that must occur, and conditions on numbers.
 * names: of columns, as people write them -> keys.
 */
export function parseQuery(text, names) {
  const words = [];
  const conditions = [];
  for (const [, quoted, bare] of text.matchAll(/"([^"]*)"?|(\S+)/g)) {
    const [, key, test, bound, percent] = bare === undefined ? [] : (CONDITION.exec(bare) ?? []);
    if (key && names.has(key.toLowerCase())) {
      conditions.push({
        key: names.get(key.toLowerCase()),
        test: TESTS[test],
        bound: Number(bound) / (percent ? 100 : 1),
      });
    } else {
      words.push((quoted ?? bare).replaceAll("·", " ").replaceAll("⏎", "\n").toLowerCase());
    }
  }
  return { words: words.filter(Boolean), conditions };
}

/** `rate:0.1:0.2;f1:0.5:1` <-> [{ key, low, high }], as kept in the address. */
export function parseRanges(text, keys) {
  return text
    .split(";")
    .map((part) => part.split(":"))
    .filter(([key, low, high]) => keys.includes(key) && high !== undefined)
    .map(([key, low, high]) => ({
      key,
      low: low === "" ? -Infinity : Number(low),
      high: high === "" ? Infinity : Number(high),
    }))
    .filter(({ low, high }) => !Number.isNaN(low) && !Number.isNaN(high));
}

export function writeRanges(ranges) {
  const end = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(4))) : "");
  return ranges.map(({ key, low, high }) => `${key}:${end(low)}:${end(high)}`).join(";");
}

/** The columns of all latents. A row is an index into them. */
export class Latents {
  constructor({ columns, data }) {
    this.data = data;
    this.count = data.latent.length;
    this.columns = columns.filter(
      ({ key }) =>
        key in data &&
        data[key].some((value) => value !== null && value !== "" && value?.length !== 0),
    );
    this.numbers = this.columns.filter(({ kind, key }) => kind === "number" && key !== "latent");
    this.byKey = new Map(this.columns.map((column) => [column.key, column]));
    this.rowOf = new Map(data.latent.map((latent, row) => [latent, row]));
    this.flags = data.flags ?? []; // one a latent, or ""
    this.flagCounts = new Map();
    for (const flag of this.flags.filter(Boolean))
      this.flagCounts.set(flag, (this.flagCounts.get(flag) ?? 0) + 1);
    this.words = data.latent.map((latent, row) =>
      [...data.tokens[row], data.explanation?.[row] ?? ""].join("\n").toLowerCase(),
    );
  }

  latent(row) {
    return this.data.latent[row];
  }

  /** Rows with all of the words, conditions, ranges and flags. */
  select({ query = "", ranges = [], flags = [] }) {
    const names = [
      ["latent", "latent"],
      ...this.numbers.flatMap(({ key, label }) => [
        [label.toLowerCase(), key],
        [key.toLowerCase(), key],
      ]),
    ];
    const { words, conditions } = parseQuery(query, new Map(names));
    const rows = [];
    for (let row = 0; row < this.count; row++) {
      if (this.fits(row, words, conditions, ranges, flags)) rows.push(row);
    }
    return rows;
  }

  fits(row, words, conditions, ranges, flags) {
    const { data } = this;
    if (flags.some((flag) => this.flags[row] !== flag)) return false;
    for (const word of words)
      if (!this.words[row].includes(word) && String(data.latent[row]) !== word) return false;
    for (const { key, test, bound } of conditions) {
      if (data[key][row] === null || !test(data[key][row], bound)) return false;
    }
    for (const { key, low, high } of ranges) {
      const value = data[key][row];
      if (value === null || value < low || value > high) return false;
    }
    return true;
  }

  /** Rows by a column; unknown values come last either way. */
  sort(rows, key, down) {
    const values = this.data[key];
    const text = this.byKey.get(key)?.kind !== "number" && key !== "latent";
    const side = down ? -1 : 1;
    const known = (row) => values[row] !== null && values[row] !== "" && values[row]?.length !== 0;
    const compare = text ? (a, b) => (a < b ? -1 : a > b ? 1 : 0) : (a, b) => a - b;
    const list = text
      ? values.map((value) =>
          (Array.isArray(value) ? value.join(" ") : (value ?? "")).trim().toLowerCase(),
        )
      : values;
    return rows.slice().sort((a, b) => {
      if (known(a) !== known(b)) return known(a) ? -1 : 1;
      return (known(a) ? side * compare(list[a], list[b]) : 0) || a - b;
    });
  }
}
