"""The loop that drives every run, and which records of an earlier run are kept."""

import pytest

from lnsim.run import loop, resume
from lnsim.run.loop import drive
from lnsim.run.record import Ending, Record, Status

pytestmark = pytest.mark.small

FAR = range(0, 13, 3)


class Walk:
    """Goes by twos at most, records at 0, 3, 6, ..., 12 and watches at 1 and 4."""

    def __init__(self, diverges=None):
        self.diverged_at, self.diverges = None, diverges
        self.records, self.watched = [], []

    def events(self, step):
        return (t for t in sorted({*FAR, 1, 4}) if t > step or (t == 0 and not self.records))

    def advance(self, step, target):
        while step < target:
            step = min(step + 2, target)
            yield step

    def observe(self, step):
        if self.diverges is not None and step >= self.diverges:
            self.diverged_at = self.diverges
            return False
        (self.records if step in FAR else self.watched).append(step)
        return step in FAR

    def result(self, status):
        return status, list(self.records)


def test_a_run_goes_from_record_to_record():
    run, done = Walk(), []
    assert drive(run, 0, 12, report=done.append) == (Status(Ending.OK, 12), list(FAR))
    assert run.watched == [1, 4]
    assert done == [1, 3, 4, 6, 8, 9, 11, 12]


def test_a_run_that_goes_on_begins_where_it_was():
    run, done = Walk(), []
    run.records = [0, 3, 6]
    assert drive(run, 6, 12, report=done.append) == (Status(Ending.OK, 12), list(FAR))
    assert done == [8, 9, 11, 12]
    assert drive(run, 12, 12, report=done.append)[0] == Status(Ending.OK, 12)


def test_stop_is_asked_at_records_but_not_at_the_last():
    run, asked = Walk(), []

    def stop(at):
        asked.append(run.records[-1])
        return run.records[-1] == at

    assert drive(run, 0, 12, report=print, stop=lambda: stop(6))[0] == Status(Ending.STOPPED, 6)
    assert asked == [0, 3, 6]
    run, asked = Walk(), []
    assert drive(run, 0, 12, report=print, stop=lambda: stop(12))[0] == Status(Ending.OK, 12)
    assert asked == [0, 3, 6, 9]


def test_checkpoints_are_of_the_first_record_and_then_by_the_clock(monkeypatch):
    run, kept = Walk(), []
    monkeypatch.setattr(loop.time, "monotonic", lambda: 10.0 * len(run.records))
    drive(run, 0, 12, report=print, checkpoint=kept.append, checkpoint_every=20.0)
    assert kept == [
        (Status(Ending.STOPPED, 0), [0]),
        (Status(Ending.STOPPED, 6), [0, 3, 6]),
    ]


def test_a_run_that_diverges_ends_there_without_a_checkpoint():
    run, kept = Walk(diverges=5), []
    found = drive(run, 0, 12, report=print, checkpoint=kept.append, checkpoint_every=0.0)
    assert found == (Status(Ending.DIVERGED, 5), [0, 3])
    assert [status.step for status, _ in kept] == [0, 3]


@pytest.mark.parametrize(
    ("recorded", "step", "kept"),
    [
        ([0, 10, 20], 20, 3),
        ([0, 10, 20, 25], 25, 3),  # an earlier end, where nothing is recorded now
        ([0], 0, 1),
        ([0, 5], 5, 1),
        ([0, 10, 20, 30, 35], 35, 5),
    ],
)
def test_records_at_planned_steps_are_kept(recorded, step, kept):
    assert resume.count_kept(recorded, [0, 10, 20, 30, 35], step) == kept


@pytest.mark.parametrize(
    ("recorded", "step"),
    [
        ([0, 10, 25], 20),  # a record after the end
        ([0, 5, 10], 10),
        ([0, 20], 20),  # one lacks in the middle
        ([0, 10], 25),  # one lacks at the end
        ([], 0),
    ],
)
def test_records_at_other_steps_are_refused(recorded, step):
    with pytest.raises(ValueError, match="cannot resume: the earlier run was recorded at other"):
        resume.count_kept(recorded, [0, 10, 20, 30], step)


@pytest.mark.parametrize(
    ("status", "config", "message"),
    [
        (Status(Ending.OK, 20), {"lr": 0.2, "steps": 20}, "lr was 0.2 and is 0.1 now"),
        (Status(Ending.DIVERGED, 7), {"lr": 0.1}, "the earlier run diverged at step 7"),
        (Status(Ending.STOPPED, 40), {"lr": 0.1}, "the earlier run is at step 40, past the end"),
    ],
)
def test_what_cannot_go_on_says_why(status, config, message):
    earlier = Record({}, config, status)
    with pytest.raises(ValueError, match=f"cannot resume: {message}"):
        resume.records_kept(earlier, {"lr": 0.1, "steps": 30}, [0, 10, 20, 30])
