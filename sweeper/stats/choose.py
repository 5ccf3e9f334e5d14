"""The pick: the rule of the package's docstring applied to the rows of a sweep."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sweeper.study import Trial

from .answer import Answer, Candidate, Progress, sentence
from .failures import failures, learned, nothing_learned
from .noise import Spread, paired_by_seed, scores_by_seed, spread
from .pairs import detectable_effect, holm

MIN_PAIRS = 4  # fewer differences say too little about their own spread: no winner is named


def choose(
    trials: Iterable[Trial],
    *,
    baselines: Iterable[str],
    planned: Collection[tuple[str, int]] = (),
    alpha: float = 0.05,
    equivalence: float = 0.002,
    objective: str = "score",
    shown: Callable[[Trial], dict[str, Any]] = Trial.shown,
) -> Answer:
    """The winner among the confirmed candidates, or the reason why there is none.

    ``trials``: all of a sweep, unfinished ones included. ``baselines``: names; ``objective``: what the sentence calls
    the score; ``shown``: what stands beside a trial in a table. ``planned``: name and seed of every run of the
    confirmation, as it was designed before its first run; runs of stage ``confirm`` beside them play no part, and
    nobody wins before each of them has ended, well or badly. So the rule is applied to one set of runs, however often
    one looks. Without ``planned`` the confirmation is what is among the trials.

    Pairs are confirmation runs of a candidate with runs of the best baseline on the same seed; a seed on which
    the search saw the candidate is not fresh and makes no pair. A configuration with a confounded run, and no clean run
    on that seed, never wins. Trials of stage ``control`` play no part.
    """
    everything = [row for row in trials if row.stage != "control"]
    plan = set(planned) or {(row.name, row.seed) for row in everything if row.stage == "confirm"}
    beside = [row for row in everything if row.stage == "confirm" and (row.name, row.seed) not in plan]
    everything = [row for row in everything if row.stage != "confirm" or (row.name, row.seed) in plan]
    progress = _progress(everything, plan) if plan else None
    names = list(dict.fromkeys(baselines))
    rivals = [row for row in everything if row.name not in names]
    seen = {(row.name, row.seed) for row in rivals if row.stage == "search"}
    confirms = [row for row in rivals if row.stage == "confirm"]
    fresh = [row for row in confirms if (row.name, row.seed) not in seen]
    excluded = [_exclusion(row) for row in everything if not row.usable]
    excluded += [
        _exclusion(row, "not fresh: the search saw this seed") for row in confirms if row.usable and row not in fresh
    ]
    excluded += [_exclusion(row, "not a run of the confirmation as it was designed") for row in beside]

    searched: dict[str, Trial] = {}
    for row in rivals:
        if row.stage == "search" and row.usable:
            searched.setdefault(row.name, row)
    reference, scores = _best_baseline(everything, names, {row.seed for row in fresh})
    reference_scores = scores.get(reference, {}) if reference else {}
    groups: dict[str, list[Trial]] = {}
    for row in fresh:
        groups.setdefault(row.name, []).append(row)
    level = alpha / max(len(groups), 1)
    drafts = []
    for name, own in groups.items():
        draft = _candidate(own, searched.get(name), scores, reference, alpha, level, equivalence, shown)
        drafts.append(replace(draft, reason=_obstacle(draft, [r for r in rivals if r.name == name], everything, names)))
    if progress and not progress.complete:
        drafts = [replace(draft, reason="the confirmation is not finished") for draft in drafts]
    candidates = _judged(drafts, reference, alpha, equivalence)

    compared = [c.pairs for c in candidates if c.pairs]
    pairs = min((p.n for p in compared), default=0)
    noise = (
        Spread.of(compared, f"schedules with {reference} in the confirmation")
        if compared
        else spread(everything, baselines=names)
    )
    judged = [row for row in everything if row.usable and (row.stage == "confirm" or not compared)]
    any_learned = not judged or any(learned(row.score) for row in judged)
    if not any_learned:
        candidates = tuple(replace(c, mde=None, p_holm=None, reason="nothing was learned") for c in candidates)
    answer = Answer(
        winner=next((c for c in candidates if c.wins), None),
        sentence="",
        candidates=candidates,
        ranking=_ranking(candidates, searched, shown),
        baseline=_baseline(everything, reference, reference_scores, shown) if reference else None,
        baselines=tuple(_baseline(everything, name, by_seed, shown) for name, by_seed in scores.items()),
        excluded=tuple(excluded),
        tried=len({row.name for row in rivals if not row.unfinished and not row.failed}),
        pairs=pairs,
        noise=noise,
        detectable=detectable_effect(noise.s_d, pairs, alpha=level, equivalence=equivalence)
        if compared and noise.s_d is not None and any_learned
        else None,
        needed=noise.needed,
        needed_range=noise.needed_range,
        alpha=alpha,
        equivalence=equivalence,
        learned=any_learned,
        failures=failures(everything),
        confirmation=progress,
    )
    return replace(answer, sentence=sentence(answer, objective) if any_learned else nothing_learned(judged, objective))


def _progress(rows: Iterable[Trial], plan: Collection[tuple[str, int]]) -> Progress:
    ended = {(row.name, row.seed) for row in rows if row.stage == "confirm" and not row.unfinished}
    seeds, waited_for = {seed for _, seed in plan}, {run[1] for run in plan if run not in ended}
    return Progress(len(seeds - waited_for), len(seeds), len(ended.intersection(plan)), len(plan))


def _exclusion(row: Trial, reason: str | None = None) -> dict[str, Any]:
    why = reason or row.confounder or ("not finished" if row.unfinished else "score is not a number")
    return {
        "trial": row.number,
        "name": row.name,
        "label": row.label,
        "stage": row.stage,
        "seed": row.seed,
        "reason": why,
    }


def _best_baseline(
    rows: list[Trial], names: list[str], seeds: set[int]
) -> tuple[str | None, dict[str, dict[int, float]]]:
    """The baseline with the highest mean over the confirmation seeds that all of them ran, and all scores there.

    Without such seeds, over all runs. Taking the best of several makes winning harder, never easier.
    """
    scores = scores_by_seed(rows, names)
    common = set.intersection(seeds, *(set(by_seed) for by_seed in scores.values()))
    if common:
        scores = {name: {s: by_seed[s] for s in by_seed if s in seeds} for name, by_seed in scores.items()}
    mean = {
        name: float(np.mean([by_seed[s] for s in by_seed if not common or s in common]))
        for name, by_seed in scores.items()
    }
    best = max(mean, key=lambda name: mean[name], default=None)
    return best, scores


def _baseline(
    rows: list[Trial], name: str, scores: Mapping[int, float], shown: Callable[[Trial], dict[str, Any]]
) -> dict[str, Any]:
    own = [row for row in rows if row.name == name and row.usable]
    values = list(scores.values())
    return {
        "trial": own[0].number,
        "name": name,
        "label": own[0].label,
        "score": float(np.mean(values)),
        "sigma": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "n": len(values),
        "params": dict(own[0].spec or {}),
        "facts": shown(own[0]),
        "run_id": own[0].facts.run_id,
        "run_ids": [row.facts.run_id for row in own if row.facts.run_id and row.seed in scores],
    }


def _candidate(
    own: list[Trial],
    search: Trial | None,
    baselines: Mapping[str, Mapping[int, float]],
    reference: str | None,
    alpha: float,
    level: float,
    equivalence: float,
    shown: Callable[[Trial], dict[str, Any]],
) -> Candidate:
    scores = scores_by_seed(own, [own[0].name]).get(own[0].name, {})
    over = {name: p for name, theirs in baselines.items() if (p := paired_by_seed(scores, theirs, alpha)) is not None}
    pairs = over.get(reference or "")
    family = paired_by_seed(scores, baselines.get(reference or "", {}), level)
    first = search or own[0]
    return Candidate(
        trial=first.number,
        name=first.name,
        label=first.label,
        title=first.title,
        score=float(np.mean(list(scores.values()))) if scores else None,
        search=search.score if search else None,
        pairs=pairs,
        mde=detectable_effect(pairs.s_d, pairs.n, alpha=level, equivalence=equivalence) if pairs else None,
        low_family=family.low if family else None,
        high_family=family.high if family else None,
        params=dict(first.spec or {}),
        facts=shown(first),
        run_id=first.facts.run_id,
        run_ids=tuple(row.facts.run_id for row in own if row.facts.run_id),
        over=over,
    )


def _obstacle(candidate: Candidate, own: list[Trial], everything: list[Trial], baselines: list[str]) -> str:
    """Why this candidate cannot be judged, "" if it can."""
    clean = {row.seed for row in own if row.usable}
    for row in own:
        if row.confounder is not None and row.seed not in clean:
            return f"a run is not comparable (seed {row.seed}: {row.confounder})"
    rivals = [row for row in everything if row.name in baselines]
    if not any(row.usable for row in rivals):
        return "no baseline has run"
    n = candidate.pairs.n if candidate.pairs else 0
    return f"{n} paired seeds; at least {MIN_PAIRS} are needed" if n < MIN_PAIRS else ""


def _judged(drafts: list[Candidate], baseline: str | None, alpha: float, equivalence: float) -> tuple[Candidate, ...]:
    """The rule of the package's docstring; winners first, then by mean difference. Unjudged ones count in Holm's k."""
    usable = [c.pairs if c.pairs and not c.reason else None for c in drafts]
    adjusted = holm([p.p_t if p else 1.0 for p in usable])
    judged = []
    for c, p, p_holm in zip(drafts, usable, adjusted, strict=True):
        if p is None:
            judged.append(c)
            continue
        reason = ""
        if p.mean <= 0:
            reason = f"not above {baseline}"
        elif p_holm > alpha:
            reason = f"not told from {baseline} (p {p_holm:.2g} after Holm)"
        elif p.mean < equivalence:
            reason = f"better than {baseline}, but by less than {equivalence:g}, which does not matter"
        wins = not reason
        reason = f"{reason}, and {c.ruled_out} is ruled out" if reason else ""
        reason = reason or f"better than {baseline} (p {p_holm:.2g} after Holm)"
        judged.append(replace(c, p_holm=p_holm, wins=wins, reason=reason))
    return tuple(sorted(judged, key=lambda c: (not c.wins, -(c.pairs.mean if c.pairs else -math.inf))))


def _ranking(
    candidates: Sequence[Candidate], searched: Mapping[str, Trial], shown: Callable[[Trial], dict[str, Any]]
) -> tuple[dict[str, Any], ...]:
    done = [
        {
            **{key: getattr(c, key) for key in ("trial", "name", "label", "params", "score", "run_id", "facts")},
            "stage": "confirm",
            "n": c.pairs.n,
        }
        for c in candidates
        if c.pairs
    ]
    confirmed = {entry["name"] for entry in done}
    rest = sorted((row for row in searched.values() if row.name not in confirmed), key=lambda row: -(row.score or 0.0))
    return tuple(
        done
        + [
            {
                "trial": row.number,
                "name": row.name,
                "label": row.label,
                "params": dict(row.spec or {}),
                "score": row.score,
                "run_id": row.facts.run_id,
                "facts": shown(row),
                "stage": "search",
                "n": 1,
            }
            for row in rest
        ]
    )
