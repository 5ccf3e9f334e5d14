"""A trial taken away: its learning rate in any loop is the one it was trained with, to the last bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import invented
import pandas
import pytest
import tiny
import torch
import yaml

from sweeper import schedules
from sweeper.schedules import TimeBase, Trace
from sweeper.service import Service
from sweeper.tracking.server import Server


def export(shown: Service, *arguments: object) -> subprocess.CompletedProcess[str]:
    folder = shown.place.folder.parent
    command = [sys.executable, "-m", "sweeper", "export", "shown.yaml", "--store", "store", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def exported(shown: Service) -> Path:
    """Trial 1, in a folder."""
    done = export(shown, "--trial", 1, "-o", "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "wrote out: schedule.yaml, lr.csv, torch_example.py, ultralytics_train.py, weights.pt, model.pt\n"
        "registered in MLflow: models:/shown@trial-1 (version 1)\n"
    )
    return shown.place.folder.parent / "out"


def aliased(server: Server, model: str, alias: str) -> str | None:
    """The id of the run whose weights ``alias`` names; None without such an alias."""
    number = server.client().get_registered_model(model).aliases.get(alias)
    return str(server.client().get_model_version(model, number).run_id) if number else None


def trace_of(shown: Service, number: int) -> Trace:
    return shown.trace({row.number: row for row in shown.study.trials()}[number].schedule or {})


def plain_ultralytics(folder: Path, code: str, *arguments: object) -> str:
    """The output of code that trains with Ultralytics in ``folder``, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *map(str, arguments)],
        env=os.environ | {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_winner_or_a_trial_that_is_named(shown: Service, exported: Path, tmp_path: Path) -> None:
    done = export(shown, "-o", "winner")
    assert "models:/shown@winner" in done.stdout, done.stderr
    rows = {row.number: row for row in shown.study.trials()}
    assert aliased(shown.tracker.server, "shown", "winner") == rows[5].facts.run_id
    unconfirmed = invented.launched(invented.written(tmp_path, trials=1, baselines=[]), tmp_path / "store")
    invented.work(unconfirmed, {})
    done = export(unconfirmed)
    assert done.returncode == 1
    assert "no winner; expected one, or a trial by --trial N; the first of the ranking is --trial 0" in done.stderr
    done = export(shown, "--trial", 99)
    assert done.returncode == 1
    assert "export --trial 99: there is no such trial" in done.stderr


def test_the_yaml_is_the_schedule(shown: Service, exported: Path) -> None:
    trace = trace_of(shown, 1)
    command = [sys.executable, "-m", "sweeper", "trace", str(exported / "schedule.yaml"), "--json"]
    command += ["--epochs", str(trace.epochs), "--steps-per-epoch", str(trace.steps_per_epoch)]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert shown["digest"] == trace.digest


def test_the_torch_code_runs_and_follows_the_schedule(shown: Service, exported: Path) -> None:
    code = (exported / "torch_example.py").read_text()
    lines = [line for line in code.splitlines() if line and not line.startswith(('"""', "import", "from"))]
    assert len(lines) <= 10
    code = code.replace(
        "    optimizer.step()", "    used.append(optimizer.param_groups[0]['lr'])\n    optimizer.step()"
    )
    run = f"used = []\n{code}\nimport json\nprint(json.dumps(used))"
    done = subprocess.run([sys.executable, "-c", run], cwd=exported, capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == trace_of(shown, 1).lr.tolist()


STOCK = """
import json, runpy, sys
from ultralytics import YOLO
out, data, seen = sys.argv[1], sys.argv[2], {}
for script, epochs in zip(sys.argv[3::2], sys.argv[4::2]):
    exported = runpy.run_path(script)
    model = YOLO("yolo11n.yaml")
    exported["follow"](model)
    rows = seen[script] = []
    model.add_callback("on_train_batch_end", lambda trainer: rows.append(
        [[group["param_group"], group["lr"], group["momentum"]] for group in trainer.optimizer.param_groups]))
    quick = dict(epochs=int(epochs), plots=False, val=False, save=False, workers=0, device="cpu", project=out)
    model.train(data=data, **exported["ARGUMENTS"] | quick)
json.dump(seen, open(out + "/seen.json", "w"))
"""


def test_plain_ultralytics_trains_with_it_step_by_step(shown: Service, tmp_path: Path) -> None:
    """Trial 0 is Ultralytics' own schedule, with an LR for biases and a warm-up of the momentum; the other jumps."""
    first, at = min(  # the trial with the earliest jump, to a little beyond it
        ((row.number, jump.epoch) for row in shown.study.trials() for jump in trace_of(shown, row.number).jumps()),
        key=lambda found: found[1],
    )
    folders = {0: (tmp_path / "own", 2), first: (tmp_path / "jump", at + 1)}
    for number, (folder, _) in folders.items():
        assert export(shown, "--trial", number, "-o", folder, "--no-register").returncode == 0
    scripts = [
        word for folder, epochs in folders.values() for word in (str(folder / "ultralytics_train.py"), str(epochs))
    ]
    data = shown.place.folder.parent / "data" / "data.yaml"
    plain_ultralytics(tmp_path, STOCK, data, *scripts)
    seen = json.loads((tmp_path / "seen.json").read_text())
    for number, (folder, epochs) in folders.items():
        trace, rows = trace_of(shown, number), seen[str(folder / "ultralytics_train.py")]
        assert len(rows) == epochs * trace.steps_per_epoch
        assert {name for name, _, _ in rows[0]} == {"bias", "weight", "bn"}
        for step, groups in enumerate(rows):
            for name, lr, momentum in groups:
                assert lr == float(trace.group(name)[step]), (number, step, name)
                assert momentum == (0.937 if trace.momentum is None else float(trace.momentum[step]))
    assert trace_of(shown, 0).groups
    assert at < 9


CALLBACK = """
import sys
from ultralytics import YOLO
from sweeper import ScheduleCallback, TimeBase, Trace, parse
out, data, seen = sys.argv[1], sys.argv[2], {}
spec = {"family": "cawb", "lr": 0.02, "steps": [2], "warmup": "1ep", "warmup_kind": "trainer"}
quick = dict(data=data, epochs=3, batch=4, nbs=8, imgsz=64, val=False, plots=False, device="cpu", project=out)
for optimizer in ("SGD", "MuSGD", "auto"):
    model = YOLO("yolo11n.yaml")
    rows = seen[optimizer] = []
    callback = ScheduleCallback(parse(spec))
    callback.add_to(model)
    def note(trainer):
        step = trainer.optimizer.step
        def counted(*given, **more):
            of, lr0 = trainer.optimizer.param_groups, trainer.args.lr0
            rows.append([[one["param_group"], one["initial_lr"] / lr0, one["lr"], one.get("momentum")] for one in of])
            return step(*given, **more)
        trainer.optimizer.step = counted
    model.add_callback("on_train_start", note)
    model.train(optimizer=optimizer, **quick)
    trace = parse(spec).trace(TimeBase(3, 3, 24))
    assert callback.trace == trace, callback.trace
    assert len(rows) == trace.steps, len(rows)
    for step, groups in enumerate(rows):
        for name, multiple, lr, momentum in groups:
            assert lr == round(multiple, 6) * float(trace.group(name)[step]), (optimizer, step, name)
            assert momentum is None or trace.momentum is None or momentum == float(trace.momentum[step])
model = YOLO("yolo11n.yaml")
ScheduleCallback(Trace([0.1] * 4, steps_per_epoch=2, epochs=2)).add_to(model)
try:
    model.train(**quick)
except Exception as error:
    print(type(error).__name__, error)
print(sorted({name for groups in seen["SGD"] for name, *_ in groups}), len(seen["SGD"]), len(trace.groups))
"""


def test_any_training_of_plain_ultralytics_follows_a_schedule(tmp_path: Path) -> None:
    """With Ultralytics' own warm-up left on by the user, batches that are accumulated, and several optimizers."""
    data = tiny.images(tmp_path)
    data.write_text(data.read_text().replace("path: .", f"path: {data.parent}"))
    output = plain_ultralytics(tmp_path, CALLBACK, data)
    refused, shown = output.splitlines()[-2:]
    assert refused.startswith(
        "ScheduleError trace: it has 2 epochs of 2 steps, this training 3 of 3; pass the schedule"
    )
    assert shown == "['bias', 'bn', 'weight'] 9 1"


def test_the_arguments_are_the_recipe_s(shown: Service, exported: Path) -> None:
    text = (exported / "ultralytics_train.py").read_text()
    known: dict[str, object] = {"__name__": "exported", "__file__": str(exported / "ultralytics_train.py")}
    exec(compile(text, "ultralytics_train.py", "exec"), known)
    arguments = known["ARGUMENTS"]
    assert isinstance(arguments, dict)
    recipe = shown.sweep.recipe
    for key in ("imgsz", "batch", "nbs", "optimizer", "weight_decay", "hsv_h", "mosaic", "seed"):
        assert arguments[key] == getattr(recipe, key)
    assert arguments["warmup_epochs"] == 0
    assert arguments["epochs"] == shown.sweep.epochs


def test_the_weights_are_registered_without_pickled_code(shown: Service, exported: Path) -> None:
    server = shown.tracker.server
    weights = torch.load(exported / "weights.pt", weights_only=True)
    assert weights[invented.LAST].tolist() == [1.0]
    run = {row.number: row for row in shown.study.trials()}[1].facts.run_id
    assert aliased(server, "shown", "trial-1") == run
    assert aliased(server, "shown", "nobody") is None
    stored = [path for path in (shown.place.folder / "mlartifacts").rglob("models/**/*") if path.is_file()]
    assert {path.name for path in stored} == {"MLmodel"}
    assert list(yaml.safe_load(stored[0].read_text())["flavors"] or {}) == []
    again = export(shown, "--trial", 1, "-o", "again")
    assert again.stdout.splitlines()[1] == "registered in MLflow: models:/shown@trial-1 (version 1)"  # once is enough


def test_the_exported_yaml_alone_is_the_same_trace(shown: Service, exported: Path) -> None:
    spec = yaml.safe_load((exported / "schedule.yaml").read_text())
    time = TimeBase(shown.time.epochs, shown.time.steps_per_epoch)
    assert schedules.parse(spec).trace(time) == trace_of(shown, 1)


def test_trials_and_curves_are_tables(shown: Service, tmp_path: Path) -> None:
    rows, read = shown.study.trials(), {".csv": pandas.read_csv, ".parquet": pandas.read_parquet}
    for suffix, reader in read.items():
        for name, more in (("trials", []), ("curves", ["--curves"])):
            assert export(shown, "--table", tmp_path / f"{name}{suffix}", *more).returncode == 0
        trials, curves = (reader(tmp_path / f"{name}{suffix}") for name in ("trials", "curves"))
        assert trials["trial"].tolist() == [row.number for row in rows]
        assert trials["score"].dropna().tolist() == [row.score for row in rows if row.score is not None]
        assert trials["label"].tolist() == [shown.sweep.label(row.spec) if row.spec else "" for row in rows]
        steps = {row.number: (row.spec or {}).get("steps") for row in rows}
        for number, text in zip(trials["trial"], trials["steps"], strict=True):
            assert (json.loads(text) if isinstance(text, str) else None) == steps[number]
        assert "curve" not in trials
        for row in rows:
            own = curves[curves["trial"] == row.number]
            assert dict(zip(own["epoch"].tolist(), own["mAP50-95"].tolist(), strict=True)) == row.curve
    for arguments, said in (
        (("--table", "trials.xlsx"), "export --table: .xlsx is no kind of table; expected .csv or .parquet"),
        (("--curves",), "export --curves: goes with a table"),
    ):
        done = export(shown, *arguments)
        assert done.returncode == 1
        assert said in done.stderr


YOLO = """
import sys
from ultralytics import YOLO
model = YOLO("model.pt")
assert "sweeper" not in sys.modules
print(model.names, model.model.stride.tolist(), model.model.args["imgsz"], model.ckpt["train_args"]["weight_decay"])
print(model.model.state_dict()[sys.argv[1]].tolist(), len(model.predict(sys.argv[2], imgsz=64, verbose=False)))
"""


def test_plain_ultralytics_loads_the_exported_model(shown: Service, exported: Path) -> None:
    image = next((shown.place.folder.parent / "data" / "images" / "val").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", YOLO, invented.LAST, str(image)],
        cwd=exported,
        env=os.environ | {"YOLO_CONFIG_DIR": str(exported.parent), "YOLO_OFFLINE": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["{0: 'thing'} [8.0, 16.0, 32.0] 64 0.0005", "[1.0] 1"]
