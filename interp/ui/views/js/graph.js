// A circuit: parts in the order of computation, edges as wide as their score. Parts can be pinned, grouped and pruned.
import { copyButton, css, diverging, make, onScheme, roving, shown } from "./base.js";

const NS = "http://www.w3.org/2000/svg", STEP = 74, ROW = 58, WIDE = 64, HIGH = 22;

export function render(root, payload) {
  const scored = payload.edges.some((edge) => edge.value !== null);
  const sizes = payload.edges.map((edge) => Math.abs(edge.value ?? 0)).sort((a, b) => b - a);
  const groups = new Map(); // node -> label of its group
  const pinned = new Set();
  let kept = Math.min(payload.edges.length, 60), chosen = null, selected = new Set();
  const picture = document.createElementNS(NS, "svg"), told = make("div", { class: "side narrow", "aria-live": "polite" });
  picture.setAttribute("role", "group");
  picture.setAttribute("aria-label", payload.title);
  const prune = make("input", { type: "range", min: 1, max: payload.edges.length, value: kept, "aria-label": "Edges shown", oninput: () => { kept = Number(prune.value); draw(); } });
  const count = make("output");
  const name = make("input", { type: "text", size: 14, "aria-label": "Name of the group", placeholder: "name of a group" });

  const own = (node) => (groups.has(node) ? `group ${groups.get(node)}` : node);
  const svg = (tag, attributes, ...children) => {
    const made = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // Edges between groups are one edge, which is the sum of theirs.
  function visible() {
    const least = sizes[kept - 1] ?? 0, merged = new Map();
    let left = kept;
    for (const edge of payload.edges) {
      const size = Math.abs(edge.value ?? 0), held = pinned.has(edge.from) || pinned.has(edge.to);
      if (!held && (size < least || left-- <= 0)) continue;
      const from = own(edge.from), to = own(edge.to), key = `${from}>${to}>${edge.reads}`;
      if (from === to) continue;
      const known = merged.get(key);
      if (known) { known.value = (known.value ?? 0) + (edge.value ?? 0); known.n += 1; }
      else merged.set(key, { from, to, reads: edge.reads, value: edge.value, n: 1 });
    }
    return [...merged.values()];
  }

  function places(edges) {
    const rows = new Map(), labels = new Map();
    const names = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
    for (const node of payload.nodes) {
      const at = own(node.name);
      if (!names.has(at)) continue;
      labels.set(at, groups.get(node.name) ?? node.label);
      rows.set(at, Math.max(rows.get(at) ?? -Infinity, node.row));
    }
    const levels = [...new Set(rows.values())].sort((a, b) => a - b);
    const lines = levels.map((level) => [...rows.keys()].filter((node) => rows.get(node) === level));
    const x = new Map();
    lines.forEach((line) => line.forEach((node, i) => x.set(node, i - (line.length - 1) / 2)));
    // Each line is ordered by the mean place of its neighbours, down and up again.
    for (let round = 0; round < 8; round++)
      for (const line of round % 2 ? [...lines].reverse() : lines) {
        const wanted = new Map(line.map((node) => {
          const near = edges.flatMap((edge) => (edge.from === node ? [x.get(edge.to)] : edge.to === node ? [x.get(edge.from)] : []));
          return [node, near.length ? near.reduce((a, b) => a + b, 0) / near.length : 0];
        }));
        line.sort((a, b) => wanted.get(a) - wanted.get(b));
        let last = -Infinity;
        for (const node of line) { last = Math.max(last + 1, wanted.get(node)); x.set(node, last); }
        const shift = line.reduce((sum, node) => sum + wanted.get(node) - x.get(node), 0) / line.length;
        for (const node of line) x.set(node, x.get(node) + shift);
      }
    const left = Math.min(...x.values());
    return new Map([...x].map(([node, at]) => [node, { label: labels.get(node), x: (at - left) * STEP + WIDE / 2 + 4, y: levels.indexOf(rows.get(node)) * ROW + HIGH / 2 + 4 }]));
  }

  function draw() {
    const edges = visible(), at = places(edges), most = Math.max(...edges.map((edge) => Math.abs(edge.value ?? 0)), 1e-30);
    count.textContent = `${edges.length} of ${payload.edges.length} lines`;
    const width = Math.max(...[...at.values()].map((p) => p.x), 0) + WIDE / 2 + 4, height = Math.max(...[...at.values()].map((p) => p.y), 0) + HIGH / 2 + 4;
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("width", width);
    picture.setAttribute("height", height);
    const lines = edges.map((edge) => {
      const a = at.get(edge.from), b = at.get(edge.to), lit = chosen === null || edge.from === chosen || edge.to === chosen;
      const shift = { q: -16, k: 0, v: 16 }[edge.reads] ?? 0, middle = (a.y + b.y) / 2;
      const line = svg("path", { d: `M ${a.x} ${a.y + HIGH / 2} C ${a.x} ${middle}, ${b.x + shift} ${middle}, ${b.x + shift} ${b.y - HIGH / 2}`, fill: "none",
        stroke: edge.value === null ? "var(--quiet)" : css(diverging(Math.sign(edge.value) * Math.max(Math.abs(edge.value), most / 3), most)), "stroke-width": 0.6 + 4 * Math.sqrt(Math.abs(edge.value ?? 0) / most), opacity: lit ? 0.9 : 0.12 });
      line.append(svg("title", {}, `${at.get(edge.from).label} to ${at.get(edge.to).label}${edge.reads ? `, read by ${edge.reads}` : ""}: ${shown(edge.value, true)}`));
      return line;
    });
    const order = [...at].sort((a, b) => a[1].y - b[1].y || a[1].x - b[1].x);
    const nodes = order.map(([node, p]) => {
      const box = svg("g", { class: `node${node === chosen ? " chosen" : ""}${selected.has(node) ? " selected" : ""}`, role: "button", "aria-pressed": String(node === chosen), "aria-label": p.label, transform: `translate(${p.x} ${p.y})` },
        svg("rect", { x: -WIDE / 2, y: -HIGH / 2, width: WIDE, height: HIGH, rx: 3 }), svg("text", { "text-anchor": "middle", dy: ".35em" }, p.label.length > 10 ? `${p.label.slice(0, 9)}…` : p.label));
      box.addEventListener("click", (event) => choose(node, event.shiftKey));
      return box;
    });
    picture.replaceChildren(...lines, ...nodes);
    roving(nodes, { choose: (i) => choose(order[i][0], false) });
    tell(edges, at);
  }
  function choose(node, add) {
    if (add) { selected.has(node) ? selected.delete(node) : selected.add(node); } else chosen = chosen === node ? null : node;
    draw();
    const again = [...picture.querySelectorAll(".node")].find((one) => one.getAttribute("aria-pressed") === "true");
    if (again) again.focus();
  }
  function tell(edges, at) {
    if (chosen === null || !at.has(chosen)) { told.replaceChildren(make("p", { class: "note" }, "Choose a part to see what it reads and what reads it. Shift and click chooses several, to group them.")); return; }
    const list = (title, own, other) => {
      const found = edges.filter((edge) => edge[own] === chosen).sort((a, b) => Math.abs(b.value ?? 0) - Math.abs(a.value ?? 0));
      return [make("h4", {}, title), make("ol", {}, ...found.map((edge) => make("li", {}, `${at.get(edge[other]).label}${edge.reads ? ` (${edge.reads})` : ""} ${shown(edge.value, true)}${edge.n > 1 ? `, ${edge.n} edges` : ""}`)))];
    };
    const held = pinned.has(chosen);
    told.replaceChildren(make("p", {}, make("b", {}, at.get(chosen).label)),
      make("button", { type: "button", class: "plain", onclick: () => { held ? pinned.delete(chosen) : pinned.add(chosen); draw(); } }, held ? "unpin" : "pin: keep all its edges"),
      make("button", { type: "button", class: "plain", onclick: () => { selected.has(chosen) ? selected.delete(chosen) : selected.add(chosen); draw(); } }, selected.has(chosen) ? "out of the selection" : "into the selection"),
      ...list("reads", "to", "from"), ...list("is read by", "from", "to"));
  }
  const group = () => {
    const label = name.value.trim();
    if (!label || !selected.size) return;
    for (const node of payload.nodes) if (selected.has(own(node.name))) groups.set(node.name, label);
    selected = new Set();
    chosen = null;
    draw();
  };
  root.append(
    make("div", { class: "bar" }, scored ? make("label", {}, "Edges, the strongest first ", prune, count) : null,
      name, make("button", { type: "button", class: "plain", onclick: group }, "group the selection"), make("button", { type: "button", class: "plain", onclick: () => { groups.clear(); draw(); } }, "ungroup"),
      copyButton("copy the edges", () => payload.edges.map((edge) => [edge.from, edge.to, edge.reads, edge.value].join("\t")).join("\n"))),
    payload.note ? make("p", { class: "note" }, payload.note) : "",
    make("div", { class: "split" }, make("div", { class: "scroll wide graph", role: "group", "aria-label": "Circuit", tabindex: "0" }, picture), told));
  draw();
  onScheme(draw);
}
