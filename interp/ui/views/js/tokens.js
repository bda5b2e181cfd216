// A text whose tokens are coloured by numbers: losses, attributions, activations of a neuron.
import { copyButton, css, diverging, ink, make, onScheme, roving, sequential, shown, token } from "./base.js";

export function render(root, payload) {
  const { tokens, series } = payload;
  let own = series[0];
  const told = make("p", { class: "cell", "aria-live": "polite" });
  const words = tokens.map((text, at) => make("button", { type: "button", class: "word", onmouseenter: () => tell(at), onfocus: () => tell(at) }, token(text, at)));
  const tell = (at) => told.replaceChildren(token(tokens[at], at), ": ", make("b", {}, shown(own.values[at], own.signed)), ` ${own.what}`);
  function draw() {
    const most = Math.max(...own.values.map((v) => Math.abs(v ?? 0)));
    words.forEach((word, at) => {
      const value = own.values[at], colour = value === null ? null : own.signed ? diverging(value, most) : sequential(most ? value / most : 0);
      word.style.background = colour ? css(colour) : "";
      word.style.color = colour ? ink(colour) : "";
      word.setAttribute("aria-label", `${at} ${tokens[at]}: ${shown(value, own.signed)}`);
    });
    tell(0);
  }
  root.append(
    make("div", { class: "bar" }, series.length > 1 ? make("label", {}, "Colour ", make("select", { onchange: (event) => { own = series[event.target.value]; draw(); } }, ...series.map((one, at) => make("option", { value: at }, one.what)))) : null,
      copyButton("copy the numbers", () => tokens.map((text, at) => `${at}\t${text}\t${own.values[at]}`).join("\n"))),
    make("div", { class: "words", role: "group", "aria-label": "Tokens" }, ...words), told);
  roving(words);
  draw();
  onScheme(draw);
}
