"""Contribution of clients: retraining without them, Shapley values, and unlearning."""

from fedsim.contribution.classes import ClassInfluence, class_influence, class_recall
from fedsim.contribution.coalitions import CoalitionGame, exact_shapley, leave_one_out, monte_carlo_shapley
from fedsim.contribution.contributions import Contributions, combine
from fedsim.contribution.gtg import GTGShapley, gtg_shapley
from fedsim.contribution.retraining import Retraining, repeat
from fedsim.contribution.unlearning import Unlearning, unlearn

__all__ = [
    "ClassInfluence",
    "CoalitionGame",
    "Contributions",
    "GTGShapley",
    "Retraining",
    "Unlearning",
    "class_influence",
    "class_recall",
    "combine",
    "exact_shapley",
    "gtg_shapley",
    "leave_one_out",
    "monte_carlo_shapley",
    "repeat",
    "unlearn",
]
