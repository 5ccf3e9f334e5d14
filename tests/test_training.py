"""The trainer's seams: it is Ultralytics bit for bit, it says what the optimizer used, and its errors have reasons."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exact
import numpy as np
import pytest
import torch
from PIL import Image
from plain import EPOCHS, PlainTrainer, with_stock_data
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sweeper import data, training
from sweeper.errors import (
    ConfigError,
    DataError,
    DeviceError,
    LRMismatch,
    NotFinite,
    OutOfMemory,
    SnapshotCorrupt,
    TrainingError,
)
from sweeper.schedules import Trace
from sweeper.training import parts
from sweeper.training.parts import Parts, dataset_description

# isort: split
import ultralytics

YOLO = {"family": "yolo_linear", "lr": 0.01, "warmup": "1ep"}
STEADY = {"family": "constant", "lr": 0.01}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def source(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exact.subset(bccd, tmp_path_factory.mktemp("photographs") / "data")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def opened(source: Path, files: Path) -> tuple[training.Trainer, bytes]:
    trainer = exact.open_trainer(exact.recipe(source), files)
    return trainer, trainer.state()


@pytest.fixture
def trainer(opened: tuple[training.Trainer, bytes]) -> training.Trainer:
    """Untrained."""
    opened[0].load(opened[1])
    return opened[0]


def steady(trainer: training.Trainer) -> Trace:
    return exact.trace(STEADY, trainer.steps_per_epoch, EPOCHS)


@pytest.mark.parametrize(
    ("changes", "overrides", "spec"),
    [
        pytest.param({}, {}, {}, id="sgd"),
        pytest.param({"rect": True}, {}, {}, id="rect"),
        pytest.param({"optimizer": "AdamW"}, {}, {}, id="adamw", marks=slow),
        pytest.param(
            {"model": "yolo26n.yaml", "optimizer": "MuSGD"},
            {"warmup_bias_lr": 0.0},  # what Ultralytics itself sets where it chooses MuSGD
            {"warmup_bias_lr": 0.0},
            id="yolo26n musgd",
            marks=slow,
        ),
        pytest.param({"model": "yolov5s.yaml"}, {"cos_lr": True}, {"family": "yolo_cosine"}, id="yolov5s", marks=slow),
        pytest.param({"nbs": 8}, {"warmup_epochs": 0.0}, {"warmup": "0ep"}, id="accumulation", marks=slow),
    ],
)
def test_it_is_ultralytics_bit_for_bit_with_its_schedule_and_its_data(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    overrides: dict[str, Any],
    spec: dict[str, Any],
) -> None:
    path = data.open(source, folder=tmp_path / "data").yaml
    recipe = exact.recipe(path, **changes)
    plain = PlainTrainer(recipe, path, tmp_path / "plain", **overrides)
    plain.train()

    monkeypatch.setattr(Parts, "get_dataloader", with_stock_data)
    ours = exact.open_trainer(recipe, tmp_path / "ours")
    trace = exact.trace(YOLO | spec, ours.steps_per_epoch, EPOCHS)
    exact.straight(ours, trace)

    assert trace.momentum is not None
    assert len(plain.used) == trace.steps
    for step, groups in enumerate(plain.used):
        for name, lr, momentum in groups:
            assert lr == trace.group(name)[step], (step, name)
            assert momentum is None or np.float32(momentum) == trace.momentum[step], (step, name)
    assert ours.state_digest() == parts.digest(parts.state_dict(plain))
    names = {"mAP50-95": "metrics/mAP50-95(B)", "mAP50": "metrics/mAP50(B)"}
    for name, value in ours.evaluate().metrics.items():
        if name in names or "loss" in name:
            assert round(value, 5) == plain.metrics[names.get(name, name)]


def test_rectangular_batches_are_ultralytics_own_in_every_epoch(tmp_path: Path) -> None:
    for number, size in enumerate([(128, 32), (32, 128), (64, 64), (128, 48)] * 2):
        for kind in ("images", "labels"):
            (tmp_path / "source" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (30 * number, 90, 200)).save(tmp_path / "source" / "images" / f"{number}.png")
        (tmp_path / "source" / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "source" / "data.yaml").write_text("train: images\nval: images\nnames: [square]\n")
    path = data.open(tmp_path / "source" / "data.yaml", folder=tmp_path / "data").yaml
    recipe = exact.recipe(path, rect=True, batch=3)
    trainer = exact.open_trainer(recipe, tmp_path / "ours")
    seen: list[tuple[list[str], tuple[int, ...]]] = []
    parts: Parts = trainer._parts  # type: ignore[attr-defined]
    preprocess = parts.preprocess_batch

    def look(batch: dict[str, Any]) -> dict[str, Any]:
        seen.append((list(batch["im_file"]), tuple(batch["img"].shape)))
        return preprocess(batch)

    parts.preprocess_batch = look
    exact.straight(trainer, exact.trace(STEADY, trainer.steps_per_epoch, 2))
    plain = PlainTrainer(recipe, path, tmp_path / "plain")
    plain.model = torch.nn.Module()  # it is asked for its stride
    plain.model.stride = torch.tensor([32])
    plain.data = dataset_description(path)
    theirs = [
        (list(batch["im_file"]), tuple(batch["img"].shape))
        for batch in plain.get_dataloader(plain.data["train"], 3, -1, "train")
    ]
    assert seen == theirs * 2
    assert len({shape for _, shape in theirs}) > 1


def test_the_epoch_log_says_what_was_used(source: Path, trainer: training.Trainer) -> None:
    trace = exact.trace(YOLO, trainer.steps_per_epoch, EPOCHS)
    beats: list[int] = []
    log = trainer.train_epoch(0, trace, beats.append)
    assert beats == [0, 1, 2, 3]
    assert log.lr.dtype == np.float32
    assert log.lr.tolist() == trace.lr[:4].tolist()
    log.applied.check(0, trace, exact.recipe(source))
    assert not log.applied.skipped.any()
    assert set(log.losses) == {"train/box_loss", "train/cls_loss", "train/dfl_loss"}
    assert all(value > 0 for value in log.losses.values())


@pytest.fixture
def meddle(request: pytest.FixtureRequest) -> Iterator[None]:
    """Something else in the process doubles the LR of group ``bias`` in every step."""

    def double(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 1 + (group["param_group"] == "bias")

    handle = register_optimizer_step_pre_hook(double)
    yield
    handle.remove()


@pytest.mark.usefixtures("meddle")
def test_another_learning_rate_than_the_schedules_is_an_error(source: Path, trainer: training.Trainer) -> None:
    said = r"epoch 1, step 4: group bias used LR 0\.0199\d+, the schedule says 0\.0099\d+"
    log = trainer.train_epoch(1, steady(trainer))
    with pytest.raises(LRMismatch, match=said):
        log.applied.check(1, steady(trainer), exact.recipe(source))


def test_steps_that_mixed_precision_skips_are_counted_and_used_the_schedules_learning_rate(
    source: Path, trainer: training.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler on a CPU, with a scale at which the first gradients are infinite; it is halved at each of them."""
    parts: Parts = trainer._parts  # type: ignore[attr-defined]
    trace = exact.trace(YOLO, trainer.steps_per_epoch, EPOCHS)
    monkeypatch.setattr(parts, "scaler", torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60))
    log = trainer.train_epoch(0, trace)
    log.applied.check(0, trace, exact.recipe(source))
    skipped = log.applied.skipped.tolist()
    assert skipped[0]
    assert not skipped[-1]
    assert log.losses["train/skipped_steps"] == sum(skipped)
    assert "train/skipped_steps" not in trainer.train_epoch(1, trace).losses


def test_a_loss_that_is_not_finite_is_an_error(trainer: training.Trainer) -> None:
    with pytest.raises(NotFinite, match=r"epoch 0, batch \d: the loss is (nan|inf); try a lower peak"):
        trainer.train_epoch(0, Trace(lr=np.full(12, 1e30), steps_per_epoch=4, epochs=3))


def test_memory_that_ends_is_an_error_and_the_batch_is_not_halved(trainer: training.Trainer) -> None:
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: torch.empty(2**60) and None)
    try:
        with pytest.raises(OutOfMemory, match=r"epoch 0, batch size 4, 64 pixels: .*use a smaller batch"):
            trainer.train_epoch(0, steady(trainer))
    finally:
        handle.remove()
    assert len(trainer.train_epoch(1, steady(trainer)).lr) == 4


def test_other_threads_than_it_was_opened_with_are_an_error(trainer: training.Trainer) -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(TrainingError, match="torch uses 2, this training was opened with 1"):
            trainer.train_epoch(0, steady(trainer))
    finally:
        torch.set_num_threads(1)


def test_a_trace_of_another_length_is_refused(trainer: training.Trainer) -> None:
    with pytest.raises(ConfigError, match="5 steps per epoch, but 4 batches with accumulate=1 are 4"):
        trainer.train_epoch(0, exact.trace(STEADY, 5, EPOCHS))
    with pytest.raises(ConfigError, match="epoch: 3 is not in the trace; expected 0 to 2"):
        trainer.train_epoch(3, steady(trainer))


def test_a_schedule_for_a_parameter_group_that_is_not_there_is_refused(trainer: training.Trainer) -> None:
    assert trainer.groups == ("weight", "bn", "bias")
    trace = Trace(lr=np.full(12, 0.01), groups={"muon": np.full(12, 0.02)}, steps_per_epoch=4, epochs=3)
    with pytest.raises(ConfigError, match=r"groups: muon is no parameter group .* with SGD; expected weight, bn, bias"):
        trainer.train_epoch(0, trace)


def test_a_damaged_or_foreign_snapshot_is_refused(trainer: training.Trainer) -> None:
    state = trainer.state()
    with pytest.raises(SnapshotCorrupt, match="cannot be read"):
        trainer.load(state[: len(state) // 2])
    with pytest.raises(SnapshotCorrupt, match="cannot be read"):
        trainer.load(b"")
    content = torch.load(io.BytesIO(state), weights_only=True)
    del content["model"]["model.0.conv.weight"]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with pytest.raises(SnapshotCorrupt, match="not of this model"):
        trainer.load(buffer.getvalue())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("yolo11n", "is not a model; expected a name such as yolo11n.yaml or a .pt file"),
        (
            "nowhere/mine.pt",
            r"publishes none of this name\); put the weights at .*/nowhere/mine.pt",
        ),
        ("yolo11q.yaml", "neither a file nor one of Ultralytics' models; similar names: .*yolo11"),
        ("https://example.com/yolo11n.yaml", "is not a model"),
        ("yolo11n-seg.yaml", "ends in Segment; expected a detector"),
    ],
)
def test_a_model_that_is_not_there_is_named_before_anything_is_built(
    source: Path, tmp_path: Path, model: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        exact.open_trainer(exact.recipe(source, model=model), tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_weights_by_name_without_a_network_are_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConfigError) as caught:
        training.fingerprint(exact.recipe(source, model="yolo11n.pt"), "cpu", 1)
    assert str(caught.value).startswith("model: yolo11n.pt is not there (could not be fetched: ")
    assert str(caught.value).endswith(
        f"; put the weights at {tmp_path}/yolo11n.pt, or start untrained with yolo11n.yaml"
    )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.pt*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 7, "imgsz": 32}, "final batch=1 training at imgsz=32"),
        ({"freeze": 99}, "freeze: 99 leaves nothing to train or names layers that yolo11n.yaml does not have"),
        (
            {"model": "yolov8n-p6.yaml", "imgsz": 96},
            r"imgsz: 96 is not a multiple of 64, the largest stride of yolov8n-p6\.yaml; expected for example 128",
        ),
    ],
)
def test_a_recipe_that_cannot_be_built_says_why(
    source: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        exact.open_trainer(exact.recipe(source, **changes), tmp_path)


def test_a_copy_of_the_state_stays_as_it_is_when_the_training_goes_on(trainer: training.Trainer) -> None:
    trainer.train_epoch(0, steady(trainer))
    before, copy = trainer.state_digest(), trainer.copied()
    trainer.train_epoch(1, steady(trainer))
    assert trainer.state_digest() != before
    state, digest = copy()
    assert digest == before
    trainer.load(state)
    assert trainer.state_digest() == before


def test_loader_processes_decode_an_image_once_and_new_ones_have_it_too(source: Path, tmp_path: Path) -> None:
    path = data.open(source, folder=tmp_path / "data").yaml
    trainer = exact.open_trainer(exact.recipe(path, loader_workers=2), tmp_path / "files")
    trace, untrained = exact.trace(STEADY, trainer.steps_per_epoch, 2), trainer.state()
    trainer.train_epoch(0, trace)
    digest = trainer.state_digest()
    for image in (path.parent / "images" / "train").iterdir():
        image.unlink()
    trainer.train_epoch(1, trace)
    trainer.load(untrained)
    trainer.train_epoch(0, trace)  # by new processes: the old ones have prepared epoch 2
    assert trainer.state_digest() == digest


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_went_away_is_named(source: Path, tmp_path: Path, workers: int) -> None:
    path = data.open(source, folder=tmp_path / "data").yaml
    trainer = exact.open_trainer(exact.recipe(path, loader_workers=workers, cache_mb=0), tmp_path / "files")
    gone = next((path.parent / "images" / "train").iterdir())
    gone.unlink()
    with pytest.raises(DataError, match=f"epoch 0, .*{gone.name}"):
        trainer.train_epoch(0, steady(trainer))


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "mps", "cpu0"])
def test_a_device_that_is_not_there(source: Path, tmp_path: Path, device: str) -> None:
    with pytest.raises(DeviceError, match=f"device: .*{device}"):
        training.open(exact.recipe(source), device=device, threads=1, folder=tmp_path)


def test_evaluation(trainer: training.Trainer) -> None:
    trained = steady(trainer)
    for epoch in range(EPOCHS):
        trainer.train_epoch(epoch, trained)
    found = trainer.evaluate()
    assert {"mAP50-95", "mAP50", "precision", "recall", "val/box_loss", "val/cls_loss"} <= set(found.metrics)
    assert len({detections.path for detections in found.detections}) == exact.VAL
    for detections in found.detections:
        n = len(detections.scores)
        assert 0 < n <= 300
        assert (detections.boxes.shape, detections.classes.shape) == ((n, 4), (n,))
        assert (detections.boxes.dtype, detections.scores.dtype) == (np.float32, np.float32)
        assert (detections.boxes >= 0).all()
        assert (detections.boxes <= [640, 480, 640, 480]).all()
        assert (np.diff(detections.scores) <= 0).all()
        assert set(detections.classes) <= {0, 1, 2}
        assert Path(detections.path).is_file()


def test_weights_are_the_averages_and_load_without_pickled_code(trainer: training.Trainer) -> None:
    trainer.train_epoch(0, steady(trainer))
    weights = torch.load(io.BytesIO(trainer.weights()), weights_only=True)
    arrays = trainer.arrays()
    assert set(weights) == set(arrays)
    assert all(np.array_equal(weights[name].numpy(), arrays[name]) for name in arrays)


def test_landscape(trainer: training.Trainer) -> None:
    """Weights can be put in, BatchNorm recomputed and the loss read, and a state loaded afterwards trains on."""
    trace = steady(trainer)
    trainer.train_epoch(0, trace)
    state, start = trainer.state(), trainer.arrays()
    trainer.train_epoch(1, trace)
    after, end = trainer.state_digest(), trainer.arrays()
    trainer.recompute_bn(0, 2)
    first = trainer.arrays()
    assert not np.array_equal(first["model.0.bn.running_mean"], end["model.0.bn.running_mean"])
    assert np.array_equal(first["model.0.conv.weight"], end["model.0.conv.weight"])
    losses = []
    for middle in ({n: (start[n] + end[n].astype(np.float64)) / 2 for n in end}, start, end):
        trainer.set_weights(middle)
        losses.append(trainer.val_loss())
    assert len(set(losses)) == 3
    assert losses[2] == pytest.approx(sum(v for k, v in trainer.evaluate().metrics.items() if "loss" in k), rel=1e-4)
    trainer.recompute_bn(0, 2)
    assert all(np.array_equal(first[name], value) for name, value in trainer.arrays().items())
    trainer.load(state)
    trainer.train_epoch(1, trace)
    assert trainer.state_digest() == after


def test_fingerprint(source: Path) -> None:
    recipe = exact.recipe(source)
    facts = training.fingerprint(recipe, "cpu", 1)
    assert all(isinstance(value, str | int) for value in facts.values())
    assert facts == training.fingerprint(recipe, "cpu", 1)
    assert facts["torch"] == torch.__version__
    assert facts["end2end"] == 0
    assert training.fingerprint(recipe, "cpu", 2) != facts
    other = training.fingerprint(exact.recipe(source, model="yolo26n.yaml"), "cpu", 1)
    assert other["architecture"] != facts["architecture"]
    assert other["end2end"] == 1


def test_initial_weights_depend_on_no_model_built_before(source: Path, tmp_path: Path) -> None:
    """Building YOLO11 or YOLOv5 leaves a mark on a class that YOLOv10 is built with."""
    digests = []
    for before in ("yolo11n.yaml", "yolov5n.yaml"):
        exact.open_trainer(exact.recipe(source, model=before), tmp_path / before)
        trainer = exact.open_trainer(exact.recipe(source, model="yolov10n.yaml"), tmp_path / before)
        digests.append(trainer.state_digest())
    assert digests[0] == digests[1]


def test_weights_files_start_a_training_and_count_by_content(
    source: Path, tmp_path: Path, trainer: training.Trainer
) -> None:
    made = tmp_path / "made.pt"
    ultralytics.YOLO("yolov5n.yaml").save(made)
    recipe = exact.recipe(source, model=str(made))
    facts = training.fingerprint(recipe, "cpu", 1)
    moved = made.rename(tmp_path / "moved.pt")
    again = exact.recipe(source, model=str(moved))
    assert training.fingerprint(again, "cpu", 1) == facts
    assert recipe.digest(facts) == again.digest(facts)
    started = exact.open_trainer(again, tmp_path / "files")
    saved = torch.load(moved, weights_only=False)["model"].float().state_dict()["model.0.conv.weight"]
    assert np.array_equal(started.arrays()["model.0.conv.weight"], saved.numpy())


def test_it_leaves_nothing_behind_but_in_its_folder_and_says_nothing(source: Path, tmp_path: Path) -> None:
    """Not in the source, not in the user's settings, not in the current folder, not on the terminal."""
    home, here, temporary, files = (tmp_path / name for name in ("home", "here", "temporary", "files"))
    for folder in (home, here, temporary):
        folder.mkdir()
    before = {path: path.lstat().st_mtime_ns for path in source.parent.rglob("*")}
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "import exact; from pathlib import Path\n"
        "from sweeper.config import Recipe\n"
        "t = exact.open_trainer(Recipe.model_validate_json(sys.argv[1]), Path(sys.argv[2]))\n"
        "t.train_epoch(0, exact.trace({'family': 'constant', 'lr': 0.01}, t.steps_per_epoch, 1)); t.evaluate()"
    )
    here_and_there = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", code, exact.recipe(source).model_dump_json(), str(files), *here_and_there],
        cwd=here,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(here.iterdir())
    assert not [path for folder in (home, temporary) for path in folder.rglob("*ltralytics*")]
    assert before == {path: path.lstat().st_mtime_ns for path in source.parent.rglob("*")}
