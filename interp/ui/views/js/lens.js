// What the model would say if it stopped at a layer: the likeliest token of every layer and position.
import { css, ink, make, numbers, onScheme, sequential, shown, token } from "./base.js";

const AT_ONCE = 24; // positions in a table; more are turned to like pages

export function render(root, payload) {
  const { tokens, layers, lenses, answer, start = 0 } = payload, n = tokens.length;
  const read = Object.fromEntries(Object.entries(lenses).map(([name, lens]) => [name, { probs: numbers(lens.probs), ranks: lens.ranks && numbers(lens.ranks), words: lens.words, tops: lens.tops }]));
  let lens = Object.keys(lenses)[0], what = "top", first = Math.max(0, n - AT_ONCE), at = [layers.length - 1, n - 1];
  const body = make("table", { class: "lens" }), told = make("div", { class: "told-cell", "aria-live": "polite" });
  const choice = (label, options, set) => options.length < 2 ? null : make("label", {}, `${label} `, make("select", { onchange: (event) => { set(event.target.value); draw(); } }, ...options.map(([value, text]) => make("option", { value }, text))));
  const word = (layer, pos, rank = 0) => read[lens].words[read[lens].tops[layer][pos][rank]];
  const share = (layer, pos) => what === "answer" && read[lens].ranks ? 1 / (1 + read[lens].ranks.get(layer, pos)) : read[lens].probs.get(layer, pos, 0);

  function draw() {
    const columns = Array.from({ length: Math.min(AT_ONCE, n - first) }, (_, i) => first + i);
    const head = make("thead", {}, make("tr", {}, make("td"), ...columns.map((pos) => make("th", { scope: "col" }, token(tokens[pos], start + pos)))));
    const rows = layers.map((name, layer) => make("tr", {}, make("th", { scope: "row" }, name), ...columns.map((pos) => {
      const colour = sequential(share(layer, pos));
      const text = what === "answer" && read[lens].ranks ? `${read[lens].ranks.get(layer, pos) + 1}` : word(layer, pos);
      return make("td", { "data-at": `${layer},${pos}`, tabindex: layer === at[0] && pos === at[1] ? "0" : "-1", style: { background: css(colour), color: ink(colour) } }, make("bdi", { class: "token-text" }, text));
    })));
    body.replaceChildren(head, make("tbody", {}, ...rows));
    tell();
  }
  function tell() {
    const [layer, pos] = at, own = read[lens];
    told.replaceChildren(make("p", {}, make("b", {}, `${layers[layer]} `), "after ", token(tokens[pos], start + pos)),
      make("ol", {}, ...own.tops[layer][pos].map((_, rank) => make("li", {}, make("bdi", { class: "token-text" }, word(layer, pos, rank)), ` ${shown(own.probs.get(layer, pos, rank))}`))),
      own.ranks && answer !== null ? make("p", { class: "note" }, "The answer ", make("bdi", { class: "token-text" }, answer), ` has rank ${own.ranks.get(layer, pos) + 1} here.`) : "");
  }
  const go = (layer, pos, focus) => {
    layer = Math.min(Math.max(layer, 0), layers.length - 1);
    pos = Math.min(Math.max(pos, 0), n - 1);
    const turn = pos < first ? pos : pos >= first + AT_ONCE ? pos - AT_ONCE + 1 : first;
    const old = body.querySelector('[tabindex="0"]');
    at = [layer, pos];
    if (turn !== first) { first = turn; draw(); } else { if (old) old.tabIndex = -1; tell(); }
    const cell = body.querySelector(`[data-at="${layer},${pos}"]`);
    cell.tabIndex = 0;
    if (focus) cell.focus();
  };
  const place = (event) => event.target.closest("[data-at]")?.dataset.at.split(",").map(Number);
  body.addEventListener("mouseover", (event) => { const found = place(event); if (found) go(...found, false); });
  body.addEventListener("focusin", (event) => { const found = place(event); if (found && `${found}` !== `${at}`) go(...found, false); });
  body.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) { event.preventDefault(); go(at[0] + step[0], at[1] + step[1], true); }
  });
  const turn = (label, by) => make("button", { type: "button", class: "plain", onclick: () => { first = Math.min(Math.max(first + by, 0), n - AT_ONCE); draw(); } }, label);
  const options = [["top", "likeliest token"]];
  if (Object.values(read).some((one) => one.ranks)) options.push(["answer", "rank of the answer"]);
  root.append(
    make("div", { class: "bar" }, choice("Lens", Object.keys(lenses).map((name) => [name, name]), (value) => { lens = value; }), choice("In the cells", options, (value) => { what = value; }),
      n > AT_ONCE ? turn("earlier positions", -AT_ONCE) : null, n > AT_ONCE ? turn("later positions", AT_ONCE) : null),
    make("div", { class: "split" }, make("div", { class: "scroll wide", role: "group", "aria-label": "Lens by layer and position", tabindex: "0" }, body), make("div", { class: "side narrow" }, told)));
  draw();
  onScheme(draw);
}
