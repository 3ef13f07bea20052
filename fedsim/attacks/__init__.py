"""Attacks on training: malicious clients that change their examples or their updates."""

from fedsim.attacks.backdoor import Backdoor
from fedsim.attacks.base import Attack, AttackContext, ColludingAttack
from fedsim.attacks.free_rider import FreeRider
from fedsim.attacks.gaussian import GaussianAttack
from fedsim.attacks.inner_product import InnerProduct
from fedsim.attacks.label_flip import LabelFlip
from fedsim.attacks.little_is_enough import LittleIsEnough
from fedsim.attacks.min_max import MinMax, MinSum
from fedsim.attacks.model_replacement import ModelReplacement
from fedsim.attacks.sign_flip import SignFlip

__all__ = [
    "Attack",
    "AttackContext",
    "Backdoor",
    "ColludingAttack",
    "FreeRider",
    "GaussianAttack",
    "InnerProduct",
    "LabelFlip",
    "LittleIsEnough",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "SignFlip",
]
