// Parts of a model by what they add or cost, with intervals: the sign is printed, and not the colour alone.
import { copyButton, make, shown } from "./base.js";

const MOST = 40;

export function render(root, payload) {
  const { labels, mean, low, high, what, n } = payload;
  let by = "size", all = labels.length <= MOST;
  const finite = [...mean, ...low, ...high].filter((v) => v !== null);
  const left = Math.min(0, ...finite), right = Math.max(0, ...finite), span = right - left || 1;
  const place = (v) => (100 * (v - left)) / span;
  const body = make("tbody"), note = make("p", { class: "note" });
  function draw() {
    const order = [...labels.keys()];
    if (by === "size") order.sort((a, b) => Math.abs(mean[b] ?? 0) - Math.abs(mean[a] ?? 0));
    const kept = all ? order : order.slice(0, MOST);
    body.replaceChildren(...kept.map((at) => make("tr", {}, make("th", { scope: "row" }, labels[at]), make("td", {}, shown(mean[at], true)), make("td", { class: "note" }, low[at] === null ? "" : `[${shown(low[at], true)}, ${shown(high[at], true)}]`),
      make("td", { class: "track", "aria-hidden": "true" }, make("span", { class: "zero", style: { left: `${place(0)}%` } }),
        mean[at] === null ? null : make("span", { class: mean[at] < 0 ? "below" : "above", style: { left: `${place(Math.min(0, mean[at]))}%`, width: `${Math.abs(place(mean[at]) - place(0))}%` } }),
        low[at] === null ? null : make("span", { class: "whisker", style: { left: `${place(low[at])}%`, width: `${place(high[at]) - place(low[at])}%` } })))));
    note.textContent = `${what}; mean and 95% interval over ${n} prompt${n === 1 ? "" : "s"}.${all ? "" : ` The ${MOST} ${by === "size" ? "largest" : "first"} of ${labels.length}.`}`;
  }
  root.append(
    make("div", { class: "bar" }, make("label", {}, "Order ", make("select", { onchange: (event) => { by = event.target.value; draw(); } }, make("option", { value: "size" }, "largest first"), make("option", { value: "place" }, "layer by layer"))),
      labels.length > MOST ? make("button", { type: "button", class: "plain", onclick: (event) => { all = !all; event.target.textContent = all ? "show fewer" : "show all"; draw(); } }, "show all") : null,
      copyButton("copy the numbers", () => labels.map((label, at) => [label, mean[at], low[at], high[at]].join("\t")).join("\n"))),
    note, make("div", { class: "scroll", role: "group", "aria-label": what, tabindex: "0" }, make("table", { class: "numbers bars" }, make("thead", {}, make("tr", {}, ...["part", "mean", "interval"].map((head) => make("th", { scope: "col" }, head)), make("td"))), body)));
  draw();
}
