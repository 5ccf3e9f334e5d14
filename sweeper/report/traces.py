"""Pictures of schedules."""

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sweeper.errors import ConfigError
from sweeper.schedules import Trace

POINTS = 4000  # a curve with more is thinned; its jumps and its ends are kept


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
        jumps = trace.jumps()
        marked = [step for jump in jumps for step in (jump.step - 1, jump.step)]
        even = np.linspace(0, trace.steps - 1, min(trace.steps, POINTS)).astype(np.int64)
        at = np.unique(np.r_[even, np.asarray(marked, np.int64)])
        (line,) = axes.plot(at / trace.steps_per_epoch, trace.lr[at], label=name, linewidth=1.4)
        for mark, word in (("^", "restart"), ("v", "drop")):
            steps = np.asarray([jump.step for jump in jumps if jump.kind == word], np.int64)
            if len(steps):
                where = steps / trace.steps_per_epoch
                axes.plot(
                    where, trace.lr[steps], mark, color=line.get_color(), label=f"{word}s of {name}", markersize=7
                )
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    out = io.BytesIO()
    canvas = FigureCanvasAgg(figure) if kind == "png" else FigureCanvasSVG(figure)
    canvas.figure.savefig(out, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return out.getvalue()
