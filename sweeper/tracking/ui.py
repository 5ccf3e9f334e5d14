"""Starts an MLflow server on this machine, with everything switched off that a sweep does not need."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from sweeper.errors import TrackingError
from sweeper.tracking.connection import FILES

_HOST = "127.0.0.1"
_HARDENED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes and 640 MB, for GenAI jobs
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


@dataclass(frozen=True)
class Served:
    """A running server; ``stop`` ends it."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End the server and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        try:
            self.process.wait(10)
        except BaseException as error:  # also a second Ctrl-C: without a kill the server would outlive this process
            os.killpg(self.process.pid, 9)
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether an MLflow server answers at ``url``."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout) as answer:
            return bool(answer.status == 200 and answer.read(16).strip() == b"OK")
    except (OSError, ValueError):
        return False


def serve(uri: str, port: int = 5000, *, log: Path, timeout: float = 180.0) -> Served:
    """Start ``mlflow server`` on the store ``uri`` (``sqlite:///FILE``) and wait until it answers, some 10 s.

    It has no login, so only this machine reaches it. ``port`` 0 takes a free one. TrackingError if the port is taken,
    or with the end of the ``log`` if the server does not come up in ``timeout`` seconds.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            raise TrackingError(
                f"port {port} on {_HOST} is taken by another program; choose another with --port"
            ) from None
        port = probe.getsockname()[1]
    file = Path(uri.removeprefix("sqlite:///")).resolve()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{file}", "--host", _HOST]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", str(file.with_name(FILES))]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **_HARDENED},
            start_new_session=True,  # Ctrl-C is for the caller, who calls stop()
        )
    server = Served(f"http://{_HOST}:{port}", process)
    deadline = time.monotonic() + timeout
    try:
        while not answers(server.url):
            if process.poll() is not None or time.monotonic() > deadline:
                end = " | ".join(log.read_text(errors="replace").splitlines()[-3:]) or "it printed nothing"
                raise TrackingError(
                    f"mlflow server on {file} did not come up within {timeout:g} s: {end:.300}; see {log}"
                )
            time.sleep(0.4)
    except BaseException:  # also Ctrl-C: the server would outlive this process
        server.stop()
        raise
    return server
