"""The file that a user takes away loads in its own library, and a validation there gives the logged mAP."""

import io
from pathlib import Path

import pytest
import torch

from sweeper import data, training
from sweeper.config import Recipe
from sweeper.errors import ConfigError
from sweeper.schedules import TimeBase, parse
from sweeper.training.models import model_file

KEYS = {"imgsz": 128, "batch": 16, "nbs": 16, "mosaic": 0.0, "fliplr": 0.0}


def test_a_validation_of_the_exported_model_gives_the_logged_map(tmp_path: Path) -> None:
    digits = data.open("digits", folder=tmp_path / "data")
    recipe = Recipe(data=str(digits.yaml), model="yolo11n.yaml", **KEYS)
    trainer = training.open(recipe, device="cpu", threads=1, folder=tmp_path / "work")
    time = TimeBase.from_images(digits.train_images, recipe.batch, accumulate=1, epochs=4)
    trace = parse({"family": "yolo_cosine", "lr": 0.02, "warmup": "1ep"}).trace(time)
    for epoch in range(time.epochs):
        trainer.train_epoch(epoch, trace)
    logged = trainer.evaluate().metrics["mAP50-95"]
    assert logged > 0.01
    (tmp_path / "model.pt").write_bytes(model_file(recipe, digits.names, trainer.weights(), {"imgsz": 128}))

    from ultralytics import YOLO

    model = YOLO(tmp_path / "model.pt")
    assert model.names == dict(enumerate(digits.names))
    options = {"imgsz": 128, "batch": 32, "device": "cpu", "workers": 0, "plots": False, "verbose": False}
    measured = model.val(data=str(digits.yaml), project=str(tmp_path / "val"), **options).box.map
    assert measured == pytest.approx(logged, abs=1e-3)
    assert Path(model.export(format="torchscript", imgsz=128, device="cpu")).is_file()


def test_a_model_of_torchvision_loads_by_torchvision_alone(tmp_path: Path, bccd: Path) -> None:
    dataset = data.open(bccd / "data.yaml", folder=tmp_path / "data")
    recipe = Recipe(data=str(dataset.yaml), model="fcos_resnet18_fpn", **(KEYS | {"imgsz": 64}))
    trainer = training.open(recipe, device="cpu", threads=1, folder=tmp_path / "work")
    weights = trainer.weights()
    content = model_file(recipe, dataset.names, weights, {})
    assert b"sweeper" not in content
    model = torch.load(io.BytesIO(content), weights_only=False).eval()
    state = torch.load(io.BytesIO(weights), weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        found = model([torch.rand(3, 120, 160)])
    assert {"boxes", "scores", "labels"} <= found[0].keys()


def test_weights_of_another_model_are_refused_in_a_line(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer)
    recipe = Recipe(data="digits", model="yolo11n.yaml", **KEYS)
    with pytest.raises(ConfigError, match=r"not those of yolo11n\.yaml"):
        model_file(recipe, ["a"], buffer.getvalue(), {})
