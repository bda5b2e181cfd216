// A report's page: views of its numbers when they are opened, files of them, and a look-up of one part in all figures.
import { make, shown } from "./base.js";
import { PAYLOADS, asFile, csv, parts, read } from "./frames.js";

const data = JSON.parse(document.getElementById("data").textContent);
if (data.schema !== 1) throw new Error(`this page reads numbers of version 1, not ${data.schema}`);
const sheet = new CSSStyleSheet();
sheet.replaceSync(data.style.replaceAll(":root", ":host").replace(/^body /m, ":host "));
const frames = new Map();
const frame = (name) => {
  if (!frames.has(name)) frames.set(name, read(data.figures[name]));
  return frames.get(name);
};

/** Give the reader a file whose text the page makes itself. */
function save(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
const saver = (label, name, text) => make("button", { type: "button", "aria-label": `${label}: save its numbers from this page`, onclick: () => save(name, text()) }, "save the numbers");

// 1. Every figure: its numbers as a file, and a view that is drawn when it is opened, in a style of its own.
function draw(place, name) {
  const own = data.figures[name];
  const inner = place.attachShadow({ mode: "open" }), root = make("div");
  inner.adoptedStyleSheets = [sheet];
  inner.append(root);
  const payload = { title: own.title, ...PAYLOADS[own.view](frame(name), own) };
  VIEWS[own.view](root, payload);
  const called = payload.part ?? (payload.names && ((row, column) => payload.names[column]));
  if (!called || !tellers.length) return;
  const told = make("div", { class: "scroll", "aria-live": "polite" });
  root.append(told);
  root.addEventListener("chosen", ({ detail }) => told.replaceChildren(...everything(called(detail.row ?? 0, detail.column ?? detail.at))));
}
for (const [name, own] of Object.entries(data.figures)) {
  const figure = document.getElementById(`figure-${name}`);
  figure.querySelector(".files").append(saver(`Figure ${own.number}`, `${name}.csv`, () => asFile(frame(name))));
  if (!own.view) continue;
  const place = make("div", { class: ["lens", "graph"].includes(own.view) ? "wide" : "" }), fold = make("details", { class: "view" }, make("summary", { "aria-label": `Figure ${own.number}: point at the numbers` }, "point at the numbers"), place);
  fold.addEventListener("toggle", () => { if (fold.open && !place.shadowRoot) draw(place, name); });
  figure.querySelector("figcaption").after(fold);
}

// 2. Every table: its cells as a file, in all their digits.
function cells(table) {
  const names = [...table.querySelectorAll("th")].flatMap((head) => head.dataset.columns.split("|"));
  const lines = [...table.querySelectorAll("tbody tr")].map((row) => [...row.children].flatMap((cell) => (cell.dataset.is === undefined ? [cell.textContent] : cell.dataset.is.split(" "))));
  return csv([names, ...lines]);
}
for (const caption of document.querySelectorAll(".table .caption")) {
  const table = caption.parentElement.querySelector("table");
  caption.querySelector(".files").append(saver(caption.querySelector("b").textContent.replace(".", ""), `${caption.id}.csv`, () => cells(table)));
}

// 3. One part in all figures that tell of single parts.
const tellers = Object.entries(data.figures).filter(([, own]) => own.tells).map(([name, own]) => {
  const rows = new Map();
  parts(frame(name)).forEach((part, row) => { if (part !== null) rows.set(part, [...(rows.get(part) ?? []), row]); });
  return { name, own, rows };
});
function interval(table, row) {
  const [low, high] = ["ci_low", "ci_high"].map((name) => (table.has(name) ? table.column(name)[row] : null));
  return low === null ? "" : `[${shown(low, true)}, ${shown(high, true)}]`;
}

/** A table of everything that was measured of a part, by the figures that the page holds. */
function everything(part) {
  const lines = tellers.flatMap(({ name, own, rows }) => {
    const table = frame(name), link = make("a", { href: `#figure-${name}` }, `Figure ${own.number}`);
    if (!rows.has(part) && tellers.some((other) => other.own.tells === own.tells && other.rows.has(part))) return [];
    if (!rows.has(part)) return [make("tr", {}, make("th", { scope: "row" }, own.tells), make("td", { class: "not", colspan: 2 }, "not computed"), make("td", {}, link))];
    const differ = table.names.filter((one) => !["n", "reason"].includes(one) && own.columns[one].values && new Set(rows.get(part).map((row) => table.column(one)[row])).size > 1);
    const told = (row) => `${own.tells}${differ.map((one) => `, ${one.replaceAll("_", " ")} ${table.shown(one)[row]}`).join("")}`;
    return rows.get(part).map((row) => make("tr", {}, make("th", { scope: "row" }, told(row)), make("td", { class: "number" }, shown(table.column("value")[row], true)), make("td", {}, interval(table, row)), make("td", {}, link)));
  });
  return [make("table", { class: "numbers", "aria-label": `All measurements of ${part}` }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, part), ...["mean", "95% interval", "where"].map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...lines, ...looks(part)))];
}

/** Where a head looks, if the page has its pattern. */
function looks(part) {
  return Object.entries(data.figures).filter(([name, own]) => own.view === "attention" && parts(frame(name)).includes(part)).map(([name, own]) =>
    make("tr", {}, make("th", { scope: "row" }, "where it looks"), make("td", { colspan: 2 }, "on the first prompt"), make("td", {}, make("a", { href: `#figure-${name}` }, `Figure ${own.number}`))));
}
const known = [...new Set(tellers.flatMap(({ rows }) => [...rows.keys()]))];
const panel = document.getElementById("one-part");
if (panel && known.length) {
  const first = known[0]; // tables begin with what is strongest
  const input = make("input", { type: "text", id: "part", list: "parts", value: first, size: 12, autocomplete: "off", spellcheck: "false" });
  const told = make("div", { class: "scroll", tabindex: "0", role: "group", "aria-live": "polite", "aria-label": "All measurements of one part" });
  const tell = () => {
    const wanted = input.value.trim().toLowerCase(), part = known.find((one) => one.toLowerCase() === wanted);
    told.replaceChildren(...(part ? everything(part) : [make("p", { class: "not" }, wanted ? `Nothing of “${input.value.trim()}” was computed in this report. Names are as in its tables: ${known.slice(0, 3).join(", ")}, ...` : "Type the name of a head or layer.")]));
  };
  input.addEventListener("input", tell);
  panel.append(make("form", { onsubmit: (event) => event.preventDefault() }, make("label", { for: "part" }, "Head or layer"), input, make("datalist", { id: "parts" }, ...known.map((one) => make("option", { value: one }))),
    make("span", {}, `${known.length} parts were measured`)), told);
  panel.hidden = false;
  tell();
}

// 4. What a link leads to is unfolded.
function unfold() {
  const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();
