"""Synthetic data with clients that differ by construction: FedProx's synthetic(alpha, beta), NIID-Bench's FCUBE."""

from __future__ import annotations

import numpy as np

from fedsim.checks import check_real, check_seed
from fedsim.data.dataset import Dataset
from fedsim.streams import Purpose, generator

_DEVICES, _FEATURES, _CLASSES = 30, 60, 10


def synthetic(alpha: float = 1.0, beta: float = 1.0, seed: int = 0) -> Dataset:
    """Return FedProx's synthetic(alpha, beta): 30 devices with different models and features.

    Li et al., "Federated optimization in heterogeneous networks", MLSys 2020 (arXiv:1812.06127), section 5.1, with the
    sizes of the authors' code. Device k has ``50 + int(lognormal(4, 2))`` examples of 60 features, drawn from
    ``N(v_k, diag(j ** -1.2))``, and labels them by ``argmax(W_k x + b_k)`` in 10 classes; ``W_k`` and ``b_k`` are
    drawn from ``N(u_k, 1)``, ``u_k`` from ``N(0, alpha)``, ``v_k`` from ``N(B_k, 1)`` and ``B_k`` from ``N(0, beta)``,
    where alpha and beta are standard deviations. A tenth of each device's examples is the test set.
    The group ``device`` identifies the device of each training example, for the split `Natural`.

    Parameters
    ----------
    alpha : float
        How much the devices' models differ, at least 0.
    beta : float
        How much their features differ, at least 0.
    seed : int
    """
    check_real("synthetic's alpha", alpha, 0)
    check_real("synthetic's beta", beta, 0)
    check_seed("synthetic's seed", seed)
    return _devices(f"synthetic({alpha:g}, {beta:g})", alpha, beta, False, seed)


def synthetic_iid(seed: int = 0) -> Dataset:
    """Return FedProx's synthetic-IID: as `synthetic`, but all devices have the same model and feature distribution."""
    check_seed("synthetic_iid's seed", seed)
    return _devices("synthetic_iid", 0.0, 0.0, True, seed)


def _devices(name: str, alpha: float, beta: float, iid: bool, seed: int) -> Dataset:
    rng = generator(seed, Purpose.DATA, 2)
    sizes = 50 + rng.lognormal(4, 2, _DEVICES).astype(int)
    model_means, feature_means = rng.normal(0, alpha, _DEVICES), rng.normal(0, beta, _DEVICES)
    deviation = np.arange(1, _FEATURES + 1) ** -0.6  # the square root of the variance
    shared_model = rng.normal(0, 1, (_FEATURES + 1, _CLASSES))
    train, test = [], []
    for device, size in enumerate(sizes):
        model = shared_model if iid else rng.normal(model_means[device], 1, shared_model.shape)
        center = np.zeros(_FEATURES) if iid else rng.normal(feature_means[device], 1, _FEATURES)
        x = center + deviation * rng.standard_normal((size, _FEATURES))
        y = (x @ model[:-1] + model[-1]).argmax(axis=1)
        cut = int(0.9 * size)
        train.append((x[:cut], y[:cut], np.full(cut, device)))
        test.append((x[cut:], y[cut:]))
    x_train, y_train, devices = map(np.concatenate, zip(*train, strict=True))
    x_test, y_test = map(np.concatenate, zip(*test, strict=True))
    x_train, x_test = x_train.astype(np.float32), x_test.astype(np.float32)
    return Dataset(name, x_train, y_train, x_test, y_test, _CLASSES, groups={"device": devices})


def fcube(seed: int = 0) -> Dataset:
    """Return FCUBE: points in a cube, labelled by the side of the plane x1 = 0 on which they are.

    Li et al., ICDE 2022 (arXiv:2102.02079), section IV-B, figure 5, with the sizes of NIID-Bench's code: 4,000 training
    and 1,000 test points in (-1, 1)^3, label 0 where x1 > 0. The group ``octants`` has four values, each a pair of
    octants symmetric about the origin, so that `Natural` gives four clients the same labels and different features.

    Parameters
    ----------
    seed : int
    """
    check_seed("fcube's seed", seed)
    rng = generator(seed, Purpose.DATA, 3)
    octants = np.repeat(np.arange(4), 1000)
    signs = np.column_stack([np.ones(4000), np.where(octants > 1, -1, 1), np.where(octants % 2, -1, 1)])
    y_train = np.tile([0, 1], 2000)
    x_train = rng.random((4000, 3)) * signs * np.where(y_train, -1, 1)[:, None]
    x_test = rng.random((1000, 3)) * 2 - 1
    y_test = (x_test[:, 0] <= 0).astype(int)
    x_train, x_test = x_train.astype(np.float32), x_test.astype(np.float32)
    return Dataset("fcube", x_train, y_train, x_test, y_test, 2, groups={"octants": octants})
