"""A budget in epochs or hours: what it buys, that it is kept, and that what was kept back is spent as announced."""

import html
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from simulation import Home, World
from test_race_run import BRANCHES, RAISES, follow_from_the_scores
from test_worker import EPOCHS, STAY, check, home, sweeper, written  # noqa: F401  # a fixture

from sweeper import report
from sweeper.cli import show
from sweeper.config import Sweep
from sweeper.errors import ConfigError
from sweeper.service.racing import expected_seeds

RACE = {**BRANCHES, "trunk": "best", "seeds": 2}
DESIGN = {"best": 1, "seeds": 4}


def raced(**changes: Any) -> dict[str, Any]:
    return written(baselines=[STAY, RAISES[2]], search=RACE, confirm=DESIGN, trials=None) | changes


@pytest.mark.parametrize("plan", [{}, {60: "kill", 150: "switch", 260: "freeze", 400: "stop", 700: "kill"}])
def test_a_budget_is_spent_on_search_and_confirmation_and_not_exceeded(
    home: Home,  # noqa: F811
    tmp_path: Path,
    plan: dict[int, str],
) -> None:
    world = World(home, tmp_path, raced(budget="100ep"), plan)
    world.run()
    check(world)
    study = world.service.study
    assert study.done
    rows, again = study.trials(), Counter(world.happened)["kill"] + Counter(world.happened)["freeze"]
    reference = study.notes["trunk"]["name"]
    of_search = [row for row in rows if row.stage == "search"]
    confirmed = [row for row in rows if row.stage == "confirm"]
    assert len({row.seed for row in confirmed}) == DESIGN["seeds"]
    assert {row.facts.name for row in confirmed} >= set(world.service.baselines())
    assert max(row.number for row in of_search) < min(row.number for row in confirmed)
    assert not {row.seed for row in confirmed} & {row.seed for row in of_search}
    assert len({row.facts.trace for row in of_search}) >= 3
    assert any(row.original is not None for row in of_search)
    if not plan:
        follow_from_the_scores(world, reference)
    spending = world.service.status().spending
    assert spending.spent == len(set(world.trained)) <= 100 + again
    assert spending.promised == spending.kept == 0
    told = sweeper(world, "status")
    on_search = sum(len(row.curve) - row.reused for row in rows if row.stage != "confirm")
    on_confirmation = sum(len(row.curve) - row.reused for row in confirmed)
    assert f"budget: {len(set(world.trained))} of 100 epochs spent, {on_search} on baselines and search" in told
    assert f", {on_confirmation} on the confirmation; " in told
    assert "trunk: " in told
    assert "over" in told
    picked, page = sweeper(world, "pick"), report.make(world.service).decode()
    ended = world.service.status().phase.removesuffix("; the confirmation on fresh seeds has ended, too")
    known, first = {row.facts.trace for row in rows if row.stage == "baseline"}, []
    for row in of_search:
        if row.original is None:
            first.append(row.facts.trace not in known)
            known.add(row.facts.trace)
    in_vain = "the search ended as its last 3 proposals were known schedules: the space has no more"
    paid = f"the search ended with its budget: it trained {on_search} of 100 epochs, "
    assert ended.startswith(paid if any(first[-3:]) else in_vain)
    assert ended[1:] in told
    assert ended in picked
    noise = world.service.status().race.noise
    assert noise.startswith("noise: the standard deviation of a run over seeds is ")
    assert f"of a branch's difference to {reference} " in noise
    assert world.service.plan().race.noise == noise
    for text in (told, picked, page):
        assert html.escape(noise, quote=True).replace("&#x27;", "&#39;") in text or noise in text
    assert f"over {reference}: the mean difference on the same seeds" in picked
    assert "the best baseline on 2 search seeds" in picked
    assert f"over {reference} on 2 search seeds</span>" in page
    answer = world.service.pick()
    raced_rows = [row for row in answer.ranking if row.raced]  # a proposal that is a baseline's schedule is not
    assert {row.name for row in raced_rows} == {standing.name for standing in world.service.status().race.standings}
    for row in raced_rows:
        standing = row.raced
        assert standing.over == reference
        seeds = "1 search seed" if standing.n == 1 else f"{standing.n} search seeds"
        assert f"over {reference} on {seeds}" in report.differences(answer)[row.run_id]
    (candidate,) = answer.candidates
    assert candidate.over.keys() == set(world.service.baselines())
    leader = answer.ranking[0].raced
    assert f"in the race {leader.mean:+.4f}<br>over {reference} on {leader.n} search seeds" in page
    assert candidate.differences.index(f"over {answer.baseline.name} on ") > max(
        candidate.differences.index(f"over {name} on ") for name in candidate.over if name != answer.baseline.name
    ), "the verdict follows the baseline that it is about"
    order = "ranked by that difference less the effect of each seed; few seeds draw it towards the median"
    for text in (told, picked, html.unescape(page)):
        assert order in text
    assert candidate.differences in picked
    assert "the best baseline on 2 search seeds" in page


def test_a_budget_that_leaves_nothing_proposes_nothing(
    home: Home,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(home, tmp_path, raced(budget="50ep"))
    plan = world.service.plan()
    assert plan.cost.proposals == 0
    world.run()
    rows = world.service.study.trials()
    assert {row.stage for row in rows} == {"baseline"}
    assert world.service.study.done
    ended = world.service.status().phase
    assert ended.startswith(f"the search ended with its budget: it trained {len(set(world.trained))} of 50 epochs, ")
    assert ", and what was left (0) does not pay for another proposal: about " in ended
    show.plan(plan)
    assert "nothing is left for the search: raise the budget" in capsys.readouterr().out


def test_plan_says_what_a_budget_buys_as_far_as_it_is_known(
    home: Home,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(home, tmp_path, raced(budget="70ep"))
    plan, cost = world.service.plan(), world.service.plan().cost
    assert plan.trials == cost.proposals == plan.drawn > 1
    assert plan.disk.states == cost.baselines + cost.confirmation + plan.drawn * cost.branch * cost.seeds_per_proposal
    show.plan(plan)
    shown = capsys.readouterr().out
    of_search = f"budget     70ep: about {70 - cost.confirmation:.0f} epochs for the search, "
    assert f"{of_search}{cost.confirmation:.0f} kept" in shown
    assert f"{cost.baselines:.0f} epochs for the baselines; about {cost.proposals} proposals at " in shown
    quiet, _, noisy = plan.confirm.elsewhere
    assert quiet.detectable < 0.01 < noisy.detectable
    assert f"{quiet.detectable:+.4f} on a quiet data set, where the difference to a baseline varies by" in shown
    assert f"takes {noisy.needed:,} pairs there" in shown
    world = World(home, tmp_path / "hours", raced(budget="8h", name="hours"))
    before = world.service.plan()
    assert (before.trials, before.cost.proposals, before.disk.states, before.duration) == (None, None, None, None)
    show.plan(before)
    shown = capsys.readouterr().out
    assert f"{before.drawn} proposals as a sample" in shown
    assert "8h: what it buys is known after the first epochs" in shown
    world.run()
    after = world.service.plan()
    assert after.cost.epochs == 8 * 3600 / 36
    assert after.trials == after.cost.proposals
    assert after.duration is not None
    assert after.duration.worker_hours <= 8


def test_trials_and_budget_both_limit(home: Home, tmp_path: Path) -> None:  # noqa: F811
    phases: dict[str, None] = {}
    world = World(
        home,
        tmp_path,
        raced(budget="8h", trials=2),
        hook=lambda world, _, epoch: phases.update({world.service.status().phase: None}),
    )
    world.run()
    check(world)
    phases[world.service.status().phase] = None
    ended = "the search ended with the 2 proposals that `trials` asks for; "
    baselines, *search, last = (phase.removeprefix(ended) for phase in phases)
    assert baselines == "now: the baselines on the search seeds; proposals come when the best of them is known"
    assert search[0] == "now: the search; proposals so far: 1, more come while the budget pays for them"
    assert any(phase.startswith("now: the confirmation on fresh seeds, 3 of ") for phase in search)
    assert last == "the confirmation on fresh seeds has ended, too"
    rows = world.service.study.trials()
    assert sum(row.stage == "search" and row.original is None for row in rows) == 2
    assert any(row.stage == "confirm" for row in rows)
    spending = world.service.status().spending
    assert spending.unit == "hours"
    assert spending.spent == pytest.approx(len(world.trained) * 36 / 3600)


def test_a_budget_that_cannot_be_meant_is_refused() -> None:
    keys = {"name": "s", "data": "digits", "model": "yolo11n.yaml", "epochs": EPOCHS, "lr0": 0.1, "search": {}}
    for budget in ("7", 7, "-3ep", "0h", "ep", "1e999ep", "8 days"):
        with pytest.raises(ConfigError, match=r"budget: .*expected trained epochs or worker hours above 0, such as"):
            Sweep.build({**keys, "budget": budget})
    with pytest.raises(ConfigError, match="trials is missing; expected trials: 20, or a budget such as"):
        Sweep.build(keys)
    sweep = Sweep.build({**keys, "budget": " 1600 ep "})
    assert str(sweep.budget) == "1600ep"
    assert sweep.model_dump(mode="json")["budget"] == "1600ep"
    assert "budget" not in sweep.identity()


def test_on_how_many_seeds_an_average_proposal_is_trained() -> None:
    assert expected_seeds(1, 2, 1) == 1
    assert expected_seeds(8, 2, 1) == 1 + 1 / 2 + 2 / 4 + 4 / 8
    assert expected_seeds(16, 2, 4) == 4 + 4 / 2 + 8 / 4
