"""Trackers: callbacks that log runs to MLflow, TensorBoard or Weights & Biases.

Each needs the extra of its name: ``mlflow``, ``tensorboard``, ``wandb``.
"""

from fedsim.trackers.mlflow import MLflow
from fedsim.trackers.tensorboard import TensorBoard
from fedsim.trackers.tracker import TrackedRun, Tracker
from fedsim.trackers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "TrackedRun", "Tracker", "WandB"]
