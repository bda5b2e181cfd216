// What is computed on a button: told when it begins and how it ends, cancelled by a second button, drawn in its place.
import { Refused } from "./ask.js";
import { make } from "./views/base.js";

const by = (id) => document.getElementById(id);

/** How long something will take, in words. */
export const duration = (seconds) => (seconds < 1 ? "a second at most" : `${Math.ceil(seconds)} seconds`);

/** Say what was refused, and leave what was taken back; anything else is a fault of the page. */
export function inWords(error, say) {
  if (error instanceof Refused) say(error.message);
  else if (error.name !== "AbortError") throw error;
}

/** The job of the elements `run-NAME`, `cancel-NAME`, `NAME-told` and `NAME-place`. */
export function job(name) {
  let computing = null;
  /** Stop it, and take away what it drew. */
  function stop(words) {
    computing?.abort();
    computing = null;
    by(`${name}-told`).textContent = words;
    by(`${name}-place`).replaceChildren();
    by(`cancel-${name}`).hidden = true;
  }
  by(`cancel-${name}`).addEventListener("click", () => { stop("cancelled"); by(`run-${name}`).focus(); });
  return {
    stop,
    get running() { return computing !== null; },
    /** Compute with `compute(signal)`, and let `draw(body, told)` draw what it gives. */
    async run(compute, draw) {
      stop("computing …");
      const own = (computing = new AbortController());
      by(`cancel-${name}`).hidden = false;
      try {
        const told = await compute(own.signal), body = make("div");
        stop("");
        draw(body, told);
        by(`${name}-place`).replaceChildren(body);
      } catch (error) { inWords(error, stop); }
    },
  };
}
