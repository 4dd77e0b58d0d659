"""The experiments: one module each, which ends in EXPERIMENT (run/experiment.py)."""

NAMES = (
    "label-noise",
    "label-noise-periodic",
    "oscillation",
    "oscillation-periodic",
    "sam",
    "two-layer",
    "diagonal",
    "deep",
    "relu",
    "large-steps",
    "linearization",
    "wide-resnet",
    "wide-resnet-sam",
    "resnet",
)
"""The names in the order of `lnsim list`; module names have underscores for hyphens."""
