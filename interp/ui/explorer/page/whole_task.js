// The edits on a whole task: its forecast, a button that can be cancelled, and a table of means with their intervals.
import { ask } from "./ask.js";
import { duration, inWords, job } from "./job.js";
import { make, shown } from "./views/base.js";

const by = (id) => document.getElementById(id);

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
  const computing = job("task");
  let shownOf = "";
  const of = () => JSON.stringify([now(), by("task").value]);
  async function forecast(signal) {
    if (of() !== shownOf) { shownOf = of(); computing.stop(""); }
    by("run-task").disabled = true;
    if (!by("task").value) { by("task-forecast").textContent = "No task writes prompts for this model."; return; }
    try {
      const { prompts, seconds } = await ask(token, "plan_task", { scene: now(), task: by("task").value }, signal);
      by("task-forecast").textContent = `The edits in ${prompts} prompts of the task, each patched from its own second prompt, beside this one. About ${duration(seconds)}.`;
      by("run-task").disabled = false;
    } catch (error) { inWords(error, (words) => { by("task-forecast").textContent = words; }); }
  }
  by("whole-task").addEventListener("submit", (event) => {
    event.preventDefault();
    const scene = now(), task = by("task").value, name = by("task").selectedOptions[0].text;
    computing.run((signal) => ask(token, "task", { scene, task }, signal), (body, told) => body.append(table(told, name)));
  });
  by("task").addEventListener("change", () => forecast());
  return {
    forecast,
    offer: (names) => by("task").replaceChildren(...names.map((name) => make("option", { value: name }, name.replaceAll("_", " ")))),
  };
}
