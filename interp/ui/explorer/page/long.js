// Prompts that are too long to draw whole: one layer's patterns, and a window of positions, with what turns to others.
import { make } from "./views/base.js";

/** `draw(name, signal)` asks for a part again, at its new place. */
export function longPrompt(draw) {
  const places = { attention: { layer: 0, position: null }, lens: { position: null } };
  let prompt = "", shown = false, drawing = new AbortController();
  function turn(name, fields) {
    Object.assign(places[name], fields);
    drawing.abort();
    draw(name, (drawing = new AbortController()).signal);
  }
  function bar(name, { first, last, tokens, layers }) {
    if (name === "attention") shown = true;
    const size = last - first + 1, most = (at) => Math.min(Math.max(at, size - 1), tokens - 1);
    const button = (label, by, off) => make("button", { type: "button", class: "plain", disabled: off, onclick: () => turn(name, { position: most(last + by) }) }, label);
    const nearest = layers.reduce((best, at) => (Math.abs(at - places[name].layer) < Math.abs(best - places[name].layer) ? at : best), layers[0]);
    return make("div", { class: "bar long", role: "group", "aria-label": "What is shown of a long prompt" },
      layers.length ? make("label", {}, "layer ", make("select", { onchange: ({ target }) => turn(name, { layer: Number(target.value) }) }, ...layers.map((at) => make("option", { value: at, selected: at === nearest }, at)))) : null,
      make("span", { class: "note" }, `The prompt is long: ${layers.length ? "one layer at a time, " : ""}positions ${first} to ${last} of ${tokens.toLocaleString("en")}.${layers.length && first ? " What is looked at before them is not drawn." : ""}`),
      size < tokens ? button("earlier window", -size, first === 0) : null, size < tokens ? button("later window", size, last === tokens - 1) : null);
  }
  return {
    bar,
    focus: (name) => places[name] ?? {},
    /** A new prompt is shown from its end. */
    follow(text) { drawing.abort(); shown = false; if (text !== prompt) for (const place of Object.values(places)) place.position = null; prompt = text; },
    /** Show a layer's patterns, where one layer is shown at a time. */
    layer(at, anyway = false) { if (shown && (anyway || at !== places.attention.layer)) turn("attention", { layer: at }); else places.attention.layer = at; },
    get shown() { return shown; },
  };
}
