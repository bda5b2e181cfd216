// What every view needs: arrays of a payload, colours, tokens as people read them, and small pieces of a page.

/** The numbers of a payload's array: `{shape, get(i, j, ...), values}`; `packed: "causal"` stores keys up to the query, and `values` holds numbers as they are. */
export function numbers(array) {
  const values = array.values ?? { float16: halves, uint8: (b) => b, float32: (b) => new Float32Array(b.buffer) }[array.dtype](bytesOf(array.data));
  const { shape, scale = 1, packed } = array;
  const n = shape[shape.length - 1];
  const matrix = packed === "causal" ? (n * (n + 1)) / 2 : n * n;
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const get = packed === "causal"
    ? (...at) => {
        const last = at.length - 1, query = at[last - 1], key = at[last];
        if (key > query) return 0;
        let outer = 0; // a loop: a long prompt asks for millions
        for (let axis = 0; axis < last - 1; axis++) outer = outer * shape[axis] + at[axis];
        return values[outer * matrix + (query * (query + 1)) / 2 + key] * scale;
      }
    : (...at) => values[at.reduce((sum, i, axis) => sum + i * strides[axis], 0)] * scale;
  return { shape, get, exact: array.dtype !== "uint8" };
}

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = text.charCodeAt(at); // millions: an iterator takes seconds
  return bytes;
}

let table;
function halves(bytes) {
  if (!table) {
    table = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
      table[bits] = exponent === 31 ? (fraction ? NaN : sign * Infinity)
        : exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
    }
  }
  return Float32Array.from(new Uint16Array(bytes.buffer), (bits) => table[bits]);
}

// Blues and RdBu of ColorBrewer (Harrower and Brewer 2003): sequential from nothing to much, diverging with blue above 0.
const BLUES = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];
const DARK_BLUES = [[24, 26, 30], [19, 52, 92], [33, 113, 181], [107, 174, 214], [222, 235, 247]];
const RDBU = [[103, 0, 31], [214, 96, 77], [247, 247, 247], [67, 147, 195], [5, 48, 97]];
const DARK_RDBU = [[253, 174, 157], [190, 70, 58], [30, 31, 34], [58, 120, 178], [158, 202, 235]];

export const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;

function ramp(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), below = Math.min(Math.floor(place), stops.length - 2);
  return stops[below].map((from, i) => Math.round(from + (place - below) * (stops[below + 1][i] - from)));
}

/** A share 0 to 1 as a colour [r, g, b]. */
export const sequential = (share) => ramp(dark() ? DARK_BLUES : BLUES, share);

/** A value within -limit to limit as a colour [r, g, b]; blue is above 0. */
export const diverging = (value, limit) => ramp(dark() ? DARK_RDBU : RDBU, 0.5 + value / (2 * (limit || 1)));

export const css = (colour) => `rgb(${colour.join(" ")})`;

/** Black or white, whichever can be read on a colour (WCAG's relative luminance). */
export function ink(colour) {
  const [r, g, b] = colour.map((c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

/** A number as tables print it: three digits that matter, and a true minus sign. */
export function shown(value, signed = false) {
  if (value === null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size >= 1000 || size < 0.001 ? size.toExponential(1) : size.toPrecision(3);
  return (value < 0 ? "−" : signed && value > 0 ? "+" : "") + text;
}

/** An element: `make("p", {class: "note"}, "text", child)`. Text is text: nothing of a payload is read as HTML. */
export function make(tag, attributes = {}, ...children) {
  const made = tag === "svg" || attributes.xmlns ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [property, set] of Object.entries(value)) made.style.setProperty(property, set);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A token with its number in the prompt; what cannot be seen is made visible, and direction is isolated. */
export function token(text, at) {
  const label = make("bdi", { class: "token-text" }, text);
  return at === undefined ? label : make("span", {}, make("span", { class: "token-at" }, `${at}`), label);
}

/** Redraw what has colours when the reader's scheme changes. */
export const onScheme = (draw) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

/** A canvas of width x height cells, drawn pixel by pixel: `colour(row, column)` is [r, g, b] or null. */
export function cells(canvas, rows, columns, colour) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let row = 0, at = 0; row < rows; row++)
    for (let column = 0; column < columns; column++, at += 4) {
      const made = colour(row, column);
      if (made) { image.data.set(made, at); image.data[at + 3] = 255; }
    }
  context.putImageData(image, 0, 0);
}

/** Call `draw(element)` once for each element when it first comes into view. */
export function whenSeen(elements, draw) {
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) { seen.unobserve(target); draw(target); }
  }, { rootMargin: "200px" });
  for (const element of elements) seen.observe(element);
  return seen;
}

/** Keys that walk a list of elements of which one can be tabbed to; `columns` makes up and down a row. */
export function roving(elements, { columns = 1, choose } = {}) {
  let own = 0;
  const focus = (at) => {
    at = Math.min(Math.max(at, 0), elements.length - 1);
    elements[own].tabIndex = -1;
    elements[(own = at)].tabIndex = 0;
    elements[at].focus();
  };
  elements.forEach((element, at) => {
    element.tabIndex = at ? -1 : 0;
    element.addEventListener("focus", () => { elements[own].tabIndex = -1; own = at; element.tabIndex = 0; });
    element.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -own, End: elements.length }[event.key];
      if (step !== undefined) { event.preventDefault(); focus(own + step); }
      else if (choose && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); choose(at); }
    });
  });
}

/** Put text on the clipboard, and say so in a button for a moment. */
export function copyButton(label, text) {
  const button = make("button", { type: "button", class: "plain" }, label);
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text()); } catch {
      const area = make("textarea", { class: "off-screen" }, text());
      document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = label; }, 1200);
  });
  return button;
}
