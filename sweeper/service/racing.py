"""What a race over seeds has come to, in words and figures, for those who look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sweeper import evidence, stats
from sweeper.errors import ConfigError
from sweeper.service.spending import Spending
from sweeper.stats import Answer
from sweeper.study import Trial

if TYPE_CHECKING:
    from sweeper.service.service import Service


def race(service: Service, rows: Sequence[Trial]) -> dict[str, Any] | None:
    """How the race stands; None for a sweep without a trunk and with one search seed. JSON-able.

    ``trunk``: the baseline that proposals are compared with (None: not known yet), ``sentence`` why; ``standings``:
    best first, see :class:`evidence.Standing`; ``raced``: proposals by the number of seeds that they have finished.
    """
    settings, agenda = service.sweep.search, service.agenda
    if settings.seeds == 1 and settings.trunk is None:
        return None
    reference = _reference(service, rows)
    standings = evidence.standings(rows, reference) if reference is not None else []
    raced: dict[int, int] = {}
    for standing in standings:
        raced[standing.n] = raced.get(standing.n, 0) + 1
    return {
        "trunk": reference,
        "sentence": _trunk(service, rows, reference),
        "seeds": agenda.seeds,
        "begin": settings.begin,
        "race": settings.race,
        "raced": raced,
        "rule": rule(service),
        "standings": [standing.to_dict() for standing in standings],
        "noise": noise(service, rows, reference),
    }


def noise(service: Service, rows: Sequence[Trial], reference: str | None) -> str:
    """What the sweep's own pairs say of the noise of runs and branches, or that nobody knows yet; in a sentence."""
    if reference is None:
        return stats.UNKNOWN
    return stats.branches(rows, reference, lambda trial: service.departure(trial.spec or {}, reference)).sentence


def rule(service: Service) -> str:
    """How the race goes, in a sentence."""
    settings = service.sweep.search
    if settings.seeds == 1:
        return "each proposal is trained on one seed and compared with the trunk there"
    first = "the first search seed" if settings.begin == 1 else f"the first {settings.begin} search seeds"
    return (
        f"each proposal begins on {first}; of those that have finished n seeds the best 1/{settings.race:g}, by their "
        f"mean difference to the trunk on the same seeds, go on to 2n, up to {settings.seeds}"
    )


def planned(service: Service, rows: Sequence[Trial]) -> dict[str, Any] | None:
    """The race as it will be; None for a sweep without a trunk and with one search seed. JSON-able.

    ``rows``: the trials so far, of which the noise is known.
    """
    settings, agenda = service.sweep.search, service.agenda
    if settings.seeds == 1 and settings.trunk is None:
        return None
    if agenda.waits:
        names = list(service.baselines())
        role = "the trunk" if settings.trunk is not None else "what proposals are compared with"
        sentence = f"the best of {', '.join(names)} on {len(agenda.seeds)} search seeds becomes {role}"
        if settings.trunk is not None:
            sentence += f"; shown here as branches of {names[0]}"
    else:
        sentence = f"every proposal is a branch of {agenda.against}: the same training up to its first jump"
    known = noise(service, rows, _reference(service, rows) if rows else None)
    return {"trunk": sentence, "rule": rule(service), "seeds": agenda.seeds, "noise": known}


def spending(service: Service, rows: Sequence[Trial]) -> dict[str, Any] | None:
    """What is spent and left of the sweep's budget; None without one. JSON-able."""
    return Spending.of(service, rows).to_dict() if service.sweep.budget is not None else None


def answered(service: Service, answer: Answer, rows: Sequence[Trial]) -> Answer:
    """The answer with the race in it: search trials ranked by what their difference to the trunk is worth.

    Their entries in the ranking get ``raced`` with n, mean and interval; the notes say which trunk and how it went.
    """
    found = race(service, rows)
    if found is None:
        return answer
    raced = {standing["trial"]: {**standing, "over": found["trunk"]} for standing in found["standings"]}
    places = {trial: place for place, trial in enumerate(raced)}
    runs: dict[str, list[float]] = {}
    for row in rows:
        if row.stage == "search" and row.state == "COMPLETE" and row.score is not None:
            runs.setdefault(row.name, []).append(row.score)
    ranking = []
    for entry in answer.ranking:
        scores = runs.get(entry["name"], []) if entry["stage"] == "search" else []
        mean = {"score": fmean(scores), "n": len(scores)} if scores else {}
        ranking.append({**entry, **mean, "raced": raced.get(entry["trial"])})
    ranking.sort(key=lambda entry: (entry["stage"] == "search", _place(entry, places, len(places))))
    notes = [f"{found['sentence']}", *answer.notes]
    if found["standings"] and service.sweep.search.seeds > 1:
        counts = ", ".join(f"{count} on {n}" for n, count in sorted(found["raced"].items()))
        notes.insert(1, f"race: {found['rule']}; so far proposals by seeds: {counts}")
    if found["noise"] != stats.UNKNOWN:
        notes.append(found["noise"])
    sentence = answer.sentence
    if answer.winner is None and not answer.pairs and answer.confirmation is None and raced and answer.learned:
        sentence = _leader(ranking, found)
    return replace(answer, ranking=tuple(ranking), notes=tuple(notes), sentence=sentence)


def _leader(ranking: Sequence[dict[str, Any]], found: dict[str, Any]) -> str:
    first = next(entry for entry in ranking if entry["raced"] is not None)
    standing = first["raced"]
    interval = f" [{standing['low']:+z.4f}, {standing['high']:+z.4f}]" if standing["low"] is not None else ""
    ahead = f"{standing['mean']:+z.4f}{interval} over {found['trunk']}"
    if standing["n"] == 1:
        return (
            f"no winner yet: {first['label']} is the best of {len(found['standings'])} proposals, {ahead} on the one "
            "search seed, for which it was chosen; one run each is no evidence, and sweeper confirm judges it on fresh "
            "seeds"
        )
    return (
        f"no winner yet: {first['label']} leads the race at {ahead} on {standing['n']} search seeds, for which it was "
        f"chosen among {len(found['standings'])}; sweeper confirm judges it on fresh ones"
    )


def _place(entry: dict[str, Any], places: dict[int, int], last: int) -> int:
    return places.get(entry["trial"], last) if entry["stage"] == "search" else 0


def _reference(service: Service, rows: Sequence[Trial]) -> str | None:
    try:
        return service.agenda.reference(rows)
    except ConfigError:  # the worker that asks says it; who looks sees the failed baselines
        return None


def _trunk(service: Service, rows: Sequence[Trial], reference: str | None) -> str:
    """Which trunk, and why it."""
    agenda, settings = service.agenda, service.sweep.search
    role = "trunk" if settings.trunk is not None else "compared with"
    if not agenda.waits:
        return f"{role}: {reference}, as the sweep file says; proposals are branches of it"
    if reference is None:
        runs = [row for row in rows if row.stage == "baseline"]
        done = sum(not row.open for row in runs)
        return (
            f"{role}: the best baseline, not known yet: {done} of {len(runs)} runs of baselines on {len(agenda.seeds)} "
            "search seeds have ended, and proposals come after the last"
        )
    trunk = agenda.trunk(rows)
    return trunk.sentence.replace("trunk", role, 1) if trunk is not None else f"{role}: {reference}"
