// Small drawings of numbers: vectors as strips of cells, bars, matrices, tables; each can be read by mouse and by keyboard.
import { cells, diverging, make, numbers, onScheme, roving, sequential, shown, token } from "./base.js";

const IN_A_ROW = 96; // cells of a strip; longer vectors go on in the next row
const LISTED = 3; // largest numbers of a vector that are written out

/** A token of the prompt, or of the vocabulary, as a piece of text. */
export const named = (piece) => (typeof piece === "string" ? piece : token(piece.token, piece.at));

/** A text of plain words, numbers and tokens. */
export const sentence = (pieces) => make("p", {}, ...pieces.map((piece) => (piece.number !== undefined ? make("span", { class: "figure" }, shown(piece.number)) : named(piece))));

/** Vectors below one another, on one scale: blue above 0, red below. */
export function vectors({ rows, what }) {
  const made = rows.map((row) => ({ what: row.what, values: numbers(row.values), n: row.values.shape[0] }));
  let most = 0;
  for (const { values, n } of made) for (let at = 0; at < n; at++) if (Number.isFinite(values.get(at))) most = Math.max(most, Math.abs(values.get(at)));
  return make("div", { class: "vectors", role: "group", "aria-label": what || rows.map((row) => row.what).join(", ") }, ...made.map((row) => strip(row, most)),
    make("p", { class: "note" }, `Blue is above 0, red below; the strongest colour is ±${shown(most)}.`));
}

function strip({ what, values, n }, most) {
  const across = Math.min(n, IN_A_ROW), down = Math.ceil(n / across);
  const told = make("span", { class: "told", "aria-live": "polite" });
  const canvas = make("canvas", { class: "strip", role: "application", tabindex: "0", "aria-roledescription": "vector", style: { "aspect-ratio": `${across} / ${down > 1 ? down : 2}`, width: `min(100%, ${across * 9}px)` } });
  let own = 0;
  const by = [...Array(n).keys()].sort((a, b) => Math.abs(values.get(b)) - Math.abs(values.get(a))).slice(0, LISTED);
  const say = (at) => `${what}, number ${at}: ${shown(values.get(at), true)}`;
  const rest = () => { told.textContent = `largest: ${by.map((at) => `${shown(values.get(at), true)} at ${at}`).join(", ")}`; };
  const move = (at) => {
    own = Math.min(Math.max(at, 0), n - 1);
    told.textContent = `number ${own}: ${shown(values.get(own), true)}`;
    canvas.setAttribute("aria-label", say(own));
  };
  const draw = () => cells(canvas, down, across, (row, column) => {
    const at = row * across + column;
    return at < n ? diverging(values.get(at), most) : null;
  });
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.min(down - 1, Math.floor(((event.clientY - box.top) / box.height) * down));
    move(row * across + Math.min(across - 1, Math.floor(((event.clientX - box.left) / box.width) * across)));
  });
  canvas.addEventListener("mouseleave", rest);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (step) { event.preventDefault(); move(own + step); }
  });
  draw();
  onScheme(draw);
  canvas.setAttribute("aria-label", say(0));
  rest();
  return make("div", { class: "vector" }, make("div", { class: "vector-name" }, make("b", {}, what), ` ${n.toLocaleString("en")} numbers · `, told), canvas);
}

/** Bars from a middle line; where one can be chosen they are buttons. */
export function bars({ what, labels, values, chosen, chooses }, choose) {
  const most = Math.max(...values.map(Math.abs)) || 1, signed = values.some((value) => value < 0);
  const made = values.map((value, at) => {
    const share = Math.abs(value) / most, width = signed ? 50 * share : 100 * share;
    const bar = make("span", { class: "walk-bar", "aria-hidden": "true" }, make("span", { class: value < 0 ? "below" : "above", style: { width: `${width}%`, left: `${signed ? (value < 0 ? 50 - width : 50) : 0}%` } }));
    const inner = [make("span", { class: "bar-label" }, named(labels[at])), bar, make("span", { class: "bar-value" }, shown(value, signed))];
    if (!chooses) return make("div", { class: "bar-row" }, ...inner);
    return make("button", { type: "button", class: "bar-row", "aria-pressed": at === chosen ? "true" : "false", "data-choice": `${chooses}:${at}`, onclick: () => choose(at) }, ...inner);
  });
  const list = make("div", { class: "bar-list", role: "group", "aria-label": what, tabindex: chooses ? null : "0" }, ...made);
  if (chooses) { roving(made); for (const [at, one] of made.entries()) one.tabIndex = at === (chosen ?? 0) ? 0 : -1; }
  return make("div", {}, make("h4", {}, what), list);
}

/** A table; a cell is text, a number, a token, a share of 1 with its bar, or what a vector says. */
export function table({ caption, heads, rows }) {
  const cell = (value) => value === null ? "" : typeof value === "number" ? shown(value)
    : typeof value === "string" ? value
    : value.share !== undefined ? make("span", { class: "share-cell" }, make("span", { class: "share", "aria-hidden": "true", style: { width: `${100 * value.share}%` } }), make("span", { class: "share-value" }, shown(value.share)))
    : value.words ? make("span", {}, ...value.words.slice(0, 3).flatMap((word, at) => [at ? ", " : "", token(word.token)])) : named(value);
  return make("div", { class: "scroll walk-table", role: "group", "aria-label": caption, tabindex: "0" },
    make("table", { class: "numbers" }, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...rows.map(([first, ...others]) => make("tr", {}, make("th", { scope: "row" }, cell(first)), ...others.map((value) => make("td", { class: value?.share !== undefined ? "drawn" : value?.words ? "said" : null }, cell(value))))))));
}

/** What a vector says: tokens with their probabilities, or with the logits that it adds to and takes from them. */
export function words({ before, of, words: up, lowered }) {
  const list = (told, signed) => told.flatMap((word, at) => [at ? ", " : "", token(word.token), " ", make("span", { class: "figure" }, signed ? shown(word.value, true) : `${(100 * word.value).toFixed(word.value < 0.001 ? 3 : 1)}%`)]);
  if (of === "probability") return make("p", { class: "says" }, `${before}: `, ...list(up, false), ".");
  return make("p", { class: "says" }, `${before} for `, ...list(up.filter((word) => word.value > 0), true), " and against ", ...list(lowered.filter((word) => word.value < 0), true), " (logits).");
}

/** Matrices [query, key] side by side; the chosen row is framed, and a click or a key chooses another. */
export function triangles({ maps }, payload, choose) {
  const { tokens, place } = payload, n = tokens.length, made = maps.map((map) => ({ what: map.what, values: numbers(map.values) }));
  const told = make("p", { class: "cell", "aria-live": "polite" });
  let own = [place.position, place.position];
  const tell = ([query, key]) => {
    own = [Math.min(Math.max(query, 0), n - 1), Math.min(Math.max(key, 0), n - 1)];
    told.replaceChildren(token(tokens[own[0]], own[0]), " looks at ", token(tokens[own[1]], own[1]), ": ", made.map(({ what, values }) => `${what} ${said(values.get(...own))}`).join(", "));
  };
  const said = (value) => (value === -Infinity ? "−∞" : shown(value));
  const side = Math.max(2, Math.min(12, Math.floor(190 / n)));
  const canvases = made.map(({ what, values }) => {
    let most = 0;
    for (let q = 0; q < n; q++) for (let k = 0; k < n; k++) if (Number.isFinite(values.get(q, k))) most = Math.max(most, Math.abs(values.get(q, k)));
    const weights = what.startsWith("weight");
    const canvas = make("canvas", { class: "triangle", tabindex: "0", role: "application", "aria-roledescription": "matrix", "aria-label": what, style: { width: `${side * n}px`, height: `${side * n}px` } });
    const draw = () => cells(canvas, n, n, (q, k) => { const value = values.get(q, k); return !Number.isFinite(value) || (weights && k > q) ? null : weights ? sequential(value) : diverging(value, most); });
    draw();
    onScheme(draw);
    const where = (event) => { const box = canvas.getBoundingClientRect(); return [Math.floor(((event.clientY - box.top) / box.height) * n), Math.floor(((event.clientX - box.left) / box.width) * n)]; };
    canvas.addEventListener("mousemove", (event) => tell(where(event)));
    canvas.addEventListener("click", (event) => choose(Math.min(where(event)[0], n - 1)));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (step) { event.preventDefault(); tell([own[0] + step[0], own[1] + step[1]]); canvas.setAttribute("aria-label", told.textContent); }
      if (event.key === "Enter") choose(own[0]);
    });
    const frame = make("span", { class: "row-frame", "aria-hidden": "true", style: { top: `${side * place.position}px`, height: `${side}px`, width: `${side * n}px` } });
    return make("figure", { class: "map" }, make("div", { class: "map-place" }, canvas, frame), make("figcaption", {}, what));
  });
  tell(own);
  return make("div", {}, make("div", { class: "maps" }, ...canvases), told);
}

