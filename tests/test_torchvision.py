"""torchvision's detectors behind the same protocol: exact, forkable, measured on the same scale; none is downloaded."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import exact
import numpy as np
import pytest
import torch
import torchvision
import yaml
from exact import Elsewhere
from PIL import Image

from sweeper import training
from sweeper.errors import ConfigError, NotFinite
from sweeper.schedules import Trace
from sweeper.tracking import Tracker
from sweeper.training.torchvision import build

EPOCHS = 3
SPEC = {"family": "yolo_linear", "lr": 0.005, "warmup": "1.5ep"}
TINY = {"model": "retinanet_shufflenet_v2_x0_5_fpn", "mosaic_epochs": 2, "nbs": 8}
MODELS = {
    "fasterrcnn-adamw": {"model": "fasterrcnn_resnet18_fpn", "optimizer": "AdamW"},
    "retinanet-sgd": {"model": "retinanet_resnet18_fpn"},
    "fcos-sgd": {"model": "fcos_mobilenet_v3_small_fpn", "nbs": 4},
}


@pytest.fixture(scope="module")
def source(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exact.subset(bccd, tmp_path_factory.mktemp("photographs") / "data")


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, id="tiny"), *(pytest.param(c, id=n, marks=pytest.mark.slow) for n, c in MODELS.items())],
)
def test_straight_stopped_in_new_processes_and_forked_are_the_same(
    source: Path, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = exact.recipe(source, **TINY | changes)
    trainer = exact.open_trainer(recipe, tmp_path / "here")
    plan = exact.trace(SPEC, trainer.steps_per_epoch, EPOCHS)
    states, digests = exact.straight(trainer, plan)
    assert len(set(digests)) == EPOCHS + 1

    elsewhere = Elsewhere(recipe, SPEC, EPOCHS, tmp_path / "elsewhere")
    elsewhere.run(until=EPOCHS, kill_after=6)  # in the middle of the second epoch
    for epoch in range(elsewhere.done(), EPOCHS):  # and from there each epoch in a process of its own
        elsewhere.run(until=epoch + 1)
        assert elsewhere.digest() == digests[epoch + 1]

    fork = Trace(  # parts from the plan inside the last epoch
        lr=np.where(np.arange(plan.steps) < plan.steps - 1, plan.lr, 0.5 * plan.lr),
        groups=plan.groups,
        momentum=plan.momentum,
        steps_per_epoch=plan.steps_per_epoch,
        epochs=EPOCHS,
    )
    trainer.load(states[0])
    _, straight = exact.straight(trainer, fork)
    trainer.load(states[2])
    seen = trainer.evaluate(), trainer.evaluate(), trainer.val_loss(), trainer.weights()  # looking changes nothing
    assert seen[0].metrics == seen[1].metrics
    _, forked = exact.straight(trainer, fork, 2)
    assert forked == straight[2:]
    assert forked[-1] != digests[-1]


@pytest.mark.slow
def test_loader_processes_change_no_bit(source: Path, tmp_path: Path) -> None:
    digests = []
    for workers, cache in ((0, 1024), (2, 0)):
        recipe = exact.recipe(source, **TINY, loader_workers=workers, cache_mb=cache)
        trainer = exact.open_trainer(recipe, tmp_path / str(workers))
        digests.append(exact.straight(trainer, exact.trace(SPEC, trainer.steps_per_epoch, EPOCHS))[1])
    assert digests[0] == digests[1]


@pytest.fixture(scope="module")
def tiny(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[training.Trainer, bytes]:
    trainer = exact.open_trainer(exact.recipe(source, **TINY), tmp_path_factory.mktemp("files"))
    return trainer, trainer.state()


def test_the_optimizer_uses_the_trace_and_the_groups_are_those_of_yolo(tiny: tuple[training.Trainer, bytes]) -> None:
    trainer, untrained = tiny
    trainer.load(untrained)
    assert set(trainer.groups) == {"weight", "bn", "bias"}
    plan = exact.trace(SPEC, trainer.steps_per_epoch, EPOCHS)
    assert "bias" in plan.groups
    log = trainer.train_epoch(0, plan)
    assert np.array_equal(log.lr, plan.lr[: trainer.steps_per_epoch])
    assert log.losses.keys() == {"train/classification_loss", "train/bbox_regression_loss"}
    assert all(0 < value < 100 for value in log.losses.values())


def test_an_epoch_at_learning_rate_0_changes_no_weight(tiny: tuple[training.Trainer, bytes]) -> None:
    """Only BatchNorm's statistics and the optimizer's buffers move."""
    trainer, untrained = tiny
    trainer.load(untrained)
    before = trainer.arrays()
    plan = exact.trace({"family": "constant", "lr": 1e-30}, trainer.steps_per_epoch, EPOCHS)
    trainer.train_epoch(0, plan)
    after = trainer.arrays()
    changed = {name for name in before if not np.allclose(before[name], after[name], rtol=1e-5, atol=1e-12)}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_what_cannot_be_trained_is_an_error_with_a_reason(tiny: tuple[training.Trainer, bytes]) -> None:
    trainer, untrained = tiny
    trainer.load(untrained)
    plan = exact.trace({"family": "constant", "lr": 1e6}, trainer.steps_per_epoch, EPOCHS)
    with pytest.raises(NotFinite, match="epoch 0"):
        trainer.train_epoch(0, plan)


def test_detections_are_in_image_pixels_and_the_landscape_can_be_measured(
    tiny: tuple[training.Trainer, bytes],
) -> None:
    trainer, untrained = tiny
    trainer.load(untrained)
    evaluation = trainer.evaluate()
    assert {"mAP50-95", "mAP50", "precision", "recall", "val/classification_loss"} <= evaluation.metrics.keys()
    assert len(evaluation.detections) == exact.VAL
    for found in evaluation.detections:
        with Image.open(found.path) as opened:
            width, height = opened.size
        assert 0 < len(found.scores) <= 300
        assert found.boxes.min() >= 0
        assert (found.boxes <= [width, height, width, height]).all()
        assert set(found.classes.tolist()) <= {0, 1, 2}
        assert (np.diff(found.scores) <= 0).all()
    loss = trainer.val_loss()
    assert loss == trainer.val_loss() > 0
    parts = trainer._parts  # type: ignore[attr-defined]
    images = [parts.test_loader.dataset[index] for index in range(exact.VAL)]
    means = []
    for image in images:  # each image alone has the loss that a mean over the images counts once
        batch = parts.test_loader.dataset.collate_fn([image])
        batch["img"] = batch["img"].float() / 255
        with torch.no_grad():
            means.append(float(parts.ema.ema.loss(batch)[0]))
    assert loss == pytest.approx(np.mean(means), rel=1e-3), "the loss of an image, whatever the size of a batch"
    assert trainer.val_loss(1) == pytest.approx(means[0], rel=1e-3)
    arrays = trainer.arrays()
    trainer.recompute_bn(0, 2)
    assert any(not np.array_equal(arrays[name], value) for name, value in trainer.arrays().items())
    trainer.set_weights(arrays)
    assert trainer.val_loss() == loss


def test_a_model_that_knows_the_answer_gets_full_marks(source: Path, tmp_path: Path) -> None:
    """The way from boxes in a batch to mAP: ground truth, fed back as detections, has mAP 1."""
    trainer = exact.open_trainer(exact.recipe(source, **TINY), tmp_path)
    validator = trainer._parts.validator  # type: ignore[attr-defined]
    detector = trainer._parts.ema.ema  # type: ignore[attr-defined]
    validator.device, validator.data = torch.device("cpu"), trainer._parts.data  # type: ignore[attr-defined]
    validator.init_metrics(detector)
    for batch in validator.dataloader:
        batch = validator.preprocess(batch)
        truth = [{**target, "scores": torch.ones(len(target["labels"]))} for target in detector._targets(batch)]
        validator.update_metrics(validator.postprocess(detector._detections(truth)), batch)
    validator.get_stats()
    assert validator.metrics.box.map > 0.99


@pytest.mark.parametrize("family", ["fasterrcnn", "retinanet", "fcos"])
def test_the_network_is_the_one_that_torchvision_builds(family: str) -> None:
    """The same tensors by the same names, so that weights can be taken over."""
    classes = 4 if family == "fasterrcnn" else 3
    make = getattr(torchvision.models.detection, f"{family}_resnet50_fpn")
    theirs = make(weights=None, weights_backbone=None, num_classes=classes).state_dict()
    ours = build(f"{family}_resnet50_fpn", 3).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_weights_load_into_torchvisions_network(tiny: tuple[training.Trainer, bytes]) -> None:
    network = build(TINY["model"], 3)
    network.load_state_dict(torch.load(io.BytesIO(tiny[0].weights()), weights_only=True))


@pytest.mark.parametrize(
    "backbone",
    [
        *("resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "densenet121"),
        *("regnet_y_400mf", "shufflenet_v2_x0_5", "vgg11_bn", "mnasnet0_5"),
    ],
)
def test_any_backbone_with_a_pyramid_of_strides(backbone: str) -> None:
    network = build(f"fcos_{backbone}_fpn", 2).eval()
    with torch.no_grad():
        features = network.backbone(torch.zeros(1, 3, 128, 128))
    assert [x.shape[-1] for x in features.values()] == [16, 8, 4, 2, 1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "fcos_resnet19_fpn"}, "fcos_resnet19_fpn is not one of torchvision's"),
        ({"model": "retinanet_resnet18"}, "and fpn, for example"),
        ({"model": "fcos_vit_b_16_fpn"}, "vit_b_16 has no layer of stride"),
        ({"box": 5.0}, "box: has no meaning for"),
        ({"freeze": 3}, "freeze: has no meaning for"),
        ({"optimizer": "MuSGD"}, "use SGD or AdamW"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    source: Path, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        exact.open_trainer(exact.recipe(source, **TINY | changes), tmp_path)


def test_the_fingerprint_names_model_versions_and_machine(source: Path) -> None:
    facts = training.fingerprint(exact.recipe(source, **TINY), "cpu", 1)
    other = training.fingerprint(exact.recipe(source, **TINY | {"model": "fcos_resnet18_fpn"}), "cpu", 1)
    assert facts["torchvision"] == torchvision.__version__
    assert {name for name in facts if facts[name] != other[name]} == {"architecture"}
    with pytest.raises(ConfigError, match="not one of torchvision's"):
        training.fingerprint(exact.recipe(source, model="fcos_resnet19_fpn"), "cpu", 1)


@pytest.mark.slow
def test_a_sweep_trains_it_like_any_other_and_forks_it(source: Path, tmp_path: Path) -> None:
    """The real commands: a drop at epoch 2 begins like the constant schedule, and both end where they should."""
    constant = {"family": "constant", "lr": 0.01}
    drop = {"family": "multistep", "lr": 0.01, "boundaries": [2]}
    sweep = {
        **TINY,
        "name": "boxes",
        "data": str(source),
        "imgsz": 64,
        "batch": 4,
        "epochs": EPOCHS,
        "lr0": 0.01,
        "trials": 0,
        "baselines": [constant, drop],
        "search": {},
        "workers": 2,
    }
    (tmp_path / "boxes.yaml").write_text(yaml.safe_dump(sweep))
    told = {}
    for command in (["run"], ["status", "--json"], ["pick", "--json"]):
        run = [sys.executable, "-m", "sweeper", command[0], "boxes.yaml", *command[1:]]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told[command[0]] = done.stdout
    status = json.loads(told["status"])
    assert status["epochs"] == {"per_trial": EPOCHS, "trained": EPOCHS + 1, "reused": 2}
    assert status["store"]["count"] == EPOCHS + 1
    assert {row["name"] for row in json.loads(told["pick"])["ranking"]} <= {"constant", "multistep"}
    uri = f"sqlite:///{tmp_path}/sweeper_store/mlflow.db"
    for run in Tracker(uri, "boxes", tmp_path / "journals").runs():
        spec = drop if run["params"]["family"] == "multistep" else constant
        fresh = exact.open_trainer(exact.recipe(source, **TINY), tmp_path / run["run_id"])
        _, digests = exact.straight(fresh, exact.trace(spec, fresh.steps_per_epoch, EPOCHS))
        assert run["tags"]["sweeper.state_digest"] == digests[-1]
