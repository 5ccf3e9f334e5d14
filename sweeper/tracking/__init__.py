"""One MLflow run per trial over all its attempts: journaled here first, sent in the background.

    with Tracker("sqlite:///mlflow.db", "digits", Path("journals")) as tracker:
        tracker.check()
        log = tracker.trial(0, name="cosine", tags={names.FAMILY: "cosine"}, params={"lr0": 0.02})
        log.epoch(0, {"curve/lr": 0.02, "curve/mAP50-95": 0.11})
        log.finish("FINISHED")

Nothing here blocks training: while the server is away the journal grows, and it is sent, each point once and with
the time it was made at, by this process or, after its death, by the next one that uses the folder.
"""

from sweeper.tracking import names
from sweeper.tracking.connection import check_uri
from sweeper.tracking.tracker import Tracker, TrialLog

__all__ = ["Tracker", "TrialLog", "check_uri", "names"]
