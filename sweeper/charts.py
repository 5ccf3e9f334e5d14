"""Draws the report's charts as SVG elements of its page, and writes pictures and tables of schedules as files.

In the page, blue is the objective, vermilion the learning rate and grey the reference; compared curves differ in colour
and in dash. The colours are Okabe and Ito's, which readers with colour blindness can tell apart. They become variables
of the page's style sheet, which has other values for dark screens. Labels stay text in the SVG, and the page's font
draws them.
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
LATE = 0.5  # An overlay omits scores below this share of the highest one, because all curves rise alike there.
POINTS, FILE_POINTS = 400, 4000  # Steps of a learning-rate curve that are drawn in the page, and in a file.
WIDE, NARROW = 9.6, 4.3  # Inches: the width of the page, and of a panel or a phone.

#: The variable of the page's style sheet that replaces each colour.
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
    """A run in a chart: its learning rate (None: it is not drawn) and the objective by epoch."""

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
    """The chart of one schedule: the learning rate above, the objective below on the same epochs.

    ``runs``: the first is drawn strong, the others, on other seeds, faint. ``effects``: the measures of its jumps, see
    ``evidence.jumps_of``; a dip beyond the noise is shaded until the curve is back or the cycle ends. ``reference``:
    for a branch its trunk on the same seed, below which a dip is shaded; otherwise the best baseline. ``top``: the
    upper ends of both axes, equal for all panels of a page so that they can be compared. ``score``: the first run's,
    the mean of its ``last`` epochs, over which it is drawn as a level.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, rate, quality = _two_axes(NARROW, 2.7, epochs, top, objective)
        first, drawn = runs[0], [("this schedule", MAP, runs[0])]
        if reference is not None:
            drawn.append(("baseline", GREY, reference))
            quality.plot(*_points(reference.values), color=GREY, linewidth=1)
        for run in runs[1:]:
            quality.plot(*_points(run.values), color=MAP, linewidth=0.7, alpha=0.35)
        quality.plot(*_points(first.values), color=MAP, linewidth=1.6)
        if first.trace is not None:
            _draw_rate(rate, first.trace, LR, "-")
            for jump in first.trace.jumps():
                color, dash, mark = (INK, "--", "^") if jump.kind == "restart" else (GREY, ":", "v")
                epoch = jump.step / first.trace.steps_per_epoch
                for axes in (rate, quality):
                    axes.axvline(epoch, color=color, linewidth=0.7, linestyle=dash)
                rate.plot(epoch, first.trace.lr[jump.step], mark, color=color, markersize=5)
        for effect in effects:
            _shade(quality, first.values, effect, reference.values if reference and effect.get("over") else {})
        if score is not None:
            end = max(first.values) + 1
            quality.plot([max(end - last, 0), end], [score, score], color=INK, linewidth=2.2, solid_capstyle="butt")
        return _svg(figure, description, _cursor(drawn, epochs, objective), (rate, quality))


def overlay(
    name: str,
    description: str,
    runs: Sequence[Line],
    reference: Line | None,
    epochs: int,
    objective: str,
    width: float = WIDE,
) -> str:
    """A chart of several runs, at most as many as ``COMPARED`` has colours, and a reference in grey: the learning rate
    above, the objective below, then a legend."""
    styled = [(run, color, dash, 1.6) for run, (color, dash) in zip(runs, COMPARED, strict=False)]
    if reference is not None:
        styled.insert(0, (reference, GREY, "-", 2.2))
    lines = [run for run, *_ in styled]
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, rate, quality = _two_axes(width, 4.6, epochs, ceilings(lines), objective)
        for run, color, dash, linewidth in styled:
            if run.trace is not None:
                _draw_rate(rate, run.trace, color, dash)
            label = _wrapped(run.label, 56)
            quality.plot(*_points(run.values), color=color, linestyle=dash, linewidth=linewidth, label=label)
        quality.set_ylim(bottom=_floor(lines))
        columns = 2 if len(styled) > 2 and width == WIDE else 1
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        cursor = _cursor([(run.label, color, run) for run, color, *_ in styled], epochs, objective)
        return _svg(figure, description, cursor, (rate, quality))


def intervals(
    name: str,
    description: str,
    rows: Sequence[tuple[str, float, float, float]],
    practical: float,
    objective: str,
    width: float = WIDE,
) -> str:
    """The chart of differences to the baseline, each with its interval.

    ``rows``: label, mean, lower and upper end. ``practical``: differences within ± this count as equal; a band marks
    them.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name, "axes.grid": False}):
        labels = [_wrapped(label, 60 if width == WIDE else 26) for label, *_ in rows]
        lines = sum(1 + label.count("\n") for label in labels)
        figure = Figure(figsize=(width, 0.75 + 0.17 * (len(rows) + lines)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(-practical, practical, color=BAND)
        axes.axvline(0, color=GREY, linewidth=1)
        for y, (_, mean, low, high) in enumerate(rows):
            axes.plot([low, high], [y, y], color=MAP, linewidth=2, solid_capstyle="butt")
            axes.plot(mean, y, "o", color=MAP, markersize=6)
        axes.set_yticks(range(len(rows)), labels)
        axes.set(xlabel=f"{objective} minus the baseline's", ylim=(len(rows) - 0.5, -0.5))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _svg(figure, description)


def precision_recall(
    name: str,
    description: str,
    runs: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    baseline: bool,
    width: float = WIDE,
) -> str:
    """The chart of precision over recall. ``runs``: label, recall, precision; ``baseline``: draw the first one grey."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        axes = figure.add_subplot()
        styles = [(GREY, "-"), *COMPARED] if baseline else COMPARED
        for (label, recall, precision), (color, dash) in zip(runs, styles, strict=False):
            axes.plot(recall, precision, color=color, linestyle=dash, linewidth=1.6, label=_wrapped(label, 56))
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        figure.legend(loc="outside lower center", ncols=1, frameon=False)
        return _svg(figure, description)


def ceilings(runs: Sequence[Line]) -> tuple[float, float]:
    """The upper ends of the learning-rate axis and of the objective's axis that fit all these runs."""
    peak = max((run.trace.peak for run in runs if run.trace is not None), default=0.0)
    best = max((value for run in runs for value in run.values.values()), default=0.0)
    return 1.12 * peak or 1.0, 1.06 * best or 1.0


def begins_late(runs: Sequence[Line]) -> bool:
    """Whether an overlay of these runs omits scores below ``LATE``, which it does where all runs end above it."""
    return _floor(runs) > 0


def _floor(runs: Sequence[Line]) -> float:
    """The lower end of an overlay's objective axis; below 0 where all values are 0, so that the line is visible."""
    top = ceilings(runs)[1]
    ends = [run.values[max(run.values)] for run in runs if run.values]
    if not any(value > 0 for run in runs for value in run.values.values()):
        return -0.05 * top
    return LATE * top if all(end > LATE * top for end in ends) else 0.0


def _two_axes(
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


def _draw_rate(axes: Axes, trace: Trace, color: str, dash: Any) -> None:
    steps = steps_shown(trace, POINTS)
    axes.plot(steps / trace.steps_per_epoch, trace.lr[steps], color=color, linestyle=dash, linewidth=1.4)


def _wrapped(label: str, length: int) -> str:
    """``label`` in lines of at most ``length`` characters."""
    return "\n".join(textwrap.wrap(label, length))


def _points(values: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """The x and y of a curve. x is the epoch + 1, because the score of an epoch is measured at its end."""
    return [epoch + 1.0 for epoch in sorted(values)], [values[epoch] for epoch in sorted(values)]


def _shade(axes: Axes, values: Mapping[int, float], effect: Mapping[str, Any], trunk: Mapping[int, float]) -> None:
    """Shade a dip of ``values`` beyond the noise: below the ``trunk``'s values, or below the level before the jump
    where ``trunk`` is empty."""
    if effect["dip"] <= 2 * effect["noise"]:
        return
    start = int(effect["epoch"])
    length = effect["watched"] if effect["recovery"] is None else effect["recovery"]
    epochs = [epoch for epoch in range(start, start + int(length) + 1) if epoch in values]
    before = trunk.get(start - 1, effect["before"])
    level = [before, *(trunk.get(epoch, before) for epoch in epochs)]
    x, y = [start, *(epoch + 1 for epoch in epochs)], [before, *(values[epoch] for epoch in epochs)]
    axes.fill_between(x, np.minimum(y, level), level, color=LR, alpha=0.25, linewidth=0)


def _cursor(runs: Sequence[tuple[str, str, Line]], epochs: int, objective: str) -> dict[str, Any]:
    """The data that the page's script shows at the cursor: each run's learning rate as it is drawn, and the objective
    by epoch. ``runs``: label, colour, line."""
    entries = []
    for label, color, run in runs:
        entry: dict[str, Any] = {"label": label, "color": _VARIABLES[color]}
        if run.trace is not None:
            steps = steps_shown(run.trace, POINTS)
            entry["at"] = [round(float(x), 3) for x in steps / run.trace.steps_per_epoch]
            entry["lr"] = [float(f"{value:.4g}") for value in run.trace.lr[steps]]
        entry["values"] = [None if epoch not in run.values else round(run.values[epoch], 4) for epoch in range(epochs)]
        entries.append(entry)
    return {"epochs": epochs, "objective": objective, "runs": entries}


def _svg(figure: Figure, description: str, cursor: dict[str, Any] | None = None, axes: Sequence[Axes] = ()) -> str:
    """The figure as an ``<svg>`` element with ``description`` as its text alternative; ``cursor``: see :func:`_cursor`,
    shown where the cursor is over ``axes``."""
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids of groups go, because matplotlib gives the same ones in each figure, and a page must not repeat an id.
    text = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+"(/?)>', r"<g\1>", text)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    head, _, rest = text.partition(">")
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
    if cursor:
        boxes = [shown.get_position() for shown in axes]  # As shares of the figure, from its lower left corner.
        cursor |= {"left": boxes[0].x0, "right": boxes[0].x1, "top": 1 - boxes[0].y1, "bottom": 1 - boxes[-1].y0}
        head += f' data-cursor="{html.escape(json.dumps(cursor, separators=(",", ":")))}"'
    return f'{head} role="img" aria-label="{html.escape(description)}">{rest}'


# -- Files


def font() -> str:
    """The path of a font file that matplotlib installs with itself."""
    return str(font_manager.findfont("DejaVu Sans"))


def steps_shown(trace: Trace, most: int) -> NDArray[np.int64]:
    """The optimizer steps at which a trace is drawn: at most ``most`` evenly spaced ones with both ends, and the steps
    on both sides of each jump."""
    jumps = [step for jump in trace.jumps() for step in (jump.step - 1, jump.step)]
    even = np.linspace(0, trace.steps - 1, min(trace.steps, most)).astype(np.int64)
    return np.unique(np.r_[even, np.asarray(jumps, np.int64)])


def trace_table(trace: Trace) -> bytes:
    """The exact trace as a Parquet file's bytes, with a row for each step: step, epoch, lr, lr/GROUP ..., momentum."""
    out = io.BytesIO()
    pq.write_table(pa.table(trace.to_columns()), out, compression="zstd")
    return out.getvalue()


def plot_traces(traces: Mapping[str, Trace], kind: str = "png") -> bytes:
    """A picture of learning rates over the epochs as a ``png`` or ``svg`` file's bytes; ``traces``: by schedule's name.

    A triangle that points up marks a restart, one that points down a drop. ConfigError for another kind of file.
    """
    if kind not in ("png", "svg"):
        raise ConfigError(f"plot: {kind!r} is not a kind of picture that can be drawn; expected png or svg")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, trace in traces.items():
        steps = steps_shown(trace, FILE_POINTS)
        (line,) = axes.plot(steps / trace.steps_per_epoch, trace.lr[steps], label=name, linewidth=1.4)
        for mark, jump_kind in (("^", "restart"), ("v", "drop")):
            jumps = np.asarray([jump.step for jump in trace.jumps() if jump.kind == jump_kind], np.int64)
            if len(jumps):
                x, label = jumps / trace.steps_per_epoch, f"{jump_kind}s of {name}"
                axes.plot(x, trace.lr[jumps], mark, color=line.get_color(), label=label, markersize=7)
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    out = io.BytesIO()
    canvas = FigureCanvasAgg(figure) if kind == "png" else FigureCanvasSVG(figure)
    canvas.figure.savefig(out, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
