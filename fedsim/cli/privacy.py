"""``fedsim privacy``: the privacy loss of a run, before it is run."""

from __future__ import annotations

import argparse


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim privacy``."""
    sub.add_argument("--clients", metavar="N", type=int, required=True, help="registered clients")
    sub.add_argument("--cohort", metavar="N", type=float, required=True, help="clients of a round, expected or fixed")
    sub.add_argument("--rounds", metavar="N", type=int, required=True)
    asked = sub.add_mutually_exclusive_group(required=True)
    asked.add_argument("--noise", metavar="Z", type=float, help="noise multiplier; prints epsilon")
    asked.add_argument("--epsilon", metavar="E", type=float, help="privacy budget; prints the noise multiplier")
    sub.add_argument("--delta", metavar="D", type=float, help="default: clients ** -1.1")
    sub.add_argument("--sampling", metavar="HOW", default="poisson", help="poisson (default), fixed or epochs")
    sub.add_argument("--accountant", metavar="NAME", default="rdp", help="rdp (default) or pld, which is tighter")


def privacy(args: argparse.Namespace) -> None:
    """Print the privacy loss for a noise multiplier, or the noise multiplier for a privacy budget."""
    from fedsim.checks import check_integer
    from fedsim.privacy.accounting import PrivacyLoss, default_delta, noise_multiplier_for

    check_integer("--clients", args.clients, 1)
    check_integer("--rounds", args.rounds, 1)
    delta = default_delta(args.clients) if args.delta is None else args.delta
    cohort = int(args.cohort) if args.cohort.is_integer() else args.cohort
    accounted = args.clients, cohort, delta, args.sampling, args.accountant
    noise = args.noise
    if noise is None:
        noise = noise_multiplier_for(args.epsilon, args.rounds, *accounted)
    loss = PrivacyLoss(noise, *accounted)
    print(
        f"noise multiplier {noise:.4g}: epsilon {loss.epsilon(args.rounds):.4g} with delta {delta:.3g} "
        f"after {args.rounds:,} rounds"
    )
    if args.sampling == "poisson":
        print(f"each client takes part in a round with probability {args.cohort / args.clients:.4g}")
        print("neighbouring datasets differ by the presence of one client")
    else:
        print(f"each round has a cohort of {args.cohort:g} of {args.clients:,} clients")
        kind = "data" if args.sampling == "fixed" else "removal"
        print(f"neighbouring datasets differ by the {kind} of one client")
