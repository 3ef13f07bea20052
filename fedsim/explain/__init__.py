"""Explanation: what a model has learned, and what its predictions depend on."""

from fedsim.explain.attributions import input_gradient, integrated_gradients, saliency, score_gradient
from fedsim.explain.fidelity import deletion_curve, rank_correlation
from fedsim.explain.importance import Importance, client_importance, permutation_importance
from fedsim.explain.prototypes import class_prototypes, input_weights, most_exciting, prototypes
from fedsim.explain.shapley import shap_values

__all__ = [
    "Importance",
    "class_prototypes",
    "client_importance",
    "deletion_curve",
    "input_gradient",
    "input_weights",
    "integrated_gradients",
    "most_exciting",
    "permutation_importance",
    "prototypes",
    "rank_correlation",
    "saliency",
    "score_gradient",
    "shap_values",
]
