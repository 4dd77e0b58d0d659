"""Lines that theory draws beside measured curves: 2/lr beside the sharpness, the least trace."""

import numpy as np
import pytest

from lnsim.experiments.case import Case
from lnsim.figures import curves
from lnsim.run import experiment
from lnsim.run.curves import stability_limit

SMALL = {"samples": 20, "dim": 3, "width": 10, "steps": 400, "record_every": 20}


def run(name, **keys):
    chosen = experiment.load(name)
    return chosen.run(chosen.Config(**{**SMALL, **keys}))


def levels(axes):
    """The heights of the horizontal lines of a panel, from edge to edge."""
    lines = [line for line in axes.get_lines() if list(line.get_xdata()) == [0, 1]]
    return sorted({float(y) for line in lines for y in line.get_ydata()})


@pytest.mark.parametrize("name", ["sharpness", "batch_sharpness"])
def test_the_line_is_2_over_the_learning_rate_of_each_run(name):
    runs = [run("label-noise", lr=lr) for lr in (1e-3, 1e-3, 2e-3)]
    figure = curves.figure(runs, ["", "", ""], [name])
    assert levels(figure.axes[0]) == [2 / 2e-3, 2 / 1e-3]
    low, high = figure.axes[0].get_ylim()
    assert low < min(t[name].min() for t in runs) and high > 2 / 1e-3
    assert levels(curves.figure(runs, ["", "", ""], ["hessian_trace"]).axes[0]) == []


def test_momentum_raises_it_and_a_schedule_has_none():
    assert stability_limit(run("label-noise", momentum=0.5)) == 2 * 1.5 / 1e-3
    constant, scheduled = (
        run("relu", lr=1e-3, decay_steps=steps, drop_every=0, warm_up=0) for steps in (0, 100)
    )
    assert stability_limit(constant) == 2 / 1e-3
    assert stability_limit(scheduled) is None


def test_values_below_0_are_on_the_axis():
    """The batch sharpness may be negative, where the residuals bend the loss down."""
    trajectory = run("label-noise")
    trajectory["batch_sharpness"][:] = np.linspace(-3000.0, 40.0, trajectory.steps.size)
    low, high = curves.figure([trajectory], [""], ["batch_sharpness"]).axes[0].get_ylim()
    assert low < -3000.0 and high > 2 / 1e-3


@pytest.mark.parametrize("name", ["label-noise", "sam"])
def test_the_trace_is_drawn_with_its_least_value_among_interpolators(name):
    trajectory = run(name)
    figure = experiment.load(name).figures(trajectory)["figure"]
    (panel,) = [axes for axes in figure.axes if axes.get_ylabel() == r"$\mathrm{tr}\,H$"]
    problem = Case.of_run(trajectory).start.problem
    theta, gram = trajectory["theta_star"], problem.X.T @ problem.X / 20
    least = 2 * np.sqrt(np.trace(gram) * theta @ gram @ theta)
    assert levels(panel) == pytest.approx([least], rel=1e-12)
    np.testing.assert_array_equal(
        panel.get_lines()[0].get_ydata(), trajectory["hessian_trace"][-len(trajectory.steps) :]
    )


def test_what_was_measured_labels_a_curve_only_if_nothing_else_differs():
    configs = [{"sigma": 1.0, "measures": ""}, {"sigma": 2.0, "measures": "none"}]
    assert curves.labels(configs, ["a", "b"]) == [r"$\sigma$ = 1", r"$\sigma$ = 2"]
