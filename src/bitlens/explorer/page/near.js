// Contexts of the corpus whose bits are nearest to those of a token.

import { post, Refusal } from "./api.js";
import { context } from "./contexts.js";
import { h } from "./dom.js";
import { number } from "./format.js";
import { latentAddress } from "./route.js";

const SHARED = 8; // latents named below a context

export class Near {
  /** asked(): the text, and the token in it that is looked at. */
  constructor(asked) {
    this.asked = asked;
    this.found = h("div");
    this.node = h(
      "details.card.near-card",
      { ontoggle: () => this.find() },
      h("summary", null, "Nearest contexts in the corpus"),
      this.found,
    );
  }

  async find() {
    const { text, token } = this.asked();
    if (!this.node.open) return;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    if (!token || token.left_out) {
      this.found.replaceChildren(
        h("p.note", null, token ? "This token has no bits." : "No token is chosen."),
      );
      return;
    }
    this.found.replaceChildren(h("p.note.waiting", null, "Searching."));
    let found;
    try {
      const { contexts } = await post("api/near", { text, position: token.position });
      found = contexts.length
        ? h(
            "div",
            null,
            h(
              "p.small",
              null,
              "Similarity: the surprise of the latents that are on at both tokens, over that of " +
                "those on at either; 1 is the same. Each is of another document.",
            ),
            h("ol.examples", null, contexts.map(line)),
          )
        : h("p.note", null, "Nothing in the corpus has bits like these.");
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      found = h("p.note.failed", null, error.message);
    }
    if (turn === this.turn) this.found.replaceChildren(found);
  }
}

function line(one) {
  const shared = (one.shared ?? [])
    .slice(0, SHARED)
    .map((latent) => h("a", { href: latentAddress(latent) }, String(latent)));
  return h(
    "li",
    null,
    context(one),
    h(
      "p.small.links",
      null,
      `similarity ${number(one.similarity, ".2f")}`,
      shared.length ? [", shares ", shared] : null,
    ),
  );
}
