// A text, the bits of its tokens, and what the model says when some of them are held.

import { post, Refusal } from "./api.js";
import { bar, tokenBars } from "./charts.js";
import { tokenChips } from "./contexts.js";
import { button, h, later } from "./dom.js";
import { counted, lastPart, number, percent, visible } from "./format.js";
import { Held } from "./held.js";
import { Near } from "./near.js";
import { go, keep, latentAddress } from "./route.js";

const FIRST = "The king gave the old woman a ring of gold, and she";
const IN_ADDRESS = 1500; // letters of a text that an address keeps
const BELOW = 3; // bits named below each token
let left = null; // the text and holds as they were left

class View {
  constructor(root, route, context) {
    const { query } = route;
    Object.assign(this, { root, run: context.run, given: query.has("t") });
    this.text = query.get("t") ?? left?.text ?? FIRST;
    this.at = Number(query.get("at") ?? left?.at ?? -1);
    this.bit = 0;
    this.tokens = [];
    this.held = new Held({
      run: this.run,
      query,
      left: left?.held,
      changed: () => this.holdsChanged(),
      text: () => this.text,
      token: () => this.tokens[this.at],
    });
    this.build();
  }

  build() {
    this.field = h("textarea", {
      rows: 2,
      spellcheck: "false",
      "aria-label": "Text to read",
      maxlength: this.run.text_limit,
      placeholder: "Type or paste a text.",
      oninput: later(250, () => this.read()),
    });
    this.field.value = this.text;
    this.status = h("p.small.status", { role: "status" });
    this.cells = h("div.cells", {
      role: "group",
      "aria-label": "Tokens of the text, each with its most surprising bits",
    });
    this.cells.addEventListener("click", (event) => this.cellClicked(event));
    this.bits = h("section.card.bits-card", { "aria-label": "Bits of the token" });
    this.near = new Near(() => ({ text: this.text, token: this.tokens[this.at] }));
    this.root.append(
      h("h1.unseen", "Text"),
      h("div.field", this.field, this.status),
      this.cells,
      h("div.text-body", this.bits, this.held.node, this.near.node),
    );
  }

  async read() {
    this.text = this.field.value;
    this.asked?.abort();
    this.asked = new AbortController();
    if (!this.text)
      return this.drawTokens(
        [],
        "Type or paste a text: each token shows the bits that are on, the most surprising first.",
      );
    this.root.classList.add("busy");
    try {
      const answer = await post("api/text", { text: this.text }, this.asked.signal);
      const on = answer.tokens.filter((token) => !token.left_out);
      const mean = on.reduce((sum, token) => sum + token.on, 0) / (on.length || 1);
      this.drawTokens(
        answer.tokens,
        `${counted(answer.tokens.length, "token")}, ${number(mean, ".1f")} latents on at each, ` +
          `${number(answer.milliseconds, ".0f")} ms`,
      );
      this.held.textChanged();
    } catch (error) {
      if (error.name === "AbortError") return null;
      if (!(error instanceof Refusal)) throw error;
      this.drawTokens([], error.message, true);
    }
    this.root.classList.remove("busy");
    return null;
  }

  drawTokens(tokens, sentence, failed = false) {
    this.tokens = tokens;
    this.status.textContent = sentence;
    this.status.classList.toggle("failed", failed);
    const most = Math.max(
      1e-9,
      ...tokens.flatMap((token) => (token.bits[0] ? [token.bits[0].surprisal] : [])),
    );
    this.cells.replaceChildren(...tokens.map((token, index) => this.cell(token, index, most)));
    if (!tokens.length) this.at = -1;
    else if (this.at < 0 || this.at >= tokens.length) this.at = tokens.length - 1;
    this.bit = 0;
    this.choose(this.at);
  }

  cell(token, index, most) {
    const face = h(
      "button.token",
      {
        type: "button",
        tabindex: -1,
        title: token.left_out ? "left out: no bits here" : `position ${token.position}`,
      },
      visible(token.t),
    );
    if (token.left_out) face.classList.add("out");
    const named = token.bits.slice(0, BELOW).map(({ latent, surprisal }, rank) =>
      h(
        "button.bit",
        {
          type: "button",
          tabindex: -1,
          data: { rank },
          title: `latent ${latent}: ${number(surprisal, ".3g")} bits of surprise`,
          css: { "--v": (surprisal / most).toFixed(3) },
        },
        String(latent),
      ),
    );
    return h("div.token-cell", { data: { index } }, face, named);
  }

  cellClicked(event) {
    const cell = event.target.closest(".token-cell");
    if (!cell) return;
    this.bit = Number(event.target.closest(".bit")?.dataset.rank ?? 0);
    this.choose(Number(cell.dataset.index), true);
  }

  choose(index, focus = false) {
    this.at = index;
    this.cells.childNodes.forEach((cell, at) => {
      const here = at === index;
      cell.classList.toggle("chosen", here);
      cell.firstChild.tabIndex = here ? 0 : -1;
      cell.firstChild.setAttribute("aria-pressed", here);
      if (here && focus) cell.firstChild.focus();
    });
    this.held.tokenChanged();
    this.drawBits();
    this.markHeld();
    this.remember();
    this.near.find();
  }

  drawBits() {
    const token = this.tokens[this.at];
    if (!token)
      return this.bits.replaceChildren(h("h2", "Bits"), h("p.note", "No token is chosen."));
    const most = token.bits[0]?.surprisal || 1;
    this.bits.replaceChildren(
      h("h2", this.run.bits ? "Bits at " : "Latents at ", h("span.tok", visible(token.t))),
      h(
        "p.small",
        token.left_out
          ? "The model reads this token; its state is not among those that the autoencoder learned."
          : `${counted(token.on, "latent")} on at position ` +
              `${token.position}, with their surprise in bits, the largest first.`,
      ),
      h(
        "ol.bit-list",
        token.bits.map((bit, rank) => this.bitRow(bit, rank, most)),
      ),
      h(
        "div.next",
        h("h3", "What the model expects next"),
        tokenBars(token.next.map(({ t, p }) => ({ text: t, value: p, shown: percent(p) }))),
      ),
    );
    return null;
  }

  bitRow({ latent, surprisal, tokens, value }, rank, most) {
    const hold = (to, label) =>
      button(
        label,
        () => {
          this.bit = rank;
          this.held.set(latent, this.held.value(latent) === to ? null : to);
        },
        {
          class: "small",
          "aria-pressed": this.held.value(latent) === to,
          "aria-label": `Hold latent ${latent} ${label}`,
          title: `Hold it ${label} in what the model reads`,
        },
      );
    return h(
      "li",
      { class: rank === this.bit ? "chosen" : null, onclick: () => this.chooseBit(rank) },
      h("a", { href: latentAddress(latent) }, String(latent)),
      h("span.toks", tokenChips(tokens, 3)),
      h(
        "span.surprise",
        { title: "bits of surprise" },
        bar(surprisal / most),
        h("span.number", number(surprisal, ".1f")),
      ),
      h("span.holds", hold(this.held.on(value), "on"), hold(0, "off")),
    );
  }

  chooseBit(rank) {
    this.bit = rank;
    const rows = this.bits.querySelectorAll(".bit-list li");
    rows.forEach((row, at) => row.classList.toggle("chosen", at === rank));
    this.bits.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
  }

  holdsChanged() {
    this.drawBits();
    this.markHeld();
    this.remember();
  }

  markHeld() {
    const { holds } = this.held;
    this.cells.childNodes.forEach((cell, at) =>
      cell.classList.toggle("held", holds.size > 0 && this.held.touches(this.tokens[at])),
    );
    for (const bit of this.cells.querySelectorAll(".bit"))
      bit.classList.toggle("holding", holds.has(Number(bit.textContent)));
  }

  remember() {
    left = { text: this.text, at: this.at, held: this.held.state() };
    keep("text", "", {
      t: this.text.length > IN_ADDRESS ? "" : this.text,
      at: this.at < 0 ? "" : this.at,
      ...this.held.state(),
    });
  }

  keys(event) {
    const token = this.tokens[this.at];
    const bit = token?.bits[this.bit];
    if (!token || event.target.closest?.(".held-card, summary")) return false;
    const onPress = event.target.closest?.("a, button:not(.token)");
    const moves = { ArrowRight: 1, ArrowLeft: -1 };
    const within = (at, list) => Math.min(Math.max(at, 0), list.length - 1);
    if (event.key in moves)
      return (this.choose(within(this.at + moves[event.key], this.tokens), true), true);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 };
    if (event.key in steps)
      return (this.chooseBit(within(this.bit + steps[event.key], token.bits)), true);
    if (!bit || onPress) return false;
    if (event.key === "Enter") return (go(latentAddress(bit.latent)), true);
    const on = this.held.on(bit.value);
    const values = { "+": on, "=": on, "-": 0, "−": 0, Backspace: null };
    if (event.key in values) return (this.held.set(bit.latent, values[event.key]), true);
    return false;
  }

  ready() {
    this.read();
    if (matchMedia("(hover: hover)").matches && !this.given) this.field.focus();
  }

  close() {
    this.asked?.abort();
    this.held.close();
  }
}

export async function showText(root, route, context) {
  if (!context.run.live) {
    root.append(
      h("h1", "Text"),
      h(
        "p.note",
        "Reading a text takes the language model, which this copy does not have: start ",
        h("code", `bitlens explore ${lastPart(context.run.run)}`),
        " where the run is.",
      ),
    );
    return null;
  }
  return new View(root, route, context);
}
