"""What curvature refuses, and what it imports."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from curvature_networks import CLASSES, LOSSES, SAMPLES, case, squared
from lnsim_torch.curvature import Curvature, CurvatureError, density, top_eigenvalues, trace
from torch import nn

pytestmark = pytest.mark.usefixtures("small_doubles")


class Noise(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)


REFUSED = [
    ("matrix must be one of gauss-newton, hessian", {"matrix": "fisher"}),
    ("memory must be a number of bytes", {"memory": "1 GB"}),
    ("memory must be a number of bytes", {"memory": 0}),
    ("x must be a tensor of samples, got list", {"x": [1.0]}),
    ("same number of samples, at least 1, got 7 and 6", {"y": torch.zeros(6, dtype=torch.long)}),
    ("at least 1, got 0 and 0", {"x": torch.zeros(0, 4), "y": torch.zeros(0)}),
    ("network does not take samples", {"x": torch.zeros(SAMPLES, 5)}),
    ("loss must be the mean over samples, each by itself: of the first 4 it is",
     {"loss": nn.CrossEntropyLoss(reduction="sum")}),
    (r"loss must return a scalar, got shape \(4,\)",
     {"loss": nn.CrossEntropyLoss(reduction="none")}),
    ("network must have parameters that require grad", {"make": nn.ReLU}),
    ("must all be float32, or all float64",
     {"make": lambda: nn.Sequential(nn.Linear(4, 4).float(), nn.Linear(4, CLASSES))}),
    ("network must not be random in eval mode",
     {"make": lambda: nn.Sequential(Noise(), nn.Linear(4, CLASSES))}),
    ("it normalises by the batch", {"make": lambda: nn.Sequential(
        nn.Linear(4, CLASSES), nn.BatchNorm1d(CLASSES, track_running_stats=False))}),
]  # fmt: skip


@pytest.mark.parametrize(("says", "changes"), REFUSED, ids=[says for says, _ in REFUSED])
def test_what_is_refused(says, changes):
    network, x, y = case("erf")
    given = {"network": network, "x": x, "y": y, "loss": LOSSES["cross_entropy"], **changes}
    if "make" in given:
        given["network"] = given.pop("make")()
    with pytest.raises((ValueError, TypeError), match=says) as caught:
        Curvature(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("says", "call"), [
    ("count must be at least 1", lambda c: top_eigenvalues(c, 0)),
    ("count must be at most the 43 parameters, got 44", lambda c: top_eigenvalues(c, 44)),
    ("tolerance must be", lambda c: top_eigenvalues(c, tolerance=-1.0)),
    ("products must be at least 6", lambda c: trace(c, 5)),
    ("steps must be at least 1", lambda c: density(c, 0)),
    ("probes must be at least 1", lambda c: density(c, probes=0)),
    ("seed must be", lambda c: trace(c, seed=-1)),
    ("points must be at least 2", lambda c: density(c, 2).smoothed(1)),
    ("width must be", lambda c: density(c, 2).smoothed(width=0.0)),
])  # fmt: skip
def test_what_measures_refuse(says, call):
    measured = Curvature(*case("erf"), squared)
    with pytest.raises((ValueError, TypeError), match=says):
        call(measured)


def test_what_is_not_finite_is_an_error():
    network, x, y = case("erf")
    measured = Curvature(network, x, y, squared)
    with torch.no_grad():
        network[2].weight.fill_(1e200)
    for measure in (top_eigenvalues, trace, density):
        with pytest.raises(CurvatureError, match="hessian matrix is not finite"):
            measure(measured)


WITHOUT = """
import sys

class Missing:
    asked = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "curvlinops":
            self.asked.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import torch
from lnsim_torch.curvature import Curvature
import lnsim_torch.linear, lnsim_torch.network_engine
print(Missing.asked)
try:
    Curvature(torch.nn.Linear(2, 1), torch.zeros(3, 2), torch.zeros(3, 1), torch.nn.MSELoss())
except ValueError as error:
    print(error)
"""


def test_curvlinops_is_imported_when_it_is_needed_and_asked_for_in_one_sentence():
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=300
    )
    assert told.stdout == "[]\ncurvature needs curvlinops: pip install 'lnsim[torch]'\n"
