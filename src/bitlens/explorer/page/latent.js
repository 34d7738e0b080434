// One latent at a glance.

import { get } from "./api.js";
import { facts, flagChip, latentCards } from "./cards.js";
import { tokenChips } from "./contexts.js";
import { copy, copyButton, h } from "./dom.js";
import { counted, visible } from "./format.js";
import { address, go, latentAddress } from "./route.js";

function neighbourOf(order, latent, count, step) {
  const at = order?.indexOf(latent) ?? -1;
  if (at >= 0 && order.length > 1) return order[at + step];
  const next = latent + step;
  return next >= 0 && next < count ? next : undefined;
}

const named = (latent) => (latent.preferred ?? []).map(({ text }) => text);

function header(latent, { run, order, latentsAt }) {
  const step = (by, label, text) => {
    const to = neighbourOf(order, latent.latent, run.n_latents, by);
    return h(
      "a.button",
      {
        href: to === undefined ? null : latentAddress(to),
        "aria-label": to === undefined ? label : `${label}: ${to}`,
        "aria-disabled": to === undefined,
        title: `${label} (${text})`,
      },
      text,
    );
  };
  const at = order?.indexOf(latent.latent) ?? -1;
  const link = () => new URL(latentAddress(latent.latent), location.href).href;
  return h(
    "header.latent-head",
    h(
      "nav.crumbs",
      { "aria-label": "Place" },
      h("a", { href: latentsAt }, "Latents"),
      at >= 0 && order.length < run.n_latents
        ? `${at + 1} of ${order.length} found`
        : `of ${counted(run.n_latents, "latent")}`,
    ),
    h(
      "div.title-line",
      h("h1", "Latent ", h("b", String(latent.latent))),
      h("span.toks", { "aria-hidden": "true" }, tokenChips(named(latent))),
      flagChip(latent.flags),
      h("div.step", step(-1, "Previous latent", "←"), step(1, "Next latent", "→")),
    ),
    facts(latent),
    h(
      "div.actions",
      run.live &&
        h(
          "a.button",
          { href: address("text", "", { hold: `${latent.latent}:1` }) },
          "Hold it in a text",
        ),
      copyButton("Copy link", link, "The link"),
      latent.python && copyButton("Copy as Python", latent.python, "Python"),
      latent.python &&
        h("details.code", h("summary", "Python"), h("pre", { tabindex: 0 }, latent.python)),
    ),
  );
}

export async function showLatent(root, route, context) {
  const number_ = Number(route.rest);
  const { run, order, app } = context;
  if (!Number.isInteger(number_) || number_ < 0 || number_ >= run.n_latents) {
    root.append(
      h("h1", "No such latent"),
      h(
        "p.note",
        `This run has the latents 0 to ${run.n_latents - 1}. `,
        h("a", { href: context.latentsAt }, "All latents"),
      ),
    );
    return { title: "No such latent" };
  }
  const latent = await get(`api/latents/${number_}.json`);
  app.lastLatent = number_;
  const { wide, side } = latentCards(latent);
  root.append(
    header(latent, context),
    h("div.latent-body", h("div.wide", wide), h("div.side", side)),
  );
  const turn = (by) => {
    const to = neighbourOf(order, number_, run.n_latents, by);
    if (to !== undefined) go(latentAddress(to));
    return true;
  };
  const keys = (event) => {
    if (["ArrowRight", "j"].includes(event.key)) return turn(1);
    if (["ArrowLeft", "k"].includes(event.key)) return turn(-1);
    if (event.key === "c" && latent.python) return (copy(latent.python, "Python"), true);
    if (event.key === "h" && run.live)
      return (go(address("text", "", { hold: `${number_}:1` })), true);
    return false;
  };
  const ahead = [1, -1]
    .map((by) => neighbourOf(order, number_, run.n_latents, by))
    .filter((to) => to !== undefined);
  const ready = () =>
    setTimeout(() => ahead.forEach((to) => get(`api/latents/${to}.json`).catch(() => null)), 200);
  const tokens = named(latent).slice(0, 2).map(visible).join(" ");
  return { title: `Latent ${number_} ${tokens}`, keys, ready };
}
