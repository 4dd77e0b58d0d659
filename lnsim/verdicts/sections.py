"""The sections of the page of `reproduce`: their titles, claims, pictures and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lnsim.references.credits import named, papers_of
from lnsim.verdicts.judge import Verdict
from lnsim.verdicts.networks import RUNS


@dataclass(frozen=True)
class Section:
    """A figure of the paper, or a part of its theory; `pictures` are pairs (file, caption).

    `rests_on`: keys of papers and names of credits (lnsim.references), in the order of importance.
    """

    key: str
    title: str
    claim: str
    pictures: tuple[tuple[str, str], ...]
    verdicts: Sequence[Verdict]
    rests_on: tuple[str, ...] = ()


LOSSES_CAPTION = (
    "(a) losses on clean labels, with those of the linearised twin trained on the same draws"
)
PHASES_CAPTION = (
    f"{LOSSES_CAPTION}; (b) mean norm (left) and mean alignment (right); (c) single neurons"
    " from their start (dot), darker later;"
    " (d) all neurons at four times; dotted: full alignment, which no neuron can exceed;"
    " (e) |W|_F^2; (f) tr H of the training loss, dotted: its least value among interpolators."
    " Bands: the way out of the lazy regime, Phase I, Phase II as measured."
    " Dashed, and grey in the clouds: the law of the cloud, from the start and the data with no"
    " fitted parameter, or above the panels why it predicts nothing"
)
WINDOWS_CAPTION = (
    "(b) norms of the neurons, (c) single second-layer weights. Shaded: on. Losses below 10^-12 of"
    " the largest are not shown"
)


def figure_2(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "figure-2",
        "Figure 2: label noise SGD",
        "Label noise SGD leaves the lazy regime. In Phase I the norms of the neurons shrink, in"
        " Phase II the neurons turn to the interpolator. Without label noise training stays lazy.",
        (
            (
                "label-noise/figure.png",
                f"{PHASES_CAPTION}. Its rates at leading order follow from"
                f" {named('law-of-modes')}; the rest of it is ours.",
            ),
            ("label-noise-clean/figure.png", "Control: the same with sigma = 0."),
        ),
        verdicts,
        ("zhang2026", "linearised-twin", *papers_of("law-of-modes")),
    )


def figure_4(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "figure-4",
        "Figure 4: sharpness-aware minimisation",
        "SAM, without label noise, passes through the same two phases. Its rho is unstated in the"
        " paper; here it is 0.1 unless set otherwise. The released repository was tested with label"
        " noise and shows similar phenomena: SAM with the label noise of Figure 2 is beside it.",
        (
            (
                "sam/figure.png",
                f"{PHASES_CAPTION}. SAM is that of {named('foret2021')}, at one sample a step.",
            ),
            ("sam-with-label-noise/figure.png", "SAM with label noise, sigma as in Figure 2."),
            ("sam-without-rho/figure.png", "Control: the same with rho = 0."),
        ),
        verdicts,
        ("zhang2026", "foret2021", "andriushchenko2022", "wen2022", "stationary-state"),
    )


def periodic(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "label-noise-periodic",
        "Periodic label noise",
        "With the noise on for 5,000 steps and off for 5,000, neuron norms fall while it is on and"
        " stop falling while it is off; second-layer weights oscillate near zero, and settle.",
        (("label-noise-periodic/figure.png", f"{LOSSES_CAPTION}, {WINDOWS_CAPTION}."),),
        verdicts,
        ("zhang2026", "linearised-twin"),
    )


def oscillation(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "oscillation",
        "Oscillation simulation",
        "An oscillating second layer is enough: with every a_i an independent chain on 0 and"
        " +-lr^(1/4), gradient descent on the clean loss shrinks the first layer (Lemma 4).",
        (
            (
                "oscillation/figure.png",
                f"{LOSSES_CAPTION}, by plain descent; (b) mean norm and mean squared norm with the"
                " level and the latest time of Lemma 4; (c) mean norm (left) and mean alignment"
                " (right); (d) four second-layer weights at the start.",
            ),
        ),
        verdicts,
        ("zhang2026", "linearised-twin"),
    )


def oscillation_periodic(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "oscillation-periodic",
        "Periodic oscillation",
        "The same in windows: norms fall while the second layer oscillates and stop falling while"
        " it does not. What a does while off is unstated; here both layers follow plain gradient"
        " descent.",
        (("oscillation-periodic/figure.png", f"{LOSSES_CAPTION}, {WINDOWS_CAPTION}."),),
        verdicts,
        ("zhang2026", "linearised-twin"),
    )


def paper_theory(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "theory",
        "The paper's theory",
        "Theorem 2, the norm identity and Lemma 3 in the run of Figure 2. Lemmas 5 and 6 start from"
        " Phase II, all weights at most sqrt(lr), which that run never reaches; they are tested by"
        " gradient descent from such weights with m = 1/sqrt(lr), |theta*| = m^(-1/4) and"
        " n = infinity, where Condition 1 holds as far as its constants are stated.",
        (
            (
                "label-noise/ledger.png",
                "(a) the sums of the norm identity, means over neurons; (b) both sums of every"
                " neuron at the end; (c) the probabilities of Lemma 3, the lazy regime shaded.",
            ),
        ),
        verdicts,
        ("zhang2026", "lazy-regime"),
    )


def our_theory(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "law-of-modes",
        "Beyond the paper: law of modes, stationary state, law of the cloud",
        "The modes of W off theta* decay at rates proportional to the eigenvalues of the data's"
        " covariance; that gives |W(t)|_F^2 with no fitted parameter. The noise comes to rest at a"
        " rank-one network of known norms. The law of the cloud gives the mean course of the"
        " network (dashed in Figures 2 and 4), and so when things happen, from the data and the"
        " start with no fitted parameter, under label noise and under one-sample SAM.",
        (),
        verdicts,
        ("law-of-modes", "stationary-state", "law-of-the-cloud"),
    )


def flat_minima(verdicts: Sequence[Verdict]) -> Section:
    return Section(
        "flat-minima",
        "Beyond the paper: flat minima",
        "Among the interpolators with one predictor the trace of the Hessian H has a least value,"
        " in closed form. The noise of one-sample gradients takes the network there; full-batch SAM"
        " lowers the largest eigenvalue first.",
        (),
        verdicts,
        (
            "stationary-state",
            "law-of-sam",
            "hessian_trace",
            "flatness_gap",
            "sharpness",
            "sharpness-aware",
        ),
    )


def large_steps(verdicts: Sequence[Verdict]) -> Section:
    caption = (
        "(a) training loss and (b) sharpness at a few learning rates, dashed: 2/eta of each; (c)"
        " sharpness at the end and (d) largest loss, at every learning rate. Shaded: what became"
        " of it; dotted: the boundaries 2/lambda_0 and 4/lambda_0"
    )
    return Section(
        "large-steps",
        "Beyond the paper: large steps, the catapult",
        "Without noise, full-batch descent is monotone below eta = 2/lambda_0, lambda_0 the largest"
        " eigenvalue of the tangent kernel at the start. Between 2/lambda_0 and 4/lambda_0 the loss"
        " rises and falls to a flatter minimum, above it diverges (Lewkowycz et al. 2020). On one"
        " sample the law is exact at every width; on the data of Figure 2 it is approximate.",
        (
            ("large-steps/figure.png", f"One sample, x = 1, y = 0: {caption}; pale: theory."),
            ("large-steps-regression/figure.png", "The same on the data of Figure 2."),
        ),
        verdicts,
        ("lewkowycz2020", "sharpness"),
    )


def networks(verdicts: Sequence[Verdict]) -> Section:
    caption = "the network without noise, with it, and its linearisation, by the name of each curve"
    return Section(
        "networks",
        "Networks on images: sharpness",
        "Whether noise leads to flatter minima there too, at the small presets, one seed. Under the"
        " cross-entropy of the ResNet the Hessian vanishes with the loss: a network that fits its"
        " labels better is flatter for that reason alone.",
        tuple((f"{name}/figure.png", f"{name}: {caption}.") for name in RUNS),
        verdicts,
        ("sharpness", "hessian_trace", "sharpness-aware"),
    )
