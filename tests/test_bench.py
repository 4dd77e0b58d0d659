"""The benchmarks' own pieces: the suite is well formed, its cases run, and the peers agree."""

import inspect
import json
import pkgutil
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from bench import benchmarks, peers, tables
from bench.benchmarks import cases
from bench.benchmarks.cases import DYNAMICS, Case

FOLDER = Path(benchmarks.__path__[0])
PREFIXES = ("time_", "timeraw_", "peakmem_", "track_")


def suites():
    modules = [
        import_module(f"{benchmarks.__name__}.{module.name}")
        for module in pkgutil.iter_modules(benchmarks.__path__)
    ]
    return [
        member
        for module in modules
        for member in vars(module).values()
        if inspect.isclass(member)
        and member.__module__ == module.__name__
        and any(name.startswith(PREFIXES) for name in vars(member))
    ]


def test_the_configuration_names_what_is_there():
    config = json.loads((FOLDER.parent / "asv.conf.json").read_text(encoding="utf-8"))
    assert (FOLDER.parent / config["benchmark_dir"]).samefile(FOLDER)
    assert (FOLDER.parent / config["repo"] / "setup.cfg").is_file()


def test_every_benchmark_takes_its_parameters():
    assert len(suites()) >= 6
    for suite in suites():
        names = getattr(suite, "param_names", [])
        assert len(names) == len(getattr(suite, "params", []))
        for name, method in vars(suite).items():
            if name == "setup" or name.startswith(PREFIXES):
                assert list(inspect.signature(method).parameters) == ["self", *names]


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("width", [21, 20_000])
def test_cases_are_stable(dynamics, width):
    assert Case(dynamics, width).run(300).status.step == 300


def test_a_case_that_diverges_is_no_measurement():
    hopeless = Case(options=(("reduce", False),), width=21)
    hopeless.data[0].X[:] *= 1e3
    with pytest.raises(RuntimeError, match="diverged"):
        hopeless.run(200)


def test_the_loops_of_the_peers_agree_and_their_table_fits():
    contest = peers.linear_contest("cpu", samples=30, dim=20, width=24)
    table = replace(contest, checked=50, most=50).measured(rounds=2, seconds=0.0)
    assert {"lnsim, numba", "NumPy loop"} <= table.rows.keys()
    assert table.columns == ("dense, µs a step", "ratio", "reduced, µs a step", "ratio")
    assert "All results agree" in table.about
    assert all(len(row) == 4 for row in table.rows.values())
    assert table.rows["lnsim, numba"][3] == [1.0, 1.0]


def test_a_peer_that_disagrees_ends_the_run():
    contest = replace(peers.linear_contest("cpu", samples=30, dim=20, width=24), checked=50)
    right = contest.work["dense", "NumPy loop"]
    contest.work["dense", "NumPy loop"] = lambda steps: right(steps) * (1 + 1e-8)
    with pytest.raises(ValueError, match="NumPy loop"):
        contest.measured(rounds=1, seconds=0.0)


def test_the_kernels_of_the_peers_agree():
    pytest.importorskip("torch")
    from bench import kernel_peers

    kernels, _ = kernel_peers.contenders("cpu")
    for network, x in kernel_peers.networks("cpu").values():
        ours, *others = (kernel(network, x[:3]) for kernel in kernels.values())
        assert ours.shape == (3, 3, kernel_peers.CLASSES, kernel_peers.CLASSES)
        for theirs in others:
            np.testing.assert_allclose(theirs, ours, rtol=1e-10, atol=1e-10 * np.abs(ours).max())


def test_a_benchmark_without_its_backend_is_left_out(monkeypatch):
    mark = pytest.importorskip("asv_runner.benchmarks.mark")
    monkeypatch.setattr(cases, "find_spec", lambda name: None)
    cases.require("numba")
    with pytest.raises(mark.SkipNotImplemented, match="torch is not installed"):
        cases.require("torch")


def test_the_floors_of_the_models_take_the_same_steps(tmp_path):
    from bench import floor_models

    if shutil.which("cc") is None:
        pytest.skip("the loops it compares with are C, and this machine has no compiler `cc`")
    libraries = {"-O3": floor_models.load_loops(tmp_path, "-O3")}
    for name, case in floor_models.cases(libraries).items():
        if "NumPy" not in case.floors:
            theirs, ours = case.floors["C -O3"](300), case.simulate(300).state["theta"][0]
            np.testing.assert_allclose(theirs, ours, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, ""),
        ("word", "word"),
        (0.0, "0.00"),
        (1.2345, "1.23"),
        ([86.4, 77.0, 91.2], "86.4 (77.0–91.2)"),
        ([5530.0, 4960.0, 5900.0], "5,530 (4,960–5,900)"),
        ([0.01234, 0.01], "0.0112 (0.0100–0.0123)"),
        ([2.0, 2.0], "2.00"),
        ([float("inf")], "inf"),
    ],
)
def test_cells_have_three_digits_of_the_median(cell, expected):
    assert tables.text(cell) == expected


def test_a_table_is_drawn_from_its_file_as_when_it_was_measured(tmp_path, monkeypatch, capsys):
    table = tables.Table("Title", "About.", ("ns", "ratio"), {"one": ([1.0, 3.0], 2.0)})
    tables.report([table], "python -m bench.one", tmp_path / "machine" / "one.json")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    printed, page = capsys.readouterr().out, tables.page()
    place = "before\n<!-- machine/one -->\nold\n<!-- end -->\nafter\n"
    filled = tables.filled(place)
    for text in (printed, page, filled):
        assert "\n".join(table.lines()) in text
    assert "## Title" in page and "`python -m bench.one`" in page
    assert filled.startswith("before\n") and filled.endswith("<!-- end -->\nafter\n")
    assert "old" not in filled and tables.filled(filled) == filled


def test_the_pages_have_the_tables_of_the_results():
    """To renew them: `python -m bench.tables`."""
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page()
    readme = tables.README.read_text(encoding="utf-8")
    assert tables.PLACE.search(readme) and tables.filled(readme) == readme
