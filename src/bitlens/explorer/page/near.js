// Contexts of the corpus whose bits are nearest to those of a token.

import { post, shownOf } from "./api.js";
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
      h("summary", "Nearest contexts in the corpus"),
      this.found,
    );
  }

  async find() {
    const { text, token } = this.asked();
    if (!this.node.open) return;
    const turn = (this.turn = (this.turn ?? 0) + 1);
    if (!token || token.left_out) {
      this.found.replaceChildren(
        h("p.note", token ? "This token has no bits." : "No token is chosen."),
      );
      return;
    }
    this.found.replaceChildren(h("p.note.waiting", "Searching."));
    const asked = post("api/near", { text, position: token.position });
    const found = await shownOf(asked, ({ contexts }) =>
      contexts.length
        ? [
            h(
              "p.small",
              "Similarity: the surprise of the latents that are on at both tokens, over that of " +
                "those on at either; 1 is the same. Each is of another document.",
            ),
            h("ol.examples", contexts.map(line)),
          ]
        : [h("p.note", "Nothing in the corpus has bits like these.")],
    );
    if (turn === this.turn) this.found.replaceChildren(...found);
  }
}

function line(one) {
  const shared = one.shared
    .slice(0, SHARED)
    .map((latent) => h("a", { href: latentAddress(latent) }, String(latent)));
  return h(
    "li",
    context(one),
    h(
      "p.small.links",
      `similarity ${number(one.similarity, ".2f")}`,
      shared.length ? [", shares ", shared] : null,
    ),
  );
}
