"""Ctrl-C on a real terminal: every command that waits ends, takes along what it started, and says so on a line."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import invented
import pytest
import tiny

from sweeper.service import Service
from sweeper.tracking import view

CTRL_C = b"\x03"


class Terminal:
    """A process whose controlling terminal, 100 columns wide, is in our hands."""

    def __init__(self, *arguments: object, cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            tiny.command(*arguments),
            cwd=cwd,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
            start_new_session=True,
            preexec_fn=lambda: os.login_tty(0),
        )
        os.close(theirs)
        self.text = ""

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def read(self, until: Callable[[str], object], seconds: float = 240) -> None:
        """What is written, into ``text``, until ``until(text)`` holds or the process has closed its terminal."""
        end = time.monotonic() + seconds
        while not until(self.text):
            assert time.monotonic() < end, self.text
            if select.select([self._ours], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._ours, 65536).decode(errors="replace")
                except OSError:  # nobody has it open any more
                    return

    def ended(self, seconds: float = 60) -> int:
        """The exit status, after everything was read."""
        self.read(lambda _: False, seconds)
        return self.process.wait(seconds)

    @property
    def screen(self) -> list[str]:
        """The lines as a person sees them, of what programs write: moves up, to a line's begin, and erasing a line."""
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.text):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                lines += [""] * (row - len(lines) + 1)
            elif part.startswith("\x1b["):
                if part.endswith("A"):
                    row = max(row - int(part[2:-1] or 1), 0)
                elif part.endswith("K"):
                    lines[row] = "" if part == "\x1b[2K" else lines[row][:column]
            else:
                lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines]

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)


def gone(pids: list[int]) -> bool:
    """Whether these processes have ended; one that nobody has asked for its exit status yet has."""

    def ended(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    return bool(tiny.wait(lambda: all(map(ended, pids)), 30))


@contextlib.contextmanager
def terminal(*arguments: object, cwd: Path) -> Iterator[Terminal]:
    opened = Terminal(*arguments, cwd=cwd)
    try:
        yield opened
    finally:
        opened.close()


def test_ctrl_c_wakes_who_waits_after_mlflow_was_imported(tmp_path: Path) -> None:
    """MLflow brings polars, whose handler of SIGINT would let every wait go on for ever."""
    code = (
        "import sys, threading; from pathlib import Path; from sweeper.tracking import Tracker\n"
        "Tracker('sqlite:///mlflow.db', 'x', Path('journals')).server.client(); assert 'polars' in sys.modules\n"
        "print('ready', flush=True)\n"
        "try: threading.Event().wait()\n"
        "except KeyboardInterrupt: print('woken')\n"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert waiting.stdout
    try:
        assert waiting.stdout.readline() == "ready\n"
        time.sleep(0.5)  # until it waits
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=30)[0] == "woken\n"
    finally:
        waiting.kill()
        waiting.wait()


def test_ui_ends_and_takes_its_server_along(shown: Service, shown_file: Path) -> None:
    with terminal("ui", shown_file, "--store", shown.place.store, "--port", "0", cwd=shown_file.parent) as at:
        at.read(lambda text: "MLflow runs until Ctrl-C" in text)
        url = urllib.parse.urlsplit(next(line for line in at.screen if line.startswith("http://")))
        served = tiny.children(at.process.pid, below=True)
        assert served
        assert view.answers(f"http://{url.netloc}")
        at.press(CTRL_C)
        assert at.ended() == 0
        assert not view.answers(f"http://{url.netloc}")
        assert gone(served)


def test_ui_ends_while_its_server_starts(shown: Service, shown_file: Path) -> None:
    with terminal("ui", shown_file, "--store", shown.place.store, "--port", "0", cwd=shown_file.parent) as at:
        at.read(lambda text: "starting MLflow" in text)
        served = tiny.wait(lambda: tiny.children(at.process.pid, below=True))
        at.press(CTRL_C)
        assert at.ended() == 130
        assert gone(served)


def test_a_signal_while_a_process_starts_takes_effect_when_its_pid_is_known() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pids = []

    @view.signals_deferred()
    def start() -> None:
        signal.raise_signal(signal.SIGINT)
        pids.append(1)

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert pids == [1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with view.signals_deferred():  # without a signal nothing happens
            pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_status_watch_ends(shown: Service, shown_file: Path, options: list[str]) -> None:
    watch = ["status", shown_file, "--store", shown.place.store, "--watch", "--every", "600"]
    with terminal(*watch, *options, cwd=shown_file.parent) as at:
        at.read(lambda text: "complete" in text)  # of the counts, in a table as in JSON
        at.press(CTRL_C)
        assert at.ended() == 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_waits_ends(tmp_path: Path, count: int) -> None:
    """Every trial is in another's hands, so there is nothing to train."""
    file = invented.written(tmp_path)
    service = invented.launched(file, tmp_path / "store")
    while service.study.claim("another") is not None:
        pass
    worker = ["worker", file, "--store", tmp_path / "store", "--devices", "cpu", "--per-device", count]
    with terminal(*worker, cwd=tmp_path) as at:
        at.read(lambda _: len(service.study.workers()) == count)
        below = tiny.children(at.process.pid, below=True)
        at.press(CTRL_C)
        assert at.ended() == 130
        assert at.screen[-2:] == ["sweeper: interrupted; the same command goes on where it stopped", ""]
        assert gone(below)


def test_messages_of_run_have_lines_of_their_own_beside_its_progress(tmp_path: Path) -> None:
    with terminal("run", tiny.write(tmp_path, epochs=200), cwd=tmp_path) as at:
        at.read(lambda text: re.search(r"epoch [1-9]\d* of", text))
        below = tiny.children(at.process.pid, below=True)
        workers = [pid for pid in below if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(workers[0], signal.SIGKILL)
        at.read(lambda text: re.search(r"another takes its place .*\n.*trials;.*trials;", text))
        at.press(CTRL_C)
        assert at.ended() == 130
        assert gone(below)
        message, *rest = at.screen  # the progress line is gone
        assert message.startswith("a worker ended with -9; another takes its place in ")
        assert rest == ["sweeper: interrupted; the same command goes on where it stopped", ""]
