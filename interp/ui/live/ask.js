// The page in a notebook: the same as the explorer's ask.js, whose place it takes, with the kernel in the place of the
// server. The page talks to the frame around it (host.js) and to nobody else.
import { EMPTY } from "./scene.js";

const PATIENCE = 4000; // milliseconds without a sign of the kernel until the page says so
const SLOW = "The kernel has not answered yet: it may be running a cell, or it has ended (then run this cell again).";
const by = (id) => document.getElementById(id);
const waiting = new Map(); // number of a question -> what to do with its answer
let last = 0, change = () => {};

export class Refused extends Error {
  constructor(status, words) { super(words); this.status = status; }
}

const tell = (message) => parent.postMessage(message, "*");

addEventListener("message", ({ source, data }) => {
  if (source !== parent) return;
  if (data.kind === "scene") change({ ...EMPTY, ...data.scene }, "from the notebook");
  const asked = waiting.get(data.id);
  if (!asked) return; // an answer that nobody waits for any more
  clearTimeout(asked.patience);
  if (by("problem").textContent === SLOW) by("problem").textContent = "";
  if (data.kind === "begun") return;
  waiting.delete(data.id);
  if (data.kind === "answer") asked.done(data.told);
  else asked.fail(new Refused(data.status, data.error));
});

/** What the kernel answers; a signal that is aborted makes it stop computing. */
export function ask(token, what, given = {}, signal = undefined) {
  return new Promise((done, fail) => {
    const id = ++last, stopped = () => new DOMException("the question was taken back", "AbortError");
    if (signal?.aborted) { fail(stopped()); return; }
    const patience = setTimeout(() => { by("problem").textContent = SLOW; }, PATIENCE);
    waiting.set(id, { done, fail, patience });
    signal?.addEventListener("abort", () => {
      if (!waiting.delete(id)) return;
      clearTimeout(patience);
      tell({ kind: "stop", id });
      fail(stopped());
    });
    tell({ kind: "ask", id, what, given });
  });
}

/** The scene that the page begins with, which the notebook has put into the name of the frame; there is no token. */
export const started = () => ({ token: "", scene: { ...EMPTY, ...JSON.parse(window.name) }, also: new URLSearchParams() });

/** Keep a scene where the notebook reads it, as `scene` of the widget. */
export const keep = (scene) => tell({ kind: "scene", scene });

/** Call `change(scene)` when the notebook sets another scene. */
export function whenGiven(given) { change = given; }

/** Give the reader a file, which the notebook's own page has to do. */
export const download = (name, text) => tell({ kind: "file", name, text });

by("kept-note").textContent = "In the next cell the widget has these changes as widget.variant, and all that is chosen here as widget.scene.";
