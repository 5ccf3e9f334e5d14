"""RT-DETR in the same loop: Ultralytics' own bit for bit, resumable, refusing what has no meaning for it."""

from pathlib import Path
from typing import Any

import exact
import pytest
from exact import Elsewhere
from plain import EPOCHS, PlainTrainer, with_stock_data

from sweeper import data, training
from sweeper.errors import ConfigError
from sweeper.training import parts
from sweeper.training.models import model_file
from sweeper.training.ultralytics import RTDETRParts

# isort: split
import ultralytics
from ultralytics.models.rtdetr.train import RTDETRTrainer

WARM = {"family": "yolo_linear", "lr": 0.01, "warmup": "1ep"}
NETWORK = """
nc: 80
backbone:
  - [-1, 1, Conv, [16, 3, 4]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
head:
  - [-1, 1, AIFI, [64, 4]]
  - [[1, 2, 4], 1, RTDETRDecoder, [nc, 32, 30, 4, 4, 2, 64, 0.0, null, -1, NOISED]]
"""


@pytest.fixture(scope="module")
def source(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exact.subset(bccd, tmp_path_factory.mktemp("photographs") / "data")


def network(folder: Path, noised: int) -> Path:
    """A small RT-DETR, with so many queries of noised labels, which draw random numbers in each batch."""
    file = folder / f"rtdetr-{noised}.yaml"
    file.write_text(NETWORK.replace("NOISED", str(noised)))
    return file


class PlainDetr(PlainTrainer, RTDETRTrainer):
    """Ultralytics' trainer of RT-DETR."""


def test_it_is_ultralytics_bit_for_bit(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data.open(source, folder=tmp_path / "data").yaml
    recipe = exact.recipe(path, model=str(network(tmp_path, 0)))
    plain = PlainDetr(recipe, path, tmp_path / "plain")
    plain.train()

    monkeypatch.setattr(RTDETRParts, "get_dataloader", with_stock_data)
    monkeypatch.setattr(RTDETRParts, "build_dataset", RTDETRTrainer.build_dataset)
    ours = exact.open_trainer(recipe, tmp_path / "ours")
    exact.straight(ours, exact.trace(WARM, ours.steps_per_epoch, EPOCHS))
    assert ours.state_digest() == parts.digest(parts.state_dict(plain))
    for name, value in ours.evaluate().metrics.items():
        if "loss" in name:
            assert round(value, 5) == plain.metrics[name]


def test_straight_resumed_in_a_new_process_and_in_any_order_are_the_same(source: Path, tmp_path: Path) -> None:
    recipe = exact.recipe(source, model=str(network(tmp_path, 10)), optimizer="AdamW", fliplr=0.5)
    trainer = exact.open_trainer(recipe, tmp_path / "files")
    trace = exact.trace(WARM | {"lr": 0.001}, trainer.steps_per_epoch, 2)
    states, digests = exact.straight(trainer, trace)
    assert len(set(digests)) == 3
    elsewhere = Elsewhere(recipe, WARM | {"lr": 0.001}, 2, tmp_path / "elsewhere")
    elsewhere.run(until=1)
    elsewhere.run(until=2)
    assert elsewhere.digest() == digests[2]
    trainer.evaluate()
    trainer.val_loss()
    trainer.load(states[1])
    trainer.train_epoch(1, trace)
    assert trainer.state_digest() == digests[2]
    file = tmp_path / "model.pt"
    file.write_bytes(model_file(recipe, ["RBC", "WBC", "Platelets"], trainer.weights(), {}))
    loaded = ultralytics.YOLO(file)
    assert type(loaded).__name__ == "RTDETR"
    assert loaded.names == {0: "RBC", 1: "WBC", 2: "Platelets"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rect": True}, "rect: has no meaning for .*rtdetr-0.yaml; leave it out"),
        ({"cls": 1.0}, "cls: has no meaning for"),
        ({"optimizer": "MuSGD"}, "optimizer: MuSGD is for YOLO's heads"),
    ],
)
def test_what_has_no_meaning_for_it_is_refused(
    source: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        training.fingerprint(exact.recipe(source, model=str(network(tmp_path, 0)), **changes), "cpu", 1)
