"""The papers that lnsim rests on: one table.

A paper is named by its first author and the year of the version cited ("damian2021").  Some are
cited in the version by which the field names them, on arXiv, a year before their conference; `note`
then names the conference.
"""

from __future__ import annotations

from collections.abc import Iterable

from lnsim.references.paper import ARXIV, Paper

NEURIPS = "Advances in Neural Information Processing Systems"
ICLR = "International Conference on Learning Representations"
ICML = "International Conference on Machine Learning, PMLR"
COLT = "Conference on Learning Theory, PMLR"
JMLR = "Journal of Machine Learning Research"

PAPERS: dict[str, Paper] = {
    "andreyev2024": Paper(
        authors=("Andreyev, Arseniy", "Beneventano, Pierfrancesco"),
        title="Edge of Stochastic Stability: Revisiting the Edge of Stability for SGD",
        year=2024, venue=ARXIV, kind="article", arxiv="2412.20553",
        gave="batch sharpness, which settles near 2/lr under SGD, where the sharpness does not",
    ),
    "andriushchenko2022": Paper(
        authors=("Andriushchenko, Maksym", "Flammarion, Nicolas"),
        title="Towards Understanding Sharpness-Aware Minimization",
        year=2022, venue=ICML, volume="162", pages="639-668", arxiv="2206.06232",
        gave="SAM that moves the weights for every few samples apart, and its bias on diagonal"
        " networks",
    ),
    "andriushchenko2023": Paper(
        authors=(
            "Andriushchenko, Maksym", "Varre, Aditya", "Pillaud-Vivien, Loucas",
            "Flammarion, Nicolas",
        ),
        title="SGD with Large Step Sizes Learns Sparse Features",
        year=2023, venue=ICML, volume="202", pages="903-925", arxiv="2210.05337",
        gave="large steps hold the loss at a level where noise makes features sparse",
    ),
    "arora2019": Paper(
        authors=("Arora, Sanjeev", "Cohen, Nadav", "Golowich, Noah", "Hu, Wei"),
        title="A Convergence Analysis of Gradient Descent for Deep Linear Neural Networks",
        year=2019, venue=ICLR, arxiv="1810.02281",
        gave="balancedness of neighbouring layers, kept by gradient flow",
    ),
    "baek2024": Paper(
        authors=("Baek, Christina", "Kolter, J. Zico", "Raghunathan, Aditi"),
        title="Why is SAM Robust to Label Noise?",
        year=2024, venue=ICLR, arxiv="2405.03676",
        gave="SAM through the Jacobian alone, or through the output's gradient alone",
    ),
    "blanc2020": Paper(
        authors=("Blanc, Guy", "Gupta, Neha", "Valiant, Gregory", "Valiant, Paul"),
        title="Implicit regularization for deep neural networks driven by an Ornstein-Uhlenbeck"
        " like process",
        year=2020, venue=COLT, volume="125", pages="483-513", arxiv="1904.09080",
        gave="label noise comes to rest only where tr H cannot fall along the interpolators",
    ),
    "braun2022": Paper(
        authors=(
            "Braun, Lukas", "Dominé, Clémentine", "Fitzgerald, James", "Saxe, Andrew",
        ),
        title="Exact learning dynamics of deep linear networks with prior knowledge",
        year=2022, venue=NEURIPS, volume="35", pages="6615-6629",
        gave="exact dynamics from balanced weights",
    ),
    "chen2023": Paper(
        authors=("Chen, Feng", "Kunin, Daniel", "Yamamura, Atsushi", "Ganguli, Surya"),
        title="Stochastic Collapse: How Gradient Noise Attracts SGD Dynamics Towards Simpler"
        " Subnetworks",
        year=2023, venue=NEURIPS, volume="36", arxiv="2306.04251",
        gave="stochastic collapse: under label noise a linear network loses singular values",
    ),
    "chizat2019": Paper(
        authors=("Chizat, Lénaïc", "Oyallon, Edouard", "Bach, Francis"),
        title="On Lazy Training in Differentiable Programming",
        year=2019, venue=NEURIPS, volume="32", arxiv="1812.07956",
        gave="lazy training, in which the weights hardly move and the model is its linearisation",
    ),
    "cohen2021": Paper(
        authors=(
            "Cohen, Jeremy M.", "Kaur, Simran", "Li, Yuanzhi", "Kolter, J. Zico",
            "Talwalkar, Ameet",
        ),
        title="Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
        year=2021, venue=ICLR, arxiv="2103.00065",
        gave="the sharpness of gradient descent rises to 2/lr and stays there",
    ),
    "cortes2012": Paper(
        authors=("Cortes, Corinna", "Mohri, Mehryar", "Rostamizadeh, Afshin"),
        title="Algorithms for Learning Kernels Based on Centered Alignment",
        year=2012, venue=JMLR, kind="article", volume="13", pages="795-828",
        gave="alignment of a kernel with the labels, of centred kernels",
    ),
    "cristianini2001": Paper(
        authors=(
            "Cristianini, Nello", "Shawe-Taylor, John", "Elisseeff, André", "Kandola, Jaz",
        ),
        title="On Kernel-Target Alignment",
        year=2001, venue=NEURIPS, volume="14",
        gave="alignment of a kernel with the labels",
    ),
    "damian2021": Paper(
        authors=("Damian, Alex", "Ma, Tengyu", "Lee, Jason D."),
        title="Label Noise SGD Provably Prefers Flat Global Minimizers",
        year=2021, venue=NEURIPS, volume="34", pages="27449-27461", arxiv="2106.06530",
        gave="label noise SGD descends the loss plus, at small lr, a multiple of tr H",
    ),
    "ding2024": Paper(
        authors=(
            "Ding, Lijun", "Drusvyatskiy, Dmitriy", "Fazel, Maryam", "Harchaoui, Zaid",
        ),
        title="Flat minima generalize for low-rank matrix recovery",
        year=2024, venue="Information and Inference: A Journal of the IMA", kind="article",
        volume="13", arxiv="2203.03756",
        gave="the least tr H of two factors of a matrix, by a nuclear norm",
    ),
    "domine2025": Paper(
        authors=(
            "Dominé, Clémentine C. J.", "Anguita, Nicolas", "Proca, Alexandra M.", "Braun, Lukas",
            "Kunin, Daniel", "Mediano, Pedro A. M.", "Saxe, Andrew M.",
        ),
        title="From Lazy to Rich: Exact Learning Dynamics in Deep Linear Networks",
        year=2025, venue=ICLR, arxiv="2409.14623",
        gave="exact dynamics from lambda-balanced weights, from rich to lazy",
    ),
    "du2018": Paper(
        authors=("Du, Simon S.", "Hu, Wei", "Lee, Jason D."),
        title="Algorithmic Regularization in Learning Deep Homogeneous Models: Layers are"
        " Automatically Balanced",
        year=2018, venue=NEURIPS, volume="31", arxiv="1806.00900",
        gave="gradient flow conserves the difference of the layers' norms",
    ),
    "even2023": Paper(
        authors=(
            "Even, Mathieu", "Pesme, Scott", "Gunasekar, Suriya", "Flammarion, Nicolas",
        ),
        title="(S)GD over Diagonal Linear Networks: Implicit Regularisation, Large Stepsizes and"
        " Edge of Stability",
        year=2023, venue=NEURIPS, volume="36", arxiv="2302.08982",
        gave="the limit of diagonal networks under steps of any size, and its effective scale",
    ),
    "foret2021": Paper(
        authors=(
            "Foret, Pierre", "Kleiner, Ariel", "Mobahi, Hossein", "Neyshabur, Behnam",
        ),
        title="Sharpness-Aware Minimization for Efficiently Improving Generalization",
        year=2021, venue=ICLR, arxiv="2010.01412",
        gave="sharpness-aware minimisation (SAM)",
    ),
    "gatmiry2023": Paper(
        authors=(
            "Gatmiry, Khashayar", "Li, Zhiyuan", "Ma, Tengyu", "Reddi, Sashank",
            "Jegelka, Stefanie", "Chuang, Ching-Yao",
        ),
        title="What is the Inductive Bias of Flatness Regularization? A Study of Deep Matrix"
        " Factorization Models",
        year=2023, venue=NEURIPS, volume="36", pages="28040-28052", arxiv="2306.13239",
        gave="what least tr H prefers in deep factorisations",
    ),
    "han2015": Paper(
        authors=("Han, Song", "Pool, Jeff", "Tran, John", "Dally, William J."),
        title="Learning both Weights and Connections for Efficient Neural Networks",
        year=2015, venue=NEURIPS, volume="28", arxiv="1506.02626",
        gave="pruning of the smallest weights",
    ),
    "haochen2021": Paper(
        authors=("HaoChen, Jeff Z.", "Wei, Colin", "Lee, Jason D.", "Ma, Tengyu"),
        title="Shape Matters: Understanding the Implicit Bias of the Noise Covariance",
        year=2021, venue=COLT, volume="134", pages="2315-2357", arxiv="2006.08680",
        gave="label noise finds the sparse solution of a diagonal network, Gaussian noise does not",
    ),
    "he2016": Paper(
        authors=("He, Kaiming", "Zhang, Xiangyu", "Ren, Shaoqing", "Sun, Jian"),
        title="Deep Residual Learning for Image Recognition",
        year=2016, venue="IEEE Conference on Computer Vision and Pattern Recognition",
        pages="770-778", arxiv="1512.03385",
        gave="ResNet-18",
    ),
    "jacot2018": Paper(
        authors=("Jacot, Arthur", "Gabriel, Franck", "Hongler, Clément"),
        title="Neural Tangent Kernel: Convergence and Generalization in Neural Networks",
        year=2018, venue=NEURIPS, volume="31", arxiv="1806.07572",
        gave="the tangent kernel, and its parametrisation of networks",
    ),
    "kornblith2019": Paper(
        authors=("Kornblith, Simon", "Norouzi, Mohammad", "Lee, Honglak", "Hinton, Geoffrey"),
        title="Similarity of Neural Network Representations Revisited",
        year=2019, venue=ICML, volume="97", arxiv="1905.00414",
        gave="centred alignment as a similarity of representations (CKA)",
    ),
    "krizhevsky2009": Paper(
        authors=("Krizhevsky, Alex",),
        title="Learning Multiple Layers of Features from Tiny Images",
        year=2009, venue="University of Toronto", kind="techreport",
        gave="the images of CIFAR-10",
    ),
    "kunin2024": Paper(
        authors=(
            "Kunin, Daniel", "Raventós, Allan", "Dominé, Clémentine", "Chen, Feng",
            "Klindt, David", "Saxe, Andrew", "Ganguli, Surya",
        ),
        title="Get rich quick: exact solutions reveal how unbalanced initializations promote"
        " rapid feature learning",
        year=2024, venue=NEURIPS, volume="37", arxiv="2406.06158",
        gave="unbalanced weights at the start decide between lazy and rich",
    ),
    "lee2019": Paper(
        authors=(
            "Lee, Jaehoon", "Xiao, Lechao", "Schoenholz, Samuel S.", "Bahri, Yasaman",
            "Novak, Roman", "Sohl-Dickstein, Jascha", "Pennington, Jeffrey",
        ),
        title="Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent",
        year=2019, venue=NEURIPS, volume="32", arxiv="1902.06720",
        gave="the linearised network, and its predictions under gradient flow in closed form",
    ),
    "lewkowycz2020": Paper(
        authors=(
            "Lewkowycz, Aitor", "Bahri, Yasaman", "Dyer, Ethan", "Sohl-Dickstein, Jascha",
            "Gur-Ari, Guy",
        ),
        title="The large learning rate phase of deep learning: the catapult mechanism",
        year=2020, venue=ARXIV, kind="article", arxiv="2003.02218",
        gave="between 2/lr and 4/lr of sharpness the loss spikes and ends at a flatter minimum",
    ),
    "li2021": Paper(
        authors=("Li, Zhiyuan", "Wang, Tianhao", "Arora, Sanjeev"),
        title="What Happens after SGD Reaches Zero Loss? --A Mathematical Framework",
        year=2021, venue=ARXIV, kind="article", arxiv="2110.06914",
        note=f"{ICLR}, 2022",
        gave="the drift of label noise along the interpolators, -(lr sigma)^2/4 grad tr H a step",
    ),
    "marion2024": Paper(
        authors=("Marion, Pierre", "Chizat, Lénaïc"),
        title="Deep linear networks for regression are implicitly regularized towards flat minima",
        year=2024, venue=NEURIPS, volume="37", arxiv="2405.13456",
        gave="bounds on the sharpness of the minimisers of deep linear regression",
    ),
    "mulayoff2020": Paper(
        authors=("Mulayoff, Rotem", "Michaeli, Tomer"),
        title="Unique Properties of Flat Minima in Deep Networks",
        year=2020, venue=ICML, volume="119", pages="7108-7118", arxiv="2002.04710",
        gave="flat minima of deep linear networks, by the largest eigenvalue of H, have gains that"
        " hardly change from layer to layer",
    ),
    "novak2020": Paper(
        authors=(
            "Novak, Roman", "Xiao, Lechao", "Hron, Jiri", "Lee, Jaehoon", "Alemi, Alexander A.",
            "Sohl-Dickstein, Jascha", "Schoenholz, Samuel S.",
        ),
        title="Neural Tangents: Fast and Easy Infinite Neural Networks in Python",
        year=2020, venue=ICLR, arxiv="1912.02803",
        gave="the architecture of the Wide ResNet without normalisation",
    ),
    "novak2022": Paper(
        authors=("Novak, Roman", "Sohl-Dickstein, Jascha", "Schoenholz, Samuel S."),
        title="Fast Finite Width Neural Tangent Kernel",
        year=2022, venue=ICML, volume="162", pages="17018-17044", arxiv="2206.08720",
        gave="tangent kernels of finite networks by structured derivatives",
    ),
    "orvieto2022": Paper(
        authors=(
            "Orvieto, Antonio", "Kersting, Hans", "Proske, Frank", "Bach, Francis",
            "Lucchi, Aurelien",
        ),
        title="Anticorrelated Noise Injection for Improved Generalization",
        year=2022, venue=ICML, volume="162", arxiv="2202.02831",
        gave="noise on the weights that is taken back at the next step",
    ),
    "pesme2021": Paper(
        authors=("Pesme, Scott", "Pillaud-Vivien, Loucas", "Flammarion, Nicolas"),
        title="Implicit Bias of SGD for Diagonal Linear Networks: a Provable Benefit of"
        " Stochasticity",
        year=2021, venue=NEURIPS, volume="34", pages="29218-29230", arxiv="2106.09524",
        gave="where SGD on a diagonal network ends",
    ),
    "pillaudvivien2022": Paper(
        authors=("Pillaud-Vivien, Loucas", "Reygner, Julien", "Flammarion, Nicolas"),
        title="Label noise (stochastic) gradient descent implicitly solves the Lasso for quadratic"
        " parametrisation",
        year=2022, venue=COLT, volume="178", pages="2127-2159", arxiv="2206.09841",
        gave="label noise on a diagonal network ends at a solution of the Lasso",
    ),
    "polyak1964": Paper(
        authors=("Polyak, Boris T.",),
        title="Some methods of speeding up the convergence of iteration methods",
        year=1964, venue="USSR Computational Mathematics and Mathematical Physics",
        kind="article", volume="4", pages="1-17",
        gave="momentum (the heavy ball)",
    ),
    "roy2007": Paper(
        authors=("Roy, Olivier", "Vetterli, Martin"),
        title="The effective rank: A measure of effective dimensionality",
        year=2007, venue="European Signal Processing Conference", pages="606-610",
        gave="effective rank, the exponential of the entropy of the singular values",
    ),
    "salmon2011": Paper(
        authors=("Salmon, John K.", "Moraes, Mark A.", "Dror, Ron O.", "Shaw, David E."),
        title="Parallel random numbers: as easy as 1, 2, 3",
        year=2011, venue="International Conference for High Performance Computing, Networking,"
        " Storage and Analysis",
        gave="the Philox generator, whose words are found by their number",
    ),
    "sommeijer1998": Paper(
        authors=("Sommeijer, Ben P.", "Shampine, Lawrence F.", "Verwer, Jan G."),
        title="RKC: An explicit solver for parabolic PDEs",
        year=1998, venue="Journal of Computational and Applied Mathematics", kind="article",
        volume="88", pages="315-326",
        gave="the Runge-Kutta-Chebyshev method, explicit and stable at large steps",
    ),
    "squire1998": Paper(
        authors=("Squire, William", "Trapp, George"),
        title="Using Complex Variables to Estimate Derivatives of Real Functions",
        year=1998, venue="SIAM Review", kind="article", volume="40", pages="110-112",
        gave="derivatives by a step along the imaginary axis, without a difference",
    ),
    "srivastava2014": Paper(
        authors=(
            "Srivastava, Nitish", "Hinton, Geoffrey", "Krizhevsky, Alex", "Sutskever, Ilya",
            "Salakhutdinov, Ruslan",
        ),
        title="Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
        year=2014, venue=JMLR, kind="article", volume="15", pages="1929-1958",
        gave="dropout",
    ),
    "wen2022": Paper(
        authors=("Wen, Kaiyue", "Ma, Tengyu", "Li, Zhiyuan"),
        title="How Does Sharpness-Aware Minimization Minimize Sharpness?",
        year=2022, venue=ARXIV, kind="article", arxiv="2211.05729",
        note=f"{ICLR}, 2023",
        gave="full-batch SAM lowers the largest eigenvalue of H, one-sample SAM lowers tr H",
    ),
    "woodworth2020": Paper(
        authors=(
            "Woodworth, Blake", "Gunasekar, Suriya", "Lee, Jason D.", "Moroshko, Edward",
            "Savarese, Pedro", "Golan, Itay", "Soudry, Daniel", "Srebro, Nathan",
        ),
        title="Kernel and Rich Regimes in Overparametrized Models",
        year=2020, venue=COLT, volume="125", pages="3635-3673", arxiv="2002.09277",
        gave="the scale of a diagonal network's start decides between kernel and rich regime",
    ),
    "zagoruyko2016": Paper(
        authors=("Zagoruyko, Sergey", "Komodakis, Nikos"),
        title="Wide Residual Networks",
        year=2016, venue="British Machine Vision Conference", arxiv="1605.07146",
        gave="the Wide ResNet",
    ),
    "zhang2026": Paper(
        authors=(
            "Zhang, Tongcheng", "Zhou, Zhanpeng", "Wang, Mingze", "Han, Andi", "Huang, Wei",
            "Suzuki, Taiji", "Yan, Junchi",
        ),
        title="On the Learning Dynamics of Two-layer Linear Networks with Label Noise SGD",
        year=2026, venue="AAAI Conference on Artificial Intelligence", arxiv="2603.10397",
        gave="the two phases of label noise SGD, their theory and the experiments: the paper that"
        " lnsim implements",
    ),
    "ziyin2023": Paper(
        authors=("Ziyin, Liu", "Li, Hongchao", "Ueda, Masahito"),
        title="Law of Balance and Stationary Distribution of Stochastic Gradient Descent",
        year=2023, venue=ARXIV, kind="article", arxiv="2308.06671",
        gave="gradient noise balances the layers, which gives the ratio of their norms at rest",
    ),
    "ziyin2024": Paper(
        authors=("Ziyin, Liu", "Wang, Mingze", "Li, Hongchao", "Wu, Lei"),
        title="Parameter Symmetry and Noise Equilibrium of Stochastic Gradient Descent",
        year=2024, venue=NEURIPS, volume="37", arxiv="2402.07193",
        gave="the equilibrium of the noise of two layers of matrices, and so their ratio at rest",
    ),
}  # fmt: skip
"""The papers by their keys, in alphabetical order."""


def bibtex(keys: Iterable[str]) -> str:
    """The BibTeX entries of papers, a blank line between two.  Raises KeyError for another key."""
    return "\n\n".join(PAPERS[key].bibtex(key) for key in keys)


def short(*keys: str) -> str:
    """Short names of papers, in one sentence; years of the same authors together.

    "Blanc et al. 2020, Ziyin et al. 2023, 2024".  Raises KeyError for another key.
    """
    names: list[str] = []
    for key in keys:
        authors, _, year = PAPERS[key].short.rpartition(" ")
        if names and names[-1].startswith(f"{authors} "):
            names[-1] += f", {year}"
        else:
            names.append(f"{authors} {year}")
    return ", ".join(names)
