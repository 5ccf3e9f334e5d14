"""What an epoch's metrics cost the training thread: our journal against MLflow's own ways, in one run.

    python benchmarks/tracking.py [--epochs 150] [--metrics 12] [--pause 0.05]

Every way gets the same epochs, ``pause`` seconds apart, first on a SQLite store and then on an MLflow server on this
machine. "held up" is the time in the training thread. An epoch of real training takes seconds; the shorter the
pause, the more our uploader competes with the thread that is measured.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sweeper.tracking import Tracker, view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--metrics", type=int, default=12)
    parser.add_argument("--pause", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{options.epochs} epochs of {options.metrics} metrics; held up: ms an epoch")
        print(f"{'':30}{'median':>10}{'99 %':>10}{'worst':>10}{'x ours':>10}")
        compare("SQLite", f"sqlite:///{folder}/mlflow.db", folder, options)
        server = view.serve(f"sqlite:///{folder}/server.db", port=0, log=folder / "server.log")
        try:
            compare("server", server.url, folder, options)
        finally:
            server.stop()
        compare("server away", server.url, folder, options, away=True)


def compare(title: str, uri: str, folder: Path, options: argparse.Namespace, *, away: bool = False) -> None:
    """Print a row for each way to log to ``uri``; of a server that is away, ours only (MLflow's own blocks minutes)."""
    tracker = Tracker(uri, "benchmark", folder / title)
    log = tracker.trial(0)
    if not away:
        assert log.flush(60)
    ours = held_up(lambda epoch, row: log.epoch(epoch, row), options)
    begin = time.perf_counter()
    arrived = log.flush(0.1 if away else 60)
    row(f"{title}: journal", ours, ours)
    if away:
        print(f"{title}: everything is kept: {tracker.problem is None and not arrived}")
    else:
        print(f"{title}: everything had arrived {time.perf_counter() - begin:.2f} s after the last epoch: {arrived}")
        client, run_id = tracker.server.client(), str(log.run_id)
        from mlflow.entities import Metric

        def batch(epoch: int, values: dict[str, float]) -> None:
            now = round(time.time() * 1000)
            client.log_batch(run_id, [Metric(f"batch/{key}", value, now, epoch) for key, value in values.items()])

        def single(epoch: int, values: dict[str, float]) -> None:
            for key, value in values.items():
                client.log_metric(run_id, f"single/{key}", value, step=epoch)

        row(f"{title}: log_batch", held_up(batch, options), ours)
        row(f"{title}: log_metric each", held_up(single, options), ours)
    tracker.close(0.1 if away else 10)


def held_up(log: Callable[[int, dict[str, float]], None], options: argparse.Namespace) -> list[float]:
    """ms in ``log`` for each epoch."""
    took = []
    for epoch in range(options.epochs):
        values = {f"curve/{i}": epoch / (i + 1) for i in range(options.metrics)}
        begin = time.perf_counter()
        log(epoch, values)
        took.append(1000 * (time.perf_counter() - begin))
        time.sleep(options.pause)
    return took


def row(title: str, took: list[float], ours: list[float]) -> None:
    middle = statistics.median(took)
    ninety_nine = statistics.quantiles(took, n=100)[98]
    print(f"{title:30}{middle:10.3f}{ninety_nine:10.3f}{max(took):10.3f}{middle / statistics.median(ours):10.1f}")


if __name__ == "__main__":
    main()
