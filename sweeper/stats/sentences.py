"""The answer of a sweep in words: the sentence that states it, and the step that comes next."""

import math

from sweeper.errors import ConfigError

from .answer import Answer, Candidate, Ranked
from .noise import CLAIM
from .pairs import MIN_PAIRS, difference, explains, luck_of_the_best, pairs_needed

MOST_SEEDS = 1000  # The sweep file allows no larger ``confirm.seeds``.


def sentence(answer: Answer, objective: str) -> str:
    """The answer in one line, made from its other values; ``objective`` is the name of the score."""
    noise, baseline = answer.noise, answer.baseline.name if answer.baseline else "a baseline"
    need = f"{CLAIM:+.3f} would need {noise.needs}"
    if answer.failures.every:
        return answer.failures.sentence
    if answer.winner and (p := answer.winner.pairs):
        return (
            f"winner: {answer.winner.title}, {p.mean:+z.4f} {objective} over {baseline} ({1 - answer.alpha:.0%} "
            f"interval {p.low:+z.4f} to {p.high:+z.4f}, {p.n} paired seeds, p {answer.winner.p_holm:.2g} after Holm "
            f"over {len(answer.candidates)}, {answer.tried} schedules tried); "
            f"{_other_explanations(answer.winner, baseline)}"
        )
    if not answer.ranking:
        return f"no winner yet: nothing to compare; {need}"
    if (progress := answer.confirmation) and not progress.complete:
        return (
            f"no winner yet: {progress.seeds} of {progress.of_seeds} paired seeds are finished ({progress.runs} of "
            f"{progress.of_runs} runs), and the answer follows after the last; {need}"
        )
    if not answer.candidates:
        raced = [entry for entry in answer.ranking if entry.raced is not None]
        if raced:
            return _leader_of_the_race(raced[0], len(raced))
        luck = ""
        if answer.tried > 1:
            low, high = (luck_of_the_best(s_d / math.sqrt(2), answer.tried) for s_d in (noise.low, noise.high))
            luck = (
                f", and the best of {answer.tried} equal schedules leads by {low:+z.4f} to {high:+z.4f} by luck alone"
            )
        return f"no winner yet: one run each{luck}; {need}"
    best = answer.candidates[0]
    if all(candidate.p_holm is None for candidate in answer.candidates):
        return f"no winner yet: {best.title}: {best.reason}; {need}"
    result = (
        f"the best was {best.title}, {best.pairs.difference} over {baseline}: {best.reason}; " if best.pairs else ""
    )
    if others := [f"{c.ruled_out} for {c.name}" for c in answer.candidates[1:] if c.p_holm is not None]:
        result += f"ruled out is also {', '.join(others)}; "
    count = len(answer.candidates)
    return (
        f"no winner: {result}this design ({count} candidate{'s' * (count > 1)} on {answer.pairs} paired seeds) would "
        f"have seen {answer.detectable:+z.4f} over {baseline} with 80 % power"
    )


def next_step(answer: Answer, *, unfinished: bool) -> str:
    """What to do after "no winner", in one sentence; "" where a schedule won or the answer's sentence says what to do.

    ``unfinished``: whether a trial of the sweep is not finished. A confirmation that has begun takes no more seeds, so
    more seeds mean a new sweep.
    """
    if answer.winner or answer.failures.every or not answer.learned:
        return ""
    if (progress := answer.confirmation) and not progress.complete:
        left = progress.of_runs - progress.runs
        return f"sweeper confirm trains the rest of the confirmation ({left} of {progress.of_runs} runs)"
    if not answer.candidates:
        if not answer.ranking and not unfinished:
            return "sweeper run trains the search; where it has run already, sweeper status says why no run has a score"
        first = "sweeper run finishes the search, and then " if unfinished else ""
        return (
            f"{first}sweeper confirm trains the best of the search and the baselines again on fresh seeds, and only "
            "these runs decide"
        )
    new_sweep = "in a new sweep with another name and another seed"
    judged = [(c, c.pairs) for c in answer.candidates if c.p_holm is not None and c.pairs is not None]
    if not judged:
        if progress and progress.of_seeds < MIN_PAIRS:
            return f"confirm on at least {MIN_PAIRS} seeds (confirm.seeds) {new_sweep}"
        return f"remove the cause that stands above, and confirm again {new_sweep}"
    space = f"search another space (sweeper families lists what a space can hold) {new_sweep}"
    least = f"{answer.equivalence:g} (confirm.equivalence)"
    if all(pairs.high < answer.equivalence for _, pairs in judged):
        return f"{space}; more seeds would not help, because a gain of {least} or more is ruled out"
    best, pairs = judged[0]
    try:
        enough = pairs_needed(
            pairs.mean, pairs.s_d, alpha=answer.alpha, equivalence=answer.equivalence, most=MOST_SEEDS
        )
    except ConfigError:  # The measured gain is below ``equivalence``, or too small for any number of seeds.
        return f"{space}, because the best schedule gained less than {least} or too little to be shown by more seeds"
    seeds = max(enough, MIN_PAIRS)
    runs = seeds * (1 + len(answer.baselines))
    return (
        f"to decide on {best.title}, confirm it alone on {seeds} fresh seeds {new_sweep} (enqueue: its schedule, which "
        f"sweeper export --trial {best.trial} writes, trials: 1, confirm: {{best: 1, seeds: {seeds}}}; {runs:,} runs), "
        f"where a true gain of {pairs.mean:+z.4f} wins with 80 % power; where that costs too much, search another space"
    )


def _leader_of_the_race(first: Ranked, raced: int) -> str:
    """The sentence for a race without a confirmation; ``first`` leads it among ``raced`` proposals."""
    standing = first.raced
    assert standing is not None
    ahead = f"{standing.difference} over {standing.over}"
    if standing.n == 1:
        return (
            f"no winner yet: {first.label} is the best of {raced} proposals, {ahead} on the one search seed, which "
            "selected it; one run each is no evidence"
        )
    return (
        f"no winner yet: {first.label} leads the race of {raced} proposals at {ahead} on {standing.n} search seeds, "
        "which selected it; only fresh seeds are evidence"
    )


def _other_explanations(winner: Candidate, baseline: str) -> str:
    """Whether another baseline than ``baseline``, or a larger learning rate without the restart, explains the gain."""
    parts = [
        f"{name} {'does not explain' if pairs.low > 0 else 'may be as good, and then explains'} it "
        f"({pairs.difference} over {name})"
        for name, pairs in winner.over.items()
        if name != baseline
    ] or ["no other baseline was compared"]
    question = "whether a larger learning rate alone explains it"
    conclusions = {
        True: "a larger learning rate alone explains it",
        False: "a larger learning rate alone does not explain it",
        None: f"{question} is unclear",
    }
    verdicts = [verdict for verdict in winner.facts.get("verdicts") or () if verdict.get("over_peak")]
    for verdict in verdicts:
        peak, practical = verdict["over_peak"], verdict["thresholds"]["practical"]
        mean, low, high = peak["mean"], peak["low"], peak["high"]
        parts.append(
            f"{conclusions[explains(mean, low, high, practical)]} ({difference(mean, low, high)} over the matched peak "
            f"of the restart at epoch {verdict['epoch']})"
        )
    if winner.facts.get("restarts") and not verdicts:
        parts.append(f"{question} was not examined (sweeper confirm --escape --trial {winner.trial})")
    return "; ".join(parts)
