// The edits on a whole task: its forecast, a button that can be cancelled, and a table of means with their intervals.
import { ask, Refused } from "./ask.js";
import { make, shown } from "./views/base.js";

const by = (id) => document.getElementById(id);
const duration = (seconds) => (seconds < 1 ? "a second at most" : `${Math.ceil(seconds)} seconds`);

function table({ n, answers, rows }, name) {
  const caption = `${name}: logit of the right answer minus that of the wrong one, mean of ${n} prompts with its 95% interval; and of this page’s prompt, for ${answers[0]} minus ${answers[1]}.`;
  const row = ({ what, mean, low, high, own }) => make("tr", {}, make("th", { scope: "row" }, what),
    make("td", {}, shown(mean, true)), make("td", {}, `[${shown(low, true)}, ${shown(high, true)}]`), make("td", {}, shown(own, true)));
  return make("div", { class: "scroll", role: "group", "aria-label": "The edits on a whole task", tabindex: "0" },
    make("table", { class: "numbers" }, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, make("td"), ...["mean", "95% interval", "this prompt"].map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...rows.map(row))));
}

/** Wire the section up; `now()` is the scene. What it gives has `offer(names)` and `forecast(signal)`. */
export function wholeTask(token, now) {
  let computing = null, shownOf = "";
  const of = () => JSON.stringify([now(), by("task").value]);
  function stop(words) {
    computing?.abort();
    computing = null;
    by("task-told").textContent = words;
    by("task-place").replaceChildren();
    by("cancel-task").hidden = true;
  }
  async function forecast(signal) {
    if (of() !== shownOf) { shownOf = of(); stop(""); }
    by("run-task").disabled = true;
    if (!by("task").value) { by("task-forecast").textContent = "No task writes prompts for this model."; return; }
    try {
      const { prompts, seconds } = await ask(token, "plan_task", { scene: now(), task: by("task").value }, signal);
      by("task-forecast").textContent = `The edits in ${prompts} prompts of the task, each patched from its own second prompt, beside this one. About ${duration(seconds)}.`;
      by("run-task").disabled = false;
    } catch (error) { if (error instanceof Refused) by("task-forecast").textContent = error.message; else if (error.name !== "AbortError") throw error; }
  }
  by("whole-task").addEventListener("submit", async (event) => {
    event.preventDefault();
    stop("computing …");
    const own = (computing = new AbortController()), name = by("task").selectedOptions[0].text;
    by("cancel-task").hidden = false;
    try {
      const told = await ask(token, "task", { scene: now(), task: by("task").value }, own.signal);
      stop("");
      by("task-place").replaceChildren(table(told, name));
    } catch (error) { if (error instanceof Refused) stop(error.message); else if (error.name !== "AbortError") throw error; }
  });
  by("cancel-task").addEventListener("click", () => { stop("cancelled"); by("run-task").focus(); });
  by("task").addEventListener("change", () => forecast());
  return {
    forecast,
    offer: (names) => by("task").replaceChildren(...names.map((name) => make("option", { value: name }, name.replaceAll("_", " ")))),
  };
}
