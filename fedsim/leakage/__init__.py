"""Attacks on privacy: what an update, or a trained model, reveals about the examples that it was trained on."""

from fedsim.leakage.imprint import imprint_weights, read_imprint
from fedsim.leakage.inversion import Inversion, invert, neuron_ratios, separate, single_example
from fedsim.leakage.labels import LabelInference, infer_labels
from fedsim.leakage.matching import match_gradient
from fedsim.leakage.membership import (
    MembershipInference,
    attack_result,
    infer_membership,
    lira_scores,
)
from fedsim.leakage.observation import Observation, observe
from fedsim.leakage.quality import assign, psnr
from fedsim.leakage.shadow_models import ShadowModels, train_shadow_models

__all__ = [
    "Inversion",
    "LabelInference",
    "MembershipInference",
    "Observation",
    "ShadowModels",
    "assign",
    "attack_result",
    "imprint_weights",
    "infer_labels",
    "infer_membership",
    "invert",
    "lira_scores",
    "match_gradient",
    "neuron_ratios",
    "observe",
    "psnr",
    "read_imprint",
    "separate",
    "single_example",
    "train_shadow_models",
]
