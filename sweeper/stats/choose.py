"""``choose``: applies the rule that the package's docstring states to the trials of a sweep."""

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
)
from .noise import Spread, paired_by_seed, scores_by_seed, spread
from .pairs import MIN_PAIRS, detectable_effect, holm
from .sentences import next_step, sentence

LEAST = 0.00005  # A lower score is shown as 0.0000, so it counts as nothing learned.

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

    ``trials``: all trials of the sweep, unfinished ones included. ``planned``: name and seed of every run of the
    confirmation, as it was designed before its first run (empty: all confirmation runs among ``trials``). Other
    confirmation runs are excluded, and nobody wins before each planned run has ended, completed or failed; so the rule
    is always applied to the same set of runs. ``raced``: the results of the race, best first, which rank the proposals
    that were not confirmed. ``objective``: the name of the score in sentences. ``shown``: returns the facts of a trial
    that the answer shows beside it.

    A pair is a confirmation run of a candidate and a run of the best baseline on the same seed. A seed on which the
    search trained the candidate is not fresh and makes no pair. A configuration with a confounded run, and no clean run
    on that seed, never wins. Trials of stage ``control`` are left out.
    """
    trials = [trial for trial in trials if trial.stage != "control"]
    plan = set(planned) or {(trial.name, trial.seed) for trial in trials if trial.stage == "confirm"}
    unplanned = [trial for trial in trials if trial.stage == "confirm" and (trial.name, trial.seed) not in plan]
    counted = [trial for trial in trials if trial.stage != "confirm" or (trial.name, trial.seed) in plan]
    progress = _progress(counted, plan) if plan else None
    names = list(dict.fromkeys(baselines))
    proposed = [trial for trial in counted if trial.name not in names]
    search_seeds = {(trial.name, trial.seed) for trial in proposed if trial.stage == "search"}
    stale = [t for t in proposed if t.stage == "confirm" and (t.name, t.seed) in search_seeds]
    excluded = [_excluded(trial) for trial in counted if not trial.usable]
    excluded += [_excluded(trial, "not fresh: the search saw this seed") for trial in stale if trial.usable]
    excluded += [_excluded(trial, "not a run of the confirmation as it was designed") for trial in unplanned]

    searched: dict[str, list[Trial]] = {}
    for trial in proposed:
        if trial.stage == "search" and trial.usable:
            searched.setdefault(trial.name, []).append(trial)
    confirmed: dict[str, list[Trial]] = {}
    for trial in proposed:
        if trial.stage == "confirm" and trial not in stale:
            confirmed.setdefault(trial.name, []).append(trial)
    fresh = {trial.seed for runs in confirmed.values() for trial in runs}
    reference, scores = _best_baseline(counted, names, fresh)
    level = alpha / max(len(confirmed), 1)
    drafts = []
    for name, runs in confirmed.items():
        by_seed = scores_by_seed(runs, [name]).get(name, {})
        draft = _candidate(runs, searched.get(name, []), by_seed, scores, reference, alpha, shown)
        if p := paired_by_seed(by_seed, scores.get(reference or "", {}), level):
            mde = detectable_effect(p.s_d, p.n, alpha=level, equivalence=equivalence)
            draft = replace(draft, mde=mde, low_family=p.low, high_family=p.high)
        reason = _obstacle(draft, [trial for trial in proposed if trial.name == name], counted, names)
        if progress is not None and not progress.complete:
            reason = "the confirmation is not finished"
        drafts.append(replace(draft, reason=reason))
    candidates = _judged(drafts, reference, alpha, equivalence)

    compared = [c.pairs for c in candidates if c.pairs]
    pairs = min((p.n for p in compared), default=0)
    noise = (
        Spread.of(compared, f"schedules with {reference} in the confirmation")
        if compared
        else spread(counted, baselines=names)
    )
    judged = [trial for trial in counted if trial.usable and (trial.stage == "confirm" or not compared)]
    any_learned = not judged or any(learned(trial.score) for trial in judged)
    if not any_learned:
        candidates = tuple(replace(c, mde=None, p_holm=None, reason="nothing was learned") for c in candidates)
    described = {name: _baseline(counted, name, by_seed, shown) for name, by_seed in scores.items()}
    answer = Answer(
        winner=next((c for c in candidates if c.wins), None),
        sentence="",
        candidates=candidates,
        ranking=_ranking(candidates, searched, raced, shown),
        baseline=described.get(reference or ""),
        baselines=tuple(described.values()),
        excluded=tuple(excluded),
        tried=len({trial.name for trial in proposed if not trial.unfinished and not trial.failed}),
        pairs=pairs,
        noise=noise,
        detectable=detectable_effect(noise.s_d, pairs, alpha=level, equivalence=equivalence)
        if compared and noise.s_d is not None and any_learned
        else None,
        alpha=alpha,
        equivalence=equivalence,
        learned=any_learned,
        failures=failures(counted),
        confirmation=progress,
    )
    return replace(
        answer,
        sentence=sentence(answer, objective) if any_learned else _nothing_learned(judged, objective),
        next_step=next_step(answer, unfinished=any(trial.unfinished for trial in counted)),
    )


def learned(score: float | None) -> bool:
    """Whether a score is more than 0 to the four digits that are shown."""
    return score is not None and score >= LEAST


def _nothing_learned(trials: Sequence[Trial], objective: str) -> str:
    """The sentence for runs whose scores are all 0."""
    runs = f"all {len(trials)} finished runs" if len(trials) > 1 else "the only finished run"
    highest = max((value for trial in trials for value in trial.curve.values()), default=None)
    if learned(highest):
        return (
            f"nothing was kept: the {objective} of {runs} is 0.0000 at the end, so there is nothing to compare; it "
            f"reached {highest:.4f} on the way and was lost again: try a lower learning rate (lr0)"
        )
    return (
        f"nothing was learned: the {objective} of {runs} is 0.0000, so there is nothing to compare; try more epochs or "
        "another learning rate (lr0), and look at the labels"
    )


def _progress(trials: Iterable[Trial], plan: Collection[tuple[str, int]]) -> Progress:
    ended = {(trial.name, trial.seed) for trial in trials if trial.stage == "confirm" and not trial.unfinished}
    seeds, unfinished = {seed for _, seed in plan}, {seed for name, seed in plan if (name, seed) not in ended}
    return Progress(len(seeds - unfinished), len(seeds), len(ended.intersection(plan)), len(plan))


def _excluded(trial: Trial, reason: str | None = None) -> Excluded:
    reason = reason or trial.confounder or ("not finished" if trial.unfinished else "score is not a number")
    return Excluded(trial.number, trial.name, trial.label, trial.stage, trial.seed, reason)


def _best_baseline(
    trials: list[Trial], names: list[str], seeds: set[int]
) -> tuple[str | None, dict[str, dict[int, float]]]:
    """The baseline with the highest mean (None: no baseline has a score), and the scores: name -> seed -> score.

    Means are taken over those of the confirmation's ``seeds`` that every baseline has finished, or over all seeds where
    there are none. Comparing with the best of several baselines makes it harder to win, never easier.
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
    scores: Mapping[int, float],
    baselines: Mapping[str, Mapping[int, float]],
    reference: str | None,
    alpha: float,
    shown: Shown,
) -> Candidate:
    """A candidate that is not judged yet. ``runs``: its confirmation runs, ``scores`` their scores by seed;
    ``searched``: its usable search runs; ``reference``: the best of the ``baselines``."""
    over = {name: p for name, others in baselines.items() if (p := paired_by_seed(scores, others, alpha)) is not None}
    first = searched[0] if searched else runs[0]
    return Candidate(
        **_entry(first, scores.values(), shown),
        title=first.title,
        search=searched[0].score if searched else None,
        pairs=over.get(reference or ""),
        run_ids=tuple(run.facts.run_id for run in runs if run.facts.run_id),
        over=over,
    )


def _obstacle(candidate: Candidate, runs: list[Trial], trials: list[Trial], baselines: list[str]) -> str:
    """Why this candidate with these ``runs`` cannot be judged; "" if it can."""
    clean = {run.seed for run in runs if run.usable}
    for run in runs:
        if run.confounder is not None and run.seed not in clean:
            return f"a run is not comparable (seed {run.seed}: {run.confounder})"
    if not any(trial.usable for trial in trials if trial.name in baselines):
        return "no baseline has run"
    n = candidate.pairs.n if candidate.pairs else 0
    return f"{n} paired seeds; at least {MIN_PAIRS} are needed" if n < MIN_PAIRS else ""


def _judged(drafts: list[Candidate], baseline: str | None, alpha: float, equivalence: float) -> tuple[Candidate, ...]:
    """The drafts with the verdict of the rule: winners first, then by mean difference.

    A draft with a ``reason`` is not judged, but it counts as a candidate in Holm's correction (with p 1).
    """
    comparisons = [c.pairs if c.pairs and not c.reason else None for c in drafts]
    adjusted = holm([p.p_t if p else 1.0 for p in comparisons])
    holm_note = " after Holm" if len(drafts) > 1 else ""
    judged = []
    for c, p, p_holm in zip(drafts, comparisons, adjusted, strict=True):
        if p is None:
            judged.append(c)
            continue
        wins, ruled_out = False, f", and {c.ruled_out} is ruled out"
        if p.mean <= 0:
            reason = f"not above {baseline}{ruled_out}"
        elif p_holm > alpha:
            reason = f"that may be luck (p {p_holm:.2g}{holm_note}){ruled_out}"
        elif p.mean < equivalence:
            reason = f"better than {baseline}, but by less than {equivalence:g}, which does not matter{ruled_out}"
        else:
            wins, reason = True, f"better than {baseline} (p {p_holm:.2g}{holm_note})"
        judged.append(replace(c, p_holm=p_holm, wins=wins, reason=reason))
    return tuple(sorted(judged, key=lambda c: (not c.wins, -(c.pairs.mean if c.pairs else -math.inf))))


def _ranking(
    candidates: Sequence[Candidate], searched: Mapping[str, list[Trial]], raced: Sequence[Standing], shown: Shown
) -> tuple[Ranked, ...]:
    """The candidates in their order, then the other proposals: by their rank in the race, without a race by score."""
    standings = {standing.trial: standing for standing in raced}
    ranks = {trial: rank for rank, trial in enumerate(standings)}
    confirmed = [
        Ranked(
            **{field.name: getattr(c, field.name) for field in fields(Entry)} | {"n": c.pairs.n},
            stage="confirm",
            raced=standings.get(c.trial),
        )
        for c in candidates
        if c.pairs
    ]
    names = {entry.name for entry in confirmed}
    others = [
        Ranked(
            **_entry(runs[0], [run.score or 0.0 for run in (runs if raced else runs[:1])], shown),
            stage="search",
            raced=standings.get(runs[0].number),
        )
        for name, runs in searched.items()
        if name not in names
    ]
    others.sort(key=lambda entry: (ranks.get(entry.trial, len(ranks)), -(entry.score or 0.0)))
    return (*confirmed, *others)
