// The page: what is typed and clicked makes a scene; the server says what the model does with it; views draw that.
import * as attention from "./views/attention.js";
import { make, roving, token as tokenText } from "./views/base.js";
import * as heatmap from "./views/heatmap.js";
import * as lens from "./views/lens.js";
import * as nextToken from "./views/next_token.js";
import * as walk from "./views/walk.js";
import { ask, download, keep, Refused, started, whenGiven } from "./ask.js";
import * as compare from "./compare.js";
import * as finder from "./finder.js";
import { duration, inWords, job } from "./job.js";
import { longPrompt } from "./long.js";
import { alike, History, read, said } from "./scene.js";
import { tour } from "./tour.js";
import { wholeTask } from "./whole_task.js";

const VIEWS = { attention: attention.render, compare: compare.render, heatmap: heatmap.render, lens: lens.render, next_token: nextToken.render, note: (root, payload) => root.append(make("p", { class: "note" }, payload.text)) };
const MOST_PLACES = 300; // tokens that can be chosen from
const PAUSE = 250; // milliseconds without a key before the model runs
const LONG = 600; // milliseconds after which a reader is told what is waited for
const by = (id) => document.getElementById(id);

const start = started();
const token = start.token, steps = new History(start.scene);
let about = null, head = 0, next = { at: 0, label: "" }, running = new AbortController(), mapScript = "", mappedOf = "", typing = 0;
let walked = null, walkedOf = "", walkIs = null, walking = new AbortController();
let spot = spotOf(start.also.get("walk"));
const toured = Number(start.also.get("tour"));

// 1. What the server is asked, in the order in which a reader looks; a newer scene stops an older one.
async function refresh(problem = "") {
  if (!about) return true; // begins by itself once the server has said what it serves
  running.abort();
  const own = (running = new AbortController()), { scene } = steps;
  address();
  drawState();
  const of = JSON.stringify([scene.prompt, scene.second, scene.answers]);
  if (of !== mappedOf) { mappedOf = of; stopMap(); }
  by("views").setAttribute("aria-busy", "true");
  long.follow(scene.prompt);
  let took = "", slow = later("The model is computing …");
  try {
    const asked = [...(scene.edits.length || scene.beside ? [["compare"]] : []), ["next_token"], ["attention"], ["lens"]], [first] = asked;
    for (const parts of asked) {
      const began = performance.now(), told = await ask(token, "look", { scene, parts, focus: long.focus(parts[0]) }, own.signal);
      if (own.signal.aborted) return true;
      by("problem").textContent = problem;
      if (parts === first) drawTokens(told);
      show(parts, told.parts);
      if (parts !== first) continue;
      clearTimeout(slow);
      by("status").textContent = took = `${scene.edits.length ? "The edited run" : "The next token"} took ${Math.round(performance.now() - began)} ms.`;
      slow = later(`${took} The rest is being computed …`);
    }
    await stroll(own.signal);
    if (own.signal.aborted) return true;
    clearTimeout(slow);
    if (by("status").textContent.startsWith(took)) by("status").textContent = took;
    by("views").setAttribute("aria-busy", "false");
    await forecast(scene, own.signal);
    await forecastFinder(scene, own.signal);
    onTask.forecast(own.signal);
  } catch (error) {
    if (error.name === "AbortError") return true;
    by("views").setAttribute("aria-busy", "false");
    by("status").textContent = "";
    tell(error);
    return false;
  } finally { clearTimeout(slow); }
  return true;
}
/** Say what is waited for, if it takes long. */
const later = (words) => setTimeout(() => { by("status").textContent = words; }, LONG);

function tell(error) {
  if (!(error instanceof Refused)) throw error;
  by("problem").textContent = error.message;
  if (error.status === 403) by("token-form").hidden = false;
  if ([413, 422].includes(error.status)) { by("tokens").textContent = ""; by("places").replaceChildren(); for (const name of ["compare", "next_token", "attention", "lens", "walk"]) by(`at-${name}`).hidden = true; }
  guide.told();
}

// 2. What is drawn.
function show(wanted, parts) {
  const { edits } = steps.scene, edited = edits.length ? `, ${edits.map(said).join(", ")}` : "";
  if (!edited && !steps.scene.beside) by("at-compare").hidden = true;
  for (const name of wanted) if (!parts.some((part) => place(part, wanted) === name)) by(`at-${name}`).hidden = true;
  for (const part of parts) {
    const section = by(`at-${place(part, wanted)}`), body = make("div");
    const title = make("h2", { id: `${section.id}-head` }, part.title, part.view === "compare" ? "" : make("span", { class: "note" }, edited));
    section.setAttribute("aria-labelledby", title.id);
    section.replaceChildren(title, body);
    section.hidden = false;
    if (part.long) title.after(long.bar(part.view, part.long));
    if (part.view === "next_token") { next = { at: 0, label: part.labels[0] }; section.append(appending()); drawAppend(); }
    VIEWS[part.view](body, part.view === "attention" ? { ...part, chosen: Math.min(head, part.layers.length * part.heads - 1) } : part);
  }
}
/** Of a long prompt: the same part of another layer, or of other positions. */
const long = longPrompt(async (name, signal) => {
  try {
    const told = await ask(token, "look", { scene: steps.scene, parts: [name], focus: long.focus(name) }, signal);
    if (!signal.aborted) show([name], told.parts);
  } catch (error) { if (error.name !== "AbortError") tell(error); }
});
/** A note stands where the one view that was asked for would be. */
const place = (part, wanted) => (part.view === "note" ? wanted[wanted.length - 1] : part.view);

const appendButton = make("button", { type: "button", class: "plain", onclick: append });
const appending = () => make("p", {}, appendButton, make("span", { class: "note" }, " Choose a token in the table to append another one."));
function drawAppend() { appendButton.replaceChildren("append ", make("bdi", { class: "token-text" }, next.label)); }

/** The tokens: how many they are, and each to choose its position. */
function drawTokens({ ids, labels }) {
  by("tokens").textContent = `${ids.length} token${ids.length === 1 ? "" : "s"} of ${about.context.toLocaleString("en")}`;
  const made = labels.slice(0, MOST_PLACES).map((text, at) => make("button", { type: "button", class: "word", title: `position ${at}, id ${ids[at]}`, onclick: () => { by("place").value = `${at}`; choosePlace(); } }, tokenText(text, at)));
  by("places").replaceChildren(...made);
  if (made.length) roving(made);
  choosePlace();
}
function choosePlace() { [...by("places").children].forEach((word, at) => word.classList.toggle("chosen", by("place").value.trim() === `${at}`)); }
by("place").addEventListener("input", choosePlace);

function drawState() {
  const { scene } = steps;
  if (!typing) { // what is being typed is not in the scene yet, and stays
    for (const name of ["prompt", "second"]) if (by(name).value !== scene[name]) by(name).value = scene[name];
    ["right", "wrong"].forEach((name, at) => { if (by(name).value !== scene.answers[at]) by(name).value = scene.answers[at]; });
  }
  by("edits").replaceChildren(...scene.edits.map((edit) => make("li", {}, said(edit),
    make("button", { type: "button", class: "plain", "aria-label": `remove: ${said(edit)}`, onclick: () => { change({ edits: scene.edits.filter((one) => one !== edit) }, `without ${said(edit)}`); by("part").focus(); } }, "remove"))));
  by("history").replaceChildren(...steps.steps.map(({ words }, at) => make("li", {},
    make("button", { type: "button", "aria-current": at === steps.at ? "step" : null, onclick: () => { goTo(at); by("history").children[at].firstChild.focus(); } }, words))));
  by("history").lastChild.scrollIntoView({ block: "nearest" });
  by("beside").value = scene.beside;
  by("keep").disabled = !scene.edits.length || alike(scene.edits, scene.kept);
  by("kept").textContent = scene.kept.length ? `Kept: ${scene.kept.map(said).join(", ")}.` : "";
  by("undo").disabled = steps.at === 0;
  by("redo").disabled = steps.at === steps.steps.length - 1;
  by("script-place").hidden = true;
}

// 3. What changes the scene.
async function change(fields, words, { typed = false, undone = false } = {}) {
  if (!steps.add({ ...steps.scene, ...fields }, words, typed)) {
    if (running.signal.aborted) refresh(); // typed and taken back
    return;
  }
  if (!(await refresh()) && undone) {
    steps.drop();
    await refresh(by("problem").textContent);
  }
}
function goTo(at) { clearTimeout(typing); typing = 0; steps.go(at); refresh(); }

const typed = (field) => () => {
  clearTimeout(typing);
  running.abort();
  typing = setTimeout(() => {
    typing = 0;
    change({ prompt: by("prompt").value, second: by("second").value, answers: [by("right").value, by("wrong").value] }, `${field} typed`, { typed: true });
  }, PAUSE);
};
by("prompt").addEventListener("input", typed("prompt"));
by("second").addEventListener("input", typed("second prompt"));
for (const name of ["right", "wrong"]) by(name).addEventListener("input", typed("answers"));
for (const form of ["prompts", "map"]) by(form).addEventListener("submit", (event) => event.preventDefault());

/** Say what a field lacks, and go to it. */
function lacks(id, words) { by("problem").textContent = words; by(id).focus(); }
by("change").addEventListener("submit", (event) => {
  event.preventDefault();
  const op = event.submitter.value, place = by("place").value.trim();
  if (!by("part").value.trim()) { lacks("part", `Name a part first: click a head, or write its name, such as ${by("part").placeholder}.`); return; }
  if (["scale", "set"].includes(op) && !by("factor").value) { lacks("factor", "Write the number to scale by or set to first."); return; }
  const part = `${by("part").value.trim()}${place ? `@${place}` : ""}`;
  const edit = `${part}:${op}${["scale", "set"].includes(op) ? `:${by("factor").value}` : ""}`;
  const others = steps.scene.edits.filter((one) => one.split(":")[0] !== part);
  change({ edits: [...others, edit] }, said(edit), { undone: true });
});
by("beside").addEventListener("change", ({ target }) => change({ beside: target.value }, `compared with ${target.selectedOptions[0].text}`, { undone: true }));
by("keep").addEventListener("click", () => { const { edits } = steps.scene; change({ kept: edits, beside: "kept" }, `kept ${edits.map(said).join(", ")}`); by("part").focus(); });
by("undo").addEventListener("click", () => goTo(steps.at - 1));
by("redo").addEventListener("click", () => goTo(steps.at + 1));

async function append() {
  try {
    const { prompt, alike: same } = await ask(token, "continue", { scene: steps.scene, at: next.at });
    await change({ prompt }, `${next.label} appended`);
    if (!same) by("status").textContent = "The longer text is cut into other tokens than the prompt and the token that was appended.";
  } catch (error) { tell(error); }
}

by("at-attention").addEventListener("chosen", ({ detail }) => {
  head = detail.at;
  by("part").value = `L${detail.layer}H${detail.head}`;
  if (detail.query !== undefined) { by("place").value = `${detail.query}`; choosePlace(); }
});
by("at-next_token").addEventListener("chosen", ({ detail }) => { next = detail; drawAppend(); });

// 4. The walk: at a place of its own, so that going on asks for that place alone.
async function stroll(signal) {
  const { scene } = steps;
  if (walkIs && scene.prompt !== walkedOf) spot = { ...spot, position: null }; // the last of the new prompt
  const { part } = await ask(token, "walk", { scene, place: spot }, signal).catch((error) => {
    // A place that this model or prompt does not have, from a link: the walk begins at one that it has.
    if (!(error instanceof Refused) || error.status !== 422 || Object.values(spot).every((at) => at === null)) throw error;
    spot = spotOf(null);
    return ask(token, "walk", { scene, place: spot }, signal);
  });
  if (signal.aborted) return;
  [spot, walkedOf, walkIs] = [part.place, scene.prompt, part];
  address();
  if (walked) walked.update(part);
  else {
    const title = make("h2", { id: "at-walk-head" }, part.title), body = make("div");
    by("at-walk").setAttribute("aria-labelledby", title.id);
    by("at-walk").replaceChildren(title, body);
    walked = walk.render(body, part);
  }
  by("at-walk").hidden = false;
  guide.told();
}
/** The place of the walk that an address names, as "position.layer.head". */
function spotOf(text) {
  const [position = null, layer = null, unit = null] = (text ?? "").split(".").map((one) => (/^\d+$/.test(one) ? Number(one) : null));
  return { position, layer, unit };
}
/** The scene, and beside it where the walk and the tour are. */
function address() {
  const also = { ...(walkIs ? { walk: `${spot.position}.${spot.layer}.${spot.unit}` } : {}), ...(guide.at === null ? {} : { tour: guide.at + 1 }) };
  keep(steps.scene, token, also);
}
by("at-walk").addEventListener("place", ({ detail }) => walkTo(detail));
async function walkTo(to) {
  spot = to;
  walking.abort();
  if (to.layer !== null) long.layer(to.layer);
  const own = (walking = new AbortController());
  try {
    await stroll(own.signal);
  } catch (error) { if (error.name !== "AbortError") tell(error); }
}
by("at-walk").addEventListener("onward", () => { by("at-next_token").scrollIntoView(); by("at-next_token").querySelector("input").focus(); });

const guide = tour(by("tour"), {
  now: () => ({ walk: steps.scene.prompt ? walkIs : null, scene: steps.scene }),
  walk: walkTo, change, address, text: () => about?.text, left: () => by("start-tour").focus(),
});
by("start-tour").addEventListener("click", () => guide.go(0));

// 5. The patching map: what it costs is said before it is run; a quick one runs by itself.
const QUICK = 1.5; // seconds
const mapping = job("map");
async function forecast(scene, signal) {
  by("run-map").disabled = true;
  if (!scene.second || !by("cut").value) return;
  try {
    const { cells, seconds, answers } = await ask(token, "plan", { scene, cut: by("cut").value }, signal);
    by("forecast").textContent = `Each of ${cells.toLocaleString("en")} cells alone is given what it has on the second prompt. 0: as the prompt, 1: as the second. Answers: ${answers[0]} and ${answers[1]}. About ${duration(seconds)}.`;
    by("run-map").disabled = false;
    if (seconds < QUICK && !mapping.running && !by("map-place").children.length) drawMap();
  } catch (error) { inWords(error, (words) => { by("forecast").textContent = words; }); }
}
function stopMap() {
  mapping.stop("");
  by("map-python").hidden = true;
}
function drawMap() {
  by("map-python").hidden = true;
  const { scene } = steps, cut = by("cut").value;
  mapping.run((signal) => ask(token, "map", { scene, cut }, signal), (body, { part, name, by: axis, script }) => {
    body.addEventListener("chosen", ({ detail: { row, column } }) => {
      by("part").value = name.replace("{row}", part.rows[row]).replace("{column}", part.columns[column]);
      if (axis === "pos") { by("place").value = `${column}`; choosePlace(); }
    });
    heatmap.render(body, part);
    mapScript = script;
    by("map-python").hidden = false;
  });
}
by("run-map").addEventListener("click", drawMap);
by("cut").addEventListener("change", () => { stopMap(); forecast(steps.scene, running.signal); });
by("map-python").addEventListener("click", () => keepScript(mapScript));

// 6. The table of all heads, on a button.
const finding = job("finder");
let foundIn = "";
async function forecastFinder(scene, signal) {
  if (scene.prompt !== foundIn) { foundIn = scene.prompt; finding.stop(""); }
  by("run-finder").disabled = !about.heads;
  if (!about.heads) return;
  try {
    const { heads, seconds } = await ask(token, "plan_heads", { scene }, signal);
    by("finder-forecast").textContent = `Scores of ${heads} heads, and what the next token of the model’s own run loses without each. About ${duration(seconds)}.`;
  } catch (error) { inWords(error, (words) => { by("finder-forecast").textContent = words; }); }
}
by("run-finder").addEventListener("click", () => {
  const { scene } = steps;
  finding.run((signal) => ask(token, "heads", { scene }, signal), (body, told) => {
    body.addEventListener("chosen", ({ detail }) => { by("part").value = detail.name; pickHead(detail); });
    finder.render(body, told);
  });
});
/** Show a head of the table; of a long prompt its layer is asked for first. */
function pickHead({ at, name }) {
  const [layer, own] = name.slice(1).split("H").map(Number);
  if (long.shown) { head = own; long.layer(layer, true); }
  else by("at-attention").querySelector(`[data-at="${at}"]`)?.click();
}

const onTask = wholeTask(token, () => steps.scene);

// 7. What is taken along.
async function keepScript(script) {
  by("script").textContent = script;
  by("script-place").hidden = false;
  try {
    await navigator.clipboard.writeText(script);
    by("status").textContent = "The script is on the clipboard.";
  } catch { by("status").textContent = "Copy the script from below the buttons under “Keep”."; }
}
by("python").addEventListener("click", async () => {
  try {
    const { script } = await ask(token, "script", { scene: steps.scene });
    await keepScript(script);
  } catch (error) { tell(error); }
});
by("save").addEventListener("click", async () => {
  try {
    const { page } = await ask(token, "save", { scene: steps.scene });
    download("explored.html", page);
    if (steps.scene.edits.length || steps.scene.beside) by("status").textContent = "The page shows the run after the edits. The comparison is not in it: “copy as Python” makes it again.";
  } catch (error) { tell(error); }
});

// 8. The beginning, and links that are opened in this tab.
by("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = read(by("address").value).token || by("address").value.trim();
  keep(steps.scene, given);
  location.reload();
});
whenGiven((scene, words) => { if (!alike(scene, steps.scene)) change(scene, words); }, token);
/** The names that parts of this model have. */
function offer(parts) {
  const shown = parts.map(({ word, names }) => `${names.at(-1)} (${word})`);
  by("part-note").textContent = `Click a head, a cell of its pattern or a token, or write a name: ${shown.join(", ")}; resid_pre 3 (residual stream), or A->B (what A alone gives B).`;
  by("parts").replaceChildren(...parts.flatMap(({ names }) => names.map((name) => make("option", { value: name }))));
  by("part").placeholder = parts[0]?.names[0] ?? "";
}
async function begin() {
  try {
    about = await ask(token, "about");
  } catch (error) { tell(error); return; }
  document.title = `Explorer: ${about.model}`;
  by("title").textContent = about.model;
  by("about").textContent = `${about.layers} layers${about.heads ? ` of ${about.heads} heads` : ""}, prompts of up to ${about.context.toLocaleString("en")} tokens${about.text ? "" : "; it has no tokenizer: write token ids, such as 3 14 15"}.`;
  if (about.against) { Object.assign(by("beside-other"), { hidden: false, disabled: false, textContent: `the other model, ${about.against}` }); by("about").textContent += ` To compare with: ${about.against}; edits do not act in it.`; }
  offer(about.parts);
  onTask.offer(about.tasks);
  by("cut").replaceChildren(...Object.entries(about.maps).map(([value, title]) => make("option", { value }, title)));
  if (steps.scene.prompt) refresh(); else { drawState(); by("prompt").focus(); }
  if (toured) guide.go(toured - 1);
}
begin();
