// The address after # keeps what is looked at, so that a link shows the same in a static copy.

/** `#/latent/12?x=1` -> { view: "latent", rest: "12", query: URLSearchParams }. */
export function parse(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, rest = ""] = path.split(/\/(.*)/s);
  return { view: view || "latents", rest, query: new URLSearchParams(query) };
}

export function address(view, rest, values = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value !== "" && value !== null && value !== undefined) query.set(key, value);
  }
  const text = query.toString();
  return `#/${view}${rest === undefined || rest === "" ? "" : `/${rest}`}${text ? `?${text}` : ""}`;
}

export const latentAddress = (latent) => address("latent", latent);

/** Keep the state of a view in the address, without a new entry in the history. */
export function keep(view, rest, values) {
  const to = address(view, rest, values);
  if (location.hash !== to) history.replaceState(null, "", to);
}

export function go(to) {
  location.hash = to;
}
