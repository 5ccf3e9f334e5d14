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

    ``answer``: ``stats.Answer.to_dict()``. ``verdicts``: trial, ``evidence.Verdict`` as a dict with its ``epoch``, and
    the curves of its control runs. ``importance``: parameter -> share, of ``importance_of`` trials. ``cost``: epochs
    trained, reused, hours, hours_saved, seconds_per_epoch. ``objective``: what the scores are called; ``last``: of how
    many last epochs a run's score is the mean. ``facts``: name -> text. ``identity``: what names the training (digests,
    versions). ``sweep_file``: YAML that launches the sweep again. ``learned``: the best baseline's first, if it is
    among them; ``learned_notes``: what there is nothing to show of, and why.
    """

    sweep: str
    made: str
    epochs: int
    answer: Mapping[str, Any]
    configurations: Sequence[Configuration]
    cost: Mapping[str, Any]
    sweep_file: str
    identity: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)
    verdicts: Sequence[tuple[int, Mapping[str, Any], Sequence[Line]]] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    importance_of: int = 0
    unfinished: int = 0
    objective: str = "score"
    last: int = 1
    learned: Sequence[Learned] = ()
    learned_notes: Sequence[str] = ()


def render(page: Page) -> bytes:
    """The page as one UTF-8 HTML file without references to anything outside but the runs' links."""
    by_trial = {entry.trial: entry for entry in page.configurations}
    rows = _ranking(page.answer)
    ranked = {row["trial"]: by_trial[row["trial"]] for row in rows if row["trial"] in by_trial}
    shown = list({**ranked, **by_trial}.values())
    baseline, baselines = page.answer["baseline"], {entry["trial"] for entry in page.answer["baselines"]}
    reference = by_trial.get(baseline["trial"]) if baseline else None
    best = [entry for entry in shown if entry.trial not in baselines][: len(charts.COMPARED)]
    headline, detail = _answer(page.answer)
    return (
        _template()
        .render(
            page=page,
            answer=page.answer,
            headline=headline,
            detail=detail,
            rows=rows,
            by_trial=by_trial,
            shown=shown,
            top=charts.ceilings([line for entry in shown for line in entry.lines]),
            reference=reference.lines[0] if reference else None,
            best=[entry.lines[0] for entry in best],
            compared=[candidate for candidate in page.answer["candidates"] if candidate["pairs"]],
            baseline_learned=bool(reference and page.learned and page.learned[0].trial == reference.trial),
        )
        .encode()
    )


def _answer(answer: Mapping[str, Any]) -> tuple[str, str]:
    """The sentence of the answer as a headline and the rest."""
    word, _, rest = answer["sentence"].partition(": ")
    if answer["winner"]:
        title = answer["winner"]["title"]
        return f"Winner: {title}", rest.removeprefix(f"{title}, ")
    named = rest.partition(" ")[0] in FAMILIES  # the name of a schedule is written as it is in the sweep file
    return word.capitalize(), rest if named else rest[:1].upper() + rest[1:]


def _ranking(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Confirmed configurations first, all baselines among them; each with its difference from the best baseline.

    That of a raced proposal is its mean difference to the trunk on the same seeds, and its place what that is worth.
    """
    baseline, candidates = answer["baseline"], {entry["name"]: entry for entry in answer["candidates"]}
    rows = []
    for entry in (*answer["ranking"], *({**entry, "stage": "baseline"} for entry in answer["baselines"])):
        row = {"raced": None, **entry, "candidate": candidates.get(entry["name"]), "over": None}
        row["merit"] = row["score"] or 0.0
        if baseline and row["score"] is not None and row["name"] != baseline["name"]:
            row["over"] = row["score"] - baseline["score"]
        if row["stage"] == "search" and (raced := row["raced"]):
            row["over"] = raced["mean"]
            row["merit"] = raced["worth"] + (baseline["score"] if baseline else 0.0)
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
