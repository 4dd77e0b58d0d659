"""The experiments, a module each, which ends in EXPERIMENT (run/experiment.py)."""

NAMES = (
    "label-noise",
    "label-noise-periodic",
    "oscillation",
    "oscillation-periodic",
    "sam",
    "linearization",
    "wide-resnet",
    "wide-resnet-sam",
    "resnet",
)
"""In the order in which they are listed; their modules have underscores for hyphens."""
