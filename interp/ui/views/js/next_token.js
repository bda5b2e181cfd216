// What comes next: logits, temperature, top-k and top-p, with the arithmetic written out for the chosen token.
import { make, numbers, shown, token } from "./base.js";

const MOST = 15;

export function render(root, payload) {
  const logits = numbers(payload.logits), n = payload.logits.shape[0], labels = payload.labels;
  const value = (at) => logits.get(at); // from the likeliest down, of the whole vocabulary
  let chosen = 0;
  const range = (label, from, to, step, start) => {
    const input = make("input", { type: "range", min: from, max: to, step, value: start, oninput: draw });
    const output = make("output", {}, `${start}`);
    return { input, output, row: make("label", { class: "range" }, `${label} `, input, output) };
  };
  const temperature = range("temperature", 0.1, 2, 0.05, 1);
  const topK = range("top-k", 1, Math.min(n, 100), 1, Math.min(n, 100));
  const topP = range("top-p", 0.05, 1, 0.05, 1);
  const rows = make("tbody"), sums = make("p", { class: "arithmetic", "aria-live": "polite" });

  function draw() {
    const t = Number(temperature.input.value), p = Number(topP.input.value);
    const k = Number(topK.input.value) === Number(topK.input.max) ? n : Number(topK.input.value);
    temperature.output.textContent = t.toFixed(2);
    topK.output.textContent = k === n ? "all" : `${k}`;
    topP.output.textContent = p.toFixed(2);
    const first = value(0);
    let all = 0;
    for (let at = 0; at < n; at++) all += Math.exp((value(at) - first) / t);
    const share = (at) => Math.exp((value(at) - first) / t) / all;
    // Top-k comes first, then top-p among what is left, as `generate` does it.
    let within = 0;
    for (let at = 0; at < k; at++) within += share(at);
    let kept = 0, mass = 0;
    // With top-p 1 nothing is cut, although the sum reaches 1 before its last, tiny terms.
    while (kept < k && (kept === 0 || p === 1 || mass / within < p)) mass += share(kept++);
    rows.replaceChildren(...labels.slice(0, MOST).map((label, at) => {
      const cut = at >= kept, drawn = cut ? 0 : share(at) / mass;
      const name = make("button", { type: "button", class: "word", "aria-pressed": at === chosen ? "true" : "false", onclick: () => { chosen = at; root.dispatchEvent(new CustomEvent("chosen", { bubbles: true, detail: { at, label } })); draw(); rows.children[at].querySelector("button").focus(); } }, token(label));
      return make("tr", { class: cut ? "cut" : "" }, make("th", { scope: "row" }, name), make("td", {}, shown(value(at))),
        make("td", {}, `${(100 * share(at)).toFixed(share(at) < 0.001 ? 3 : 1)}%`),
        make("td", { class: "drawn" }, make("span", { class: "share", "aria-hidden": "true", style: { width: `${100 * drawn}%` } }), make("span", { class: "share-value" }, cut ? "never" : `${(100 * drawn).toFixed(1)}%`)));
    }));
    const label = make("bdi", { class: "token-text" }, labels[chosen]);
    sums.replaceChildren("The probability of ", label, ` is e^(${shown(value(chosen))} / ${t.toFixed(2)}) divided by the sum of the same over all ${n.toLocaleString("en")} tokens: ${shown(share(chosen))}. `,
      kept === n ? "Nothing is cut, so it is drawn that often." : chosen >= kept ? `Only the first ${kept} are left to draw from, and it is not among them.`
        : `Only the first ${kept} are left, which hold ${shown(mass)}: it is drawn with ${shown(share(chosen))} / ${shown(mass)} = ${shown(share(chosen) / mass)}.`);
  }
  root.append(make("div", { class: "bar" }, temperature.row, topK.row, topP.row), sums,
    make("div", { class: "scroll", role: "group", "aria-label": "Likeliest next tokens", tabindex: "0" },
      make("table", { class: "numbers" }, make("caption", {}, `The ${Math.min(MOST, labels.length)} likeliest of ${n.toLocaleString("en")} tokens after ${payload.after}`),
        make("thead", {}, make("tr", {}, ...["token", "logit", "probability", "drawn"].map((head) => make("th", { scope: "col" }, head)))), rows)));
  draw();
}
