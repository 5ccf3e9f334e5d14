"""Renders the page of a report: one self-contained HTML file, for screens of any size and for print.

The template ``page.html`` has the layout and the texts; this module has the values, and passes the charts to it.
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
from sweeper.schedules import FAMILIES, Trace, format_value
from sweeper.stats import Answer
from sweeper.training import evaluation

PICTURE = 640  # Pixels of a picture's longer side in the page.


@dataclass(frozen=True)
class Configuration:
    """A schedule with its runs.

    ``trial``: the number of its first run, which is the search's if there is one. ``curves``: the objective by epoch,
    for each run, the first run's first. ``effects``: the measures of its jumps, see ``evidence.jumps_of``. ``state``:
    the first run's, in small letters. ``link``: the first run in MLflow. ``score``: the first run's (None: it has not
    ended). ``trunk``: for a branch, the trunk's run on the first run's seed.
    """

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
        """Its runs as lines of a chart."""
        return [Line(f"{self.label} (trial {self.trial})", self.trace, curve) for curve in self.curves]


@dataclass(frozen=True)
class Learned:
    """What the model of ``trial`` has learned: file name -> content of the files of ``evaluation.FILES``."""

    trial: int
    label: str
    files: Mapping[str, bytes]

    @property
    def title(self) -> str:
        return f"trial {self.trial}, {self.label}"

    @property
    def numbers(self) -> dict[str, Any]:
        return dict(json.loads(self.files[evaluation.NUMBERS]))


@dataclass(frozen=True)
class Page:
    """The values that the page shows.

    ``made``: when, in UTC. ``counts``: trials by state, of ``budget`` trials in all. ``cost``: a dict of the epochs
    ``trained`` and ``reused``, the ``hours`` of one worker, ``hours_saved`` and ``seconds_per_epoch``. ``sweep_file``:
    YAML that launches the same sweep. ``identity``: name -> text of what the training depends on (digests, versions).
    ``mismatches``: a sentence for each two trainings of one segment that differ. ``verdicts``: trial number, verdict
    (``evidence.Examined.to_dict``), and its control runs. ``importance``: parameter -> share, from ``importance_of``
    trials. ``objective``: the name of the score, which is the mean of a run's ``last`` epochs. ``learned``: the best
    baseline's first, if it is among them; ``learned_notes``: a sentence for each model without pictures.
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
    """The page as one UTF-8 HTML file, which refers to nothing outside except by the links to runs."""
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
    """The sentence of the answer, split into a headline and the rest."""
    headline, _, rest = answer.sentence.partition(": ")
    if answer.winner:
        return f"Winner: {answer.winner.title}", rest.removeprefix(f"{answer.winner.title}, ")
    # The name of a family gets no capital letter, because it is written as in the sweep file.
    named = rest.partition(" ")[0] in FAMILIES
    return headline.capitalize(), rest if named else rest[:1].upper() + rest[1:]


def _ranking(answer: Answer) -> list[dict[str, Any]]:
    """The rows of the ranking: confirmed configurations and baselines by score, then proposals that were not confirmed;
    without a confirmation all by score.

    ``over`` is the difference of the score to the best baseline's. For a raced proposal it is the mean difference to
    the trunk on the same seeds, and the row is ordered by the shrunk difference instead of the score.
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
    """The picture as a data URL, without its white margins and scaled to ``PICTURE`` pixels."""
    with Image.open(io.BytesIO(picture)) as opened:
        small, out = opened.convert("RGB"), io.BytesIO()
    small = small.crop(ImageChops.invert(small).getbbox())
    small.thumbnail((PICTURE, PICTURE))
    small.save(out, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.globals |= {"charts": charts, "evaluation": evaluation}
    environment.filters |= {
        "short": format_value,
        "effect": evidence.effect_in_words,
        "inlined": _inlined,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "score": lambda value: "–" if value is None else f"{value:.4f}",
        "signed": lambda value: "–" if value is None else f"{value:+z.4f}",
    }
    return environment.from_string(resources.files("sweeper.report").joinpath("page.html").read_text("utf-8"))
