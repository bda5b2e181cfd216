// A table of all heads that any column sorts: what they do on random tokens, and what this prompt loses without each.
import { make, shown } from "./views/base.js";

const MOST = 40; // rows at first

/** Tells by an event `chosen` which head was chosen: its name and its place in the table. */
export function render(root, payload) {
  const columns = { ...payload.columns, [`log probability of ${payload.first} lost without it`]: payload.lost };
  const names = Object.keys(columns);
  let by = names.at(-1), all = payload.heads.length <= MOST;
  const body = make("tbody");
  const heads = names.map((name) => make("th", { scope: "col" }, make("button", { type: "button", class: "plain", onclick: () => { by = name; draw(); } }, name)));
  const size = (at) => (by === names.at(-1) ? Math.abs(columns[by][at]) : columns[by][at]);
  function draw() {
    const order = [...payload.heads.keys()].sort((a, b) => size(b) - size(a));
    heads.forEach((head, at) => head.setAttribute("aria-sort", names[at] === by ? "descending" : "none"));
    body.replaceChildren(...order.slice(0, all ? order.length : MOST).map((at) => make("tr", {},
      make("th", { scope: "row" }, make("button", { type: "button", class: "word", onclick: () => root.dispatchEvent(new CustomEvent("chosen", { bubbles: true, detail: { at, name: payload.heads[at] } })) }, payload.heads[at])),
      ...names.map((name) => make("td", {}, shown(columns[name][at], true))))));
  }
  root.append(
    make("div", { class: "scroll finder", role: "group", "aria-label": "All heads, by score and by effect", tabindex: "0" },
      make("table", { class: "numbers" }, make("caption", {}, "Attention on random tokens that occur twice, above what chance gives; and what the model’s first choice loses, in nats, when the head alone is set to zero. A column’s name sorts by it, a head’s name chooses it."),
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "head"), ...heads)), body)));
  if (!all) root.append(make("p", {}, make("button", { type: "button", class: "plain", onclick: (event) => { all = true; draw(); event.target.remove(); } }, `show all ${payload.heads.length}`)));
  draw();
}
