"""A finished sweep to look at, in seconds: the real study, tracker and schedules, with invented mAP curves.

Nothing is trained. Curves rise, dip after a restart and carry noise; which schedule is good is made up, too.
"""

import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sweeper import charts, evidence, names, search
from sweeper.config import Sweep
from sweeper.schedules import Trace, parse, text_params
from sweeper.service import Place, Service

EPOCHS = 16
LAST = "model.23.cv3.2.2.bias"
START = 1_795_000_000_000  # ms since 1970


def curve(trace: Trace, seed: int, merit: float = 0.0) -> list[float]:
    """mAP by epoch: a plateau that is reached in a dozen epochs, less while the LR is high, and noise."""
    random = np.random.default_rng([seed, int(trace.digest[:8], 16)])
    rate = trace.lr.reshape(trace.epochs, -1).mean(axis=1) / trace.peak
    values, level = [], 0.0
    for epoch in range(trace.epochs):
        level += 0.25 * (0.46 + merit - level)
        values.append(max(level * (1 - 0.22 * rate[epoch]) + 0.003 * random.standard_normal(), 0.0))
    return [float(value) for value in values]


def written(folder: Path, **changes: Any) -> Path:
    """A sweep file beside 24 + 8 grey images with one object each."""
    for split, count in (("train", 24), ("val", 8)):
        for kind in ("images", "labels"):
            (folder / "data" / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng([count, number]).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / "images" / split / f"{number}.png")
            (folder / "data" / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (folder / "data" / "data.yaml").write_text(
        f"path: {folder / 'data'}\ntrain: images/train\nval: images/val\nnames: [thing]\n"
    )
    keys = {
        "name": "shown", "data": "data/data.yaml", "model": "yolo11n.yaml", "epochs": EPOCHS, "imgsz": 64, "batch": 8,
        "nbs": 8, "lr0": 0.02, "trials": 6, "baselines": [{"family": "yolo_linear", "warmup": "1ep"}, "yolo_cosine"],
        "sampler": "random",
        "lease_s": 600_000,
        "confirm": {"best": 2, "seeds": 4},
        "search": {"family": "cawb", "restarts": {"min": 1, "max": 2, "every": 2, "distance": 4, "first": 4},
                   "step_scale": {"per": "cycle", "choices": [0.5, 0.7, 1.0]}, "horizon": "end", "floor": 0.05,
                   "decay": ["cosine", "linear"], "warmup": "2ep"},
    } | changes  # fmt: skip
    file = folder / "shown.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


@functools.cache
def untrained() -> dict[str, torch.Tensor]:
    """The state_dict of an untrained YOLO11n with one class."""
    from sweeper.training.models import architecture

    # isort: split
    from ultralytics.nn.tasks import DetectionModel

    return dict(DetectionModel(architecture("yolo11n.yaml"), nc=1, verbose=False).state_dict())


def weights(number: int) -> bytes:
    """The same with the trial's ``number`` as its last bias."""
    state = untrained()
    out = io.BytesIO()
    torch.save(state | {LAST: torch.full_like(state[LAST], float(number))}, out)
    return out.getvalue()


def launched(file: Path, store: Path) -> Service:
    """The sweep of ``file`` launched into ``store``."""
    service = Service(Sweep.load(file), Place(str(store)))
    service.launch()
    return service


def work(service: Service, merits: Mapping[str, float], stop_after: int | None = None) -> None:
    """Finish every open trial as a worker does, with invented curves; ``stop_after``: of the last one, so many epochs.

    ``merits``: what a configuration's name adds to the plateau. Trial 4 fails.
    """
    study, tracker = service.study, service.tracker
    while (slot := study.claim("inventor")) is not None:
        study.heartbeat("inventor", host="here", pid=1, device="cpu", number=slot.number, epoch=0)
        spec = slot.propose(lambda suggest: search.propose(service.sweep, suggest).spec)
        trace = service.trace(parse(spec))
        name = str(slot.facts.name or f"trial {slot.number}")
        called = service.sweep.label(spec)
        facts = trace.facts() | {"final_ratio": trace.final / trace.peak}
        for key, value in {"trace": trace.digest, "recipe": "0" * 64, "facts": facts}.items():
            slot.set(key, value)
        log = tracker.trial(
            slot.number,
            name=f"{slot.number:03d} {called}",
            tags={names.FAMILY: spec["family"], names.STAGE: slot.stage},
            params=names.params(text_params(spec), facts, slot.seed),
        )
        log.series(names.TRACE, {int(step): float(trace.lr[step]) for step in charts.steps_shown(trace, 300)})
        log.artifact("trace/lr.parquet", charts.trace_table(trace))
        values = curve(trace, slot.seed, merits.get(name, 0.0))
        last = study.counts()["waiting"] == 0
        for epoch, value in enumerate(values):
            if last and epoch == stop_after:
                study.heartbeat("inventor", host="here", pid=1, device="cpu", number=slot.number, epoch=epoch)
                log.close()
                return
            rate = float(trace.lr[(epoch + 1) * trace.steps_per_epoch - 1])
            row = {"curve/lr": rate, "curve/lr_rel": rate / trace.peak, "curve/mAP50-95": value}
            log.epoch(epoch, row, START + 60_000 * (slot.number * EPOCHS + epoch))
            slot.report(epoch, value)
            if slot.number == 4 and epoch == 5:
                slot.set("confounder", "not finite")
                log.finish("FAILED", reason="not finite: loss nan at epoch 6")
                slot.fail("not finite: loss nan at epoch 6, step 17; lower lr0")
                break
        else:
            value = float(np.mean(values[-3:]))
            log.epoch(len(values) - 1, {"best/mAP50-95": max(values), "final/mAP50-95": value}, START)
            log.artifact(names.WEIGHTS, weights(slot.number))
            log.finish("FINISHED")
            reused = 4 if slot.stage == "search" and slot.number > 5 else 0
            seconds = 90.0 if reused else 60.0
            told = {"epochs_trained": EPOCHS - reused, "epochs_reused": reused, "epoch_seconds": seconds}
            for key, said in told.items():
                slot.set(key, said)
            log.flush(10)
            slot.set("run_id", log.run_id)
            slot.tell(value)


def confirmed(service: Service, trials: Sequence[int], seeds: Sequence[int], merits: Mapping[str, float]) -> None:
    """The trials and the baselines again on other seeds."""
    baselines, asked = service.baselines(), service.sweep.confirm
    design = evidence.Design(
        tuple(trials), tuple(baselines), asked.best, tuple(seeds), asked.alpha, asked.equivalence
    )  # not the best two: what is shown has a clear winner and a trial that is none
    service.study.add(evidence.wanted_confirmation(service.study.trials(), baselines, design))
    work(service, merits)


@pytest.fixture(scope="session")
def shown_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep file of ``shown``."""
    return written(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="session")
def shown(shown_file: Path) -> Iterator[Service]:
    """Two baselines and six trials: number 4 failed, 7 is in training, 5 and 6 are confirmed on four seeds."""
    service = launched(shown_file, shown_file.parent / "store")
    merits = {"trial 5": 0.03, "trial 6": 0.004}
    work(service, merits, stop_after=9)
    confirmed(service, [5, 6], range(100, 104), merits)
    assert service.tracker.drain(60) == 0
    yield service
    service.tracker.close()
