"""The commands on schedules that need no sweep: ``trace``, ``families`` and ``convert``."""

import csv
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
import yaml

from sweeper.errors import ConfigError, shorten
from sweeper.reading import NotYaml, parse_yaml, read_text, why
from sweeper.schedules import (
    FAMILIES,
    MAIN,
    MEANINGS,
    Duration,
    Schedule,
    TimeBase,
    Trace,
    format_value,
    parse,
)

ROWS = 24  # evenly spaced epochs in the table
MAX_STEPS = 5_000_000  # A longer trace takes many seconds to print.


class Shown(NamedTuple):
    """A schedule with its name in the output, its LR trace, and the step at which it leaves its trunk (None: never)."""

    name: str
    schedule: Schedule
    trace: Trace
    begins: int | None


def trace(
    schedule: Annotated[
        list[str],
        typer.Argument(
            help="The schedule: a family and its parameters (cawb lr=0.1 'steps=[31,81]'; 'sweeper families' explains "
            "them), or a YAML or JSON file."
        ),
    ],
    epochs: Annotated[int, typer.Option(help="Number of epochs of the run.")],
    steps_per_epoch: Annotated[int | None, typer.Option(help="Number of optimizer steps per epoch.")] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of training images; with --batch it replaces --steps-per-epoch.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Number of images per optimizer step, with --images.")] = None,
    vs: Annotated[list[str] | None, typer.Option(help="Compare with this schedule, quoted, or file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with learning rates before they are rounded to float32.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: a row per step, LRs in float32.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the schedules into this .png or .svg file.")] = None,
) -> None:
    """Print the learning rate of a schedule, and compare schedules. Nothing is trained."""
    time = _time(epochs, steps_per_epoch, images, batch)
    if as_json and as_csv:
        raise ConfigError("--csv: given beside --json; expected one of the two, take one out")
    shown: list[Shown] = []
    for arguments in (schedule, *map(_split, vs or ())):
        for parsed in read(arguments):
            count = sum(other.schedule.family == parsed.family for other in shown)
            name = f"{parsed.family} {count + 1}" if count else parsed.family
            shown.append(Shown(name, parsed, parsed.trace(time), parsed.begins(time)))
    if plot is not None:
        _draw(shown, plot)
    if as_json:
        first, *others = [_described(item, time, shown[0].trace) for item in shown]
        typer.echo(json.dumps({**first, "vs": others} if others else first, allow_nan=False))
    elif as_csv:
        typer.echo(_table_csv(shown), nl=False)
    else:
        for item in shown:
            typer.echo(_table(item))
        for item in shown[1:]:
            same = shown[0].trace.common_prefix(item.trace)
            typer.echo(f"{shown[0].name} and {item.name} share their first {same} steps")
        if plot is not None:
            typer.echo(f"drawn in {plot}")


def _time(epochs: int, steps_per_epoch: int | None, images: int | None, batch: int | None) -> TimeBase:
    if steps_per_epoch is not None and batch is not None:
        raise ConfigError("--batch: given beside --steps-per-epoch; expected one of the two, take one out")
    if steps_per_epoch is not None:
        time = TimeBase(epochs, steps_per_epoch, images)
    elif images is None or batch is None:
        raise ConfigError("--steps-per-epoch: missing; expected a number of optimizer steps, or --images and --batch")
    else:
        time = TimeBase.from_images(images, batch, epochs=epochs)
    if time.steps > MAX_STEPS:
        raise ConfigError(
            f"--epochs: {epochs} epochs are {time.steps} steps, and trace shows at most {MAX_STEPS} steps; "
            "expected fewer epochs, or fewer steps per epoch for a sketch"
        )
    return time


def read(arguments: list[str]) -> list[Schedule]:
    """The schedules of a command line: a family and key=value pairs, or a YAML or JSON file of a schedule or a list.

    Values are YAML. Raises ConfigError for a file that cannot be read, ScheduleError for an invalid schedule.
    """
    first, *pairs = arguments or [""]
    if Path(first).suffix in (".yaml", ".yml", ".json"):
        try:
            loaded = parse_yaml(read_text(Path(first)))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{first}: cannot be read as a schedule: {why(error)}; expected YAML") from None
        except NotYaml as error:
            raise ConfigError(f"{first}: cannot be read as a schedule: {error}; expected YAML") from None
        if isinstance(loaded, Mapping) and "family" not in loaded and loaded.keys() & {"search", "baselines", "trials"}:
            raise ConfigError(
                f"{first}: is a sweep, not a schedule; 'sweeper plan {first}' shows the schedules that it would try, "
                "'sweeper trace yolo_linear lr=0.01' and the like one of them"
            )
        specs = loaded if isinstance(loaded, list) else [loaded]
        if not specs or not all(isinstance(spec, Mapping) for spec in specs):
            raise ConfigError(f"{first}: is not a schedule; expected family: and its parameters, or a list of such")
        return [parse({**spec, **_pairs(pairs)}) for spec in specs]
    return [parse({"family": first, **_pairs(pairs)})]


def _pairs(pairs: list[str]) -> dict[str, Any]:
    """The values of key=value pairs. Raises ConfigError for an invalid pair."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{shorten(pair)}: is not a parameter; expected key=value, for example steps=[31,81]")
        if key in values:
            raise ConfigError(f"{key}: given twice; expected once, take one out")
        try:
            values[key] = text if key == "decay" else parse_yaml(text)
        except NotYaml as error:
            problem = str(error).partition(": ")[2]  # without "line 1: ", because the value has one line
            raise ConfigError(f"{key}: {shorten(text)} cannot be read: {problem}; expected a YAML value") from None
    return values


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text) or [text]
    except ValueError:
        raise ConfigError(
            f"--vs: {shorten(text)} has an open quotation; expected a family and key=value pairs"
        ) from None


def _described(item: Shown, time: TimeBase, first: Trace) -> dict[str, Any]:
    """A schedule for ``--json``: ``lr`` as [epoch][step] in float64, and the facts of its trace in float32."""
    schedule, trace = item.schedule, item.trace

    def nested(group: str) -> list[list[float]]:
        rows: list[list[float]] = schedule.values(time, group).reshape(trace.epochs, -1).tolist()
        return rows

    names = sorted({*trace.groups, *schedule.groups})
    described: dict[str, Any] = {
        "name": item.name,
        "schedule": schedule.spec,
        "epochs": trace.epochs,
        "steps_per_epoch": trace.steps_per_epoch,
        "digest": trace.digest,
        "jumps": [{**asdict(jump), "ratio": jump.ratio if np.isfinite(jump.ratio) else None} for jump in trace.jumps()],
        "facts": trace.facts(),
        "lr": nested(MAIN),
    }
    if names:
        described["groups"] = {name: nested(name) for name in names}
    if trace.momentum is not None:
        described["momentum"] = trace.momentum.reshape(trace.epochs, -1).tolist()
    if schedule.trunk is not None:
        described["begins"] = item.begins
    if trace is not first:
        described["common_prefix"] = first.common_prefix(trace)
    return described


def _table_csv(shown: list[Shown]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [item.trace.to_columns() for item in shown]
    names = list(columns[0]) if len(shown) == 1 else ["schedule", *dict.fromkeys(n for c in columns for n in c)]
    writer.writerow(names)
    for item, column in zip(shown, columns, strict=True):
        steps = item.trace.steps
        rows = {"schedule": [item.name] * steps, **{name: map(str, values) for name, values in column.items()}}
        writer.writerows(zip(*(rows.get(name, [""] * steps) for name in names), strict=True))
    return out.getvalue()


def _table(item: Shown) -> str:
    """The table of a schedule: ``ROWS`` epochs evenly over the run, and the epochs before and at every jump."""
    trace, unit = item.trace, item.trace.steps_per_epoch
    jumps = {jump.epoch: jump for jump in trace.jumps()}
    even = {round(i) for i in np.linspace(0, trace.epochs - 1, min(ROWS, trace.epochs))}
    around_jumps = {epoch + d for epoch in list(jumps)[:ROWS] for d in (-1, 0)}
    written = yaml.safe_dump(item.schedule.spec, default_flow_style=True, sort_keys=False, width=10**6).strip()
    lines = [f"{item.name}: {written}"]
    lines += [f"{'epoch':>7} {'first step':>12} {'last step':>12}"]
    for epoch in sorted(even | {epoch for epoch in around_jumps if epoch >= 0}):
        first, last = trace.lr[epoch * unit], trace.lr[(epoch + 1) * unit - 1]
        note = f"  {jumps[epoch].kind} x{jumps[epoch].ratio:.4g} at step {jumps[epoch].step}" if epoch in jumps else ""
        lines.append(f"{epoch:>7} {first:>12.6g} {last:>12.6g}{note}")
    if item.schedule.trunk is not None:
        begins = item.begins
        leaves = "never leaves it" if begins is None else f"leaves it at step {begins} (epoch {begins // unit})"
        lines.append(f"a branch of {item.schedule.trunk.family}: {leaves}")
    facts = ", ".join(f"{name} {value:.6g}" for name, value in trace.facts().items())
    return "\n".join([*lines, facts, f"digest {trace.digest}", ""])


def _draw(shown: list[Shown], file: Path) -> None:
    from sweeper import charts

    picture = charts.plot_traces({item.name: item.trace for item in shown}, file.suffix.lower().lstrip("."))
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise ConfigError(f"--plot: {file} cannot be written: {error.strerror}; expected a file in a folder") from None


def families(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the families of schedules, their parameters and defaults. Each is explained."""
    parameters = {name: family.keys({}) for name, family in FAMILIES.items()}
    if as_json:
        described = {
            name: {
                "required": [key for key, definition in keys.items() if definition.required],
                "defaults": {key: definition.default for key, definition in keys.items() if not definition.required},
            }
            for name, keys in parameters.items()
        }
        typer.echo(json.dumps(described))
        return
    for name, keys in parameters.items():
        words = [
            key if definition.required else f"{key}={format_value(definition.default)}"
            for key, definition in keys.items()
        ]
        typer.echo(f"{name:<17} {MEANINGS[name]}\n{'':<17}   {' '.join(words)}")
    typer.echo(
        "\nAfter = is the default, - means none; a parameter without a default is required. The parameters mean:\n"
    )
    for key in dict.fromkeys(key for keys in parameters.values() for key in keys):
        typer.echo(f"{key:<17} {MEANINGS[key]}")
    typer.echo("\nLengths are epochs (20 or 20ep), steps (500it), images (256000img) or a share of the run (0.2dur).")
    typer.echo("Any schedule may also have:\n")
    for key in ("trunk", "from", "groups"):
        typer.echo(f"{key:<17} {MEANINGS[key]}")
    typer.echo("\nShow one:  sweeper trace cawb lr=0.1 'steps=[31,81]' --epochs 150 --steps-per-epoch 100")


def convert(
    length: Annotated[str, typer.Argument(help="The length in iterations or epochs: 4000it or 2.1642ep.")],
    images: Annotated[int, typer.Option(help="Number of training images of the data set that the length is for.")],
    batch: Annotated[int, typer.Option(help="Number of images per iteration on that data set.")],
    to_images: Annotated[int | None, typer.Option(help="Convert to a data set of so many training images.")] = None,
    to_batch: Annotated[int | None, typer.Option(help="Convert to so many images per iteration.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Convert a length between iterations and epochs. With --to-images it is also converted to another data set.

    An epoch counts as images / batch iterations, which is not rounded to whole batches.
    """
    parsed = Duration.parse(length, "length")
    if parsed.unit not in ("ep", "it"):
        raise ConfigError(f"length: {length!r} is not in iterations or epochs; expected for example 4000it or 2.1642ep")
    TimeBase.from_images(images, batch, epochs=1)  # It raises ScheduleError unless both are above 0.
    iterations = parsed.value if parsed.unit == "it" else parsed.value * images / batch
    epochs = iterations * batch / images
    converted: dict[str, Any] = {"iterations": iterations, "epochs": epochs, "images": images, "batch": batch}
    sentences = [f"{iterations:.1f} iterations of {batch} on {images} images = {epochs:.4f} epochs"]
    if to_images is not None or to_batch is not None:
        other_images = images if to_images is None else to_images
        other_batch = batch if to_batch is None else to_batch
        TimeBase.from_images(other_images, other_batch, epochs=1)
        other = epochs * other_images / other_batch
        converted["to"] = {"iterations": other, "epochs": epochs, "images": other_images, "batch": other_batch}
        sentences.append(f"{epochs:.4f} epochs on {other_images} images = {other:.1f} iterations of {other_batch}")
    typer.echo(json.dumps(converted) if as_json else "\n".join(sentences))
