// Latents that are held, where and how, and what the model then says.

import { get, post, shownOf } from "./api.js";
import { examples, tokenChips } from "./contexts.js";
import { button, choice, h, later } from "./dom.js";
import { counted } from "./format.js";
import { latentAddress } from "./route.js";
import { whatIsSaid } from "./said.js";

function parseHolds(text, bits) {
  const holds = new Map();
  for (const part of (text ?? "").split(",")) {
    const [latent, value] = part.split(":").map(Number);
    if (/^\d+:/.test(part) && value >= 0 && (!bits || value <= 1)) holds.set(latent, value);
  }
  return holds;
}

export class Held {
  constructor({ run, query, left, changed, text, token }) {
    Object.assign(this, { run, changed, text, token });
    const of = (name) => query.get(name) ?? (query.has("t") ? null : left?.[name]);
    this.holds = parseHolds(
      left && !query.has("t")
        ? [left.hold, query.get("hold")].filter(Boolean).join()
        : query.get("hold"),
      run.bits,
    );
    for (const latent of this.holds.keys()) if (latent >= run.n_latents) this.holds.delete(latent);
    this.others = run.searched && of("others") === "searched" ? "searched" : "kept";
    this.where = new Set((of("pos") ?? "").split(",").filter(Boolean).map(Number));
    this.everywhere = !this.where.size;
    this.tokens = Number(of("n") ?? 30);
    this.temperature = Number(of("temp") ?? 0.8);
    this.seed = Number(of("seed") ?? 0);
    this.ask = later(120, () => this.request());
    this.build();
  }

  state() {
    return {
      hold: [...this.holds].map(([latent, value]) => `${latent}:${value}`).join(),
      others: this.others === "kept" ? "" : this.others,
      pos: this.everywhere ? "" : [...this.where].join(),
      n: this.tokens === 30 ? "" : this.tokens,
      temp: this.temperature === 0.8 ? "" : this.temperature,
      seed: this.seed || "",
    };
  }

  value(latent) {
    return this.holds.get(latent);
  }

  touches(token) {
    return !token.left_out && (this.everywhere || this.where.has(token.position));
  }

  build() {
    this.chips = h("ul.held-list");
    this.result = h("div.held-result", { "aria-live": "polite" });
    const latent = h("input", {
      type: "number",
      min: 0,
      max: this.run.n_latents - 1,
      required: true,
      placeholder: "latent",
      "aria-label": "Latent to hold",
    });
    const add = h(
      "form.row.add",
      {
        onsubmit: (event) => {
          event.preventDefault();
          this.set(Number(latent.value), this.on());
          latent.value = "";
        },
      },
      latent,
      h("button.small", { type: "submit" }, "Hold"),
    );
    const place = [
      ["all", "every token", "At all tokens, and at all that the model adds"],
      ["some", "chosen tokens", "Only at the tokens chosen here"],
    ];
    const mode = [
      ["kept", "kept", "All others stay as they were found"],
      [
        "searched",
        "searched anew",
        "The others may answer: they are searched again while the held ones stand",
      ],
    ];
    this.here = button("", () => this.toggleHere(), { class: "small" });
    this.places = h(
      "div.row",
      choice("Where", place, this.everywhere ? "all" : "some", (key) => this.setWhere(key)),
      this.here,
    );
    this.node = h(
      "section.card.held-card",
      { "aria-label": "Held latents" },
      h("div.row.between", h("h2", "Held"), add),
      this.chips,
      h(
        "div.options",
        this.places,
        this.run.searched
          ? choice("Other bits", mode, this.others, (key) => this.option({ others: key }))
          : null,
        this.sampling(),
      ),
      this.result,
    );
    this.found = h("div");
    this.foundBox = h(
      "details",
      { hidden: true, ontoggle: () => this.find() },
      h("summary", "Where the corpus has them so"),
      this.found,
    );
    this.node.append(this.foundBox);
    this.draw();
    this.empty();
  }

  /** The value at which a latent is held on; value: the one that it has, if it is known. */
  on(value) {
    return this.run.bits ? 1 : (value ?? this.run.hold_max ?? 1);
  }

  sampling() {
    const field = (name, attributes) =>
      h(
        "label.setting",
        name,
        h("input", {
          type: "number",
          ...attributes,
          value: this[name],
          onchange: (event) =>
            event.target.validity.valid && this.option({ [name]: Number(event.target.value) }),
        }),
      );
    return h(
      "details",
      h("summary", "Sampling"),
      h(
        "div.row",
        field("tokens", { min: 1, max: 200, step: 1, required: true }),
        field("temperature", { min: 0, max: 3, step: 0.1, required: true }),
        field("seed", { min: 0, max: 1e9, step: 1, required: true }),
      ),
    );
  }

  option(values) {
    Object.assign(this, values);
    this.draw();
    this.changed();
    this.ask();
  }

  /** Hold a latent at a value, or let go of it with null. */
  set(latent, value) {
    if (!(latent >= 0 && latent < this.run.n_latents)) return;
    if (value === null) this.holds.delete(latent);
    else this.holds.set(latent, value);
    this.option({});
  }

  setWhere(key) {
    this.everywhere = key === "all";
    const token = this.token();
    if (!this.everywhere && !this.where.size && token && !token.left_out)
      this.where.add(token.position);
    this.option({});
  }

  toggleHere() {
    const { position } = this.token();
    if (!this.where.delete(position)) this.where.add(position);
    this.option({});
  }

  textChanged() {
    if (this.holds.size) this.ask();
    else this.empty();
  }

  tokenChanged() {
    const token = this.token();
    this.here.hidden = this.everywhere || !token || token.left_out;
    if (token)
      this.here.textContent = this.where.has(token.position)
        ? "Not at this token"
        : "Also at this token";
  }

  draw() {
    this.chips.replaceChildren(
      ...[...this.holds].map(([latent, value]) => this.chip(latent, value)),
    );
    this.foundBox.hidden = !this.holds.size;
    this.find();
    this.tokenChanged();
  }

  /** Contexts of the corpus in which the held latents are as they are held. */
  async find() {
    const key = JSON.stringify([...this.holds]);
    if (!this.foundBox.open || !this.holds.size || key === this.foundFor) return;
    this.foundFor = key;
    const of = (on) =>
      [...this.holds].filter(([, value]) => value > 0 === on).map(([latent]) => latent);
    const asked = post("api/find", { on: of(true), off: of(false), limit: 10 });
    const shown = await shownOf(asked, ({ count, contexts }) => [
      h(
        "p.small",
        count ? `At ${counted(count, "token")}, for example:` : "At no token of the corpus.",
      ),
      examples(contexts),
    ]);
    if (key === this.foundFor) this.found.replaceChildren(...shown);
  }

  chip(latent, value) {
    const control = this.run.bits
      ? button(value ? "on" : "off", () => this.set(latent, value ? 0 : 1), {
          class: `flip ${value ? "is-on" : "is-off"}`,
          "aria-label": `Latent ${latent} is held ${value ? "on" : "off"}; flip it`,
          title: "Flip it",
        })
      : h("input", {
          type: "number",
          min: 0,
          step: "any",
          value: Number(value.toPrecision(4)),
          "aria-label": `Value of latent ${latent}`,
          onchange: (event) =>
            event.target.validity.valid && this.set(latent, Number(event.target.value)),
        });
    const name = h("span");
    get("api/latents.json").then(
      ({ data }) => {
        name.append(...tokenChips(data.tokens[latent], 1));
      },
      () => null,
    );
    return h(
      "li.held-chip",
      { data: { latent } },
      h("a", { href: latentAddress(latent) }, String(latent)),
      name,
      control,
      button("×", () => this.set(latent, null), {
        class: "plain",
        "aria-label": `Let go of latent ${latent}`,
      }),
    );
  }

  empty() {
    this.node.classList.remove("busy");
    this.result.replaceChildren(
      h(
        "p.note",
        `Nothing is held. Hold a ${this.run.bits ? "bit" : "latent"} on or off, and ` +
          "see here what the model says then, beside what it says now.",
      ),
    );
  }

  question() {
    return {
      text: this.text(),
      holds: Object.fromEntries(this.holds),
      positions: this.everywhere ? null : [...this.where],
      others: this.others,
      continue: { tokens: this.tokens, temperature: this.temperature, seed: this.seed },
    };
  }

  async request() {
    this.asked?.abort();
    this.asked = new AbortController();
    if (!this.holds.size) return this.empty();
    if (!this.text())
      return this.result.replaceChildren(h("p.note", "There is no text to hold it in."));
    this.node.classList.add("busy");
    if (!this.result.querySelector(".paired"))
      this.result.replaceChildren(
        h("p.note.waiting", "The model reads the text with and without."),
      );
    const text = this.text();
    const asked = post("api/hold", this.question(), this.asked.signal);
    const said = await shownOf(asked, (answer) => whatIsSaid(text, answer));
    if (said) {
      this.result.replaceChildren(...said);
      this.node.classList.remove("busy");
    }
    return null;
  }

  close() {
    this.asked?.abort();
  }
}
