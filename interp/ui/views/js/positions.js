// How positions act: hands on dials that turn with the position, and curves over distance.
import { make, shown } from "./base.js";

const SVG = "http://www.w3.org/2000/svg";
const svg = (tag, attributes, ...children) => make(tag, { xmlns: SVG, ...attributes }, ...children);

/** A dial for each pair of numbers, with the angle by which it is turned. */
export function dials({ angles, periods, pairs }) {
  const told = make("p", { class: "cell", "aria-live": "polite" });
  const say = (at) => {
    const turn = (angles[at] * 180) / Math.PI;
    return `Numbers ${pairs[at][0]} and ${pairs[at][1]}: turned by ${turn.toFixed(1)}°${periods[at] ? `; a whole turn takes ${shown(periods[at])} positions` : ""}`;
  };
  const made = angles.map((angle, at) => {
    const [x, y] = [11 + 9 * Math.sin(angle), 11 - 9 * Math.cos(angle)];
    return make("span", { class: "dial", title: say(at), onmouseenter: () => { told.textContent = say(at); } },
      svg("svg", { viewBox: "0 0 22 22", width: "22", height: "22", "aria-hidden": "true" }, svg("circle", { cx: 11, cy: 11, r: 9.5 }), svg("line", { x1: 11, y1: 11, x2: x.toFixed(2), y2: y.toFixed(2) })));
  });
  let own = 0;
  const list = make("div", { class: "dials", role: "application", "aria-roledescription": "dials", "aria-label": say(0), tabindex: "0" }, ...made);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    own = Math.min(Math.max(own + step, 0), made.length - 1);
    told.textContent = say(own);
    list.setAttribute("aria-label", say(own));
  });
  told.textContent = say(0);
  return make("div", {}, list, told);
}

/** Curves over whole numbers from 0; the chosen one is strong, and a place may be marked. */
export function lines({ what, across, lines: curves, chosen, mark }) {
  const width = 560, height = 150, left = 46, bottom = 24, n = Math.max(...curves.map((curve) => curve.values.length));
  const all = curves.flatMap((curve) => curve.values), low = Math.min(0, ...all), high = Math.max(0, ...all), span = high - low || 1;
  const x = (at) => left + ((width - left - 8) * at) / Math.max(n - 1, 1), y = (value) => 8 + ((height - bottom - 8) * (high - value)) / span;
  const path = (values) => values.map((value, at) => `${at ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const own = curves[chosen].values, told = make("p", { class: "cell", "aria-live": "polite" });
  const dot = svg("circle", { r: 4, class: "curve-dot" });
  let at = Math.min(Math.max(mark ?? 0, 0), own.length - 1);
  const move = (to) => {
    at = Math.min(Math.max(to, 0), own.length - 1);
    dot.setAttribute("cx", x(at)); dot.setAttribute("cy", y(own[at]));
    told.textContent = `${curves[chosen].what ? `${curves[chosen].what}, ` : ""}${across} ${at}: ${shown(own[at], true)}${at === mark ? " (here)" : ""}`;
    drawn.setAttribute("aria-label", `${what}: ${told.textContent}`);
  };
  const label = (text, attributes) => svg("text", attributes, text);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "curves", role: "application", "aria-roledescription": "curve", tabindex: "0" },
    svg("line", { x1: left, x2: width - 8, y1: y(0), y2: y(0), class: "curve-zero" }),
    ...[...new Set([high, 0, low])].map((value) => label(shown(value, true), { x: left - 5, y: y(value) + 4, "text-anchor": "end" })),
    label("0", { x: x(0), y: height - 8, "text-anchor": "middle" }), label(`${n - 1}`, { x: x(n - 1), y: height - 8, "text-anchor": "end" }), label(across, { x: (left + width) / 2, y: height - 8, "text-anchor": "middle" }),
    ...curves.map((curve, i) => (i === chosen ? null : svg("path", { d: path(curve.values), class: "curve" }))), svg("path", { d: path(own), class: "curve chosen" }), dot);
  drawn.addEventListener("mousemove", (event) => {
    const box = drawn.getBoundingClientRect();
    move(Math.round(((((event.clientX - box.left) / box.width) * width - left) / (width - left - 8)) * Math.max(n - 1, 1)));
  });
  drawn.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); move(at + step); }
  });
  move(at);
  return make("div", {}, make("h4", {}, what), drawn, told);
}
