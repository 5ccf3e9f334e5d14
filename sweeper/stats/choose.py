"""The pick: the rule of the package's docstring applied to the trials of a sweep."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from statistics import fmean, stdev
from typing import Any

from sweeper.study import Trial

from .answer import (
    Answer,
    Baseline,
    Candidate,
    Entry,
    Excluded,
    Progress,
    Ranked,
    Standing,
    failures,
    sentence,
)
from .noise import Spread, paired_by_seed, scores_by_seed, spread
from .pairs import detectable_effect, holm

MIN_PAIRS = 4  # fewer differences say too little about their own spread: no winner is named
LEAST = 0.00005  # a lower score is shown as 0.0000

Shown = Callable[[Trial], dict[str, Any]]


def choose(
    trials: Iterable[Trial],
    *,
    baselines: Iterable[str],
    planned: Collection[tuple[str, int]] = (),
    raced: Sequence[Standing] = (),
    alpha: float = 0.05,
    equivalence: float = 0.002,
    objective: str = "score",
    shown: Shown = Trial.shown,
) -> Answer:
    """The winner among the confirmed candidates, or the reason why there is none.

    ``trials``: all of a sweep, unfinished ones included. ``baselines``: names; ``objective``: what the sentence calls
    the score; ``shown``: what stands beside a trial in a table; ``raced``: how proposals stand in a race, best first,
    which then ranks those that were not confirmed. ``planned``: name and seed of every run of the confirmation, as it
    was designed before its first run; runs of stage ``confirm`` beside them play no part, and nobody wins before each
    of them has ended, well or badly. So the rule is applied to one set of runs, however often one looks. Without
    ``planned`` the confirmation is what is among the trials.

    Pairs are confirmation runs of a candidate with runs of the best baseline on the same seed; a seed on which
    the search saw the candidate is not fresh and makes no pair. A configuration with a confounded run, and no clean run
    on that seed, never wins. Trials of stage ``control`` play no part.
    """
    trials = [trial for trial in trials if trial.stage != "control"]
    plan = set(planned) or {(trial.name, trial.seed) for trial in trials if trial.stage == "confirm"}
    beside = [trial for trial in trials if trial.stage == "confirm" and (trial.name, trial.seed) not in plan]
    everything = [trial for trial in trials if trial.stage != "confirm" or (trial.name, trial.seed) in plan]
    progress = _progress(everything, plan) if plan else None
    names = list(dict.fromkeys(baselines))
    rivals = [trial for trial in everything if trial.name not in names]
    seen = {(trial.name, trial.seed) for trial in rivals if trial.stage == "search"}
    stale = [t for t in rivals if t.stage == "confirm" and (t.name, t.seed) in seen]
    excluded = [_excluded(trial) for trial in everything if not trial.usable]
    excluded += [_excluded(trial, "not fresh: the search saw this seed") for trial in stale if trial.usable]
    excluded += [_excluded(trial, "not a run of the confirmation as it was designed") for trial in beside]

    searched: dict[str, list[Trial]] = {}
    for trial in rivals:
        if trial.stage == "search" and trial.usable:
            searched.setdefault(trial.name, []).append(trial)
    groups: dict[str, list[Trial]] = {}
    for trial in rivals:
        if trial.stage == "confirm" and trial not in stale:
            groups.setdefault(trial.name, []).append(trial)
    fresh = {trial.seed for group in groups.values() for trial in group}
    reference, scores = _best_baseline(everything, names, fresh)
    level = alpha / max(len(groups), 1)
    drafts = []
    for name, group in groups.items():
        draft = _candidate(group, searched.get(name, []), scores, reference, alpha, shown)
        if p := _candidate(group, [], scores, reference, level, shown).pairs:
            mde = detectable_effect(p.s_d, p.n, alpha=level, equivalence=equivalence)
            draft = replace(draft, mde=mde, low_family=p.low, high_family=p.high)
        why = _obstacle(draft, [trial for trial in rivals if trial.name == name], everything, names)
        unfinished = progress is not None and not progress.complete
        drafts.append(replace(draft, reason="the confirmation is not finished" if unfinished else why))
    candidates = _judged(drafts, reference, alpha, equivalence)

    compared = [c.pairs for c in candidates if c.pairs]
    pairs = min((p.n for p in compared), default=0)
    noise = (
        Spread.of(compared, f"schedules with {reference} in the confirmation")
        if compared
        else spread(everything, baselines=names)
    )
    judged = [trial for trial in everything if trial.usable and (trial.stage == "confirm" or not compared)]
    any_learned = not judged or any(learned(trial.score) for trial in judged)
    if not any_learned:
        candidates = tuple(replace(c, mde=None, p_holm=None, reason="nothing was learned") for c in candidates)
    described = {name: _baseline(everything, name, by_seed, shown) for name, by_seed in scores.items()}
    answer = Answer(
        winner=next((c for c in candidates if c.wins), None),
        sentence="",
        candidates=candidates,
        ranking=_ranking(candidates, searched, raced, shown),
        baseline=described.get(reference or ""),
        baselines=tuple(described.values()),
        excluded=tuple(excluded),
        tried=len({trial.name for trial in rivals if not trial.unfinished and not trial.failed}),
        pairs=pairs,
        noise=noise,
        detectable=detectable_effect(noise.s_d, pairs, alpha=level, equivalence=equivalence)
        if compared and noise.s_d is not None and any_learned
        else None,
        alpha=alpha,
        equivalence=equivalence,
        learned=any_learned,
        failures=failures(everything),
        confirmation=progress,
    )
    return replace(answer, sentence=sentence(answer, objective) if any_learned else _nothing_learned(judged, objective))


def learned(score: float | None) -> bool:
    """Whether a score is more than 0 to the four digits that are shown."""
    return score is not None and score >= LEAST


def _nothing_learned(trials: Sequence[Trial], score: str) -> str:
    """The sentence for runs whose scores are all 0; ``score`` is the name of what was measured."""
    runs = f"all {len(trials)} finished runs" if len(trials) > 1 else "the only finished run"
    highest = max((value for trial in trials for value in trial.curve.values()), default=None)
    if learned(highest):
        return (
            f"nothing was kept: the {score} of {runs} is 0.0000 at the end, so there is nothing to compare; it reached "
            f"{highest:.4f} on the way and was lost again: try a lower learning rate (lr0)"
        )
    return (
        f"nothing was learned: the {score} of {runs} is 0.0000, so there is nothing to compare; try more epochs or "
        "another learning rate (lr0), and look at the labels"
    )


def _progress(trials: Iterable[Trial], plan: Collection[tuple[str, int]]) -> Progress:
    ended = {(trial.name, trial.seed) for trial in trials if trial.stage == "confirm" and not trial.unfinished}
    seeds, waited_for = {seed for _, seed in plan}, {seed for name, seed in plan if (name, seed) not in ended}
    return Progress(len(seeds - waited_for), len(seeds), len(ended.intersection(plan)), len(plan))


def _excluded(trial: Trial, reason: str | None = None) -> Excluded:
    why = reason or trial.confounder or ("not finished" if trial.unfinished else "score is not a number")
    return Excluded(trial.number, trial.name, trial.label, trial.stage, trial.seed, why)


def _best_baseline(
    trials: list[Trial], names: list[str], seeds: set[int]
) -> tuple[str | None, dict[str, dict[int, float]]]:
    """The baseline with the highest mean over the confirmation seeds that all of them ran, and all scores there.

    Without such seeds, over all runs. Taking the best of several makes winning harder, never easier.
    """
    scores = scores_by_seed(trials, names)
    common = set.intersection(seeds, *(set(by_seed) for by_seed in scores.values()))
    if common:
        scores = {name: {s: by_seed[s] for s in by_seed if s in seeds} for name, by_seed in scores.items()}
    mean = {
        name: fmean(score for seed, score in by_seed.items() if not common or seed in common)
        for name, by_seed in scores.items()
    }
    return max(mean, key=lambda name: mean[name], default=None), scores


def _entry(trial: Trial, scores: Collection[float], shown: Shown) -> dict[str, Any]:
    """The fields of an :class:`Entry`."""
    return {
        "trial": trial.number,
        "name": trial.name,
        "label": trial.label,
        "params": dict(trial.spec or {}),
        "facts": shown(trial),
        "run_id": trial.facts.run_id,
        "score": fmean(scores) if scores else None,
        "n": len(scores),
    }


def _baseline(trials: list[Trial], name: str, scores: Mapping[int, float], shown: Shown) -> Baseline:
    runs = [trial for trial in trials if trial.name == name and trial.usable]
    ids = tuple(run.facts.run_id for run in runs if run.facts.run_id and run.seed in scores)
    sigma = stdev(scores.values()) if len(scores) > 1 else None
    return Baseline(**_entry(runs[0], scores.values(), shown), sigma=sigma, run_ids=ids)


def _candidate(
    runs: list[Trial],
    searched: Sequence[Trial],
    baselines: Mapping[str, Mapping[int, float]],
    reference: str | None,
    alpha: float,
    shown: Shown,
) -> Candidate:
    scores = scores_by_seed(runs, [runs[0].name]).get(runs[0].name, {})
    over = {name: p for name, theirs in baselines.items() if (p := paired_by_seed(scores, theirs, alpha)) is not None}
    first = searched[0] if searched else runs[0]
    return Candidate(
        **_entry(first, scores.values(), shown),
        title=first.title,
        search=searched[0].score if searched else None,
        pairs=over.get(reference or ""),
        run_ids=tuple(run.facts.run_id for run in runs if run.facts.run_id),
        over=over,
    )


def _obstacle(candidate: Candidate, runs: list[Trial], everything: list[Trial], baselines: list[str]) -> str:
    """Why this candidate cannot be judged, "" if it can."""
    clean = {run.seed for run in runs if run.usable}
    for run in runs:
        if run.confounder is not None and run.seed not in clean:
            return f"a run is not comparable (seed {run.seed}: {run.confounder})"
    if not any(trial.usable for trial in everything if trial.name in baselines):
        return "no baseline has run"
    n = candidate.pairs.n if candidate.pairs else 0
    return f"{n} paired seeds; at least {MIN_PAIRS} are needed" if n < MIN_PAIRS else ""


def _judged(drafts: list[Candidate], baseline: str | None, alpha: float, equivalence: float) -> tuple[Candidate, ...]:
    """The rule of the package's docstring; winners first, then by mean difference. Unjudged ones count in Holm's k."""
    usable = [c.pairs if c.pairs and not c.reason else None for c in drafts]
    adjusted = holm([p.p_t if p else 1.0 for p in usable])
    after = " after Holm" if len(drafts) > 1 else ""
    judged = []
    for c, p, p_holm in zip(drafts, usable, adjusted, strict=True):
        if p is None:
            judged.append(c)
            continue
        wins, beyond = False, f", and {c.ruled_out} is ruled out"
        if p.mean <= 0:
            reason = f"not above {baseline}{beyond}"
        elif p_holm > alpha:
            reason = f"that may be luck (p {p_holm:.2g}{after}){beyond}"
        elif p.mean < equivalence:
            reason = f"better than {baseline}, but by less than {equivalence:g}, which does not matter{beyond}"
        else:
            wins, reason = True, f"better than {baseline} (p {p_holm:.2g}{after})"
        judged.append(replace(c, p_holm=p_holm, wins=wins, reason=reason))
    return tuple(sorted(judged, key=lambda c: (not c.wins, -(c.pairs.mean if c.pairs else -math.inf))))


def _ranking(
    candidates: Sequence[Candidate], searched: Mapping[str, list[Trial]], raced: Sequence[Standing], shown: Shown
) -> tuple[Ranked, ...]:
    """The confirmed as they were judged; then the others, raced ones by how they stand, else by their search run."""
    standings = {standing.trial: standing for standing in raced}
    places = {trial: place for place, trial in enumerate(standings)}
    done = [
        Ranked(
            **{each.name: getattr(c, each.name) for each in fields(Entry)} | {"n": c.pairs.n},
            stage="confirm",
            raced=standings.get(c.trial),
        )
        for c in candidates
        if c.pairs
    ]
    confirmed = {entry.name for entry in done}
    rest = [
        Ranked(
            **_entry(runs[0], [run.score or 0.0 for run in (runs if raced else runs[:1])], shown),
            stage="search",
            raced=standings.get(runs[0].number),
        )
        for name, runs in searched.items()
        if name not in confirmed
    ]
    rest.sort(key=lambda entry: (places.get(entry.trial, len(places)), -(entry.score or 0.0)))
    return (*done, *rest)
