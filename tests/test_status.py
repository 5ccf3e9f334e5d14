"""``sweeper status --watch``: on a terminal, in a log, and for programs."""

import io
import json
import os
import pty
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import invented
from rich.console import Console

from sweeper.cli import live
from sweeper.service import Service


def beating(shown: Service) -> None:
    shown.study.heartbeat("inventor", host="here", pid=1, device="cuda:1", number=7, epoch=9)


def command(shown: Service, shown_file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sweeper", "status", str(shown_file), "--store", shown.place.store, *arguments]


def test_a_log_gets_a_headline_the_trials_in_training_and_the_last_errors(shown: Service) -> None:
    beating(shown)
    first, at, failed = live.lines(shown.status(), 600.0)
    assert "shown: 1 running, 22 complete, 1 fail of 24 trials; " in first
    assert first.endswith("epoch 377 of 384, about 10 min left")  # 23 are settled, one is at its tenth epoch
    row = {row.number: row for row in shown.study.trials()}[7]
    rate = float(shown.trace(row.schedule).lr[9 * 3])
    assert at.startswith(f"  trial 7 on cuda:1: epoch 9 of 16, LR {rate:.4g}, mAP50-95 {row.curve[8]:.4f} ")
    assert len(at.rpartition(" ")[2]) == 9  # a bar for each epoch
    assert failed == "  trial 4: not finite: loss nan at epoch 6, step 17; lower lr0"


def test_trials_that_have_begun_and_wait_are_not_counted_as_running(tmp_path: Path) -> None:
    service = invented.launched(invented.written(tmp_path), tmp_path / "store")
    for worker in ("first", "second"):
        assert service.study.claim(worker) is not None
        service.study.heartbeat(worker, host="here", pid=1, device="cpu")
    third = service.study.claim("third")
    assert third is not None
    third.release()
    status = service.status()
    assert (status.counts["running"], status.counts["waiting"], status.waits) == (2, 6, 1)
    assert live.lines(status, None)[0][9:].startswith("shown: 5 waiting, 2 running, 1 begun and waiting of 8 trials; ")
    assert [row.trial for row in status.trials if row.waits] == [third.number]
    assert status.to_dict()["begun_and_waiting"] == 1


def test_a_terminal_gets_what_fits_with_those_in_training_first(shown: Service) -> None:
    beating(shown)
    for height in (20, 60):
        console = Console(width=110, height=height, record=True, file=io.StringIO())
        console.print(live.screen(shown.status(), None, height))
        text = console.export_text().splitlines()
        assert len(text) <= height
        trials = [line.split()[0] for line in text if " complete " in line or (" running " in line and "|" not in line)]
        assert "cuda:1" in "\n".join(text)
        assert "7" in trials
        assert any("and " in line and " more" in line for line in text) == (height == 20)
        assert any("not finite" in line for line in text)


def test_time_left_is_what_it_took_so_far(shown: Service) -> None:
    beating(shown)
    found = shown.status()
    pace = live.Pace()
    assert pace.left_s(found) == 7 * 60.0  # nothing seen yet: seven epochs of a minute on one worker
    later = replace(found, trials=[replace(row, epochs_done=row.epochs_done + 2) for row in found.trials])
    time.sleep(0.2)
    assert 5 * 0.1 <= (pace.left_s(later) or 0) < 5  # two epochs in 0.2 s
    over = replace(found, trials=[replace(row, state="complete") for row in found.trials])
    assert pace.left_s(over) is None


def test_the_command_writes_lines_to_a_pipe_until_it_is_stopped(shown: Service, shown_file: Path) -> None:
    beating(shown)
    watching = subprocess.Popen(
        command(shown, shown_file, "--watch", "--every", "0.5"), stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout
    seen = [watching.stdout.readline() for _ in range(4)]
    watching.terminate()
    watching.communicate()
    assert sum("24 trials" in line for line in seen) >= 1
    assert not any("\x1b" in line for line in seen)


def test_json_is_an_object_a_line(shown: Service, shown_file: Path) -> None:
    watching = subprocess.Popen(
        command(shown, shown_file, "--watch", "--every", "0.2", "--json"), stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout
    looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
    watching.terminate()
    watching.communicate()
    assert [look["budget"] for look in looks] == [24, 24]
    running = [row for row in looks[0]["trials"] if row["state"] == "running"]
    assert [(row["trial"], len(row["curve"])) for row in running] == [(7, 9)]
    assert all(isinstance(value, float) for value in running[0]["curve"])


def test_the_command_is_live_on_a_terminal(shown: Service, shown_file: Path) -> None:
    beating(shown)
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        command(shown, shown_file, "--watch", "--every", "0.3"),
        stdout=theirs,
        env=os.environ | {"COLUMNS": "120", "LINES": "40", "TERM": "xterm"},
    )
    os.close(theirs)
    seen = ""
    while seen.count("24 trials") < 2:  # drawn, and drawn again in the same place
        seen += os.read(ours, 65536).decode(errors="replace")
    watching.terminate()
    watching.wait()
    os.close(ours)
    assert "\x1b[" in seen
    assert "inventor" in seen
