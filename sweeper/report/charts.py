"""The report's charts, as SVG to stand inside a page: text stays text, every id is the chart's own, nothing is loaded.

Blue is the objective, vermilion is the learning rate, grey is the reference; curves that are compared differ in colour
and in dash. The colours are Okabe and Ito's, which tell apart for colour-blind eyes.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sweeper.schedules import Trace

MAP, LR, GREY, INK = "#0072b2", "#d55e00", "#8a8a8a", "#333333"
COMPARED = (("#0072b2", "-"), ("#d55e00", (0, (6, 2))), ("#009e73", (0, (2, 1.5))), ("#a0569c", (0, (6, 2, 1, 2))))
LATE = 0.5  # of the highest score: below it all curves rise alike, and above it they part
POINTS = 400  # of a learning-rate curve; its jumps and ends are kept

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "path.simplify_threshold": 0.5,
}


@dataclass(frozen=True)
class Line:
    """One run in a chart: learning rate (None: not known) and the objective by epoch."""

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
    score: tuple[float, int] | None = None,
) -> str:
    """One configuration: learning rate above, the objective below on the same epochs.

    ``runs``: the first is drawn strong, its further seeds weak. ``effects``: of its jumps, ``evidence.Effect`` as
    dicts; a dip beyond the noise is shaded until the curve is back or the cycle ends. ``top``: upper ends of both axes,
    so that panels of one page compare. ``score``: what the first run comes to, and the number of last epochs of which
    that is the mean; it is drawn as a level over them.
    """
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, rate, quality = _two(4.3, 2.7, epochs, top, objective)
        first = runs[0]
        if first.trace is not None:
            _rate(rate, first.trace, LR, "-")
            for jump in first.trace.jumps():
                restart = jump.kind == "restart"
                at = jump.step / first.trace.steps_per_epoch
                for axes in (rate, quality):
                    axes.axvline(at, color=INK if restart else GREY, linewidth=0.7, linestyle="--" if restart else ":")
                mark = "^" if restart else "v"
                rate.plot(at, first.trace.lr[jump.step], mark, color=INK if restart else GREY, markersize=5)
        if reference is not None and reference is not first:
            quality.plot(*_xy(reference.values), color=GREY, linewidth=1)
        for run in runs[1:]:
            quality.plot(*_xy(run.values), color=MAP, linewidth=0.7, alpha=0.35)
        quality.plot(*_xy(first.values), color=MAP, linewidth=1.6)
        for effect in effects:
            _shade(quality, first.values, effect)
        if score is not None:
            level, last = score
            end = max(first.values) + 1
            quality.plot([max(end - last, 0), end], [level, level], color=INK, linewidth=2.2, solid_capstyle="butt")
        return _svg(figure, name, description)


def overlay(
    name: str, description: str, runs: Sequence[Line], reference: Line | None, epochs: int, objective: str
) -> str:
    """A few runs over each other, a reference in grey: learning rate above, the objective below, a legend beneath."""
    everything = [*runs, *([reference] if reference else [])]
    top = ceilings([run.trace for run in everything], [run.values for run in everything])
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure, rate, quality = _two(9.6, 4.6, epochs, top, objective)
        handles = []
        if reference is not None:
            handles += _pair(rate, quality, reference, GREY, "-", 2.2)
        for run, (color, dash) in zip(runs, COMPARED, strict=False):
            handles += _pair(rate, quality, run, color, dash, 1.6)
        quality.set_ylim(bottom=_floor(everything, top[1]))
        figure.legend(handles=handles, loc="outside lower center", ncols=1 if len(handles) < 3 else 2, frameon=False)
        return _svg(figure, name, description)


def intervals(
    name: str, description: str, rows: Sequence[tuple[str, float, float, float]], practical: float, objective: str
) -> str:
    """Differences from the baseline: label, mean, and both ends of the interval; the band is what counts as equal."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name, "axes.grid": False}):
        figure = Figure(figsize=(9.6, 0.75 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(-practical, practical, color="#eeeeee")
        axes.axvline(0, color=GREY, linewidth=1)
        for at, (_, mean, low, high) in enumerate(rows):
            axes.plot([low, high], [at, at], color=MAP, linewidth=2, solid_capstyle="butt")
            axes.plot(mean, at, "o", color=MAP, markersize=6)
        axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
        axes.set(xlabel=f"{objective} minus the baseline's, with its interval", ylim=(len(rows) - 0.5, -0.5))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _svg(figure, name, description)


def bars(name: str, description: str, values: Mapping[str, float]) -> str:
    """Shares that sum to 1, as horizontal bars with their values."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name, "axes.grid": False}):
        figure = Figure(figsize=(9.6, 0.35 + 0.28 * len(values)), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.barh(list(values), list(values.values()), color=MAP, height=0.65)
        axes.bar_label(drawn, [f"{share:.0%}" for share in values.values()], padding=4, color=INK)
        axes.set(ylim=(len(values) - 0.5, -0.5), xlim=(0, 1.08 * max(values.values())))
        axes.xaxis.set_visible(False)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _svg(figure, name, description)


def ceilings(traces: Sequence[Trace | None], curves: Sequence[Mapping[int, float]]) -> tuple[float, float]:
    """Upper ends of the learning-rate axis and of the objective's axis that hold all of these."""
    peak = max((trace.peak for trace in traces if trace is not None), default=0.0)
    best = max((value for curve in curves for value in curve.values()), default=0.0)
    return 1.12 * peak or 1.0, 1.06 * best or 1.0


def begins_late(runs: Sequence[Line]) -> bool:
    """Whether an overlay of these runs leaves out the lower half: only where all of them end above it."""
    return _floor(runs, ceilings([], [run.values for run in runs])[1]) > 0


def _floor(runs: Sequence[Line], top: float) -> float:
    """Lower end of the mAP axis of an overlay; below 0 where the highest value is 0, so that the line can be seen."""
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


def _pair(rate: Axes, quality: Axes, run: Line, color: str, dash: Any, width: float) -> list[Any]:
    if run.trace is not None:
        _rate(rate, run.trace, color, dash)
    return quality.plot(*_xy(run.values), color=color, linestyle=dash, linewidth=width, label=run.label)


def _rate(axes: Axes, trace: Trace, color: str, dash: Any) -> None:
    breaks = [step for jump in trace.jumps() for step in (jump.step - 1, jump.step)]
    even = np.linspace(0, trace.steps - 1, min(trace.steps, POINTS)).astype(np.int64)
    at = np.unique(np.r_[even, np.asarray(breaks, np.int64)])
    axes.plot(at / trace.steps_per_epoch, trace.lr[at], color=color, linestyle=dash, linewidth=1.4)


def _xy(values: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """The score of an epoch is known at its end."""
    return [epoch + 1.0 for epoch in sorted(values)], [values[epoch] for epoch in sorted(values)]


def _shade(axes: Axes, values: Mapping[int, float], effect: Mapping[str, Any]) -> None:
    if effect["dip"] <= 2 * effect["noise"]:
        return
    start = int(effect["epoch"])
    back = effect["watched"] if effect["recovery"] is None else effect["recovery"]
    epochs = [epoch for epoch in range(start, start + int(back) + 1) if epoch in values]
    x, y = [start, *(epoch + 1 for epoch in epochs)], [effect["before"], *(values[epoch] for epoch in epochs)]
    under = np.minimum(y, effect["before"])
    axes.fill_between(x, under, effect["before"], color=LR, alpha=0.25, linewidth=0)


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element with a text alternative."""
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[A-Za-z0-9_.]+_\d+">', "<g>", text)  # the same in every figure; nothing refers to them
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    head, _, rest = text.partition(">")
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
    return f'{head} role="img" aria-label="{html.escape(description)}">{rest}'
