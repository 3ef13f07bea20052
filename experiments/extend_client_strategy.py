"""A client strategy of your own, in ten lines: FedProx, compared with plain SGD on very non-IID data.

`direction` says what a step subtracts. Arrays have a row per client; everything else (batches, shuffling, messages,
aggregation, threads) is fedsim's. Li et al., "Federated optimization in heterogeneous networks", MLSys 2020.
"""

from fedsim import Experiment, compare
from fedsim.cli import guard
from fedsim.clients import SGD
from fedsim.splits import Dirichlet


class MyFedProx(SGD):
    """SGD that is pulled back towards the weights the server sent."""

    mu: float = 0.1

    def direction(self, grad, weights, ctx):  # type: ignore[no-untyped-def]
        """Add mu times how far each client has drifted."""
        return grad + self.mu * (weights - ctx.global_weights)


def main() -> None:
    base = Experiment(split=Dirichlet(50, alpha=0.1), fraction_train=0.2, rounds=30)
    sgd = SGD(epochs=5)
    study = compare(base, client=[sgd, MyFedProx(epochs=5, mu=0.1), MyFedProx(epochs=5, mu=1.0)], seeds=5)
    print(study.table().to_string())


if __name__ == "__main__":
    guard(main)
