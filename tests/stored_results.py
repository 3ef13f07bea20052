"""Small experiments over all that fedsim offers, and what they gave: the safety net of changes that change no result.

``python tests/stored_results.py`` runs them and prints what differs from ``tests/stored_results.json``;
``--write`` stores what they give now (after a change that means to change some; say which in the changelog).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as stock
import numba
import numpy as np
import scipy
from helpers import OnRound
from threadpoolctl import threadpool_info

from fedsim import Experiment, clients, servers, splits
from fedsim.data import Dataset
from fedsim.splits import Dirichlet, LogNormal
from fedsim.study import baselines
from fedsim.study.result import Result
from fedsim.updates import compression

FILE = Path(__file__).with_suffix(".json")
#: Where bits differ for reasons of rounding, numbers agree to this.
TOLERANCE = 2e-3

BASE = Experiment(
    split=Dirichlet(6, alpha=0.3, sizes=LogNormal(0.8)),
    hidden=(8,),
    client=clients.SGD(batch_size=20),
    rounds=3,
    fraction_train=0.7,
    fraction_evaluate=1.0,
    test_fraction=0.2,
    seed=5,
    kernel="numpy",
)

CLIENTS = {
    "SGD": clients.SGD(batch_size=20, momentum=0.5, weight_decay=1e-3, lr_decay=0.9),
    "APFL": clients.APFL(batch_size=20, adaptive=True),
    "ClippedSGD": clients.ClippedSGD(batch_size=20, max_norm=0.5),
    "Ditto": clients.Ditto(batch_size=20, lam=0.5),
    "FedALA": clients.FedALA(batch_size=20, first_epochs=3),
    "FedDyn": clients.FedDyn(batch_size=20),
    "FedLC": clients.FedLC(batch_size=20),
    "FedNova": clients.FedNova(batch_size=20, momentum=0.5),
    "FedPer": clients.FedPer(batch_size=20),
    "FedProx": clients.FedProx(batch_size=20, proximal_mu=0.5),
    "FedRep": clients.FedRep(batch_size=20),
    "FedRS": clients.FedRS(batch_size=20),
    "FedSAM": clients.FedSAM(batch_size=20),
    "FedSGD": clients.FedSGD(),
    "FineTune": clients.FineTune(batch_size=20),
    "IFCA": clients.IFCA(batch_size=20),
    "LGFedAvg": clients.LGFedAvg(batch_size=20),
    "LocalOnly": clients.LocalOnly(batch_size=20),
    "MimeLite": clients.MimeLite(lr=0.5, batch_size=20),
    "MOON": clients.MOON(batch_size=20),
    "PerFedAvg": clients.PerFedAvg(batch_size=20),
    "PFedMe": clients.PFedMe(batch_size=20),
    "SCAFFOLD": clients.SCAFFOLD(batch_size=20),
    "SCAFFOLD option 1": clients.SCAFFOLD(batch_size=20, option=1),
    "SGD steps": clients.SGD(batch_size=7, steps=5),
    "SGD full batch": clients.SGD(batch_size=None, epochs=2),
}

SERVERS: dict[str, Any] = {
    "FedAvgM": partial(servers.FedAvgM, server_momentum=0.5),
    "FedAdam": servers.FedAdam,
    "FedAdagrad": servers.FedAdagrad,
    "FedYogi": servers.FedYogi,
    "FedExP": servers.FedExP,
    "FedMedian": servers.FedMedian,
    "FedTrimmedAvg": servers.FedTrimmedAvg,
    "Krum": partial(servers.Krum, num_malicious_nodes=1),
    "MultiKrum": partial(servers.MultiKrum, num_malicious_nodes=1, num_nodes_to_select=3),
    "Bulyan": partial(servers.Bulyan, num_malicious_nodes=1),
    "CenteredClipping": partial(servers.CenteredClipping, tau=0.2),
    "QFedAvg": servers.QFedAvg,
    "AgnosticFL": servers.AgnosticFL,
    "TERM": servers.TERM,
    "FedMGDA": servers.FedMGDA,
    "RFA": servers.RFA,
    "NormBounding": partial(servers.NormBounding, noise=1e-3),
    "NormBounding, streaming": partial(servers.NormBounding, norm=0.3),
    "FLTrust": partial(servers.FLTrust, root=50),
    "FoolsGold": servers.FoolsGold,
    "SpectralFilter": partial(servers.SpectralFilter, num_malicious_nodes=2, iterations=2, dimensions=200),
    "Flower's FedAvg": stock.FedAvg,
    "Flower's FedAdam": stock.FedAdam,
    "Flower's FedMedian": stock.FedMedian,
    "Flower's Krum": partial(stock.Krum, num_malicious_nodes=1),
}

INNER = Dirichlet(6, alpha=0.5)
SPLITS: dict[str, splits.Split] = {
    "IID": splits.IID(6),
    "Shards": splits.Shards(6),
    "Dirichlet": Dirichlet(6, alpha=0.1),
    "LabelDirichlet": splits.LabelDirichlet(6, alpha=0.3),
    "LabelsPerClient": splits.LabelsPerClient(6, k=3),
    "FeatureNoise": splits.FeatureNoise(INNER, high=0.5),
    "FeatureScale": splits.FeatureScale(INNER),
    "Rotation": splits.Rotation(INNER),
    "LabelNoise": splits.LabelNoise(INNER),
    "LabelPermutation": splits.LabelPermutation(INNER, clusters=2),
    "Mixture": splits.Mixture(splits.IID(6), splits.Shards(6), share=0.5),
    "Shared": splits.Shared(INNER),
    "TimeOrdered": splits.TimeOrdered(INNER, windows=3),
    "PowerLaw": splits.IID(6, sizes=splits.PowerLaw(1.0)),
    "DirichletSizes": splits.IID(6, sizes=splits.DirichletSizes(1.0)),
}


@cache
def _regression() -> Dataset:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((260, 5))
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.standard_normal(260)
    return Dataset("waves", x[:200], y[:200], x[200:], y[200:], regression=True, groups={"site": np.arange(200) % 7})


@cache
def _two_classes() -> Dataset:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((400, 6))
    y = (x[:, 0] + x[:, 1] ** 2 > 0.7).astype(int)
    return Dataset("two classes", x[:300], y[:300], x[300:], y[300:])


@cache
def _one_site_diverges() -> Dataset:
    data = _two_classes()
    site = np.arange(300) % 5
    x = np.where((site == 3)[:, None], 1e6 * data.x_train, data.x_train)
    return Dataset("one site diverges", x, data.y_train, data.x_test, data.y_test, groups={"site": site})


def experiments() -> dict[str, Experiment]:
    """Return all of them, by name."""
    found = {f"client {name}": replace(BASE, client=client) for name, client in CLIENTS.items()}
    robust = replace(BASE, split=splits.IID(12), fraction_train=1.0, client=clients.SGD(lr=0.3, batch_size=20))
    for name, server in SERVERS.items():
        # The deterministic sampling of fedsim is not Flower's: its own strategies train all clients.
        found[f"server {name}"] = replace(robust, server=server)
    found["server FedAvg, half the clients"] = replace(robust, fraction_train=0.5)
    for name, split in SPLITS.items():
        found[f"split {name}"] = replace(BASE, split=split)
    found["split Natural"] = replace(BASE, dataset=_regression(), loss="mse", split=splits.Natural("site"))
    for kernel in ("numpy", "compiled"):
        on: dict[str, Any] = {"kernel": kernel, "fraction_evaluate": 0.0}
        for loss in ("cross_entropy", "binary_cross_entropy", "mse"):
            found[f"{kernel}: {loss}"] = replace(BASE, **on, loss=loss)
        for activation, hidden in (("tanh", ()), ("tanh", (9, 7)), ("sigmoid", (16, 8, 6)), ("relu", (33, 20))):
            found[f"{kernel}: {activation} {hidden}"] = replace(BASE, **on, activation=activation, hidden=hidden)
        two: dict[str, Any] = {"dataset": _two_classes(), "loss": "binary_cross_entropy", "split": splits.IID(5)}
        found[f"{kernel}: two classes"] = replace(BASE, **on, **two)
        found[f"{kernel}: regression"] = replace(BASE, **on, dataset=_regression(), loss="mse", split=splits.IID(5))
        found[f"{kernel}: float64"] = replace(BASE, **on, dtype="float64", client=CLIENTS["SGD"])
    for name in ("SGD", "FedProx", "SCAFFOLD", "FedDyn", "FedNova", "FedRep", "SGD full batch", "MimeLite"):
        found[f"compiled: {name}"] = replace(BASE, client=CLIENTS[name], kernel="compiled")
    large: dict[str, Any] = {
        "dataset": "article_teacher",
        "split": splits.IID(1),
        "fraction_evaluate": 0.0,
        "client": clients.SGD(batch_size=700),
    }
    for kernel in ("numpy", "compiled"):
        found[f"{kernel}: batches of 700"] = replace(BASE, **large, kernel=kernel)
    for name, chain in {
        "Float16": (compression.Float16(),),
        "Int8": (compression.Int8(),),
        "TopK, Int8": (compression.TopK(0.2), compression.Int8()),
        "RandomMask": (compression.RandomMask(0.5),),
    }.items():
        found[f"compress {name}"] = replace(BASE, transforms=chain)
    found["weight divergence"] = replace(BASE, weight_divergence=True, fraction_train=1.0)
    found["exclude"] = replace(BASE, dataset=_one_site_diverges(), split=splits.Natural("site"), on_failure="exclude")
    found["baseline centralised"] = baselines.centralised(BASE)
    found["baseline data-parallel"] = baselines.data_parallel(BASE)
    return found


class _Stop(Exception):  # noqa: N818 - nothing is wrong
    pass


def interrupted(experiment: Experiment) -> Result:
    """Run it in a directory, break it off after round 2, and go on."""
    from fedsim.study import saving as run

    def stop(row: Any) -> None:
        if row["round"] == 2:
            raise _Stop

    before = run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE
    run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = 0.0, 1e9
    try:
        with tempfile.TemporaryDirectory() as folder:
            try:
                experiment.run(directory=folder, callbacks=[OnRound(stop)])
            except _Stop:
                return experiment.run(directory=folder)
            raise AssertionError("the run was not interrupted")
    finally:
        run.CHECKPOINT_SECONDS, run.CHECKPOINT_SHARE = before


def cases() -> dict[str, Callable[[], Result]]:
    """Return what to call for each result."""
    found: dict[str, Callable[[], Result]] = {name: e.run for name, e in experiments().items()}
    for name in ("client SCAFFOLD", "server FedAdam", "server AgnosticFL", "compress TopK, Int8", "split TimeOrdered"):
        found[f"resumed: {name}"] = partial(interrupted, experiments()[name])
    return found


def summary(result: Result) -> dict[str, Any]:
    """Return what is stored of a result."""
    digest = hashlib.sha256()
    for name, values in sorted(result.weights.items()):
        digest.update(name.encode() + values.dtype.str.encode() + np.ascontiguousarray(values).tobytes())
    last = result.history.iloc[-1]
    numbers = {name: float(last[name]) for name in ("test_loss", f"test_{result.score}", "train_loss", "local_loss")}
    return {n: None if v != v else v for n, v in numbers.items()} | {"weights": digest.hexdigest()}


def machine() -> dict[str, Any]:
    """Return what bits depend on: processor, NumPy with its BLAS, Numba, and SciPy for FedMGDA."""
    import llvmlite.binding as llvm

    blas = sorted(
        {f"{b['internal_api']} {b.get('architecture')}" for b in threadpool_info() if b["user_api"] == "blas"}
    )
    features = hashlib.sha256(llvm.get_host_cpu_features().flatten().encode()).hexdigest()[:16]
    return {
        "machine": f"{platform.machine()} {llvm.get_host_cpu_name()} {features}",
        "blas": blas,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "scipy": scipy.__version__,
    }


def differences(found: dict[str, Any], stored: dict[str, Any], bits: bool) -> list[str]:
    """Return what a summary and a stored one disagree in: in bits, or by more than rounding explains."""
    odd = []
    for name, value in stored.items():
        if name == "weights":
            if bits and found[name] != value:
                odd.append("the weights' bits")
        elif (value is None) != (found[name] is None) or (
            value is not None
            and (found[name] != value if bits else abs(found[name] - value) > TOLERANCE * max(1, abs(value)))
        ):
            odd.append(f"{name} is {found[name]}, stored {value}")
    return odd


def main() -> int:
    """Compare or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="store what they give now")
    write = parser.parse_args().write
    results = {name: summary(run()) for name, run in cases().items()}
    if write:
        FILE.write_text(json.dumps({"made on": machine(), "results": results}, indent=1) + "\n")
        print(f"wrote {len(results)} results to {FILE}")
        return 0
    stored = json.loads(FILE.read_text())
    bits = stored["made on"] == machine()
    odd = {n: differences(results[n], s, bits) for n, s in stored["results"].items()}
    for name, what in odd.items():
        if what:
            print(f"{name}: {'; '.join(what)}")
    print(
        f"{sum(map(bool, odd.values()))} of {len(odd)} results differ, compared {'in bits' if bits else 'to rounding'}"
    )
    return 1 if any(odd.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
