"""Modes that watch torch's operations: what they leave behind in the process."""

import threading

import pytest

torch = pytest.importorskip("torch")

from lnsim_torch.curvature.budget import peak_bytes
from lnsim_torch.untouched import Untouched
from lnsim_torch.watching import Watching
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class Recorded(Watching):
    def __init__(self):
        super().__init__()
        self.seen = []

    def before(self, func, args, kwargs):
        self.seen.append(("before", func.overloadpacket.__name__))

    def after(self, func, result):
        self.seen.append(("after", tuple(result.shape)))


def test_a_mode_sees_each_operation_before_and_after_it():
    x = torch.arange(3.0)
    with Recorded() as outer, Recorded() as inner:
        y = x + 1
    assert inner.seen == outer.seen == [("before", "add"), ("after", (3,))]
    x * y
    assert len(inner.seen) == 2


def untouched(compute):
    class Network(torch.nn.Module):
        def forward(self, x):
            compute()
            return x + 1

    Untouched(Network())(torch.ones(2))


@pytest.mark.parametrize("watch", [untouched, peak_bytes])
def test_two_threads_leave_the_process_without_a_mode(watch):
    """Of two modes on at a time the first to enter leaves first: torch alone would keep one on."""
    entered, both, left = threading.Event(), threading.Event(), threading.Event()

    def first():
        def compute():
            entered.set()
            both.wait(0.2)  # in vain: the second thread is not let in

        watch(compute)
        left.set()

    def second():
        def compute():
            both.set()
            left.wait()

        entered.wait()
        watch(compute)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both.is_set() and not is_in_torch_dispatch_mode()


def test_an_error_ends_the_mode_and_lets_the_next_thread_in():
    def fails():
        raise RuntimeError("of the computation")

    def work():
        try:
            peak_bytes(fails)
        except RuntimeError as error:
            messages.append(str(error))

    messages = []
    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert messages == ["of the computation"] * 2
    assert not is_in_torch_dispatch_mode()
