// One prompt on its way through the model, step by step. Position, layer and head are chosen here, and asked for.
import { make, roving, token } from "./base.js";
import { dials, lines } from "./positions.js";
import { bars, sentence, table, triangles, vectors, words } from "./vectors.js";

const SHOWN = 120; // tokens at once, around the chosen one

/** Draw a walk; what it gives takes the walk at another place. A choice is told as an event "place". */
export function render(root, payload) {
  let own = payload, waits = 0;
  const choose = (fields) => {
    const place = { ...own.place, ...fields };
    if (fields.layer !== undefined && fields.unit === undefined) place.unit = null; // the head that writes most
    root.dispatchEvent(new CustomEvent("place", { bubbles: true, detail: place }));
  };
  const field = (name, label) => {
    const input = make("input", { type: "number", min: 0, step: 1, "aria-label": label });
    const less = make("button", { type: "button", class: "plain", "aria-label": `${label}: one less`, onclick: () => step(-1) }, "−");
    const more = make("button", { type: "button", class: "plain", "aria-label": `${label}: one more`, onclick: () => step(1) }, "+");
    const word = make("span", {}, label), of = make("span", { class: "note" });
    const to = (value) => {
      const at = Math.min(Math.max(Math.round(value), 0), Number(input.max));
      input.value = at;
      clearTimeout(waits);
      waits = setTimeout(() => choose({ [name]: at }), 120); // keys that are held ask once
    };
    const step = (by) => to(Number(input.value) + by);
    input.addEventListener("input", () => { if (input.value !== "" && Number.isFinite(Number(input.value))) to(Number(input.value)); });
    const row = make("span", { class: "chooser" }, word, less, input, more, of);
    const set = (value, most, called, told) => {
      if (document.activeElement !== input || Number(input.value) !== value) input.value = value;
      input.max = most;
      word.textContent = called;
      of.textContent = told;
      for (const [button, what] of [[less, "one less"], [more, "one more"]]) button.setAttribute("aria-label", `${called}: ${what}`);
      input.setAttribute("aria-label", called);
      row.hidden = most < 0;
    };
    return { row, set };
  };
  const position = field("position", "position"), layer = field("layer", "layer"), unit = field("unit", "head");
  const at = make("bdi", { class: "token-text" });
  const steps = make("ol", { class: "walk-steps" });
  root.classList.add("walk");
  root.append(make("div", { class: "walk-bar-top", role: "group", "aria-label": "Where the walk looks" }, position.row, at, layer.row, unit.row), steps);

  function draw() {
    const { place, tokens, layers, units } = own, kept = document.activeElement?.closest?.(".walk-steps") === steps ? document.activeElement.dataset.choice : null;
    position.set(place.position, tokens.length - 1, "position", `of ${tokens.length.toLocaleString("en")}`);
    at.textContent = tokens[place.position];
    layer.set(place.layer, layers.length - 1, "layer", `of ${layers.length}: ${layers[place.layer]}`);
    unit.set(place.unit, units - 1, own.unit_word || "head", `of ${units}`);
    steps.replaceChildren(...own.steps.map(({ key, title, text, items }) => make("li", { "data-step": key }, make("h3", {}, title), sentence(text), ...items.map(item))));
    if (kept) steps.querySelector(`[data-choice="${kept}"]`)?.focus();
  }
  const DRAWN = {
    tokens: () => chips(),
    vectors, table, words, dials, lines,
    bars: (one) => bars(one, (i) => choose({ [one.chooses]: place(one, i) })),
    triangles: (one) => triangles(one, own, (query) => choose({ position: query })),
    choice: () => make("button", { type: "button", class: "plain", onclick: () => root.dispatchEvent(new CustomEvent("onward", { bubbles: true })) }, "change temperature, top-k and top-p, and append a token"),
  };
  const item = (one) => DRAWN[one.kind](one);
  /** What the i-th bar stands for: a position as its token says, else the number in its label. */
  const place = (one, i) => (typeof one.labels[i] === "string" ? Number(one.labels[i].split(" ").at(-1)) : one.labels[i].at);

  function chips() {
    const { tokens, ids, place: { position: chosen } } = own, n = tokens.length, first = Math.max(0, Math.min(chosen - SHOWN / 2, n - SHOWN)), last = Math.min(n, first + SHOWN);
    const made = tokens.slice(first, last).map((text, i) => make("button", { type: "button", class: "chip", "aria-pressed": first + i === chosen ? "true" : "false", "data-choice": `token:${first + i}`, "aria-label": `position ${first + i}: ${text}, id ${ids[first + i]}`, onclick: () => choose({ position: first + i }) },
      token(text, first + i), make("span", { class: "chip-id" }, `${ids[first + i]}`)));
    roving(made);
    for (const [i, one] of made.entries()) one.tabIndex = first + i === chosen ? 0 : -1;
    const hidden = n - made.length;
    return make("div", {}, make("div", { class: "chips", role: "group", "aria-label": "Tokens and their ids" }, ...made),
      hidden ? make("p", { class: "note" }, `Positions ${first} to ${last - 1} are shown, around the chosen one; ${hidden.toLocaleString("en")} more are chosen by their number above.`) : "");
  }
  draw();
  return { update(next) { own = next; draw(); } };
}
