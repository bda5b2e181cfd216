// Where every head looks, with what the answer loses without it; one head in large, read both ways.
import { cells, copyButton, css, ink, make, numbers, onScheme, roving, sequential, shown, token, whenSeen } from "./base.js";

const SHADES = 1023;
const LONG = 256; // positions: of more, a cell is as small as a pixel

/** Colours of weights, made once for a drawing. */
function shades() {
  const made = Array.from({ length: SHADES + 1 }, (_, i) => sequential(i / SHADES));
  return (weight) => made[Math.round(Math.min(Math.max(weight, 0), 1) * SHADES)];
}

export function render(root, payload) {
  const { tokens, layers, heads, effect, stages } = payload;
  const from = payload.start ?? 0; // the position of the first token that is shown
  const bounded = tokens.length > LONG ? " bounded" : ""; // what scrolls by itself, so that the page does not grow
  const n = tokens.length, pattern = numbers(payload.pattern);
  const name = (at) => payload.names?.[at] ?? `L${layers[Math.floor(at / heads)]}${payload.letter ?? "H"}${at % heads}`;
  const weight = (at, query, key) => pattern.get(Math.floor(at / heads), at % heads, query, key);
  const limit = effect ? Math.max(...effect.mean.map((v) => Math.abs(v ?? 0))) : 0;
  const told = (at) => effect ? `${shown(effect.mean[at], true)} [${shown(effect.low[at], true)}, ${shown(effect.high[at], true)}]` : "";
  let head = payload.chosen ?? (effect ? effect.mean.reduce((best, v, at) => (Math.abs(v ?? 0) > Math.abs(effect.mean[best] ?? 0) ? at : best), 0) : 0);
  let query = n - 1, key = 0, pointed = n - 1;

  // 1. All heads, small.
  const thumbs = Array.from({ length: layers.length * heads }, (_, at) => {
    const label = effect ? `${name(at)}, effect ${told(at)}` : name(at);
    const bar = make("span", { class: "effect-bar", "aria-hidden": "true" });
    if (effect && effect.mean[at] !== null) {
      const share = (50 * effect.mean[at]) / (limit || 1);
      Object.assign(bar.style, { background: effect.mean[at] < 0 ? "var(--below)" : "var(--above)", left: `${50 + Math.min(share, 0)}%`, width: `${Math.abs(share)}%` });
    }
    return make("button", { type: "button", class: "thumb", role: "option", "aria-label": label, title: label, "data-at": at, onclick: () => pick(at) },
      make("canvas", { "aria-hidden": "true" }),
      make("span", { class: "thumb-name", "aria-hidden": "true" }, name(at)),
      effect ? make("span", { class: "effect", "aria-hidden": "true" }, make("span", { class: "effect-track" }, bar), make("span", { class: "effect-value" }, shown(effect.mean[at], true))) : null);
  });
  const drawThumb = (thumb) => {
    const at = Number(thumb.dataset.at);
    const size = Math.ceil(n / LONG), small = Math.ceil(n / size), colour = shades(); // of a long prompt, the largest weight of each block
    const largest = (row, column) => {
      let found = 0;
      for (let q = row * size; q < Math.min(n, (row + 1) * size); q++) for (let k = column * size; k < Math.min(n, (column + 1) * size); k++) found = Math.max(found, weight(at, q, k));
      return found;
    };
    cells(thumb.querySelector("canvas"), small, small, (row, column) => (column > row && payload.causal ? null : colour(Math.sqrt(largest(row, column)))));
  };
  const grid = make("div", { class: "thumbs", role: "listbox", "aria-label": "Heads", style: { "--columns": heads } });
  const order = make("select", { "aria-label": "Order of heads", onchange: arrange },
    make("option", { value: "place" }, "layer by layer"), effect ? make("option", { value: "effect" }, "largest effect first") : null);
  function arrange() {
    const by = [...thumbs.keys()];
    if (order.value === "effect") by.sort((a, b) => Math.abs(effect.mean[b] ?? 0) - Math.abs(effect.mean[a] ?? 0));
    grid.replaceChildren(...by.map((at) => thumbs[at]));
    roving(by.map((at) => thumbs[at]), { columns: heads, choose: (i) => pick(by[i]) });
  }

  // 2. One head, large: rows look, columns are looked at.
  const canvas = make("canvas", { class: "large", role: "application", tabindex: "0", "aria-roledescription": "matrix" });
  const rowLabels = make("div", { class: "row-labels", "aria-hidden": "true" }), columnLabels = make("div", { class: "column-labels", "aria-hidden": "true" });
  const title = make("h3", { class: "head-name" }), cell = make("p", { class: "cell", "aria-live": "polite" });
  const steps = make("table", { class: "steps" });
  const looks = words(), looked = words();

  function words() {
    const made = tokens.map((text, at) => make("button", { type: "button", class: "word", onmouseenter: () => point(at), onfocus: () => point(at) }, token(text, from + at)));
    roving(made);
    return made;
  }

  const matrix = make("div", { class: "matrix" }, columnLabels, rowLabels, canvas);
  const fit = Math.max(n > LONG ? 1 : 6, Math.min(22, Math.floor(520 / n)));
  const size = `${fit * n}px`;
  canvas.style.width = canvas.style.height = size;
  if (fit >= 12) {
    rowLabels.append(...tokens.map((text, at) => make("div", { style: { height: `${fit}px` } }, token(text, at))));
    columnLabels.append(...tokens.map((text, at) => make("div", { style: { width: `${fit}px` } }, token(text, at))));
  }
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    move(Math.floor(((event.clientY - box.top) / box.height) * n), Math.floor(((event.clientX - box.left) / box.width) * n));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) { event.preventDefault(); move(query + step[0], key + step[1]); }
    else if (event.key === "Enter") tellCell();
  });
  canvas.addEventListener("click", tellCell);

  function draw() {
    const colour = shades();
    cells(canvas, n, n, (q, k) => (k > q && payload.causal ? null : colour(weight(head, q, k))));
  }
  function choose(at) {
    thumbs[head].setAttribute("aria-selected", "false");
    head = at;
    thumbs[head].setAttribute("aria-selected", "true");
    title.replaceChildren(name(head), effect ? make("span", { class: "told" }, ` ${effect.what}: ${told(head)}`) : "");
    draw();
    point(pointed);
    move(query, tokens.reduce((best, _, k) => (weight(head, query, k) > weight(head, query, best) ? k : best), 0));
  }
  function pick(at) {
    choose(at);
    tell();
  }
  /** Tell whoever shows this view that a head was chosen, or a cell of its pattern. */
  function tell(more = {}) {
    root.dispatchEvent(new CustomEvent("chosen", { bubbles: true, detail: { at: head, layer: layers[Math.floor(head / heads)], head: head % heads, ...more } }));
  }
  function tellCell() { tell({ query: from + query, key: from + key }); }
  function point(at) {
    pointed = at;
    for (const [row, value] of [[looks, (i) => weight(head, at, i)], [looked, (i) => weight(head, i, at)]])
      row.forEach((word, i) => {
        const colour = sequential(value(i));
        word.style.background = css(colour);
        word.style.color = ink(colour);
        word.classList.toggle("chosen", i === at);
      });
  }

  function move(q, k) {
    query = Math.min(Math.max(q, 0), n - 1);
    key = Math.min(Math.max(k, 0), n - 1);
    const masked = payload.causal && key > query;
    const said = masked ? "masked: comes later" : `${pattern.exact ? "" : "about "}${shown(weight(head, query, key))}`;
    cell.replaceChildren(token(tokens[query], from + query), " looks at ", token(tokens[key], from + key), ": ", make("b", {}, said));
    canvas.setAttribute("aria-label", `${name(head)}: ${from + query} ${tokens[query]} looks at ${from + key} ${tokens[key]}: ${said}`);
    drawSteps(masked);
  }

  // 3. How the weight comes about, in the numbers of this model.
  const scores = stages ? numbers(stages.scores) : null;
  function drawSteps(masked) {
    const layer = stages ? stages.layers.indexOf(layers[Math.floor(head / heads)]) : -1;
    if (layer < 0) { steps.replaceChildren(); return; }
    const at = head % heads, score = scores.get(layer, at, query, key);
    const row = Array.from({ length: n }, (_, k) => (payload.causal && k > query ? -Infinity : scores.get(layer, at, query, k)));
    const most = Math.max(...row), sum = row.reduce((total, s) => total + Math.exp(s - most), 0) + (stages.sinks ? Math.exp(stages.sinks[layer][at] - most) : 0);
    const line = (what, value) => make("tr", {}, make("th", { scope: "row" }, what), make("td", {}, value));
    steps.replaceChildren(make("tbody", {},
      line("score (q · k, scaled)", shown(score)),
      line("mask", masked ? "set to −∞: a key that comes later" : "kept"),
      line("softmax", masked ? "0" : `e^(${shown(score)}) / ${shown(sum)} e^(${shown(most)}) = ${shown(Math.exp(score - most) / sum)}`)));
  }

  const strongest = () => {
    const found = [];
    for (let q = 0; q < n; q++) for (let k = 0; k < (payload.causal ? q + 1 : n); k++) found.push([q, k, weight(head, q, k)]);
    return found.sort((a, b) => b[2] - a[2]);
  };
  root.append(
    make("div", { class: "bar" }, make("label", {}, "Heads ", order)),
    make("div", { class: "scroll", role: "group", "aria-label": "All heads", tabindex: "0" }, grid),
    title,
    make("div", { class: "split" },
      make("div", { class: `scroll${bounded}`, role: "group", "aria-label": "Attention of the chosen head", tabindex: "0" }, matrix),
      make("div", { class: "side" }, cell, steps,
        make("p", { class: "note" }, "Rows look, columns are looked at. Arrow keys move in the matrix.", payload.note ? ` ${payload.note}` : ""),
        copyButton("copy the weights", () => strongest().map(([q, k, w]) => `${from + q}\t${tokens[q]}\t${from + k}\t${tokens[k]}\t${w}`).join("\n")))),
    make("h4", {}, "Point at a token: where it looks"), make("div", { class: `words${bounded}`, role: "group", "aria-label": "Where the token looks" }, ...looks),
    make("h4", {}, "and what looks at it"), make("div", { class: `words${bounded}`, role: "group", "aria-label": "What looks at the token" }, ...looked));
  arrange();
  const seen = whenSeen(thumbs, drawThumb);
  onScheme(() => { seen.disconnect(); thumbs.forEach(drawThumb); draw(); point(pointed); });
  choose(head);
}
