"""The claims of the paper, compared with runs: each verdict is computed by a rule it states.

judge.py has the statements of theory and the rules by which they are judged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lnsim.base.checks import FloatArray
from lnsim.experiments._synthetic import first_below, series, window_changes
from lnsim.experiments.case import Case
from lnsim.simulation.trajectory import Trajectory
from lnsim.verdicts import judge, speed
from lnsim.verdicts.judge import BEYOND, Verdict


def of_run(case: Case) -> Trajectory:
    """The run of a case, which must have one."""
    assert case.trajectory is not None
    return case.trajectory


def _last(trajectory: Trajectory, name: str) -> FloatArray:
    """The last record of every replica, (S,)."""
    return np.atleast_1d(trajectory[name][..., -1])


def _change(trajectory: Trajectory) -> FloatArray:
    """The mean norm at the end divided by that at the start, of every replica, (S,)."""
    norm = np.atleast_2d(trajectory["norm_mean"])
    return norm[:, -1] / norm[:, 0]


def _escape(trajectory: Trajectory) -> float:
    """The step by which every neuron of every replica has left the lazy regime; NaN if not all."""
    return float(np.max(trajectory.phases().last_escape))


def two_phases(source: str, run: Trajectory, clean: Trajectory, switch: str) -> list[Verdict]:
    """Figures 2 and 4: `run`, of one or more replicas, and its control `clean` with `switch`."""
    return [*escape_and_phases(source, run), *stays_lazy(source, clean, switch)]


def escape_and_phases(source: str, run: Trajectory) -> list[Verdict]:
    """What Figures 2 and 4 show of `run`, of one or more replicas."""
    twin = np.atleast_2d(run["linearized_train_loss"])
    loss = np.atleast_2d(run["train_loss"])
    late = slice(3 * loss.shape[1] // 4, None)
    ratio = loss[:, late].mean(axis=1) / twin[:, late].mean(axis=1)
    return [
        judge.judge(
            "every neuron leaves the lazy regime",
            source, "at most", run.status.step, _escape(run),
            "the step at which the last neuron of all seeds is first further than 1/sqrt(m)"
            " from its start is within the run",
        ),
        judge.judge(
            "Phase I: the neurons' norms fall",
            source, "at most", 0.5, _change(run).max(),
            "mean norm at the end over that at the start, largest of all seeds",
        ),
        judge.judge(
            "Phase II: the neurons turn to the interpolator",
            source, "at least", 0.9, _last(run, "cosine_mean").min(),
            "mean |cos(w_i, theta*)| at the end, least of all seeds",
            note=f"it is {float(np.ravel(run['cosine_mean'])[0]):.3g} at the start",
        ),
        judge.judge(
            "the run leaves its linearised twin",
            source, "at most", 0.5, ratio.max(),
            "training loss over that of the twin on the same draws, means over the last quarter",
        ),
    ]  # fmt: skip


def stays_lazy(source: str, clean: Trajectory, switch: str) -> list[Verdict]:
    """What a run without the noise, or without SAM's radius, shows."""
    return [
        judge.judge(
            f"with {switch} it stays lazy",
            source, "at least", 1.0, _last(clean, "lazy_fraction").min(),
            "share of neurons within 1/sqrt(m) of their start at the end",
            note=f"mean norm {_change(clean)[0]:.4f} of that at the start",
        ),
        judge.judge(
            f"with {switch} the training loss goes to zero",
            source, "at most", 1e-6, series(clean, "train_loss")[-1] / clean["train_loss"][0],
            "training loss at the end over that at the start",
        ),
    ]  # fmt: skip


def windows(run: Trajectory, cause: str) -> list[Verdict]:
    """Noise or oscillation that is on and off in windows; `cause` names it."""
    period = run.config["period"]
    on, off = window_changes(run, period)
    spread = _spread(run, period)
    return [
        judge.judge(
            f"the norms fall while {cause} is on",
            "periodic", "at most", 0.0, float(on.max(initial=-np.inf)),
            "change of the mean norm over an on-window, largest of all windows",
        ),
        judge.judge(
            f"they stop falling while {cause} is off",
            "periodic", "at most", 0.05, float(np.abs(off).sum() / np.abs(on).sum()),
            "size of the changes over all off-windows over that over all on-windows",
        ),
        judge.judge(
            "second-layer weights oscillate while it is on and settle while it is off",
            "periodic", "at most", 0.05, spread[1] / spread[0],
            "standard deviation of a_i(t) within the second half of a window, tracked neurons,"
            " off over on",
            note=f"{spread[0]:.3g} while on, {spread[1]:.3g} while off",
        ),
    ]  # fmt: skip


def _spread(run: Trajectory, period: int) -> tuple[float, float]:
    """Root mean square spread of a_i in the second half of each window: while on, while off."""
    weights, window = run["tracked_second_layer"], run.steps // period
    settled = run.steps % period >= period / 2
    variances: tuple[list[float], list[float]] = ([], [])
    for k in range(int(window[-1]) + 1):
        inside = weights[settled & (window == k)]
        if len(inside) > 1:
            variances[k % 2].append(float(inside.var(axis=0).mean()))
    on, off = (float(np.sqrt(np.mean(v))) if v else math.nan for v in variances)
    return on, off


def oscillation(case: Case, premise: Case, still: Trajectory) -> list[Verdict]:
    """Lemma 4 at the figures' width and at the lemma's, and the same start without oscillation."""
    run, seeds = of_run(case), of_run(premise)
    lemma, statement = case.lemma_4, judge.lemma_4(case)
    claim = "the mean squared norm falls to sqrt(lr) by 1/lr^2"
    rule = "first record at which (1/m) sum |w_i|^2 <= sqrt(lr)"
    short = "the run is shorter than 1/lr^2" if statement.after(run.status.step) else ""
    width = premise.config.width
    squares = np.atleast_2d(seeds["norm_squared"]).mean(axis=0) / width
    below = np.flatnonzero(squares <= lemma.level)
    first = first_below(run, lemma.level)
    first_of_mean = float(seeds.steps[below[0]]) if below.size else math.nan
    unmet = f"the lemma requires m = {lemma.premise_width:.3g}"
    return [
        judge.judge(
            "the neurons' norms fall", "oscillation", "at most", 0.5, _change(run).max(),
            "mean norm at the end over that at the start",
        ),
        judge.judge(
            "without oscillation they do not", "oscillation", "at least", 0.9, _change(still).min(),
            "the same from the same start with both layers by plain gradient descent",
        ),
        statement.verdict(
            f"{claim}, m = {case.config.width}", first, rule,
            vacuous=short if math.isnan(first) else "",
            unmet="" if judge.of_lemma_4_width(case) else unmet,
        ),
        statement.verdict(
            f"{claim}, m = {width}", first_of_mean,
            f"{rule}, mean over {len(_last(seeds, 'norm_mean'))} seeds",
            vacuous=short if math.isnan(first_of_mean) else "",
        ),
    ]  # fmt: skip


def lazy_escape(case: Case) -> Verdict:
    """Theorem 2, over all seeds."""
    seeds, statement = of_run(case), judge.theorem_2(case)
    measured = _escape(seeds)
    late = math.isnan(measured) and statement.after(seeds.status.step)
    return statement.verdict(
        "no neuron is lazy after T1 = 384 sqrt(log m)/(sigma^2 lr^2 sqrt(m)) steps", measured,
        f"the last escape of a neuron, largest of {len(_last(seeds, 'norm_mean'))} seeds",
        vacuous="the run is shorter than the bound" if late else "", unmet=judge.failing(case),
    )  # fmt: skip


def norm_identity(case: Case) -> Verdict:
    """The exact identity, for every neuron, after all steps."""
    run, network = of_run(case), case.start.network
    start, end = np.sum(network.W**2, axis=1), np.sum(run["final_W"] ** 2, axis=1)
    removed, restored = run["ledger_removed"][-1], run["ledger_restored"][-1]
    predicted = start - network.a**2 + run["final_a"] ** 2 - removed + restored
    scale = np.maximum(start, removed)
    return judge.judge(
        "|w_i|^2 falls by what the oscillation of a_i removes, less what comes back",
        "norm identity", "at most", 1e-10, float(np.abs((end - predicted) / scale).max()),
        "relative residual after all steps, largest of all neurons",
        note=f"mean over neurons: {removed.mean():.4g} removed, {restored.mean():.4g} restored",
    )  # fmt: skip


def lemma_3(case: Case) -> list[Verdict]:
    """Lemma 3, in a run that ends as the first neuron leaves the lazy regime."""
    lazy, (nonpositive, decrease) = of_run(case), judge.lemma_3(case)
    rule = (
        "over all neurons, samples and signs of the noise, least of the clouds while all are lazy"
    )
    shares = lazy["lemma_3_nonpositive"].min(), lazy["lemma_3_decrease"].min()
    return [
        nonpositive.verdict("P(dW_i <= 0) >= 1 - rho m^(-1/8)", shares[0], rule),
        decrease.verdict("P(dW_i <= -(sigma/4)^2) >= 1/4", shares[1], rule),
    ]


def phase_two(case: Case) -> Verdict:
    """Whether Phase II, as the paper defines it, begins in the run of Figure 2."""
    return judge.phase_two(case).verdict(
        "Phase II begins: all |w_i| <= sqrt(lr)",
        float(of_run(case)["cloud_norm"].max(axis=-1).min()),
        "largest norm of a neuron, at the cloud where it is least", unmet=judge.failing(case),
        note="at rest |W|_F^2 is about |theta*| sqrt(d), which keeps the neurons above",
    )  # fmt: skip


def small_start(runs: list[tuple[float, Trajectory]]) -> list[Verdict]:
    """Lemmas 5 and 6 under their premise: gradient descent from weights of at most sqrt(lr).

    `runs`: (largest norm at the start over sqrt(lr), run), with every neuron tracked.
    """
    verdicts = []
    for share, run in runs:
        norm = run.config["theta_norm"]
        lemmas = judge.descent(run.config["lr"], norm)
        cosine = run["tracked_alignment"] / (run["tracked_norm"] * norm)
        aligned = judge.Statement("Lemma 5", "at least", 1 - lemmas.misalignment)
        near = judge.Statement("Lemma 6", "at most", lemmas.distance)
        start = f"from norms up to {share:g} sqrt(lr)"
        rule = "least |cos(w_i, theta*)| of all neurons at that step; the unstated constant as 1"
        for text, step in (
            ("as printed", lemmas.aligned),
            ("at the linearised rate", lemmas.aligned_linearized),
        ):
            verdicts.append(
                aligned.verdict(
                    f"aligned after T2 {text}, {step:,.0f} steps, {start}",
                    float(_at(run, cosine.min(axis=1), step)), rule,
                    note=f"the mean is {_at(run, cosine.mean(axis=1), step):.3g}",
                )
            )  # fmt: skip
        end = lemmas.converged
        verdicts.append(
            near.verdict(
                f"converged T3 later, at step {end:,.0f}, {start}",
                float(_at(run, run["interpolator_distance"], end)),
                "|theta - theta*| at that step; the unstated constant as 1",
            )
        )
    return verdicts


def _at(run: Trajectory, values: FloatArray, step: float) -> Any:
    """The value of a series at `step`, interpolated between records."""
    return np.interp(step, run.steps, values)


def law_of_modes(case: Case, ratios: FloatArray) -> list[Verdict]:
    """The predicted curve against all seeds, and `ratios` : (d,), measured over predicted rates."""
    seeds, (curve, reason) = of_run(case), case.law_of_modes()
    measured = np.atleast_2d(seeds["norm_squared"])
    worst, note = math.nan, ""
    if curve is not None:
        worst, record = judge.worst_deviation(measured.mean(axis=0), curve)
        note = f"at step {int(seeds.steps[record]):,}"
    return [
        judge.judge(
            "the law of modes gives |W(t)|_F^2 from the start, with no fitted parameter",
            BEYOND, "at most", 0.05, worst,
            f"largest relative deviation over all records, mean over {len(measured)} seeds",
            note=note, vacuous=reason,
        ),
        judge.judge(
            "mode i decays at rate lr^2 (sigma^2 + 2 L) lambda_i, largest ratio to it",
            BEYOND, "at most", 1.15, float(ratios.max()),
            "measured over predicted rate between 1/40 and 1/20 of the run, largest of all modes",
        ),
        judge.judge(
            "mode i decays at rate lr^2 (sigma^2 + 2 L) lambda_i, least ratio to it",
            BEYOND, "at least", 0.85, float(ratios.min()),
            "the same, least of all modes",
            note=f"median {float(np.median(ratios)):.3f}",
        ),
    ]  # fmt: skip


def stationary(case: Case, where: str) -> list[Verdict]:
    """The rank-one stationary state against the last quarter of a run."""
    run, predicted = of_run(case), case.start.learnt_at_rest
    late = slice(3 * run.steps.size // 4, None)
    first = np.atleast_2d(run["norm_squared"])[:, late].mean()
    second = (np.atleast_2d(run["second_layer_norm"])[:, late] ** 2).mean()
    rule = "mean over the last quarter of the run and all seeds, within 5%"
    return [
        judge.judge(f"|W|_F^2 at rest, {where}", BEYOND, "about", predicted[0], first, rule,
                    within=0.05),
        judge.judge(f"|a|^2 at rest, {where}", BEYOND, "about", predicted[1], second, rule,
                    within=0.05),
    ]  # fmt: skip


def flatness(noisy: Case, sam: Case, clean: Trajectory, full: Trajectory) -> list[Verdict]:
    """Where the trace of the Hessian H and its largest eigenvalue go: with label noise, one-sample
    SAM, without either, and with full-batch SAM."""
    trace, top = _left(full, "hessian_trace"), _left(full, "sharpness")
    return [
        *(_least_trace(case, name) for case, name in ((noisy, "label noise"), (sam, "SAM"))),
        judge.judge(
            "without noise tr H stays", BEYOND, "about", 1.0, _left(clean, "hessian_trace"),
            "value at the end over that at the start, within 5%", within=0.05,
        ),
        judge.judge(
            "full-batch SAM lowers lambda_max more than tr H", BEYOND, "at most", 1.0, top / trace,
            "share of lambda_max that is left at the end, over that of tr H",
            note=f"{top:.3f} of lambda_max and {trace:.3f} of tr H; one-sample SAM has left"
            f" {_left_at(of_run(sam), trace):.3f} of lambda_max at that trace",
        ),
        speed.full_batch(full),
    ]  # fmt: skip


def _least_trace(case: Case, name: str) -> Verdict:
    """Whether tr H is at its least value among interpolators when a run is at rest."""
    run, least = of_run(case), case.start.least_trace
    trace = np.atleast_2d(run["hessian_trace"])
    late = trace[:, 3 * run.steps.size // 4 :].mean()
    return judge.judge(
        f"{name} takes tr H to its least value among interpolators", BEYOND, "about", least, late,
        "mean over the last quarter of the run and all seeds, within 5%",
        within=0.05, note=f"it is {trace[0, 0]:,.0f} at the start",
    )  # fmt: skip


def _left(run: Trajectory, name: str) -> float:
    """The last value of a series over its first one."""
    values = series(run, name)
    return float(values[-1] / values[0])


def _left_at(run: Trajectory, share: float) -> float:
    """The share of the sharpness that is left when tr H first is at most `share` of its start."""
    trace, top = series(run, "hessian_trace"), series(run, "sharpness")
    below = np.flatnonzero(trace <= share * trace[0])
    return float(top[below[0]] / top[0]) if below.size else math.nan
