"""Sweep files: what is wrong is said in one line, before anything else happens; what is right is kept exactly."""

from itertools import pairwise
from pathlib import Path

import pytest

from sweeper import search
from sweeper.config import Recipe, Sweep
from sweeper.errors import ConfigError
from sweeper.schedules import TimeBase, parse

GOOD = """
name: cells
data: digits
model: yolo11n.yaml
epochs: 20
lr0: 2e-2
trials: 6
search:
  family: cawb
  restarts: {min: 1, max: 2, every: 2, distance: 4}
  step_scale: {per: cycle, choices: [0.5, 0.7, 1.0]}
  horizon: end
  decay: [cosine, linear]
  warmup: 1ep
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    assert Sweep.load(write(tmp_path, GOOD)).lr0 == 0.02


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("trails: 3", "did you mean 'trials'"),
        ("epochs: 0", "epochs: 0 is not allowed; expected at least 1"),
        ("optimizer: auto", "ignores the learning rate"),
        ("imgsz: 100", "imgsz"),
        ("name: a/b", "name: 'a/b' is not allowed; expected at most 64 letters, digits"),
        ("baselines: [yolo_liner]", "yolo_liner"),
        ("baselines: [{family: cawb, steps: [30]}]", "30"),
        ("search: {family: cawb, step_scale: [0.0, 0.5]}", "step_scale"),
        ("search: {family: cawb, steps: [5, 25]}", "25"),
        ("search: {family: cawb, steps: [5], decay: [cosine, cosin]}", "cosin"),
        ("search: {family: cawb, steps: [5], decay: '__import__(\"os\")'}", "decay"),
        ("search: {family: cawb, stepscale: 0.5}", "step_scale"),
        ("search: {family: cawb, restarts: {max: 9, distance: 5}}", "do not fit"),
        ("search: {family: cawb, warmup: []}", "empty"),
        ("search: 7", "mapping"),
        ("search: {family: cawb, params: [1]}", "params: [1] is not a mapping; expected"),
        ("search: {family: cawb, params: abc}", "params: 'abc' is not a mapping; expected"),
        ("search: {family: cawb, decay: {cosine: {power: [1, 2]}}}", "expected a list: [{cosine: {power: ...}}]"),
        (
            "search: {family: cawb, floor: {low: 0, hi: 1}}",
            "floor: hi is not a key here (did you mean 'high'?)",
        ),
        ("search: {family: cawb, floor: {low: 0}}", "floor: high is missing; expected a value"),
        ("search: {family: cawb, floor: {low: a, high: 1}}", "floor: low: 'a' is not allowed; expected a number"),
        ("search: {family: cawb, floor: {low: 1, high: 0}}", "search: floor: low 1 is not below high 0; expected"),
        ("search: {family: cawb, decay: [{cosine: {power: {lw: 1}}}]}", "decay: cosine: power: lw is not a key here"),
        ("pruner: {name: cycle_end, from_epoch: 20}", "from_epoch: 20 is not inside the run"),
        ("baselines: yolo_linear", "baselines: 'yolo_linear' is not allowed; expected a list"),
        ("confirm: 3", "confirm: 3 is not allowed; expected a mapping with best, seeds"),
        ("confirm: {sedes: 3}", "confirm.sedes is not a key here (did you mean 'seeds'?)"),
        ("search: {family: cawb, restarts: {mx: 2}}", "search.restarts.mx is not a key here (did you mean 'max'?)"),
        ("trials: many", "trials: 'many' is not allowed; expected a whole number"),
        ("weights: best", "weights: 'best' is not allowed; expected 'all' or 'none'"),
        ("workers: few", "workers: 'few' is not allowed; expected a whole number or 'auto'"),
        ("lr0: -1", "lr0: -1 is not allowed; expected more than 0"),
        ("imgsz: 100000000", "imgsz: 100000000 is not allowed; expected at most 8192"),
        ("device: tpu", "device: 'tpu' is not a device; expected auto, cpu, or numbers of GPUs"),
        ("freeze: -1", "freeze: -1 is not allowed; expected a number of first layers"),
        ("freeze: [1, -2]", "freeze: [1, -2] is not allowed; expected a number of first layers"),
        (
            "coco_epochs: 0",
            "coco_epochs: 0 is not allowed; expected a list of epochs from 1 on, or an interval in epochs",
        ),
        ("coco_epochs: [0, x]", "coco_epochs: [0, 'x'] is not allowed; expected a list of epochs from 1 on"),
        ("batch: -1", "batch: -1 is not allowed; expected at least 1"),
        ("batch: 1e9", "batch: 1000000000.0 is not allowed; expected at most 65536"),
        ("confirm: {seeds: 1000000000}", "confirm.seeds: 1000000000 is not allowed; expected at most 1000"),
        ("stall_s: .inf", "stall_s: inf is not allowed; expected at most 604800"),
        ("store_gb: 1e300", "store_gb: 1e+300 is not allowed; expected at most 1e+09"),
        (
            "search: {family: cawb, floor: {low: 0, high: .inf}}",
            "floor: high: inf is not allowed; expected a finite number",
        ),
        ("search: {family: cawb, floor: {low: 0, high: 1, step: 1e-300}}", "a grid of more than 1000000 values"),
        (f"search: {{family: cawb, floor: {list(range(1001))}}}", "floor: has 1001 choices; expected at most 1000"),
        (f"baselines: {['yolo_linear'] * 1001}", "is not allowed; expected at most 1000 entries"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, change: str, says: str) -> None:
    key = change.split(":")[0]
    kept = []
    skip = False
    for line in GOOD.splitlines():
        if not line.startswith(" "):
            skip = line.startswith(key + ":")
        if not skip:
            kept.append(line)
    path = write(tmp_path, "\n".join([*kept, change]))
    with pytest.raises(ConfigError) as caught:
        search.check(Sweep.load(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Sweep.load(write(tmp_path, "name: cells\nepochs: 0\ntrials: many\n"))
    message = str(caught.value)
    assert "data, model, lr0, search are missing; expected a value for each" in message
    assert "also wrong: epochs, trials" in message


def test_a_key_written_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="twice"):
        Sweep.load(write(tmp_path, GOOD + "epochs: 30\n"))


def test_not_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line"):
        Sweep.load(write(tmp_path, "name: [1, 2\nepochs: 3\n"))


def test_restarts_are_as_far_apart_as_their_grid(tmp_path: Path) -> None:
    for written, distance in (("{every: 5}", 5), ("{every: 5, distance: 2}", 2), ("{}", 1)):
        results = Sweep.load(write(tmp_path, GOOD), [f"search.restarts={written}"]).search.restarts
        assert results is not None
        assert results.distance == distance


def test_overrides_go_deep(tmp_path: Path) -> None:
    sweep = Sweep.load(write(tmp_path, GOOD), ["epochs=30", "search.restarts.max=3", "search.floor=0.1"])
    assert sweep.epochs == 30
    assert sweep.search.restarts is not None
    assert sweep.search.restarts.max == 3
    assert sweep.search.params["floor"].value == 0.1


def test_the_digest_names_what_changes_a_bit_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    digest = Sweep.load(path).recipe.digest({"data": "x"})
    for same in (["loader_workers=2"], ["cache_mb=1"], ["epochs=30"], ["data=/elsewhere"], ["momentum=0.937"]):
        assert Sweep.load(path, same).recipe.digest({"data": "x"}) == digest
    assert Sweep.load(path, ["amp=false"]).recipe.digest({"precision": "float32"}) == Sweep.load(path).recipe.digest(
        {"precision": "float32"}
    )
    assert Sweep.load(path, ["amp=true"]).recipe.digest({"precision": "amp"}) == Sweep.load(path).recipe.digest(
        {"precision": "amp"}
    )
    # a state that was stored before these keys were there is found under the same name
    known = "bef52aa4a2ec11d711a9ca736e4342c6fe55da06270f99b80bedd2d5eee46934"
    assert Recipe(data="x", model="yolo11n.yaml").digest({"precision": "float32"}) == known
    for other in (["batch=8"], ["seed=1"], ["mosaic=0.5"], ["threads=2"], ["momentum=0.9"], ["box=7"], ["rect=true"]):
        assert Sweep.load(path, other).recipe.digest({"data": "x"}) != digest
    assert Sweep.load(path).recipe.digest({"data": "y"}) != digest


def test_proposals_keep_their_distance_and_number(tmp_path: Path) -> None:
    sweep = Sweep.load(write(tmp_path, GOOD))
    digests = set()
    for seed in range(200):
        spec = search.propose(sweep, search.OfflineTrial(seed)).spec
        steps = spec["steps"]
        assert 1 <= len(steps) <= 2
        assert all(4 <= step <= 16 for step in steps)
        assert all(later - earlier >= 4 for earlier, later in pairwise(steps))
        digests.add(parse(spec).trace(TimeBase(epochs=20, steps_per_epoch=3)).digest)
    assert len(digests) > 50


def test_the_template_is_a_valid_sweep() -> None:
    template = Path(search.__file__).parents[1] / "service" / "sweep.yaml"
    search.check(Sweep.load(template))
