// The page and its server: asking, which brings the token, and turns what is refused into words; the address of the page,
// which holds its scene; files that are taken along. In a notebook the kernel stands in the server's place, and
// ui/live/ask.js in the place of this file.
import { read, written } from "./scene.js";

export class Refused extends Error {
  constructor(status, words) { super(words); this.status = status; }
}

/** What the server answers; a signal that is aborted makes it stop computing. */
export async function ask(token, what, given = {}, signal = undefined) {
  let answer;
  try {
    answer = await fetch(`/api/${what}`, { method: "POST", headers: { "Content-Type": "application/json", "X-Interp-Token": token }, body: JSON.stringify(given), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer: has interp explore ended?");
  }
  const told = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, told.error);
  return told;
}

/** The token and the scene that the page begins with, and what stands beside them in its address. */
export const started = () => ({ ...read(location.hash), also: new URLSearchParams(location.hash.slice(1)) });

/** Keep a scene where a reload finds it, and what stands beside it: where the walk and the tour are. */
export const keep = (scene, token, also = {}) => history.replaceState(null, "", `${written(scene, token)}${Object.entries(also).map(([name, value]) => `&${name}=${value}`).join("")}`);

/** Call `change(scene)` when another scene comes from outside of the page. */
export function whenGiven(change, token) {
  addEventListener("hashchange", () => {
    const given = read(location.hash);
    if (given.token && given.token !== token) location.reload();
    else change(given.scene, "link");
  });
}

/** Give the reader a file. */
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/html" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
