// Any numbers as a map: cells that can be pointed at, walked with arrow keys, read out and copied.
import { cells, copyButton, css, diverging, make, numbers, onScheme, sequential, shown, token } from "./base.js";

export function render(root, payload) {
  const { rows, columns, named } = payload, maps = payload.maps.map((map) => ({ ...map, values: numbers(map.values), low: map.low && numbers(map.low), high: map.high && numbers(map.high) }));
  let map = maps[0], at = [0, 0];
  const height = Math.max(3, Math.min(20, Math.floor(640 / rows.length))), width = Math.max(3, Math.min(44, Math.floor(760 / columns.length)));
  const canvas = make("canvas", { class: "large", role: "application", tabindex: "0", "aria-roledescription": "map", style: { width: `${width * columns.length}px`, height: `${height * rows.length}px` } });
  const cell = make("p", { class: "cell", "aria-live": "polite" }), scale = make("div", { class: "scale" });
  const many = (labels) => Math.ceil(labels.length / 40); // label every so many
  const label = (text, i) => (payload.tokens ? token(text, i) : text);
  const rowLabels = make("div", { class: "row-labels", "aria-hidden": "true" }, ...rows.map((text, i) => make("div", { style: { height: `${height}px` } }, height >= 11 || i % Math.ceil(11 / height) === 0 ? text : "")));
  const columnLabels = make("div", { class: "column-labels", "aria-hidden": "true" }, ...columns.map((text, i) => make("div", { style: { width: `${width}px` } }, width >= 11 || i % many(columns) === 0 ? label(text, i) : "")));
  const limit = () => { let most = 0; for (let r = 0; r < rows.length; r++) for (let c = 0; c < columns.length; c++) { const v = map.values.get(r, c); if (Number.isFinite(v)) most = Math.max(most, Math.abs(v)); } return most; };
  const colour = (value, most) => (Number.isFinite(value) ? (map.signed ? diverging(value, most) : sequential(most ? value / most : 0)) : null);

  function draw() {
    const most = limit();
    cells(canvas, rows.length, columns.length, (r, c) => colour(map.values.get(r, c), most));
    const stops = Array.from({ length: 11 }, (_, i) => css(map.signed ? diverging((i / 5 - 1) * most, most) : sequential(i / 10)));
    scale.replaceChildren(make("span", {}, shown(map.signed ? -most : 0, map.signed)), make("span", { class: "scale-bar", style: { background: `linear-gradient(to right, ${stops.join(", ")})` } }), make("span", {}, shown(most, map.signed)), make("span", { class: "note" }, map.what));
    move(...at);
  }
  function move(r, c) {
    at = [Math.min(Math.max(r, 0), rows.length - 1), Math.min(Math.max(c, 0), columns.length - 1)];
    const value = map.values.get(...at);
    const bounds = map.low ? ` [${shown(map.low.get(...at), map.signed)}, ${shown(map.high.get(...at), map.signed)}]` : "";
    cell.replaceChildren(`${named[0]} `, make("b", {}, rows[at[0]]), `, ${named[1]} `, make("b", {}, label(columns[at[1]], at[1])), `: ${shown(value, map.signed)}${bounds}`);
    canvas.setAttribute("aria-label", `${named[0]} ${rows[at[0]]}, ${named[1]} ${columns[at[1]]}: ${shown(value, map.signed)}${bounds}`);
  }
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    move(Math.floor(((event.clientY - box.top) / box.height) * rows.length), Math.floor(((event.clientX - box.left) / box.width) * columns.length));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) { event.preventDefault(); move(at[0] + step[0], at[1] + step[1]); }
    else if (event.key === "Enter") tell();
  });
  const tell = () => canvas.dispatchEvent(new CustomEvent("chosen", { bubbles: true, detail: { row: at[0], column: at[1] } }));
  canvas.addEventListener("click", tell);
  const text = () => [["", ...columns].join("\t"), ...rows.map((row, r) => [row, ...columns.map((_, c) => map.values.get(r, c))].join("\t"))].join("\n");
  root.append(
    make("div", { class: "bar" }, maps.length > 1 ? make("label", {}, "Values ", make("select", { onchange: (event) => { map = maps[event.target.value]; draw(); } }, ...maps.map((one, i) => make("option", { value: i }, one.what)))) : null, copyButton("copy the numbers", text)),
    make("div", { class: "scroll", role: "group", "aria-label": payload.title, tabindex: "0" }, make("div", { class: "matrix" }, columnLabels, rowLabels, canvas)), scale, cell);
  draw();
  onScheme(draw);
}
