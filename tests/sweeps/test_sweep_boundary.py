"""The predicted boundary over a measured map, and the agreement of the two."""

import math

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from small_sweeps import tiny

from lnsim.sweeps import boundary

BASE = {
    "samples": 60, "test_samples": 10, "dim": 5, "width": 100, "steps": 4000, "record_every": 400,
}  # fmt: skip
GRID = {"sigma": "0.5:8:6:log", "lr": [1e-3, 2e-3, 4e-3, 8e-3, 0.1]}


@pytest.mark.small
@pytest.mark.parametrize("slope", [0.3, -1.0, 5.0])
def test_few_cells_give_the_words_of_all(slope):
    asked = []

    def ask(i, j):
        asked.append((i, j))
        above = i - 11.5 - slope * (j - 13)
        return (
            ("diverged", math.nan) if i > 27 else (("rich", -1.0) if above > 0 else ("lazy", 1.0))
        )

    words, numbers = boundary.fill((32, 27), ask)
    expected = [[ask(i, j)[0] for j in range(27)] for i in range(32)]
    assert len(asked) - 32 * 27 < 0.4 * 32 * 27
    np.testing.assert_array_equal(words, expected)
    np.testing.assert_array_equal(numbers > 0, words == "lazy")
    np.testing.assert_array_equal(np.isnan(numbers), words == "diverged")


@pytest.mark.small
def test_a_map_of_one_row_or_one_cell_is_filled():
    for shape in ((1, 1), (1, 20), (20, 1)):
        words, numbers = boundary.fill(shape, lambda i, j: ("rich" if i + j > 6 else "lazy", 0.5))
        places = np.add(*np.indices(shape))
        np.testing.assert_array_equal(words == "rich", places > 6)
        assert np.isfinite(numbers).all()


def test_the_line_parts_what_theory_calls_lazy_from_what_it_calls_rich(tmp_path):
    measured = tiny(tmp_path / "runs", GRID, base=BASE, seeds=1)
    theory = tiny(tmp_path / "theory", GRID, base=BASE, seeds=1, predict=True)
    sigmas, lrs = (sorted(set(theory[key])) for key in ("sigma", "lr"))
    regimes = {(row["lr"], row["sigma"]): row["regime"] or "" for row in theory.rows}
    cells = {(lrs.index(row["lr"]), sigmas.index(row["sigma"])): [row] for row in measured.rows}
    found = boundary.predict("label-noise", cells, (len(lrs), len(sigmas)))
    np.testing.assert_array_equal(found.words, [[regimes[y, x] for x in sigmas] for y in lrs])
    same = [row["regime"] == regimes[row["lr"], row["sigma"]] for row in measured.rows]
    count = sum(word != "" for word in regimes.values())
    assert found.count == count and found.agreement == pytest.approx(sum(same) / count)
    axes = measured.plot().axes[0]
    line = next(c for c in axes.collections if not isinstance(c, QuadMesh))
    path = np.concatenate([path.vertices for path in line.get_paths()])
    order = np.argsort(path[:, 0])
    across = np.interp(sigmas, path[order, 0], path[order, 1], left=np.nan, right=np.nan)
    for x, level in zip(sigmas, across, strict=True):
        for y in lrs:
            word = regimes[y, x]
            if np.isfinite(level) and word in ("lazy", "rich"):
                assert (word == "rich") == (y > level), (x, y, level)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"predicted\n(agreement {100 * found.agreement:.0f} %, {count} points)" in texts


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ({"momentum": 0.5}, "no prediction for momentum"),
        ({"sigma": 500.0}, "no prediction (the theory predicts nothing here)"),
    ],
)
def test_where_theory_predicts_nothing_the_figure_says_so(tmp_path, base, says):
    base = {**BASE, "steps": 20, "record_every": 10, **base}
    sweep = tiny(tmp_path, {"lr": [1e-4, 2e-4], "theta_norm": [1.0, 2.0]}, base=base, seeds=1)
    axes = sweep.plot().axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert says in texts and not any("agreement" in text for text in texts)


@pytest.mark.small
def test_of_another_model_nothing_is_predicted():
    found = boundary.predict("deep", {}, (2, 3))
    assert found.without == "for this model" and (found.words == "").all()
    assert (found.count, found.words.shape) == (0, (2, 3)) and math.isnan(found.agreement)
