"""The report's charts as SVG inside a page, and pictures and tables of schedules as files.

In a page, blue is the objective, vermilion the learning rate and grey the reference; curves that are compared differ in
colour and in dash. The colours are Okabe and Ito's, which colour-blind eyes tell apart. They become variables of the
page's style sheet, which has other values for dark screens. Text stays text, and nothing is loaded from elsewhere.
"""

import html
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sweeper.errors import ConfigError
from sweeper.schedules import Trace

MAP, LR, GREY, INK, GRID, BAND = "#0072b2", "#d55e00", "#8a8a8a", "#333333", "#e6e6e6", "#eeeeee"
COMPARED = ((MAP, "-"), (LR, (0, (6, 2))), ("#009e73", (0, (2, 1.5))), ("#a0569c", (0, (6, 2, 1, 2))))
LATE = 0.5  # of the highest score: below it all curves rise alike, and above it they part
POINTS, FILE_POINTS = 400, 4000  # of a learning-rate curve in the page, and in a file of its own
WIDE, NARROW = 9.6, 4.3  # inches: across the page, and across a panel or a telephone

#: Colours as variables of the page's style sheet.
_VARIABLES = {
    MAP: "--blue", LR: "--vermilion", COMPARED[2][0]: "--green", COMPARED[3][0]: "--purple", GREY: "--grey",
    INK: "--ink", GRID: "--grid", BAND: "--band",
}  # fmt: skip
_STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "path.simplify_threshold": 0.5,
}


@dataclass(frozen=True)
class Line:
    """A run in a chart: its learning rate (None: not known) and the objective by epoch."""

    label: str
    trace: Trace | None
    values: Mapping[int, float]


def panel(
    name: str,
    description: str,
    runs: Sequence[Line],
    effects: Sequence[Mapping[str, Any]],
    reference: Line | None,
    epochs: int,
    top: tuple[float, float],
    objective: str,
    score: float | None = None,
    last: int = 1,
) -> str:
    """The chart of a schedule: learning rate above, the objective below on the same epochs.

    ``runs``: the first is drawn strong, the same schedule on other seeds weak. ``effects``: of its jumps, see
    ``evidence.jumps_of``; a dip beyond the noise is shaded until the curve is back or the cycle ends, that of a branch
    below the ``reference``, which then is its trunk on the same seed. ``top``: upper ends of both axes, so that panels
    of one page compare. ``score``: what the first run comes to, the mean of its ``last`` epochs; it is drawn as a level
    over them.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, rate, quality = _two(NARROW, 2.7, epochs, top, objective)
        first, drawn = runs[0], [("this schedule", MAP, runs[0])]
        if reference is not None:
            drawn.append(("baseline", GREY, reference))
            quality.plot(*_xy(reference.values), color=GREY, linewidth=1)
        for run in runs[1:]:
            quality.plot(*_xy(run.values), color=MAP, linewidth=0.7, alpha=0.35)
        quality.plot(*_xy(first.values), color=MAP, linewidth=1.6)
        if first.trace is not None:
            _rate(rate, first.trace, LR, "-")
            for jump in first.trace.jumps():
                color, dash, mark = (INK, "--", "^") if jump.kind == "restart" else (GREY, ":", "v")
                at = jump.step / first.trace.steps_per_epoch
                for axes in (rate, quality):
                    axes.axvline(at, color=color, linewidth=0.7, linestyle=dash)
                rate.plot(at, first.trace.lr[jump.step], mark, color=color, markersize=5)
        for effect in effects:
            _shade(quality, first.values, effect, reference.values if reference and effect.get("over") else {})
        if score is not None:
            end = max(first.values) + 1
            quality.plot([max(end - last, 0), end], [score, score], color=INK, linewidth=2.2, solid_capstyle="butt")
        return _svg(figure, name, description, _at_cursor(drawn, epochs, objective), (rate, quality))


def overlay(
    name: str,
    description: str,
    runs: Sequence[Line],
    reference: Line | None,
    epochs: int,
    objective: str,
    width: float = WIDE,
) -> str:
    """A few runs over each other, a reference in grey: learning rate above, the objective below, a legend beneath."""
    looks = [(run, color, dash, 1.6) for run, (color, dash) in zip(runs, COMPARED, strict=False)]
    if reference is not None:
        looks.insert(0, (reference, GREY, "-", 2.2))
    lines = [run for run, *_ in looks]
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, rate, quality = _two(width, 4.6, epochs, ceilings(lines), objective)
        for run, color, dash, thick in looks:
            if run.trace is not None:
                _rate(rate, run.trace, color, dash)
            label = _wrapped(run.label, 56)
            quality.plot(*_xy(run.values), color=color, linestyle=dash, linewidth=thick, label=label)
        quality.set_ylim(bottom=_floor(lines))
        columns = 2 if len(looks) > 2 and width == WIDE else 1
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        cursor = _at_cursor([(run.label, color, run) for run, color, *_ in looks], epochs, objective)
        return _svg(figure, name, description, cursor, (rate, quality))


def intervals(
    name: str,
    description: str,
    rows: Sequence[tuple[str, float, float, float]],
    practical: float,
    objective: str,
    width: float = WIDE,
) -> str:
    """Differences from the baseline: label, mean, and both ends of the interval; the band is what counts as equal."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name, "axes.grid": False}):
        labels = [_wrapped(label, 60 if width == WIDE else 26) for label, *_ in rows]
        lines = sum(1 + label.count("\n") for label in labels)
        figure = Figure(figsize=(width, 0.75 + 0.17 * (len(rows) + lines)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(-practical, practical, color=BAND)
        axes.axvline(0, color=GREY, linewidth=1)
        for at, (_, mean, low, high) in enumerate(rows):
            axes.plot([low, high], [at, at], color=MAP, linewidth=2, solid_capstyle="butt")
            axes.plot(mean, at, "o", color=MAP, markersize=6)
        axes.set_yticks(range(len(rows)), labels)
        axes.set(xlabel=f"{objective} minus the baseline's", ylim=(len(rows) - 0.5, -0.5))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _svg(figure, name, description)


def precision_recall(
    name: str,
    description: str,
    runs: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    baseline: bool,
    width: float = WIDE,
) -> str:
    """Precision over recall, each run with its label, recall and precision; ``baseline``: the first is drawn grey."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        axes = figure.add_subplot()
        looks = [(GREY, "-"), *COMPARED] if baseline else COMPARED
        for (label, recall, precision), (color, dash) in zip(runs, looks, strict=False):
            axes.plot(recall, precision, color=color, linestyle=dash, linewidth=1.6, label=_wrapped(label, 56))
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        figure.legend(loc="outside lower center", ncols=1, frameon=False)
        return _svg(figure, name, description)


def ceilings(runs: Sequence[Line]) -> tuple[float, float]:
    """Upper ends of the learning-rate axis and of the objective's axis that hold all of these."""
    peak = max((run.trace.peak for run in runs if run.trace is not None), default=0.0)
    best = max((value for run in runs for value in run.values.values()), default=0.0)
    return 1.12 * peak or 1.0, 1.06 * best or 1.0


def begins_late(runs: Sequence[Line]) -> bool:
    """Whether an overlay of these runs leaves out the lower half: only where all of them end above it."""
    return _floor(runs) > 0


def _floor(runs: Sequence[Line]) -> float:
    """Lower end of the mAP axis of an overlay; below 0 where the highest value is 0, so that the line can be seen."""
    top = ceilings(runs)[1]
    ends = [run.values[max(run.values)] for run in runs if run.values]
    if not any(value > 0 for run in runs for value in run.values.values()):
        return -0.05 * top
    return LATE * top if all(end > LATE * top for end in ends) else 0.0


def _two(
    width: float, height: float, epochs: int, top: tuple[float, float], objective: str
) -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    rate, quality = figure.subplots(2, sharex=True, height_ratios=(1, 1.7))
    rate.set(ylabel="LR", ylim=(0, top[0]))
    rate.yaxis.set_major_locator(mpl.ticker.MaxNLocator(2))
    quality.set(xlabel="epoch", ylabel=objective, ylim=(0, top[1]), xlim=(0, epochs))
    quality.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    quality.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
    return figure, rate, quality


def _rate(axes: Axes, trace: Trace, color: str, dash: Any) -> None:
    at = steps_shown(trace, POINTS)
    axes.plot(at / trace.steps_per_epoch, trace.lr[at], color=color, linestyle=dash, linewidth=1.4)


def _wrapped(label: str, most: int) -> str:
    """``label`` in lines of about ``most`` characters."""
    return "\n".join(textwrap.wrap(label, most))


def _xy(values: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """The score of an epoch is known at its end."""
    return [epoch + 1.0 for epoch in sorted(values)], [values[epoch] for epoch in sorted(values)]


def _shade(axes: Axes, values: Mapping[int, float], effect: Mapping[str, Any], trunk: Mapping[int, float]) -> None:
    """Shade what ``values`` lost by a jump: below the ``trunk``'s values, without them below the value before."""
    if effect["dip"] <= 2 * effect["noise"]:
        return
    start = int(effect["epoch"])
    back = effect["watched"] if effect["recovery"] is None else effect["recovery"]
    epochs = [epoch for epoch in range(start, start + int(back) + 1) if epoch in values]
    before = trunk.get(start - 1, effect["before"])
    level = [before, *(trunk.get(epoch, before) for epoch in epochs)]
    x, y = [start, *(epoch + 1 for epoch in epochs)], [before, *(values[epoch] for epoch in epochs)]
    axes.fill_between(x, np.minimum(y, level), level, color=LR, alpha=0.25, linewidth=0)


def _at_cursor(runs: Sequence[tuple[str, str, Line]], epochs: int, objective: str) -> dict[str, Any]:
    """What the page's script shows at the cursor: each run's learning rate as drawn and the objective by epoch."""
    entries = []
    for label, color, run in runs:
        entry: dict[str, Any] = {"label": label, "color": _VARIABLES[color]}
        if run.trace is not None:
            at = steps_shown(run.trace, POINTS)
            entry["at"] = [round(float(x), 3) for x in at / run.trace.steps_per_epoch]
            entry["lr"] = [float(f"{value:.4g}") for value in run.trace.lr[at]]
        entry["values"] = [None if epoch not in run.values else round(run.values[epoch], 4) for epoch in range(epochs)]
        entries.append(entry)
    return {"epochs": epochs, "objective": objective, "runs": entries}


def _svg(
    figure: Figure, name: str, description: str, cursor: dict[str, Any] | None = None, axes: Sequence[Axes] = ()
) -> str:
    """The figure as an ``<svg>`` element with a text alternative; ``cursor``: what is shown at it over ``axes``."""
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+"(/?)>', r"<g\1>", text)  # alike in all figures
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    head, _, rest = text.partition(">")
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
    if cursor:
        boxes = [shown.get_position() for shown in axes]  # in shares of the figure, from its lower left corner
        cursor |= {"left": boxes[0].x0, "right": boxes[0].x1, "top": 1 - boxes[0].y1, "bottom": 1 - boxes[-1].y0}
        head += f' data-cursor="{html.escape(json.dumps(cursor, separators=(",", ":")))}"'
    return f'{head} role="img" aria-label="{html.escape(description)}">{rest}'


# Files


def font() -> str:
    """The path of a font file that is there wherever matplotlib is."""
    return str(font_manager.findfont("DejaVu Sans"))


def steps_shown(trace: Trace, most: int) -> NDArray[np.int64]:
    """At most about ``most`` optimizer steps that show a trace: evenly spaced, its ends, both sides of each jump."""
    jumps = [step for jump in trace.jumps() for step in (jump.step - 1, jump.step)]
    even = np.linspace(0, trace.steps - 1, min(trace.steps, most)).astype(np.int64)
    return np.unique(np.r_[even, np.asarray(jumps, np.int64)])


def trace_table(trace: Trace) -> bytes:
    """The exact per-step trace as a parquet file's bytes: step, epoch, lr, lr/GROUP ..., momentum."""
    out = io.BytesIO()
    pq.write_table(pa.table(trace.to_columns()), out, compression="zstd")
    return out.getvalue()


def plot_traces(traces: Mapping[str, Trace], kind: str = "png") -> bytes:
    """The LR of one schedule or several over the epochs, by name, as a ``png`` or ``svg`` file's bytes.

    Restarts are marked with a triangle up, drops with a triangle down. Raises ConfigError for another kind.
    """
    if kind not in ("png", "svg"):
        raise ConfigError(f"plot: {kind!r} is not a kind of picture that can be drawn; expected png or svg")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, trace in traces.items():
        at = steps_shown(trace, FILE_POINTS)
        (line,) = axes.plot(at / trace.steps_per_epoch, trace.lr[at], label=name, linewidth=1.4)
        for mark, word in (("^", "restart"), ("v", "drop")):
            steps = np.asarray([jump.step for jump in trace.jumps() if jump.kind == word], np.int64)
            if len(steps):
                x, label = steps / trace.steps_per_epoch, f"{word}s of {name}"
                axes.plot(x, trace.lr[steps], mark, color=line.get_color(), label=label, markersize=7)
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    out = io.BytesIO()
    canvas = FigureCanvasAgg(figure) if kind == "png" else FigureCanvasSVG(figure)
    canvas.figure.savefig(out, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
