"""A real notebook, end to end: what a user sees of a run and a sweep, and the bar meanwhile."""

import pytest

nbformat, nbclient, *_ = map(
    pytest.importorskip, ("nbformat", "nbclient", "ipykernel", "ipywidgets", "pandas")
)

CELLS = {
    "run": """
import lnsim
problem = lnsim.gaussian_regression(30, 4, seed=0, test_samples=10)
network = lnsim.ntk_init(20, 4, seed=0)
rule = lnsim.SGD(1e-2, lnsim.LabelNoise(2.0))
trajectory = lnsim.simulate(problem, network, rule, steps=200, record_every=10, replicas=2,
                            progress=True)
""",
    "trajectory": "trajectory",
    "figure": "trajectory.plot(style='screen')",
    "axes": """
import matplotlib.pyplot as plt
fig, (left, right) = plt.subplots(1, 2)
trajectory.plot("norm_mean", ax=left, label="label noise")
trajectory.plot("test_loss", ax=right)
right.set_yscale("log")
left.legend();
""",
    "table": "trajectory.to_dataframe().tail(2)",
    "sweep": """
from concurrent.futures import ThreadPoolExecutor
small = dict(samples=30, dim=4, width=20, steps=100, record_every=10, test_samples=10)
with ThreadPoolExecutor(1) as executor:
    found = lnsim.sweep("label-noise", {"lr": [1e-3, 1e-2], "sigma": [1.0, 2.0]}, out="sweep",
                        base=small, executor=executor, progress=True)
found
""",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What each cell showed: dicts of data by MIME type, and the text that was printed."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    )
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells]
    return dict(zip(CELLS, outputs, strict=True))


def data(outputs, kind):
    return [out.data[kind] for out in outputs if "data" in out and kind in out.data]


def test_runs_and_sweeps_show_as_table_and_figure(shown):
    (trajectory,) = data(shown["trajectory"], "text/html")
    assert "norm_mean" in trajectory and "of 2 replicas" in trajectory
    sweep = data(shown["sweep"], "text/html")[-1]
    assert "label-noise over lr, sigma: 4 points" in sweep
    assert all("data:image/png;base64," in text for text in (trajectory, sweep))


def test_figures_show_and_compose_with_the_users(shown):
    for cell in ("figure", "axes"):
        assert len(data(shown[cell], "image/png")) == 1, cell


def test_tables_show(shown):
    (table,) = data(shown["table"], "text/html")
    assert "<th>norm_mean</th>" in table and "<th>replica</th>" in table


def test_progress_is_a_notebook_bar(shown):
    for cell in ("run", "sweep"):
        assert data(shown[cell], "application/vnd.jupyter.widget-view+json"), cell


def test_nothing_is_printed_beside(shown):
    for cell, outputs in shown.items():
        assert [out.text for out in outputs if out.output_type == "stream"] == [], cell
