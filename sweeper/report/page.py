"""The page: one HTML file with everything in it, the answer first, for screens of any size and for paper."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from PIL import Image, ImageChops

from sweeper import charts, evidence
from sweeper.charts import Line
from sweeper.schedules import FAMILIES, Trace, short

OVER_EACH_OTHER = len(charts.COMPARED)
PICTURE = 640  # pixels, the longer side

#: What the numbers at the top mean, for readers who have read no statistics; by their names in ``Page.facts``.
EXPLAINED = {
    "Schedules tried": "Two runs of one schedule already differ by luck. So the more are tried, the better the best of "
    "them looks by luck alone. The best are trained again on fresh seeds, and only those runs decide.",
    "Pairs on fresh seeds": "A seed fixes what is random in a training: first weights, order of images, augmentation. "
    "A pair is a schedule and the baseline, both trained on the same seed: what is luck in it helps or hurts both.",
    "Luck in one run": "How far the score moves when only the seed changes (its standard deviation). Two single runs "
    "that differ by this much may be equally good.",
    "Smallest gain that shows": "If a schedule were truly better by this much, 4 of 5 such sweeps would notice. A "
    "smaller gain may be real and stay unseen here.",
    "Pairs for a gain of 0.004": "So many pairs would notice a true gain of 0.004 in 4 of 5 sweeps. 0.004 (0.4 points "
    "of mAP) is the gain that the article on these restarts reports.",
    "Best baseline": "The ordinary schedule that a proposal must beat.",
    "Pairs move together": "How alike a seed moves both runs of a pair. 1: exactly alike, so that luck cancels and "
    "small gains show. 0: not at all, so that pairing helps nothing.",
    "Exactness": "Whether the same training gave the same bits each time it was done.",
}


@dataclass(frozen=True)
class Configuration:
    """A schedule with its runs, the search's first. ``label`` says what it is. ``curves``: the objective by epoch, one
    for each run. ``effects``: what the first curve says of each jump, ``evidence.Effect`` as dicts. ``state`` is in
    small letters. ``score``: the first run's, None before its end."""

    trial: int
    label: str
    trace: Trace
    curves: Sequence[Mapping[int, float]]
    effects: Sequence[Mapping[str, Any]] = ()
    state: str = "complete"
    link: str | None = None
    score: float | None = None

    @property
    def name(self) -> str:
        return f"trial {self.trial}"

    @property
    def anchor(self) -> str:
        return f"trial-{self.trial}"

    def line(self) -> Line:
        """The first run, as charts draw it."""
        return Line(f"{self.label} ({self.name})", self.trace, self.curves[0])


@dataclass(frozen=True)
class Verdict:
    """The verdict on a restart of ``trial``: ``evidence.Verdict`` as a dict, and the curves of its controls."""

    trial: int
    epoch: int
    verdict: Mapping[str, Any]
    controls: Sequence[Line] = ()


@dataclass(frozen=True)
class Learned:
    """What the model of ``trial`` has learned; ``numbers``, the pictures and their sizes: see ``training.pictures``."""

    trial: int
    label: str
    numbers: Mapping[str, Any]
    true: bytes
    predicted: bytes
    confusion: bytes | None

    @property
    def title(self) -> str:
        return f"trial {self.trial}, {self.label}"


@dataclass(frozen=True)
class Page:
    """Everything that the page says. Numbers come as they are, and the page makes the words.

    ``answer``: ``stats.Answer.to_dict()``. ``configurations``: the ranked ones first. ``importance``: parameter ->
    share, of ``importance_of`` trials. ``cost``: epochs trained, reused, hours, hours_saved, seconds_per_epoch.
    ``objective``: what the scores are called; ``last``: of how many last epochs a run's score is the mean.
    ``facts``: name -> text, explained by ``EXPLAINED``. ``identity``: what names the training (digests, versions).
    ``sweep_file``: YAML that launches the sweep again. ``learned``: the best baseline's first, if it is among them;
    ``learned_notes``: what there is nothing to show of, and why.
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
    verdicts: Sequence[Verdict] = ()
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
    baseline = page.answer["baseline"]
    reference = by_trial.get(baseline["trial"]) if baseline else None
    line = reference.line() if reference else None
    rows = _ranking(page.answer)
    shown = [by_trial[row["trial"]] for row in rows if row["trial"] in by_trial]
    shown += [entry for entry in page.configurations if entry not in shown]
    top = charts.ceilings([entry.trace for entry in shown], [curve for entry in shown for curve in entry.curves])
    baselines = {entry["trial"] for entry in page.answer["baselines"]}
    best = [entry for entry in shown if entry.trial not in baselines][:OVER_EACH_OTHER]
    compared = [c for c in page.answer["candidates"] if c["pairs"]]
    headline, detail = _answer(page.answer)
    html = _template().render(
        page=page,
        explained=EXPLAINED,
        headline=headline,
        failed=_failed(page.answer["failures"]),
        detail=detail,
        answer=page.answer,
        rows=rows,
        late=charts.begins_late([*(entry.line() for entry in best), *([line] if line else [])]),
        reference=reference,
        overview=_both(
            charts.overlay,
            "overview",
            _overview(best, reference, page.objective),
            [entry.line() for entry in best],
            line,
            page.epochs,
            page.objective,
        )
        if shown
        else "",
        panels=[(entry, _panel(entry, line, top, page)) for entry in shown],
        compared=_both(
            charts.intervals,
            "intervals",
            "; ".join(_difference(c) for c in compared),
            [(c["title"], c["pairs"]["mean"], c["pairs"]["low"], c["pairs"]["high"]) for c in compared],
            page.answer["equivalence"],
            page.objective,
        )
        if compared
        else "",
        verdicts=[(entry, _controls(entry, by_trial, page)) for entry in page.verdicts],
        pictures=_pictures(page.learned),
        confusions=[(entry.title, _inlined(entry.confusion)) for entry in page.learned if entry.confusion],
        classes=list(dict.fromkeys(name for entry in page.learned for name in entry.numbers["classes"])),
        precision=_both(
            charts.precision_recall,
            "precision",
            "; ".join(f"{entry.title}: AP50 {entry.numbers['AP50']:.3f}" for entry in page.learned),
            [(entry.title, entry.numbers["recall"], entry.numbers["precision"]) for entry in page.learned],
            bool(reference and page.learned and page.learned[0].trial == reference.trial),
        )
        if page.learned
        else "",
    )
    return html.encode()


def _both(draw: Callable[..., str], name: str, *arguments: Any) -> str:
    """A chart across a wide page and a narrow one; the style sheet shows the one that fits."""
    wide = draw(name, *arguments, width=charts.WIDE)
    narrow = draw(f"{name}-narrow", *arguments, width=charts.NARROW)
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _pictures(learned: Sequence[Learned]) -> list[tuple[str, str]]:
    """Title and picture: the labels' boxes, and those of each model on the same images."""
    if not learned:
        return []
    return [("what is there", _inlined(learned[0].true)), *((each.title, _inlined(each.predicted)) for each in learned)]


def _inlined(picture: bytes) -> str:
    """The picture without its white margins, made small enough for a page, as an address that holds it."""
    with Image.open(io.BytesIO(picture)) as opened:
        small, out = opened.convert("RGB"), io.BytesIO()
    small = small.crop(ImageChops.invert(small).getbbox())
    small.thumbnail((PICTURE, PICTURE))
    small.save(out, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _answer(answer: Mapping[str, Any]) -> tuple[str, str]:
    """The sentence of the answer as a headline and the rest."""
    word, _, rest = answer["sentence"].partition(": ")
    if answer["winner"]:
        title = answer["winner"]["title"]
        return f"Winner: {title}", rest.removeprefix(f"{title}, ")
    named = rest.partition(" ")[0] in FAMILIES  # the name of a schedule is written as it is in the sweep file
    return word.capitalize(), rest if named else rest[:1].upper() + rest[1:]


def _failed(failures: Mapping[str, Any]) -> list[str]:
    """How many trials failed and why; where all failed, the headline has said the commonest reason already."""
    lines = [*([] if failures["every"] or not failures["failed"] else [failures["sentence"]]), *failures["further"]]
    return [line[:1].upper() + line[1:] for line in lines]


def _ranking(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Confirmed configurations first, all baselines among them; each with its difference from the best baseline.

    That of a raced proposal is its mean difference to the trunk on the same seeds, and its place what that is worth.
    """
    rows = [*answer["ranking"], *({**entry, "stage": "baseline"} for entry in answer["baselines"])]
    rows, baseline = [dict(row) for row in rows], answer["baseline"]
    candidates = {candidate["name"]: candidate for candidate in answer["candidates"]}
    for row in rows:
        row["candidate"] = candidates.get(row["name"])
        both = baseline and row["score"] is not None and row["name"] != baseline["name"]
        row["over"] = row["score"] - baseline["score"] if both else None
        row.setdefault("raced", None)
        row["merit"] = row["score"] or 0.0
        if row["stage"] == "search" and (raced := row["raced"]):
            row["over"] = raced["mean"]
            row["merit"] = raced["worth"] + (baseline["score"] if baseline else 0.0)
    confirmed = any(row["stage"] == "confirm" for row in rows)
    return sorted(rows, key=lambda row: (confirmed and row["stage"] == "search", -row["merit"]))


def _panel(entry: Configuration, reference: Line | None, top: tuple[float, float], page: Page) -> str:
    """The chart of a schedule, the mean that is its score drawn over the epochs that it comes from."""
    runs = [Line(entry.label, entry.trace, curve) for curve in entry.curves]
    score = None if entry.score is None else (entry.score, page.last)
    words = _alternative(entry, page)
    return charts.panel(entry.anchor, words, runs, entry.effects, reference, page.epochs, top, page.objective, score)


def _overview(best: Sequence[Configuration], reference: Configuration | None, objective: str) -> str:
    named = ", ".join(entry.label for entry in best) or "no trial"
    against = f" and the baseline {reference.label} in grey" if reference else ""
    return f"Learning rate above {objective} over the epochs, for {named}{against}; the numbers are in the ranking"


def _alternative(entry: Configuration, page: Page) -> str:
    curve = entry.curves[0]
    end = f"{page.objective} {curve[max(curve)]:.3f} after {max(curve) + 1} epochs" if curve else "no epoch yet"
    if entry.score is not None:
        end += f", {entry.score:.4f} as the mean of the last {page.last}"
    jumps = entry.trace.jumps()
    breaks = "; ".join(f"{jump.kind} at epoch {jump.epoch}" for jump in jumps) or "no jump"
    return f"{entry.name}, {entry.label}: learning rate with {breaks}; {end}"


def _difference(candidate: Mapping[str, Any]) -> str:
    pairs = candidate["pairs"]
    interval = f"{pairs['low']:+z.4f} to {pairs['high']:+z.4f}"
    return f"{candidate['title']} {pairs['mean']:+z.4f} ({interval}, {pairs['n']} pairs)"


def _controls(entry: Verdict, by_trial: Mapping[int, Configuration], page: Page) -> str:
    run = by_trial.get(entry.trial)
    if run is None or not entry.controls:
        return ""
    runs = [run.line(), *entry.controls][:OVER_EACH_OTHER]
    words = f"{run.name} with its restart at epoch {entry.epoch}, and " + ", ".join(
        line.label for line in entry.controls
    )
    return _both(charts.overlay, f"verdict-{entry.trial}-{entry.epoch}", words, runs, None, page.epochs, page.objective)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["short"] = short
    environment.filters["effect"] = evidence.effect_in_words
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.4f}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+z.4f}"
    return environment.from_string(resources.files("sweeper.report").joinpath("page.html").read_text("utf-8"))
