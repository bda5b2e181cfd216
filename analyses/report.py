"""The report of a task: all studies of one model on one task, in one page with its figures and tables.

1. Load the model, write the prompts, and measure whether the model can do the task at all.
2. Run every study that has a section (`analyses.sections`), in its `ORDER`; each gives its measurements, section and
   findings. One that does not apply to the model or the prompts says so in its section; an interrupt ends the report
   with what is there. A line on stderr says when each is finished, and a folder that holds no earlier report gets the
   page as far as it is.
3. Check the numbers: logits against transformers, the sum of components, patching everything and nothing.
4. Draw the mechanism that the tables support (`interp.study.mechanism`), put which method finds which part into one
   table, and say what is established and what is not.
5. Write the page. The sentences of its summary are made from the numbers above them.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from analyses import sections
from interp import figures, stats
from interp.arguments import checked
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import InterpError, unknown
from interp.hooked.model import HookedModel
from interp.loading.load import load
from interp.loading.parity import check_against_transformers
from interp.models.gpt import GPT
from interp.progress import counting
from interp.prompts.pair_checks import MASK
from interp.prompts.pairs import PromptPairs
from interp.study import behaviour as doing
from interp.study.mechanism.conclusion import Made, conclusion
from interp.study.mechanism.drawn import mechanism
from interp.study.mechanism.evidence import LEAST, Layout
from interp.study.mechanism.methods import MEASURED, by_method
from interp.study.mechanism.told import HOW, description, in_short, sentences
from interp.study.prompts import check_masked
from interp.study.provenance import provenance
from interp.study.sections import ReportResults
from interp.study.sentences import answered_at, counted_of, listed
from interp.sweeps.sweep import sweep
from interp.tasks import get_task
from interp.text.characters import visible_token
from interp.ui.folder import check_output
from interp.ui.page import FigureItem, Picture, Section, first_rows, write_report

if TYPE_CHECKING:
    import pandas as pd

MOST_PROMPTS = 20
MOST_PARTS = 20  # rows of the table of parts by method
MOST_ANSWERS = 4  # of one prompt that are shown
PARITY = "logits equal transformers'"


@dataclass
class Story:
    """A report as it grows."""

    sections: list[Section] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    told: dict[str, list[str]] = field(default_factory=dict)
    results: ReportResults = field(default_factory=ReportResults)
    seconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, whose time goes to the manifest."""
        start = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - start, 2)
        return result

    def tell(self, module: ModuleType, model: HookedModel, pairs: PromptPairs, progress: bool | None) -> None:
        """Run one study and add its section, or why it does not apply."""
        name = _name(module)
        try:
            made = module.report(model, pairs, self.results, progress=progress)
        except InterpError as error:
            title = name.replace("_", " ").capitalize()
            self.refused[name] = str(error)
            self.sections.append(Section(title, name.replace("_", "-"), [f"This study was not made: {error}."]))
            return
        self.results[name] = made.frame
        self.sections.append(made.section)
        self.told[name] = made.findings


@dataclass
class Page:
    """A report's page, which is written again as the story grows; figures that were drawn are kept."""

    out: str | Path
    task: str
    model: HookedModel
    pairs: PromptPairs
    seed: int
    drawn: dict[str, Picture] = field(default_factory=dict)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """How the report is made, as far as it is known from the beginning."""
        facts = {"task": str(self.task), "n_prompts": len(self.pairs)}
        return provenance(self.model, self.pairs, metric="logit_diff", seed=self.seed, extra=facts)

    def write(self, story: Story, to_come: Sequence[str] = ()) -> Path:
        """Write what there is, and say what is still to come."""
        name, notes = self.model.cfg.model_name, self.pairs.notes
        told = {"seconds": story.seconds, "not_made": story.refused, "stopped_in": story.stopped}
        told |= {"to_come": list(to_come)} if to_come else {}
        unfinished = f"This report is still being written; to come: {', '.join(to_come)}."
        return write_report(
            self.out,
            title=f"{name}: {notes.get('title', self.pairs.name)}",
            question=notes.get("question", f"How does {name} do the task {self.task!r}?"),
            summary=[*story.findings, unfinished] if to_come else story.findings,
            sections=story.sections,
            manifest={**self.origin, **told},
            drawn=self.drawn,
        )


@checked
def chosen_studies(names: Sequence[str] | None = None) -> list[ModuleType]:
    """What a report says of each study (the modules of `analyses.sections`), in the order of the story.

    Args:
        names: only these, with hyphens or underscores; None takes all.

    Raises:
        UnknownName: a study that does not exist, or has no section.
    """
    found = [
        importlib.import_module(f"{sections.__name__}.{info.name}") for info in pkgutil.iter_modules(sections.__path__)
    ]
    told = {_name(module): module for module in sorted(found, key=lambda module: module.ORDER)}
    chosen = list(told) if names is None else [name.strip().replace("-", "_") for name in names]
    for name in chosen:
        if name not in told:
            raise unknown("study with a section in reports", name, told)
    return [module for name, module in told.items() if name in chosen]


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


@checked
def write(
    task: str,
    source: Any = "smollm2-135m",
    *,
    out: str | Path,
    n: int = 16,
    seed: int = 0,
    studies: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    check: bool = True,
    quiet: bool = False,
) -> Path:
    """Write the report of a model on a task and return the path of its page.

    Args:
        task: a name of `interp.tasks.TASKS`, or a file of prompts (`interp.tasks.from_file`).
        source: as `interp.load` takes it.
        out: the folder; an earlier report there is replaced when the new one is complete. Where there is none, the
            page has every section as soon as it is finished.
        n: how many prompts.
        seed: of the prompts.
        studies: which to make; None makes all.
        device, dtype: as in `interp.load`.
        check: compare the logits with transformers', which has to load the model too.
        quiet: no progress on stderr, neither bars nor a line for each study.

    Raises:
        InterpError: a task, model, study or folder that does not do; before anything is computed where possible.
        KeyboardInterrupt: Ctrl-C before the first study is finished; later, the report ends with what is there.
    """
    make = get_task(task)
    new = not any(path.is_file() for path in check_output(out).rglob("*"))
    story = Story()
    modules = chosen_studies(studies)
    progress = False if quiet else None
    n_steps = len(modules) + 4
    steps = counting(total=n_steps, desc="report", unit="step", progress=progress)

    if not quiet:
        when = "section by section" if new else "the earlier one stays until it is complete"
        steps.write(f"a report of {len(modules)} studies is written to {out}, {when}", file=sys.stderr)

    def step(name: str, work: Callable[[], Any]) -> Any:
        steps.set_postfix_str(name)
        result = story.timed(name, work)
        steps.update()
        if not quiet:
            at = len(story.seconds)
            steps.write(f"report: {name}, {story.seconds[name]:.1f} s (step {at} of {n_steps})", file=sys.stderr)
        return result

    with steps:
        # 1. The model, the prompts, and whether the model does the task.
        model = step("load", lambda: load(source, device=device, dtype=dtype))
        _check_kind(model)
        pairs = make(model, n=n, seed=seed)
        check_masked(model, pairs)
        step("behaviour", lambda: behaviour(model, pairs, story))
        page = Page(out, task, model, pairs, seed)
        # 2. The studies.
        for at, module in enumerate(modules, start=1):
            try:
                step(_name(module), partial(story.tell, module, model, pairs, progress))
                if new:
                    page.write(story, to_come=[_name(later) for later in modules[at:]] + ["checks", "mechanism"])
            except KeyboardInterrupt:
                if not story.results.keys() - {"behaviour"}:
                    raise
                story.stopped = _name(module)
                steps.write(f"stopped in {story.stopped}: writing the report of what is finished", file=sys.stderr)
                break
        # 3. The checks.
        table = step("checks", lambda: checks(model, pairs, story, compare=check and story.stopped is None))
        # 4. The mechanism, and what is established.
        step("mechanism", lambda: conclude(model, pairs, story, table, str(task)))
    # 5. The page.
    if story.stopped is not None:
        story.findings.append(f"The report was stopped during the study {story.stopped!r}; later ones are missing.")
    return page.write(story)


def _check_kind(model: HookedModel) -> None:
    """Refuse, before any study, a model of which no report can be made."""
    if isinstance(model, EncoderDecoder):
        raise InterpError(
            "a report is of a model with one stack, and this one has an encoder and a decoder: run its studies one by "
            "one, `interp run activation-patching`, ablation, head-attribution or logit-lens"
        )


def behaviour(model: GPT, pairs: PromptPairs, story: Story) -> None:
    """Whether the model does the task, and the prompts it was asked with."""
    import pandas as pd

    frame = doing.behaviour(model, pairs)
    story.results["behaviour"] = frame
    story.findings.append(doing.in_short(frame, model.cfg.model_name))
    clean = frame[frame["side"] == "clean"]
    says = "model says after clean" if pairs.answer_place == -1 else "model says at the mask"
    right, wrong = (
        [_listed(model, [token for token in ids if token >= 0]) for ids in side]
        for side in pairs.answer_table.unbind(1)
    )
    values = clean.pivot(index="prompt", columns="metric", values="value")
    shown = pd.DataFrame(
        {
            "clean prompt": pairs.clean_texts,
            "corrupt prompt": pairs.corrupt_texts,
            "right": right,
            "wrong": wrong,
            says: [visible_token(token) for token in clean.drop_duplicates("prompt")["says"]],
            "logit difference on clean": values["logit_diff"],
            "probability of right on clean": values["prob"],
        }
    )
    roles = ", ".join(f"{role} ({pairs.labels(0)[at]})" for role, at in pairs.roles[0].items())
    failed = doing.failures(frame)
    text = [
        doing.verdict(frame, model.cfg.model_name, masked=pairs.answer_place == MASK),
        "Each clean prompt has a corrupt counterpart of the same length, which differs in one respect. The logit "
        "difference is the logit of the clean prompt's right answer minus that of the wrong one, "
        f"{answered_at(pairs)}.",
        f"Roles of positions, with those of the first prompt: {roles}." if roles else "",
        f"The model fails on {counted_of(len(failed), len(pairs))}: the right answer is not above the wrong one."
        if failed
        else "There is no prompt on which the wrong answer is above the right one.",
    ]
    wrong_ones = shown.loc[failed].rename_axis("prompt").reset_index()
    told = doing.summary(frame).drop(columns=["side", "metric"])
    caption = "The prompts" if len(pairs) <= MOST_PROMPTS else f"The first {counted_of(MOST_PROMPTS, len(pairs))}"
    story.sections.append(
        Section(
            title="Prompts and behaviour",
            anchor="prompts",
            text=[part for part in text if part],
            tables=[
                ("Behaviour on both sides, with 95% intervals over prompts", told),
                (caption, shown.head(MOST_PROMPTS)),
                *([first_rows("The prompts on which the model fails", wrong_ones, MOST_PROMPTS)] if failed else []),
            ],
        )
    )


def _listed(model: GPT, answers: Sequence[int]) -> str:
    """Some answers as text, not all of many."""
    more = len(answers) - MOST_ANSWERS
    return ",".join(_spelled(model, token) for token in answers[:MOST_ANSWERS]) + f" and {more} more" * (more > 0)


def _spelled(model: GPT, token: int) -> str:
    return visible_token(model.answer_tokenizer.str_tokens([token])[0]) if model.answer_tokenizer else str(token)


Check = tuple[str, str, float | None, float | None, str]
"""What must hold, how it is measured, the difference, how large it may be, and whether it holds."""


def checks(model: GPT, pairs: PromptPairs, story: Story, *, compare: bool) -> pd.DataFrame:
    """Identities that must hold, with the differences that were measured."""
    import pandas as pd

    largest = float(story.results["behaviour"].query("metric == 'logit_diff'")["value"].abs().max())
    limit = 2e-5 if model.dtype in (torch.float32, torch.float64) else 2e-2
    rows = [_parity(model) if compare else _unchecked("--no-check")]
    if "head_attribution" in story.results:
        frame = story.results["head_attribution"]
        residue = float(frame.loc[frame["kind"] == "residue", "value"].abs().max())
        what = "components sum to the logit difference"
        rows.append(_checked(what, "largest residue of any prompt", residue, limit * 10 * largest))
    rows += _patched(model, pairs, limit * largest)
    table = pd.DataFrame(rows, columns=["check", "measured", "difference", "limit", "result"])
    failed = table[table["result"] == "FAILS"]
    story.told["checks"] = [
        f"Checks: {', '.join(failed['check'])} failed; read the numbers above with care."
        if len(failed)
        else f"All {int((table['result'] == 'holds').sum())} numerical checks that were run hold."
    ]
    intro = "Identities that must hold if the numbers above are right, with the differences measured in this run."
    story.sections.append(
        Section(title="Checks", anchor="checks", text=[intro], tables=[("Identities and measured differences", table)])
    )
    return table


def conclude(model: GPT, pairs: PromptPairs, story: Story, held: pd.DataFrame, task: str) -> None:
    """Draw the mechanism in front of the other sections, say it step by step, and end with what is established."""
    layout = Layout.of(pairs, model)
    found, methods = mechanism(story.results, layout), by_method(story.results)
    roles = dict(zip(layout.roles, layout.tokens, strict=True))
    figure = figures.mechanism(
        found.frame, roles=roles, answer=layout.answer, right=layout.right, says=found.says.replace("`", "")
    )
    caption = (
        "Columns are the roles of the first prompt, depth goes downwards. Every part, arrow and number passed a test "
        f"(p below {stats.SURE}, corrected, and at least {LEAST:.0%} of the difference between the clean and the "
        "corrupt prompts); what was not shown to matter is not drawn. The width of an arrow is its effect; one that "
        "leads to several parts was measured for them together."
    )
    picture = FigureItem(
        "mechanism", "The parts that carry the answer", caption, figure, found.frame, alt=description(found)
    )
    first = [Section(title="How the model does it", anchor="mechanism", figures=[picture])]
    steps = sentences(found)
    steps = [HOW, *steps] if found.parts else steps
    nothing = [title for title in MEASURED.values() if title in methods and methods[title].isna().all()]
    caption = "Parts that any method finds, and what each finds"
    caption += f"; nothing for sure: {listed(nothing)}" if nothing else ""
    rows = first_rows(caption, methods, MOST_PARTS)
    first.append(Section("Step by step", "steps", text=steps, tables=[rows] if len(methods) else []))
    where = story.told.get("activation_patching", [])[:1] if found.parts else []
    story.findings += [*in_short(found), *where, *story.told["checks"]]
    story.sections[:0] = first
    known = story.results.keys() | story.refused
    left_out = [name for name in map(_name, chosen_studies()) if name not in known]
    text = conclusion(found, methods, Made(task, len(pairs), held, story.refused, left_out))
    story.sections.append(Section(title="Conclusion", anchor="conclusion", text=text))


def _checked(what: str, how: str, difference: float, limit: float) -> Check:
    return what, how, difference, limit, "holds" if difference <= limit else "FAILS"


def _unchecked(why: object) -> Check:
    return PARITY, f"not checked: {why}", None, None, "not checked"


def _parity(model: GPT) -> Check:
    """Whether the logits are those of transformers."""
    try:
        found = check_against_transformers(model)
    except (InterpError, OSError, ValueError, ImportError) as error:
        return _unchecked(error)
    return _checked(PARITY, "largest absolute difference, random tokens", found["max_abs"], found["tolerance"])


def _patched(model: GPT, pairs: PromptPairs, limit: float) -> list[Check]:
    """Whether patching everything gives the source run, and patching nothing the base run."""
    last = model.cfg.n_layers - 1
    variants = [
        Variant([Edit("resid_post", {"layer": last})], {"cell": "everything"}),
        Variant([Edit("resid_pre", {"layer": 0}, source="base")], {"cell": "nothing"}),
    ]
    frame = sweep(model, pairs, variants, progress=False)
    rows = []
    for cell, against in (("everything", "source"), ("nothing", "base")):
        part = frame[frame["cell"] == cell]
        gap = float((part["value"] - part[f"{against}_value"]).abs().max())
        what = f"patching {cell} equals the {against} run"
        rows.append(_checked(what, "largest difference of the metric", gap, limit))
    return rows
