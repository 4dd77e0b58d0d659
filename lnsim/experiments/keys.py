"""What the keys of the experiments' configurations mean, a line each."""

from __future__ import annotations

import textwrap
from dataclasses import fields

from lnsim.base import config as configs
from lnsim.run.experiment import load

WIDTH = 80

MEANINGS = {
    "alpha": "scale of the network's output at the start",
    "amplitude": "|a_i| while it oscillates; left out, lr^(1/4)",
    "augment": "random crops and flips of the training images",
    "batch_size": "samples in a step; 0: all of them",
    "block_size": "residual blocks in a group",
    "compile": "compile the network; needs CUDA",
    "data": "FILE.npz of images, or cifar10, which is downloaded",
    "data_root": "where cifar10 is kept",
    "dim": "d, the input dimension",
    "dtype": "of the gradients: float32 or float64",
    "epochs": "passes over the training images",
    "flip": "a noisy label is drawn from any class, or from the other ones",
    "k": "widening factor",
    "kept_percent": "shares of the weights that pruning keeps",
    "kernel_every": "steps between measurements of the tangent kernel; 0: never",
    "law": "of the label noise: rademacher, gaussian or uniform",
    "ledger": "keep what moved every neuron's norm (Lemma 3)",
    "lr": "learning rate, eta in the paper",
    "momentum": "share of the last step that is taken again",
    "period": "steps for which it is on, and as many for which it is off",
    "precision": "float32 or bfloat16; bfloat16 needs CUDA",
    "preset": "small or paper: where the other values come from",
    "record_every": "steps between records; for resnet, epochs",
    "rho": "radius of sharpness-aware minimisation",
    "samples": "n, training samples; of images, 0: all",
    "seed": "of the data, the network and the noise",
    "sigma": "standard deviation of the label noise",
    "smoothing": "decay of the smoothed accuracy from record to record",
    "steps": "how long to train",
    "tau": "probability that a label is drawn anew each time it is used",
    "test_samples": "samples of the test set; of images, 0: all",
    "threads": "of the CPU, for each network; they change the last bits",
    "theta_norm": "|theta*| to scale the labels to; 0: as drawn",
    "tracked": "neurons that are followed one by one",
    "train_measured": "images the training loss is taken of; 0: all",
    "weight_decay": "share of the weights taken away, times lr",
    "width": "m, hidden neurons; of resnet, channels of the first group",
}


def described(name: str) -> list[str]:
    """Every key of experiment `name` with its value and meaning.  Raises as `load` does."""
    config = load(name).Config()
    values = configs.to_toml({f.name: getattr(config, f.name) for f in fields(config)})
    lines = []
    for line in values.splitlines():
        key = line.partition(" = ")[0]
        gap = " " * 34
        text = f"{line:<32}  {MEANINGS[key]}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent=gap, drop_whitespace=True)
    return lines
