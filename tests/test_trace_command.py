"""``sweeper trace`` and ``sweeper convert`` as a person and a program use them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sweeper.cli import app
from sweeper.errors import ConfigError, SweeperError
from sweeper.schedules import CONTROLS, FAMILIES, MEANINGS, TimeBase, legend, parse

ARTICLE = ["cawb", "lr=0.1", "steps=[31,81]", "step_scale=0.7", "epoch_scale=4", "floor=0.35", "mode=article"]
RUN = ["--epochs", "150", "--steps-per-epoch", "4"]


def sweeper(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if isinstance(result.exception, SweeperError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def traced(*words: str) -> Any:
    return json.loads(sweeper("trace", *words, "--json"))


def test_json_is_the_contract(shared: Path) -> None:
    run = json.loads((shared / "oracles" / "cawb.json").read_text())["configs"][1]
    words = ["cawb", "lr=0.1", "steps=[81,31]", "step_scale=0.7", "epoch_scale=4.0", "warmup=3ep", "mode=reference"]
    words.append("decay=(((1 + cos(x*pi/y))/2)**1.0)*0.65 + 0.35")
    shown = traced(*words, "--epochs", "150", "--steps-per-epoch", "10")
    np.testing.assert_allclose(shown["lr"], run["per_iter"], rtol=0, atol=1e-12)
    assert [set(jump) for jump in shown["jumps"]] == [{"step", "epoch", "ratio", "kind"}] * 2
    assert [(jump["step"], jump["kind"]) for jump in shown["jumps"]] == [(330, "restart"), (830, "restart")]
    assert shown["digest"] == parse(shown["schedule"]).trace(TimeBase(150, 10)).digest
    resumed = traced(*words, "last_epoch=40", "--epochs", "150", "--steps-per-epoch", "10")
    assert len(resumed["lr"]) == 110
    np.testing.assert_allclose(resumed["lr"][3:], run["per_iter"][43:], rtol=0, atol=1e-12)


def test_several_groups() -> None:
    shown = traced("cosine", "lr=[0.1,0.2]", *RUN)
    np.testing.assert_allclose(np.multiply(shown["lr"], 2), shown["groups"]["1"])
    assert set(traced("yolo_cosine", "lr=1e-2", *RUN)["groups"]) == {"bias"}


def test_the_table_shows_the_articles_drops() -> None:
    out = sweeper("trace", *ARTICLE, *RUN)
    assert "     33    0.0699972    0.0699972  drop x0.7736 at step 132" in out
    assert "     82    0.0633367    0.0633367" in out
    assert "restarts 0, drops 2" in out


def test_csv_is_the_trained_trace() -> None:
    rows = list(csv.DictReader(io.StringIO(sweeper("trace", "yolo_linear", "lr=0.02", *RUN, "--csv"))))
    assert list(rows[0]) == ["step", "epoch", "lr", "lr/bias", "momentum"]
    trace = parse({"family": "yolo_linear", "lr": 0.02}).trace(TimeBase(150, 4))
    assert trace.momentum is not None
    for name, values in (("lr", trace.lr), ("lr/bias", trace.group("bias")), ("momentum", trace.momentum)):
        np.testing.assert_array_equal(np.float32([row[name] for row in rows]), values)
    both = list(csv.DictReader(io.StringIO(sweeper("trace", "cosine", "lr=1", *RUN, "--vs", "cosine lr=2", "--csv"))))
    assert len(both) == 1200
    assert {row["schedule"] for row in both} == {"cosine", "cosine 2"}


@pytest.mark.parametrize(("name", "magic"), [("lr.png", b"\x89PNG"), ("lr.svg", b"<?xml")])
def test_several_in_one_picture(tmp_path: Path, name: str, magic: bytes) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump([{"family": "onecycle", "lr": 0.1}, {"family": "wsd", "lr": 0.1}]))
    out = sweeper(
        "trace", *ARTICLE, *RUN, "--vs", "yolo_cosine lr=0.1", "--vs", str(file), "--plot", str(tmp_path / name)
    )
    picture = (tmp_path / name).read_bytes()
    assert picture.startswith(magic)
    assert "cawb and wsd share their first 8 steps" in out
    if name.endswith("svg"):
        assert all(word in picture.decode() for word in ("drops of cawb", "onecycle", "wsd", "yolo_cosine"))


def test_a_file_and_its_round_trip(tmp_path: Path) -> None:
    shown = traced(*ARTICLE, *RUN)
    for name, text in (("a.yaml", yaml.safe_dump(shown["schedule"])), ("a.json", json.dumps(shown["schedule"]))):
        (tmp_path / name).write_text(text)
        assert traced(str(tmp_path / name), *RUN)["digest"] == shown["digest"]
    changed = traced(str(tmp_path / "a.yaml"), "step_scale=0.6", *RUN, "--vs", f"'{tmp_path / 'a.yaml'}'")
    assert changed["vs"][0]["digest"] == shown["digest"]
    assert changed["vs"][0]["common_prefix"] == 33 * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cawb", "lr=0.1", "steps=[200]", *RUN], "steps: 200.* outside the run"),
        (["cawb", "lr=0.1", "step_scale=0", *RUN], "step_scale: 0"),
        (["cawb", "lr=0.1", "stepscale=1", *RUN], "did you mean 'step_scale'"),
        (["cawb", "lr=0.1", "decay=import os", *RUN], "not arithmetic"),
        (["cawb", "lr=0.1", "lr=0.2", *RUN], "given twice"),
        (["cawb", "lr=[", *RUN], "cannot be read"),
        (["cawb", "0.1", *RUN], "expected key=value"),
        (["nothing.yaml", *RUN], "nothing.yaml: cannot be read"),
        (["cabw", *RUN], "family: 'cabw' is not known.*did you mean 'cawb'"),
        (["constant", "lr=1", "--epochs", "0", "--steps-per-epoch", "1"], "epochs: 0"),
        (["constant", "lr=1", "--epochs", "3"], "--steps-per-epoch: missing"),
        (["constant", "lr=1", *RUN, "--vs", "cosine 'lr"], "open quotation"),
        (["constant", "lr=1", *RUN, "--plot", "lr.pdf"], "expected png or svg"),
        (["constant", "lr=1", *RUN, "--plot", "no/folder/lr.png"], "cannot be written"),
        (["constant", "lr=1", *RUN, "--csv", "--json"], "beside --json"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        sweeper("trace", *words)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_convert_is_the_warmup_articles_sum() -> None:
    out = sweeper("convert", "4000it", "--images", "118287", "--batch", "64", "--to-images", "22720")
    assert out.splitlines() == [
        "4000.0 iterations of 64 on 118287 images = 2.1642 epochs",
        "2.1642 epochs on 22720 images = 768.3 iterations of 64",
    ]
    back = json.loads(sweeper("convert", "2.16ep", "--images", "22720", "--batch", "64", "--json"))
    assert back["iterations"] == pytest.approx(766.8)
    with pytest.raises(ConfigError, match="not in iterations or epochs"):
        sweeper("convert", "0.1dur", "--images", "10", "--batch", "1")


def test_the_families_are_listed_with_their_parameters() -> None:
    """What is listed is what ``parse`` takes: each default written out gives the same schedule."""
    shown, listed = sweeper("families"), json.loads(sweeper("families", "--json"))
    assert set(listed) == set(FAMILIES)
    needed = {"lr": 0.1, "T_0": 2, "boundaries": [2], "gamma": 0.5}
    for name, about in listed.items():
        assert f"\n{name} " in "\n" + shown
        for word in (name, *about["required"], *about["defaults"]):
            assert f"\n{word:<17} {MEANINGS[word]}" in "\n" + shown
        required = {key: needed[key] for key in about["required"]}
        given = {key: value for key, value in about["defaults"].items() if value is not None}
        assert parse({"family": name, **required}) == parse({"family": name, **required, **given})


def test_every_word_of_a_schedule_has_a_meaning_and_a_label_those_of_its_own_words() -> None:
    modes = [{"mode": "reference"}, {"warmup_kind": "trainer"}, {"horizon": "end"}, {}]
    keys = {key for family in FAMILIES.values() for given in modes for key in family.keys(given)}
    assert set(MEANINGS) == {*FAMILIES, *CONTROLS, *keys, "trunk", "from", "groups"}
    words = ("cawb", "yolo_linear", "step_scale", "decay", "trunk")  # cosine is a decay here, and no family
    text = legend(["cawb trunk=(yolo_linear) step_scale=0.7 decay=cosine"])
    assert text == "; ".join(f"{word}: {MEANINGS[word]}" for word in words)


def test_a_sweep_file_is_told_from_a_schedule(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("name: cells\nbaselines: [yolo_linear]\nsearch: {family: cawb}\n")
    with pytest.raises(ConfigError, match=r"is a sweep, not a schedule; 'sweeper plan .*sweep\.yaml' shows"):
        sweeper("trace", str(tmp_path / "sweep.yaml"), *RUN)
