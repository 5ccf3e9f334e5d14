"""What a sweep says that came to nothing: every trial failed, or nothing was learned."""

import json
from collections.abc import Iterator
from pathlib import Path

import invented
import numpy as np
import pytest
import tiny
from tiny import sweeper
from trials import run

from sweeper import charts, evidence, report, search, stats
from sweeper.charts import Line
from sweeper.errors import ConfigError
from sweeper.schedules import parse
from sweeper.service import Service
from sweeper.study import Trial

NAN = "not finite: epoch {}, batch 3: the loss is nan; try a lower peak"


def failing(trials: int, *others: Trial) -> list[Trial]:
    return [run(n, f"trial {n}", "search", 0, confounder=NAN.format(n), failed=True) for n in range(trials)] + [*others]


# Every trial failed.


def test_reasons_that_differ_in_numbers_are_one_and_the_commonest_comes_first() -> None:
    lost = [
        run(7, "a", "search", 0, confounder="box1-4711-ab12 stopped renewing its lease (attempt 3)", failed=True),
        run(9, "b", "search", 0, confounder="box2-13-ff stopped renewing its lease (attempt 3)", failed=True),
    ]
    found = stats.failures([*failing(3), *lost, run(10, "c", "search", 0, 0.3)])
    assert not found.every
    assert found.sentence == (
        f"5 of 6 trials failed; the commonest reason (3 of them, trials 0 to 2) is: {NAN.format(0)}"
    )
    assert found.further == [
        "another reason (2 of them, trials 7, 9) is: box1-4711-ab12 stopped renewing its lease (attempt 3)"
    ]
    assert json.loads(json.dumps(found.to_dict()))["failed"] == 5


def test_the_answer_of_a_sweep_whose_every_trial_failed_is_what_failed() -> None:
    answer = stats.choose(failing(3), baselines=["cosine"])
    assert answer.failures.every
    assert answer.sentence == (
        "every trial failed: 3 of 3 ended with an error and without a score; the reason (trials 0 to 2) is: "
        + NAN.format(0)
    )
    json.dumps(answer.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "other",
    [
        run(5, "cosine", "baseline", 0, 0.3),
        run(5, "cosine", "baseline", 0),
        run(5, "trial 5", "search", 0, 0.2, confounder="pruned"),
    ],
    ids=["finished", "waiting", "pruned"],
)
def test_one_trial_that_did_not_fail_leaves_the_answer_as_it_is(other: Trial) -> None:
    answer = stats.choose(failing(2, other), baselines=["cosine"])
    assert not answer.failures.every
    assert answer.sentence.startswith("no winner yet")
    assert answer.failures.sentence.startswith("2 of 3 trials failed; the reason (trials 0, 1) is: not finite")


def test_only_what_was_compared_counts_as_tried() -> None:
    """A trial that waits or failed is no configuration from which the best was chosen; one that was pruned is."""
    rows = [*failing(2), run(4, "a", "search", 0, 0.3), run(5, "b", "search", 0), run(6, "c", "search", 0, 0.31)]
    rows.append(run(7, "d", "search", 0, 0.1, confounder="pruned"))
    assert stats.choose(rows, baselines=["cosine"]).tried == 3


EVERY = "Every trial failed: 2 of 2 ended with an error and without a score; the reason (trials 0, 1) is: "


@pytest.mark.parametrize(
    ("override", "reason", "others"),
    [("lr0=1e6", "not finite: epoch", ("status", "report"))],
)
def test_the_commands_say_what_failed_how_often_and_why_and_exit_1(
    tmp_path: Path, override: str, reason: str, others: tuple[str, ...]
) -> None:
    """With real trainings, at a learning rate at which the loss is NaN."""
    file = tiny.write(tmp_path, trials=1, workers=1)
    for command in ("run", "pick", *others):
        done = sweeper(command, file, override, cwd=tmp_path, check=False)
        assert done.returncode == 1, (command, done.stdout, done.stderr)
        [said] = [line for line in done.stdout.splitlines() if line.startswith(EVERY)]
        assert reason in said
        assert "Traceback" not in done.stdout + done.stderr
    page = (tmp_path / "sweeper_store" / "reports" / "tiny.html").read_text()
    assert "Every trial failed" in page
    assert reason in page
    done = sweeper("pick", file, override, "--json", cwd=tmp_path, check=False)
    assert done.returncode == 1
    failures = json.loads(done.stdout)["failures"]
    assert failures["every"]
    assert failures["reasons"][0]["trials"] == [0, 1]
    if others:
        said = sweeper("status", file, override, "--watch", cwd=tmp_path, check=False)
        assert said.returncode == 1
        assert EVERY[1:] in said.stdout
        assert len(said.stdout.splitlines()) == 2, "the headline and the reason; tracebacks are for the trial's run"
        told = json.loads(sweeper("status", file, override, "--json", cwd=tmp_path, check=False).stdout)["trials"]
        assert [trial["reasons"][-1].count("Traceback") for trial in told] == [1, 1], "its own, not the one before's"


def test_where_some_failed_the_answer_stays_and_a_line_says_how_many(shown: Service, shown_file: Path) -> None:
    line = f"1 of {len(shown.study.trials())} trials failed; the reason (trial 4) is"
    done = sweeper("pick", shown_file, "--store", shown.place.folder, cwd=shown_file.parent)
    first, second, *_ = done.stdout.splitlines()
    assert first.startswith("Winner: trial 5 (cawb steps=")
    assert second == f"{line}: not finite: loss nan at epoch 6, step 17; lower lr0"
    assert line in report.make(shown).decode()
    done = sweeper("status", shown_file, "--store", shown.place.folder, cwd=shown_file.parent)
    assert line in done.stdout


# Nothing was learned.


def zeros(stage: str = "search", score: float = 0.0) -> list[Trial]:
    rows = [run(n, name, "baseline", 0, score) for n, name in enumerate(("linear", "cosine"))]
    rows += [run(n, f"trial {n}", "search", 0, score) for n in range(2, 5)]
    if stage == "confirm":
        names = ("linear", "cosine", "trial 2", "trial 3")
        rows += [run(10 * s + n, name, "confirm", s, score) for s in range(1, 5) for n, name in enumerate(names)]
    return rows


@pytest.mark.parametrize("score", [0.0, 0.00004])
@pytest.mark.parametrize("stage", ["search", "confirm"])
def test_scores_of_0_everywhere_are_nothing_learned(stage: str, score: float) -> None:
    answer = stats.choose(zeros(stage, score), baselines=["linear", "cosine"])
    assert not answer.learned
    assert answer.winner is None
    assert answer.detectable is None
    runs = 16 if stage == "confirm" else 5
    assert answer.sentence.startswith(f"nothing was learned: the score of all {runs} finished runs is 0.0000")
    assert {candidate.reason for candidate in answer.candidates} <= {"nothing was learned"}
    assert all(candidate.mde is None for candidate in answer.candidates)


def test_a_single_score_above_0_is_something() -> None:
    rows = [*zeros(), run(9, "trial 9", "search", 0, 0.0001)]
    answer = stats.choose(rows, baselines=["linear", "cosine"])
    assert answer.learned
    assert answer.sentence.startswith("no winner yet: one run each")


def test_what_was_learned_and_lost_again_is_not_called_nothing() -> None:
    rows = [run(0, "linear", "baseline", 0, 0.0, highest=0.2), run(1, "trial 1", "search", 0, 0.0, highest=0.31)]
    answer = stats.choose(rows, baselines=["linear"], objective="mAP50-95")
    assert not answer.learned
    assert answer.sentence.startswith("nothing was kept: the mAP50-95 of all 2 finished runs is 0.0000 at the end")
    assert "reached 0.3100" in answer.sentence


def test_no_verdict_is_given_on_runs_that_learned_nothing() -> None:
    moved, none = evidence.Movement(0.9, 0.01, 1.0), evidence.Gain(0.0, 0.0, 0.0, 4)
    assert evidence.verdict("restart", movement=moved, gain=none).word == "moved, not better"
    found = evidence.verdict("restart", movement=moved, gain=none, learned=False)
    assert (found.word, found.better) == ("nothing learned", None)
    assert "score 0.0000" in found.sentence


@pytest.fixture(scope="module")
def unlearned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A finished sweep of two baselines and three schedules with restarts; the mAP of every epoch is 0."""
    folder = tmp_path_factory.mktemp("unlearned")
    service = invented.launched(invented.written(folder, trials=3), folder / "store")
    while (slot := service.study.claim("inventor")) is not None:
        trace = service.trace(parse(slot.propose(lambda suggest: search.propose(service.sweep, suggest).spec)))
        slot.set("trace", trace.digest)
        slot.set("facts", trace.facts())
        for epoch in range(trace.epochs):
            slot.report(epoch, 0.0)
        slot.tell(0.0)
    yield service
    service.tracker.close()


def test_a_sweep_in_which_nothing_was_learned_says_so_everywhere(unlearned: Service) -> None:
    said = "nothing was learned: the mAP50-95 of all 5 finished runs is 0.0000"
    file, store = unlearned.place.folder.parent / "shown.yaml", unlearned.place.folder
    done = sweeper("pick", file, "--store", store, cwd=file.parent)
    assert done.stdout.startswith(f"N{said[1:]}")
    for command in (["confirm"], ["confirm", "--escape"]):
        done = sweeper(*command, file, "--store", store, cwd=file.parent, check=False)
        assert done.returncode == 1
        assert said in done.stderr
    assert len(unlearned.study.trials()) == 5, "nothing was asked for"
    page = report.make(unlearned).decode()
    assert "Nothing was learned" in page
    for wrong in ("gain that shows", "Luck in one run", "would have seen", "begins at half"):
        assert wrong not in page


def test_a_trial_that_learned_nothing_is_not_examined(shown: Service) -> None:
    rows = shown.study.trials()
    worthless = next(row for row in rows if row.stage == "search" and row.state == "COMPLETE")
    changed = type(worthless)(**{**vars(worthless), "score": 0.0})
    with pytest.raises(ConfigError, match=rf"escape: trial {worthless.number} learned nothing"):
        next(shown.examine(changed))


def test_the_axis_of_a_chart_holds_every_curve() -> None:
    """The curves of a report are seen where they lie: at 0, too, and where one of them ends low."""

    def line(top: float, end: float) -> Line:
        return Line("a", None, dict(enumerate([*np.linspace(0, top, 9), end])))

    assert charts.begins_late([line(0.4, 0.4), line(0.4, 0.3)])
    assert not charts.begins_late([line(0.4, 0.4), line(0.1, 0.1)])
    assert not charts.begins_late([line(0.0, 0.0)])
    drawn = charts.overlay("flat", "all at 0", [line(0.0, 0.0)], None, 10, "mAP50-95")
    assert ">0.00<" in drawn or ">0.0<" in drawn
