"""Whatever is read or counted from outside has a bound, and beyond it one line says so, at once."""

import os
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import yaml
from tiny import sweeper

from sweeper import data
from sweeper.config import Sweep
from sweeper.data import coco, source
from sweeper.data.source import Findings, image_facts
from sweeper.errors import ConfigError, DataError, ScheduleError
from sweeper.reading import MAX_DEPTH, MAX_NODES, NotYaml, TooMuch, parse_yaml, read_bytes
from sweeper.schedules import parse
from sweeper.schedules.decay import free_names, substitute

SWEEP = "name: cells\ndata: digits\nmodel: yolo11n.yaml\nepochs: 20\nlr0: 0.02\ntrials: 6\nsearch: {family: cawb}\n"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))


def one_line(caught: Any) -> str:
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1200, said
    return said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x: " + "[" * 5000, "nested too deeply; expected at most 32"),
        ("x: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("x: " + "{a: " * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("".join(f"{' ' * i}a:\n" for i in range(900)), "line 32: is nested too deeply"),
        (LAUGHS, "holds too much; expected at most 100000 values"),
        (MERGES, "holds too much"),
        ("x: &a [*a]", "an alias stands inside its own anchor"),
        ("x: &a {y: *a}", "an alias stands inside its own anchor"),
        ("? [1, 2]\n: 3", "cannot be a key"),
        ("x: " + "9" * 5000, "a number of 5000 characters is too long"),
        ("x: !!int abc", "line 1 is not YAML: 'abc' is not a value of type int"),
        ("x: !!bool maybe", "'maybe' is not a value of type bool"),
        ("x: !!python/object:os.system {}", "could not determine a constructor"),
        ("x: *nowhere", "undefined alias"),
        ("x: a\0b", "special characters are not allowed"),
        ("#" * 1_000_001, "expected at most 1000000"),
    ],
)
def test_yaml_beyond_its_bounds_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP + text)
    for load in (Sweep.load, data.read_yaml):
        path.write_text(text)
        with pytest.raises((ConfigError, DataError)) as caught:
            load(path)
        said = one_line(caught)
        assert says.replace("line 1 is not YAML: ", "") in said


def test_yaml_within_its_bounds_is_read() -> None:
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(TooMuch):
        parse_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    row = "&r [" + "1, " * 998 + "1]"  # 1,000 values
    assert len(parse_yaml(f"[{row}{', *r' * 98}]")) == 99
    with pytest.raises(TooMuch, match=str(MAX_NODES)):
        parse_yaml(f"[{row}{', *r' * 100}]")
    assert parse_yaml("a: &a {k: 1}\nb: {<<: *a, l: 2}") == {"a": {"k": 1}, "b": {"k": 1, "l": 2}}
    assert parse_yaml("2024-02-30") == "2024-02-30"  # a name, not a day
    with pytest.raises(NotYaml, match="line 3: key 'b' stands twice"):
        parse_yaml("a: 1\nb: 2\nb: 3")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.steps=" + "[" * 5000, "search.steps: the value is nested too deeply"),
        ("search.steps=" + "[" * 5000 + "]" * 5000, "search.steps: the value is nested too deeply"),
        ("search." + "a." * 5000 + "b=1", "keys deep; expected at most 32"),
        ("search." + "a." * 30 + "b=1", "search: a: 'a' with conditional parameters has to be one of several choices"),
        ("x" * 5000 + "=1", "is not a key of a sweep"),
        ("x" * 5000, "is not an override"),
        ("epochs=[" + "1," * 5000 + "1]", "epochs: [1, 1, 1"),
        ("lr0=" + "9" * 5000, "lr0: '999"),
        ("lr0=0x" + "f" * 5000, "lr0: '0xfff"),
    ],
)
def test_an_override_beyond_its_bounds_is_one_line(tmp_path: Path, override: str, says: str) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    with pytest.raises(ConfigError) as caught:
        Sweep.load(tmp_path / "sweep.yaml", [override])
    assert says in one_line(caught)


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("name: " + "[" * 3000)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    os.mkfifo(tmp_path / "pipe.yaml")
    length = ("--epochs", 10, "--steps-per-epoch", 2)
    for arguments, says in (
        (("plan", "sweep.yaml"), "nested too deeply"),
        (("plan", "/dev/zero"), "/dev/zero: is a device, a pipe or a socket; expected a sweep file"),
        (("plan", "pipe.yaml"), "is a device, a pipe or a socket"),
        (("plan", "."), "is a folder; expected a sweep file"),
        (("trace", "deep.json", *length), "nested too deeply"),
        (("trace", "pipe.yaml", *length), "is a device, a pipe or a socket"),
        (("trace", "cawb", "lr=" + "[" * 5000, *length), "lr: '[[[["),
        (("trace", "cawb", "lr=0.1", "decay=9**9**9", *length), "a power of"),
        (("trace", "constant", "lr=0.1", "--epochs", 10**9, "--steps-per-epoch", 1), "epochs: 1000000000 is not"),
        (("trace", "constant", "lr=0.1", "--epochs", 10**7, "--steps-per-epoch", 1), "shows at most 5000000 steps"),
        (("convert", "1e999it", "--images", 10, "--batch", 1), "is not a duration"),
        (("data", "check", "/dev/zero"), "is a device, a pipe or a socket; expected an Ultralytics data.yaml"),
        (("data", "check", "pipe.yaml"), "is a device, a pipe or a socket"),
    ):
        done = sweeper(*arguments, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.count("\n") == 1, done.stderr
        assert says in done.stderr


def test_files_are_read_up_to_a_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(OSError, match="has 5 bytes; expected at most 4"):
        read_bytes(file, 4)
    with pytest.raises(OSError, match="has more than 4 bytes"):  # the kernel says that it has none
        read_bytes(Path("/proc/self/status"), 4)
    for special in ("/dev/zero", str(tmp_path)):
        with pytest.raises(OSError, match=r"is a device|is a folder"):
            read_bytes(Path(special), 4)


def dataset(folder: Path, **changes: Any) -> Path:
    """A data.yaml of 2 images with a box each."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        PIL.Image.new("RGB", (32, 32), (9, 9, len(split))).save(folder / "images" / split / "a.png")
        (folder / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    described = {"train": "images/train", "val": "images/val", "names": ["x"], **changes}
    (folder / "data.yaml").write_text(yaml.safe_dump(described))
    return folder / "data.yaml"


def refused(file: Path, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        data.open(file, folder=folder)
    return one_line(caught)


def test_what_a_data_set_names_is_bounded_too(tmp_path: Path) -> None:
    file = dataset(tmp_path / "devices")
    (tmp_path / "devices/images/train/b.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "devices/images/train/c.png")
    assert "broken images: 2, first" in (said := refused(file, tmp_path / "out"))
    assert "is a device" in said
    file = dataset(tmp_path / "labels")
    (tmp_path / "labels/labels/train/a.txt").unlink()
    (tmp_path / "labels/labels/train/a.txt").symlink_to("/dev/zero")
    assert "unreadable label files: 1, first" in refused(file, tmp_path / "out")
    file = dataset(tmp_path / "list", train="list.txt")
    os.mkfifo(tmp_path / "list/list.txt")
    assert "train: list.txt is not there" in refused(file, tmp_path / "out")
    file = dataset(tmp_path / "classes", names=None, nc=10**12)
    assert "nc: 1000000000000 classes are too many; expected at most 100000" in refused(file, tmp_path / "out")
    (tmp_path / "voc/Annotations").mkdir(parents=True)
    (tmp_path / "voc/Annotations/a.xml").symlink_to("/dev/zero")
    findings = Findings(tmp_path)
    assert coco.voc_objects(tmp_path / "voc/Annotations/a.xml", findings) == []
    assert "is a device" in str(findings.faults)
    (tmp_path / "coco/annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / f"coco/annotations/instances_{split}.json").write_text("[" * 100_000)
    assert "is nested too deeply; expected COCO annotations" in refused(tmp_path / "coco", tmp_path / "out")


def test_a_large_image_is_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """PIL warns of a bomb from 89 million pixels on."""
    PIL.Image.new("1", (10_000, 9_500)).save(tmp_path / "large.png")
    assert image_facts(tmp_path / "large.png")[1:] == (10_000, 9_500)
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]


def test_an_image_bomb_is_a_broken_image(tmp_path: Path) -> None:
    """A PNG of some hundred bytes that says it has 3.6 thousand million pixels."""
    PIL.Image.new("1", (60_000, 8)).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[20:24] = (60_000).to_bytes(4, "big")  # the height in its header
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match="3600000000 pixels"):
        image_facts(tmp_path / "bomb.png")


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    file = dataset(tmp_path / "data")
    train = tmp_path / "data/images/train"
    for name in ("x", "y"):
        (train / name).mkdir()
        (train / name / "up").symlink_to(train)
    (train / "x/other").symlink_to(train / "y")
    (train / "y/other").symlink_to(train / "x")
    (train / "x/nowhere").symlink_to(train / "nothing")
    (tmp_path / "elsewhere").mkdir()
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "elsewhere/b.png")
    (train / "link").symlink_to(tmp_path / "elsewhere")
    assert data.open(file, folder=tmp_path / "out").train_images == 2


def test_a_folder_that_is_no_folder_of_images_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_FOLDERS", 20)
    file = dataset(tmp_path / "data")
    for number in range(30):
        (tmp_path / f"data/images/train/{number}").mkdir()
    assert "has more than 20 folders" in refused(file, tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    ["-" * 399 + "x", "(" * 390, "cos(" * 60 + "x%2" + ")" * 60, "x" + "%1" * 190, "9" * 399, "9**9**9", "-" * 10**6],
)
def test_an_expression_beyond_its_bounds_is_one_line(text: str) -> None:
    assert free_names(text) == set()
    with pytest.raises(ScheduleError) as caught:
        parse({"family": "cawb", "lr": 0.1, "decay": text})
    assert len(one_line(caught)) < 800


def test_an_open_constant_too_deep_is_one_line() -> None:
    text = substitute("-" * 395 + "q", {"q": 1.0})
    assert text == "-" * 395 + "1.0"
    with pytest.raises(ScheduleError, match="791 parts; expected at most 150") as caught:
        parse({"family": "cawb", "lr": 0.1, "decay": text})
    assert len(one_line(caught)) < 1200
