// What the server (or the static copy) answers. Paths are relative, so that both are the same page.

import { h } from "./dom.js";

/** An answer that is an error, with a sentence to show. */
export class Refusal extends Error {}

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("bitlens does not answer. Is `bitlens explore` still running?");
  }
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && body !== null) return body;
  throw new Refusal(body?.sentence ?? `${path} could not be read (${response.status}).`);
}

const kept = new Map();

/** A JSON file, asked for once. */
export function get(path) {
  if (!kept.has(path)) {
    const answer = answered(path);
    kept.set(path, answer);
    answer.catch(() => kept.delete(path));
    if (kept.size > 500)
      kept.delete([...kept.keys()].find((key) => key.startsWith("api/latents/")));
  }
  return kept.get(path);
}

/** Ask the live server. */
export function post(path, question, signal) {
  const headers = { "Content-Type": "application/json" };
  return answered(path, { method: "POST", headers, body: JSON.stringify(question), signal });
}

/** What `show` makes of an answer, or the sentence of a refusal; null if it was given up. */
export async function shownOf(answer, show) {
  try {
    return show(await answer);
  } catch (error) {
    if (error.name === "AbortError") return null;
    if (!(error instanceof Refusal)) throw error;
    return [h("p.note.failed", error.message)];
  }
}
