// The keys of the page, and the overlay that lists them.

import { button, h } from "./dom.js";

const LIST = {
  Everywhere: {
    "/": "search latents",
    "1 … 4": "the tabs: latents, text, run, compare",
    g: "go to a latent by its number",
    Esc: "back, or out of a field",
    t: "light or dark",
    "?": "this list",
  },
  Tables: {
    "↓ ↑ or j k": "next and previous row",
    "PgDn PgUp Home End": "further",
    Enter: "open",
  },
  Latent: {
    "→ ← or j k": "next and previous latent of the table",
    c: "copy as Python",
    h: "hold it on, in a text",
  },
  Text: {
    "→ ←": "next and previous token",
    "↓ ↑ or j k": "its bits",
    Enter: "open the latent",
    "+ −": "hold the bit on, off",
    Backspace: "let go of the bit",
  },
};

const inField = (target) =>
  target.matches?.("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])");

/** Listen to keys, but in fields. known(event): whether the key was meant for the page. */
export function listen(known) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    if (inField(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (known(event)) event.preventDefault();
  });
}

export function showKeys() {
  const groups = Object.entries(LIST).map(([title, keys]) =>
    h(
      "section",
      h("h3", title),
      h(
        "dl.keys",
        Object.entries(keys).map(([key, does]) => [
          h(
            "dt",
            key
              .split(" ")
              .map((part) => (part.match(/^(or|…)$/) ? ` ${part} ` : [" ", h("kbd", part)])),
          ),
          h("dd", does),
        ]),
      ),
    ),
  );
  open("Keys", h("div.key-groups", groups));
}

/** Ask for the number of a latent. */
export function askLatent(count, go) {
  const field = h("input", {
    type: "number",
    min: 0,
    max: count - 1,
    required: true,
    "aria-label": "Number of a latent",
  });
  const form = h(
    "form.row",
    {
      onsubmit: (event) => {
        event.preventDefault();
        form.closest("dialog").close();
        go(Number(field.value));
      },
    },
    field,
    h("button.main", { type: "submit" }, "Open"),
  );
  open(`Latent, 0 to ${count - 1}`, form);
  field.focus();
}

function open(title, content) {
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove() });
  dialog.append(
    h(
      "header",
      h("h2", title),
      button("×", () => dialog.close(), { class: "plain", "aria-label": "Close" }),
    ),
    content,
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => event.key === "?" && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}
