"""What a sweep would do, before anything is trained."""

from statistics import median
from typing import TYPE_CHECKING, Any

from sweeper import measures, search
from sweeper.schedules import prefix_keys
from sweeper.stats import CLAIM, MIN_PAIRS, detectable_effect, pairs_needed, spread
from sweeper.study import samplers

if TYPE_CHECKING:
    from sweeper.service.service import Service


def plan(service: "Service", draws: int | None = None) -> dict[str, Any]:
    """What would be tried, how much of it is shared, and what it could detect. Trains and changes nothing.

    The enqueued schedules are among the proposals; the others are drawn uniformly with the sweep's seed, each
    another one while the space has more. A sampler that learns will propose others, more alike.
    """
    search.check(service.sweep)
    search.check(service.sweep, service.time)
    measures.check_objective(service.dataset, service.sweep)
    samplers.make(service.sweep.sampler, seed=0, number=0)
    baselines = service.baselines()
    drawn = _drawn(service, service.sweep.trials if draws is None else draws)
    found = {service.trace(spec): spec for spec in search.corners(service.sweep, service.time)}
    corners = list(found.values())
    shown = [("baseline", name, spec) for name, spec in baselines.items()]
    shown += [("search", f"draw {number}", spec) for number, spec in enumerate(drawn)]
    shown += [("corner", f"corner {number}", spec) for number, spec in enumerate(corners)]
    traces = {name: service.trace(spec) for _, name, spec in shown}
    trials = [*baselines, *(f"draw {number}" for number in range(len(drawn)))]
    keys = [key for name in trials for key in prefix_keys("plan", traces[name])[1:]]
    confirm, finished = service.sweep.confirm, service.rows_if_launched()
    noise = spread(
        [service.judged(row, ()) for row in finished],
        baselines=baselines,
        **({"assumed_sigma": confirm.sigma} if confirm.sigma else {}),
    )
    seconds = [float(row.attrs["epoch_seconds"]) for row in finished if row.attrs.get("epoch_seconds")]
    trained = len(set(keys))
    known = {key for name in baselines for key in prefix_keys("plan", traces[name])[1:]}
    of_draws = [key for number in range(len(drawn)) for key in prefix_keys("plan", traces[f"draw {number}"])[1:]]
    return {
        "sweep": service.sweep.name,
        "epochs": service.sweep.epochs,
        "steps_per_epoch": service.time.steps_per_epoch,
        "images": {"train": service.dataset.train_images, "val": service.dataset.val_images},
        "schedules": [
            {
                "kind": kind,
                "name": name,
                "label": service.sweep.label(spec),
                "spec": spec,
                "digest": traces[name].digest,
                **traces[name].facts(),
            }
            for kind, name, spec in shown
        ],
        "drawn": len(drawn),
        "distinct": len({traces[f"draw {number}"].digest for number in range(len(drawn))}),
        "epochs_asked": len(keys),
        "epochs_to_train": trained,
        "share_saved": 1 - trained / len(keys) if keys else 0.0,
        "share_of_baselines": sum(key in known for key in of_draws) / len(of_draws) if of_draws else 0.0,
        "begin_otherwise": {
            name: sum(not search.begin_alike(draw, spec, service.time) for draw in drawn)
            for name, spec in baselines.items()
        },
        "trunk": service.sweep.trunk(),
        "hours": trained * median(seconds) / 3600 if seconds else None,
        "seconds_per_epoch": median(seconds) if seconds else None,
        "confirm": {
            "best": confirm.best,
            "seeds": confirm.seeds,
            "least": MIN_PAIRS,
            "sigma_of_differences": noise.s_d,
            "source": noise.source,
            "detectable": detectable_effect(
                noise.s_d, confirm.seeds, alpha=confirm.alpha / confirm.best, equivalence=confirm.equivalence
            ),
            "pairs_for_0.004": pairs_needed(CLAIM, noise.s_d, most=10**9),
        },
        "problems": list(service.dataset.problems),
    }


def _drawn(service: "Service", count: int) -> list[dict[str, Any]]:
    """``count`` proposals without a sampler; fewer where the space has no more schedules.

    What enqueued answers leave open is drawn.
    """
    first = service.sweep.recipe.seed * 1_000_003
    found = [
        one["schedule"]
        if "schedule" in one
        else search.propose(service.sweep, search.Drawn(first + number, one["params"]), service.time)
        for number, one in enumerate(search.enqueued(service.sweep, service.time))
    ]
    seen = {service.trace(spec).digest for spec in found}
    for number in range(first, first + 50 * count):
        if len(found) >= count:
            break
        spec = search.propose(service.sweep, search.Drawn(number), service.time)
        if (digest := service.trace(spec).digest) not in seen:
            seen.add(digest)
            found.append(spec)
    return found
