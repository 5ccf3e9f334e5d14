"""A restart inside the very first epoch, before which there is no stored state: the whole way, really trained."""

import threading
from pathlib import Path

import tiny

from sweeper import evidence
from sweeper.config import Sweep
from sweeper.service import Place, Service
from sweeper.worker import Worker


def test_the_battery_on_a_restart_inside_the_first_epoch_ends(tmp_path: Path) -> None:
    """The state before it is the untrained one: it is quenched like any other, and every trial ends well."""
    written = {
        **tiny.SWEEP,
        "data": str(tiny.images(tmp_path)),
        "epochs": 1,  # of 3 steps
        "trials": 0,
        "baselines": [{"family": "warm_restarts", "T_0": "2it"}],
        "search": {},
        "attempts": 1,
        "escape": {"snapshots": 1, "points": 3, "bn_batches": 1, "val_images": 8},
    }
    service = Service(Sweep.build(written), Place(str(tmp_path / "store")))
    service.launch()

    def work() -> None:
        stop = threading.Event()
        timer = threading.Timer(400, stop.set)  # it went on for ever
        timer.start()
        Worker(service, device="cpu", stop=stop).run()
        timer.cancel()
        assert not stop.is_set()

    work()
    [row] = service.study.trials()
    assert service.trace(row.schedule).jumps()[0].epoch == 0
    trace, seed = service.trace(row.schedule), service.sweep.recipe.seed
    # as Service.examine, which refuses a trial that learned nothing: three steps of training are not many
    service.study.add(evidence.wanted_controls([row], row, trace, seed))
    work()
    service.study.add(evidence.wanted_barriers([row], row, trace, seed, service.sweep.escape))
    work()
    controls = service.study.trials()[1:]
    assert [row.state for row in controls] == ["COMPLETE"] * 4, [row.reasons for row in controls]
    landscape = controls[-1].facts.landscape
    assert (landscape["start"], landscape["end"]) == (0, 1)
    assert landscape["distance"] > 0
    [verdict] = [jump.to_dict() for jump in service.verdicts(row)]
    assert (verdict["kind"], verdict["epoch"], verdict["landscape"]["losses"]) == ("restart", 0, landscape["losses"])
