"""``fedsim privacy``: the privacy loss of a run, before it is run."""

from __future__ import annotations

import argparse


def add_options(sub: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fedsim privacy``."""
    sub.add_argument("--clients", metavar="N", type=int, help="registered clients")
    sub.add_argument("--cohort", metavar="N", type=float, help="clients of a round, expected or fixed")
    sub.add_argument("--rounds", metavar="N", type=int)
    sub.add_argument("--examples", metavar="N", type=int, help="privacy by example: examples of a client")
    sub.add_argument("--batch", metavar="N", type=int, help="examples of a step, expected or fixed")
    sub.add_argument("--epochs", metavar="N", type=int, help="epochs of all rounds together")
    asked = sub.add_mutually_exclusive_group(required=True)
    asked.add_argument("--noise", metavar="Z", type=float, help="noise multiplier; prints epsilon")
    asked.add_argument("--epsilon", metavar="E", type=float, help="privacy budget; prints the noise multiplier")
    sub.add_argument("--delta", metavar="D", type=float, help="default: clients or examples ** -1.1")
    sub.add_argument(
        "--sampling", metavar="HOW", default="poisson", help="poisson (default), fixed, or, by client, epochs"
    )
    sub.add_argument("--accountant", metavar="NAME", default="rdp", help="rdp (default) or pld, which is tighter")


def privacy(args: argparse.Namespace) -> None:
    """Print the privacy loss for a noise multiplier, or the noise multiplier for a privacy budget."""
    from fedsim.checks import check_choice, check_integer
    from fedsim.errors import ConfigError
    from fedsim.privacy.accounting import PrivacyLoss, default_delta, noise_multiplier_for

    by_client, by_example = ("clients", "cohort", "rounds"), ("examples", "batch", "epochs")
    given = {name for name in by_client + by_example if getattr(args, name) is not None}
    if given not in (set(by_client), set(by_example)):
        found = ", ".join(f"--{name}" for name in by_client + by_example if name in given) or "none"
        raise ConfigError(
            f"the options given are {found}; allowed: --clients, --cohort and --rounds, or --examples, --batch and "
            "--epochs"
        )
    for name in ("clients", "rounds", "examples", "batch", "epochs"):
        if name in given:
            check_integer(f"--{name}", getattr(args, name), 1)
    if "examples" in given:
        check_choice("--sampling", args.sampling, ("poisson", "fixed"))
        unit, part, who, sampled, several = "steps", "a step", "example", "batch", "examples"
        everyone, cohort = args.examples, min(args.batch, args.examples)
        rounds = args.epochs * -(-everyone // cohort)
    else:
        unit, part, who, sampled, several = "rounds", "a round", "client", "cohort", "clients"
        everyone, rounds = args.clients, args.rounds
        cohort = int(args.cohort) if args.cohort.is_integer() else args.cohort
    delta = default_delta(everyone) if args.delta is None else args.delta
    accounted = everyone, cohort, delta, args.sampling, args.accountant
    noise = args.noise
    if noise is None:
        noise = noise_multiplier_for(args.epsilon, rounds, *accounted)
    loss = PrivacyLoss(noise, *accounted)
    print(
        f"noise multiplier {noise:.4g}: epsilon {loss.epsilon(rounds):.4g} with delta {delta:.3g} "
        f"after {rounds:,} {unit}"
    )
    if args.sampling == "poisson":
        print(f"each {who} takes part in {part} with probability {cohort / everyone:.4g}")
        print(f"neighbouring datasets differ by the presence of one {who}")
    else:
        print(f"each {part.removeprefix('a ')} has a {sampled} of {cohort:g} of {everyone:,} {several}")
        kind = "data" if args.sampling == "fixed" else "removal"
        print(f"neighbouring datasets differ by the {kind} of one {who}")
