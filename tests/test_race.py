"""The race over seeds: who is trained again, what becomes of it in the study, and what samplers are told."""

import random
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from test_study import claim, launch, space

from sweeper.config import Search
from sweeper.search import Entrant, Suggest, promotions, rungs, search_seeds, seed_effects, shrunken_means
from sweeper.study import Study, Wanted
from sweeper.study.samplers import history

SEEDS = search_seeds(0, 8)


def entrants(table: list[list[float | None]]) -> list[Entrant]:
    """An entrant per row of scores, numbered from 10; the seeds that a row does not reach are not finished."""
    return [Entrant(10 + row, dict(zip(SEEDS, scores, strict=False))) for row, scores in enumerate(table)]


def seeds_of(wanted: list[tuple[int, int]]) -> dict[int, list[int]]:
    results: dict[int, list[int]] = {}
    for trial, seed in wanted:
        results.setdefault(trial, []).append(SEEDS.index(seed))
    return results


# -- the rule


def test_search_seeds_begin_with_the_sweeps_and_never_meet_the_confirmations() -> None:
    from sweeper.evidence import fresh_seeds

    for seed in (0, 1, 7, 1_500_000):
        seeds = search_seeds(seed, 40)
        assert seeds[0] == seed
        assert len(set(seeds)) == 40
        assert seeds[:5] == search_seeds(seed, 5)
        assert not set(seeds) & set(fresh_seeds(seed, 400))
    assert not set(search_seeds(0, 20)) & set(search_seeds(1, 20))


def test_the_better_half_goes_on_and_nobody_waits_for_a_full_round() -> None:
    assert promotions(entrants([[0.1]]), SEEDS, 2) == []
    assert seeds_of(promotions(entrants([[0.1], [0.2]]), SEEDS, 2)) == {11: [1]}
    # the third and fourth: two of four go on, and 10 was not among the best half of any beginning
    assert seeds_of(promotions(entrants([[0.1], [0.2], [0.0], [0.3]]), SEEDS, 2)) == {11: [1], 13: [1]}
    # with two seeds the mean counts: 13 goes on to four seeds
    assert seeds_of(promotions(entrants([[0.1], [0.2, 0.0], [0.0], [0.3, 0.2]]), SEEDS, 2)) == {11: [1], 13: [1, 2, 3]}
    assert seeds_of(promotions(entrants([[0.1], [0.2], [0.0], [0.3]]), SEEDS, 4)) == {13: [1]}


def test_who_is_not_finished_holds_up_those_behind_it_and_who_failed_is_not_counted() -> None:
    assert promotions(entrants([[], [0.2], [0.3]]), SEEDS, 2) == []
    assert seeds_of(promotions(entrants([[None], [0.2], [0.3]]), SEEDS, 2)) == {12: [1]}
    out = [Entrant(9, pruned=True), *entrants([[0.2]])]  # stopped by a pruner: beaten, and not trained again
    assert seeds_of(promotions(out, SEEDS, 2)) == {10: [1]}
    failed = entrants([[0.1], [0.2, None], [0.3, 0.1], [0.4, 0.2], [0.5, 0.3]])
    assert 11 not in seeds_of([item for item in promotions(failed, SEEDS, 2) if item[1] in SEEDS[2:]])


def test_a_race_may_begin_on_several_seeds() -> None:
    wanted = seeds_of(promotions(entrants([[0.0], [0.1, 0.1, 0.1], [None]]), SEEDS, 2, begin=3))
    assert wanted == {10: [1, 2], 11: [1, 2]}
    wanted = seeds_of(promotions(entrants([[0.0] * 3, [0.1] * 3]), SEEDS, 2, begin=3))
    assert wanted == {10: [1, 2], 11: [1, 2, 3, 4, 5]}
    assert rungs(8, begin=3) == [3, 6, 8]


def test_a_race_begins_on_a_quarter_of_its_seeds_unless_told_otherwise() -> None:
    written = [{}, {"seeds": 3}, {"seeds": 8}, {"seeds": 32}, {"seeds": 8, "begin": 1}]
    assert [Search.model_validate(keys).begin for keys in written] == [1, 1, 2, 8, 1]


def test_the_replicates_follow_from_the_scores_alone_whoever_finishes_first() -> None:
    """All trainings are done in a random order, asking after each; what was asked for at the end is always the same."""
    scores = {trial: [random.Random(f"{trial} {seed}").gauss(0, 1) for seed in SEEDS] for trial in range(40)}

    def race(order: random.Random) -> list[tuple[int, int]]:
        done: dict[int, dict[int, float | None]] = {trial: {} for trial in scores}
        open_ones, asked = [(trial, SEEDS[0]) for trial in scores], set()
        while open_ones:
            trial, seed = open_ones.pop(order.randrange(len(open_ones)))
            done[trial][seed] = scores[trial][SEEDS.index(seed)]
            wanted = promotions([Entrant(number, of) for number, of in done.items()], SEEDS, 2)
            assert asked <= set(wanted), "what was asked for stays asked for"
            open_ones += [item for item in wanted if item not in asked]
            asked |= set(wanted)
        return promotions([Entrant(number, of) for number, of in done.items()], SEEDS, 2)

    first = race(random.Random(0))
    assert all(race(random.Random(number)) == first for number in range(1, 12))
    counts = [len(seeds) for seeds in seeds_of(first).values()]
    assert max(counts) == 7
    assert 20 <= len(counts) <= 30  # half of 40, and some who were among the best half earlier on


def test_few_seeds_are_drawn_to_what_an_average_proposal_is_worth() -> None:
    generator = random.Random(3)
    truth = {trial: generator.gauss(-0.002, 0.004) for trial in range(200)}
    scores = {
        trial: {seed: generator.gauss(mean, 0.006) for seed in range(8 if trial % 4 == 0 else 1)}
        for trial, mean in truth.items()
    }
    worth = shrunken_means(scores)
    plain = {trial: sum(of.values()) / len(of) for trial, of in scores.items()}
    error = {name: sum((of[t] - truth[t]) ** 2 for t in truth) for name, of in (("shrunk", worth), ("plain", plain))}
    assert error["shrunk"] < 0.6 * error["plain"]
    top = sorted(truth, key=lambda trial: worth[trial])[-10:]
    lucky = sorted(truth, key=lambda trial: plain[trial])[-10:]
    assert sum(truth[trial] for trial in top) > sum(truth[trial] for trial in lucky)
    assert shrunken_means({}) == {}


@pytest.mark.parametrize("luck", [0.03, -0.03])
def test_the_luck_of_the_reference_on_a_seed_does_not_choose_among_proposals(luck: float) -> None:
    generator = random.Random(5)
    truth = {trial: generator.gauss(0.0, 0.004) for trial in range(40)}
    best = sorted(truth, key=lambda trial: truth[trial])[-10:]
    effect = [luck, *(generator.gauss(0.0, 0.01) for _ in range(7))]  # of the reference, in every difference
    scores = {
        trial: {seed: mean + effect[seed] + generator.gauss(0.0, 0.001) for seed in range(8 if trial in best else 1)}
        for trial, mean in truth.items()
    }
    worth = shrunken_means(scores)
    assert set(sorted(worth, key=lambda trial: worth[trial])[-8:]) <= set(best)
    fitted = seed_effects(scores)
    assert sum(fitted.values()) == pytest.approx(0, abs=1e-12)
    level = sum(effect) / 8
    assert [fitted[seed] for seed in range(8)] == pytest.approx([each - level for each in effect], abs=0.002)
    alone = {0: {1: 0.02, 2: 0.04}}  # what is left of a trial on all seeds is its mean
    assert shrunken_means(alone) == pytest.approx({0: 0.03})
    assert seed_effects({}) == {}


# -- replicates in the study


def test_a_replicate_is_the_same_schedule_and_parameters_on_another_seed(url: str) -> None:
    study = launch(url, 2)
    first = claim(study)
    spec = first.propose(space)
    first.tell(0.5)
    slots = [Wanted("search", seed, replicate_of=first.number) for seed in (11, 12)]
    for _ in range(3):  # any worker may ask for them, any number of times
        study.add(slots)
    again = claim(study)  # before the second proposal, which has a lower number
    assert (again.number, again.seed, again.stage, again.facts.replicate_of) == (2, 11, "search", first.number)
    assert again.propose(lambda suggest: pytest.fail("nothing is to be proposed")) == spec
    again.tell(0.6)
    assert [claim(study, worker).number for worker in ("a", "b")] == [3, 1]
    rows = study.trials()
    assert len(rows) == 4
    assert rows[2].params == rows[0].params != {}
    assert rows[2].spec == rows[0].spec
    assert study._queue.trials()[2].distributions == study._queue.trials()[0].distributions


# -- what samplers are told


def trial(number: int, value: float | None, seed: int = 0, **attrs: Any) -> FrozenTrial:
    distribution = optuna.distributions.FloatDistribution(0, 1)
    state = TrialState.COMPLETE if value is not None else TrialState.RUNNING
    made = create_trial(
        state=state,
        value=value,
        params={"x": number / 100},
        distributions={"x": distribution},
        user_attrs={"stage": "search", "seed": seed, **attrs},
    )
    made.number = number
    return made


def trunk(number: int, value: float | None, seed: int, name: str = "trunk") -> FrozenTrial:
    state = TrialState.COMPLETE if value is not None else TrialState.RUNNING
    made = create_trial(state=state, value=value, user_attrs={"stage": "baseline", "seed": seed, "name": name})
    made.number = number
    return made


def test_samplers_learn_the_difference_to_the_trunk_on_the_same_seed() -> None:
    trials = [
        trunk(0, 0.50, seed=0),
        trunk(1, 0.40, seed=1),
        trunk(2, None, seed=2),
        trunk(9, 0.99, seed=0, name="another"),
        trial(3, 0.51),
        trial(4, 0.48),
        trial(5, 0.43, seed=1, replicate_of=3),
        trial(6, None),
        trial(7, 0.70, seed=2),  # the trunk is not finished there: a score says nothing yet
        trial(8, None, seed=1, replicate_of=4),
    ]
    before = [(each.state, each.values) for each in trials]
    seen = {each.number: each for each in history(trials, "trunk")}
    assert list(seen) == [3, 4, 6, 7]
    assert seen[3].values == [pytest.approx(0.02)]  # (0.01 + 0.03) / 2
    # on seed 0 all differences were 0.01 lower than on average over the seeds, as trial 3 and its replicate show
    assert seen[4].values == [pytest.approx(-0.02 + 0.01)]
    assert [seen[number].state for number in (6, 7)] == [TrialState.RUNNING] * 2
    assert [(each.state, each.values) for each in trials] == before


def test_a_search_finds_what_is_good_although_seeds_differ_more(url: str) -> None:
    """Seeds differ by far more than schedules do; told differences, TPE still comes near the optimum at x = 0.8."""

    def propose(suggest: Suggest) -> dict[str, Any]:
        return {"family": "cosine", "x": suggest.suggest_float("x", 0, 1)}

    def score(x: float, seed: int) -> float:
        return 0.5 - (x - 0.8) ** 2 + (random.Random(seed).random() - 0.5) * 20

    def hunt(reference: str | None) -> Study:
        slots = [
            *(Wanted("baseline", seed, schedule={"family": "cosine"}, name="trunk") for seed in range(60)),
            *[Wanted("search", 0)] * 60,
        ]
        study = launch(url, slots, sampler="tpe", name=f"sweep-{reference}")
        while (slot := study.claim("w")) is not None:
            if slot.stage == "baseline":
                slot.propose(propose)
                slot.tell(score(0.5, slot.seed))
                continue
            spec = slot.propose(propose, reference=reference)
            seed = slot.number - 60 if reference else slot.number
            slot._set("seed", seed)  # each proposal on a seed of its own
            slot.tell(score(spec["x"], seed))
        return study

    def miss(study: Study) -> float:
        return float(sum(abs(row.params["x"] - 0.8) for row in study.trials()[100:]) / 20)

    informed = hunt("trunk")
    assert len(history(informed._queue.trials(), "trunk")) == len(informed.trials()) - 60
    assert miss(informed) < 0.12
    assert miss(hunt(None)) > 2 * miss(informed)
