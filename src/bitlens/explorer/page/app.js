// The page: which view is shown, its tabs, theme and keys.

import { get, Refusal } from "./api.js";
import { showCompare } from "./compare.js";
import { button, h, say } from "./dom.js";
import { lastPart } from "./format.js";
import { askLatent, listen, showKeys } from "./keys.js";
import { showLatent } from "./latent.js";
import { showLatents } from "./latents.js";
import { go, latentAddress, parse } from "./route.js";
import { showRun } from "./run.js";
import { showText } from "./text.js";

const VIEWS = {
  latents: { title: "Latents", show: showLatents },
  latent: { title: "Latent", show: showLatent, under: "latents" },
  text: { title: "Text", show: showText },
  run: { title: "Run", show: showRun },
  compare: { title: "Compare", show: showCompare },
};

const main = document.getElementById("main");
const app = { run: null, latentsAt: "#/latents", order: null };
let shown = {}; // the view: its title, ready(), keys(event) and close(), as far as it has them
let turn = 0;

function tabs(current) {
  const list = Object.entries(VIEWS).filter(
    ([name, view]) => !view.under && (name !== "compare" || app.run?.beside),
  );
  const here = VIEWS[current]?.under ?? current;
  document.getElementById("tabs").replaceChildren(
    ...list.map(([name, view]) =>
      h(
        "a",
        {
          href: name === "latents" ? app.latentsAt : `#/${name}`,
          "aria-current": name === here ? "page" : null,
        },
        view.title,
      ),
    ),
  );
}

/** A view in place of a sentence, or a sentence in place of a view. */
function problem(error) {
  if (!(error instanceof Refusal)) console.error(error);
  const odd = "This view could not be shown; the browser's console says why.";
  const sentence = error instanceof Refusal ? error.message : odd;
  const again = button("Try again", () => render());
  return h("div.problem", { role: "alert" }, h("p", sentence), again);
}

async function render() {
  const route = parse();
  const mine = ++turn;
  const view = VIEWS[route.view];
  shown.close?.();
  shown = {};
  if (!view)
    return main.replaceChildren(
      h("p.note", "There is no such view. ", h("a", { href: "#/latents" }, "Latents")),
    );
  tabs(route.view);
  const wait = setTimeout(
    () => mine === turn && main.replaceChildren(h("p.note.waiting", "Loading.")),
    150,
  );
  const root = h("div.view", { class: `view view-${route.view}` });
  try {
    app.run ??= await get("api/run.json").then(named);
    if (mine !== turn) return null;
    tabs(route.view);
    const made = (await view.show(root, route, { ...app, app })) ?? {};
    clearTimeout(wait);
    if (mine !== turn) return made.close?.();
    main.replaceChildren(root);
    window.scrollTo(0, 0);
    shown = made;
    document.title = [made.title ?? view.title, app.run.title, "bitlens"].join(" · ");
    made.ready?.();
    if (root.querySelector("h1") && !main.contains(document.activeElement))
      main.focus({ preventScroll: true });
  } catch (error) {
    clearTimeout(wait);
    if (mine === turn) main.replaceChildren(problem(error));
  }
  return null;
}

function named(run) {
  const what = document.getElementById("what");
  what.replaceChildren(h("b", run.title), ` ${lastPart(run.model)} · ${run.hook}`);
  what.title = `${run.run}, ${run.model}`;
  return run;
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("bitlens-theme", root.dataset.theme);
  } catch {
    // Kept for this page only where storage is switched off.
  }
  window.dispatchEvent(new Event("bitlens-theme"));
  say(`The page is ${root.dataset.theme}.`);
  return true;
}

function search() {
  app.focusSearch = true;
  if (parse().view === "latents") render();
  else go(app.latentsAt);
  return true;
}

function everywhere(event) {
  const tab = document.querySelectorAll("#tabs a")[Number(event.key) - 1];
  if (event.key >= "1" && event.key <= "5" && tab) return (go(tab.getAttribute("href")), true);
  if (event.key === "Escape")
    return parse().view === "latent" ? (go(app.backTo || app.latentsAt), true) : false;
  if (event.key === "?") return (showKeys(), true);
  if (event.key === "t") return toggleTheme();
  if (event.key === "/") return search();
  if (event.key === "g" && app.run)
    return (askLatent(app.run.n_latents, (latent) => go(latentAddress(latent))), true);
  return false;
}

document.getElementById("theme").append(h("span.half", { "aria-hidden": "true" }));
document.getElementById("theme").addEventListener("click", toggleTheme);
document.getElementById("help").addEventListener("click", showKeys);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", (event) => {
  const former = new URL(event.oldURL).hash;
  if (parse(former).view !== "latent") app.backTo = former;
  render();
});
listen((event) => shown.keys?.(event) || everywhere(event));
if (["latents", "latent"].includes(parse().view)) get("api/latents.json").catch(() => null);
render();
