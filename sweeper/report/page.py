"""The page: one HTML file with everything in it, the answer first, for screens of any size and for paper.

``page.html`` lays it out and has its words; here is what they are about, and the charts.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from PIL import Image, ImageChops

from sweeper import charts, evidence
from sweeper.charts import Line
from sweeper.schedules import FAMILIES, Trace, short
from sweeper.stats import Answer
from sweeper.training import pictures

PICTURE = 640  # pixels, the longer side


@dataclass(frozen=True)
class Configuration:
    """A schedule with its runs, the search's first. ``label`` says what it is. ``curves``: the objective by epoch, one
    for each run. ``effects``: what each jump did, see ``evidence.jumps_of``. ``state`` is in small letters. ``score``:
    the first run's, None before its end. ``trunk``: of a branch, the run of its trunk on the first run's seed."""

    trial: int
    label: str
    trace: Trace
    curves: Sequence[Mapping[int, float]]
    effects: Sequence[Mapping[str, Any]] = ()
    state: str = "complete"
    link: str | None = None
    score: float | None = None
    trunk: Line | None = None

    @property
    def lines(self) -> list[Line]:
        """Its runs, as charts draw them."""
        return [Line(f"{self.label} (trial {self.trial})", self.trace, curve) for curve in self.curves]


@dataclass(frozen=True)
class Learned:
    """What the model of ``trial`` has learned: the files of ``training.pictures`` by their names."""

    trial: int
    label: str
    files: Mapping[str, bytes]

    @property
    def title(self) -> str:
        return f"trial {self.trial}, {self.label}"

    @property
    def numbers(self) -> dict[str, Any]:
        return dict(json.loads(self.files[pictures.NUMBERS]))


@dataclass(frozen=True)
class Page:
    """Everything that the page says. Numbers come as they are, and ``page.html`` makes the words.

    ``counts``: trials by state, of ``budget`` in all. ``mismatches``: trainings of one segment that differ.
    ``verdicts``: trial, ``evidence.Verdict`` as a dict with its ``epoch``, and the curves of its control runs.
    ``importance``: parameter -> share, of ``importance_of`` trials. ``cost``: epochs trained, reused, hours,
    hours_saved, seconds_per_epoch. ``objective``: what the scores are called; ``last``: of how many last epochs a run's
    score is the mean. ``identity``: what names the training (digests, versions). ``sweep_file``: YAML that launches the
    sweep again. ``learned``: the best baseline's first, if it is among them; ``learned_notes``: what there is nothing
    to show of, and why.
    """

    sweep: str
    made: str
    epochs: int
    answer: Answer
    counts: Mapping[str, int]
    budget: int
    configurations: Sequence[Configuration]
    cost: Mapping[str, Any]
    sweep_file: str
    identity: Mapping[str, str]
    mismatches: Sequence[str] = ()
    verdicts: Sequence[tuple[int, Mapping[str, Any], Sequence[Line]]] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    importance_of: int = 0
    objective: str = "score"
    last: int = 1
    learned: Sequence[Learned] = ()
    learned_notes: Sequence[str] = ()


def render(page: Page) -> bytes:
    """The page as one UTF-8 HTML file without references to anything outside but the runs' links."""
    answer, by_trial = page.answer, {entry.trial: entry for entry in page.configurations}
    rows = _ranking(answer)
    ranked = {row["trial"]: by_trial[row["trial"]] for row in rows if row["trial"] in by_trial}
    shown = list({**ranked, **by_trial}.values())
    reference = by_trial.get(answer.baseline.trial) if answer.baseline else None
    baselines = {entry.trial for entry in answer.baselines}
    headline, detail = _answer(answer)
    html = _template().render(
        page=page,
        answer=answer,
        headline=headline,
        detail=detail,
        rows=rows,
        by_trial=by_trial,
        shown=shown,
        top=charts.ceilings([line for entry in shown for line in entry.lines]),
        reference=reference.lines[0] if reference else None,
        best=[entry.lines[0] for entry in shown if entry.trial not in baselines][: len(charts.COMPARED)],
        compared=[candidate for candidate in answer.candidates if candidate.pairs],
        baseline_learned=bool(reference and page.learned and page.learned[0].trial == reference.trial),
    )
    return html.encode()


def _answer(answer: Answer) -> tuple[str, str]:
    """The sentence of the answer as a headline and the rest."""
    word, _, rest = answer.sentence.partition(": ")
    if answer.winner:
        return f"Winner: {answer.winner.title}", rest.removeprefix(f"{answer.winner.title}, ")
    named = rest.partition(" ")[0] in FAMILIES  # the name of a schedule is written as it is in the sweep file
    return word.capitalize(), rest if named else rest[:1].upper() + rest[1:]


def _ranking(answer: Answer) -> list[dict[str, Any]]:
    """Confirmed configurations first, all baselines among them; each with its difference from the best baseline.

    That of a raced proposal is its mean difference to the trunk on the same seeds, and its place what that is worth.
    """
    best, candidates = answer.baseline, {entry.name: entry for entry in answer.candidates}
    rows = []
    for entry in (*answer.ranking, *answer.baselines):
        row = {"stage": "baseline", "raced": None, **vars(entry), "candidate": candidates.get(entry.name)}
        row |= {"over": None, "merit": entry.score or 0.0}
        if best and best.score is not None and entry.score is not None and entry.name != best.name:
            row["over"] = entry.score - best.score
        if row["stage"] == "search" and row["raced"]:
            row |= {"over": row["raced"].mean, "merit": row["raced"].worth + ((best and best.score) or 0.0)}
        rows.append(row)
    confirmed = any(row["stage"] == "confirm" for row in rows)
    return sorted(rows, key=lambda row: (confirmed and row["stage"] == "search", -row["merit"]))


def _inlined(picture: bytes) -> str:
    """The picture without its white margins, made small enough for a page, as an address that holds it."""
    with Image.open(io.BytesIO(picture)) as opened:
        small, out = opened.convert("RGB"), io.BytesIO()
    small = small.crop(ImageChops.invert(small).getbbox())
    small.thumbnail((PICTURE, PICTURE))
    small.save(out, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.globals |= {"charts": charts, "pictures": pictures}
    environment.filters |= {
        "short": short,
        "effect": evidence.effect_in_words,
        "inlined": _inlined,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "score": lambda value: "–" if value is None else f"{value:.4f}",
        "signed": lambda value: "–" if value is None else f"{value:+z.4f}",
    }
    return environment.from_string(resources.files("sweeper.report").joinpath("page.html").read_text("utf-8"))
