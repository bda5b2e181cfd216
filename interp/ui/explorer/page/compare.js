// What the edits change at the last position: probabilities of next tokens, and of the first choice layer by layer.
import { make, shown, token } from "./views/base.js";

const LEAST = 0.000005; // what would be printed as 0.000%
const percent = (share) => (share > 0 && share < LEAST ? "<0.001%" : `${(100 * share).toFixed(share < 0.001 ? 3 : 1)}%`);

/** A difference of probabilities, in points of a percent, with its sign. */
function points(before, after) {
  const by = 100 * (after - before), text = Math.abs(by).toFixed(2);
  return Number(text) === 0 ? "0" : `${by < 0 ? "−" : "+"}${text}`;
}

const bars = (before, after) => make("span", { class: "pair-bar", "aria-hidden": "true" },
  make("span", { style: { width: `${100 * before}%` } }), make("span", { class: "after", style: { width: `${100 * after}%` } }));

const table = (caption, heads, rows) => make("div", { class: "scroll", role: "group", "aria-label": caption, tabindex: "0" },
  make("table", { class: "numbers" }, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads.map((head) => make(head ? "th" : "td", head ? { scope: "col" } : {}, head)))), make("tbody", {}, ...rows)));

const row = (head, ...cells) => make("tr", {}, make("th", { scope: "row" }, head), ...cells.map((cell) => make("td", {}, cell)));

export function render(root, payload) {
  const { rows, layers, first, divergence, alone } = payload, other = payload.with;
  const tops = rows.map(({ token: text, before, after }) => row(token(text), percent(before), percent(after), make("span", { class: "change" }, points(before, after)), bars(before, after)));
  const depths = layers.toReversed().map(({ layer, words, first: share }) => row(layer, token(words[0]), token(words[1]), percent(share[0]), percent(share[1]), make("span", { class: "change" }, points(...share))));
  root.append(
    make("p", {}, `Before: ${other}. After: what is shown on this page. They are ${shown(divergence)} nats apart (KL). Upper bars: before; lower bars: after.${alone ? ` The edits act in ${alone} alone.` : ""}`),
    make("div", { class: "twins" },
      table("The next token, before and after", ["token", "before", "after", "points", ""], tops),
      table(`From the output down, at the last position: the first choice, and the probability of ${first}`, ["layer", "choice before", "after", "probability before", "after", "points"], depths)));
}
