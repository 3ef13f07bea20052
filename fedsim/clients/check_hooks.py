"""Checks of the values that a strategy's methods return.

Each function raises ConfigError with the name of the method, the value, and the method's file and line, so that a
mistake in a user's strategy is neither a traceback from inside fedsim nor a silently wrong number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.arguments import refusal
from fedsim.checks import check_choice
from fedsim.clients.strategy import ClientStrategy
from fedsim.models import Array, Group, Model
from fedsim.splits.names import describe_client


def check_array(
    strategy: ClientStrategy,
    hook: str,
    what: str,
    values: Any,
    shape: tuple[Any, ...],
    names: tuple[str, ...] = ("clients", "parameters"),
) -> Array:
    """Return an array of numbers of the given shape, or raise.

    Parameters
    ----------
    strategy : ClientStrategy
    hook : str
    what : str
        Start of the message, such as ``"train() returned"``.
    values : object
    shape : tuple
        Lengths; a final ``...`` stands for any further dimensions.
    names : tuple of str
        Names of the dimensions.
    """
    named = _tuple_text(... if n is ... else name for n, name in zip(shape, names, strict=False))
    if not isinstance(values, np.ndarray):
        raise refusal(strategy, hook, f"{what} a {type(values).__name__}; it must be an array of shape {named}")
    if values.dtype.kind not in "biuf":
        raise refusal(strategy, hook, f"{what} an array of {values.dtype}; it must contain numbers")
    lead = shape[:-1] if shape[-1] is ... else shape
    if values.shape[: len(lead)] != lead or (shape[-1] is not ... and values.ndim != len(shape)):
        found = f"{'an array ' if what.endswith('returned') else ''}of shape {values.shape}"
        raise refusal(strategy, hook, f"{what} {found}; it must be {named}, here {_tuple_text(shape)}")
    return values


def _tuple_text(parts: Iterable[Any]) -> str:
    return str(tuple(parts)).replace("'", "").replace("Ellipsis", "...")


def check_per_client(strategy: ClientStrategy, hook: str, values: Any, clients: int, *, integers: bool) -> Array:
    """Return the values of `learning_rate` or `local_steps` as an array with one per client.

    Parameters
    ----------
    strategy : ClientStrategy
    hook : str
    values : number or ndarray
        One for all clients, or one for each.
    clients : int
    integers : bool
        Whether the values must be whole numbers of at least 1; otherwise they must be finite numbers of at least 0.
    """
    allowed = "a whole number of at least 1" if integers else "a finite number of at least 0"
    try:
        given = np.asarray(values)
        numbers = given.dtype.kind in "iuf" and given.shape in ((), (1,), (clients,)) and np.isfinite(given).all()
        if numbers and ((given >= 1) & (given == np.floor(given)) if integers else given >= 0).all():
            return np.broadcast_to(given.astype(np.intp if integers else np.float64), (clients,)).copy()
    except (TypeError, ValueError):
        pass
    allowed += f", or an array with one for each client, shape ({clients},)"
    raise refusal(strategy, hook, f"{hook}() returned {_short(values)}; allowed: {allowed}")


def check_client_state(strategy: ClientStrategy, state: Any, clients: int) -> dict[str, Array]:
    """Return the result of `client_state` if it is a dict of name to array, with a row per client and no NaN."""
    hook = "client_state"
    if not isinstance(state, Mapping):
        raise refusal(strategy, hook, f"{hook}() returned a {type(state).__name__}; it must be a dict of arrays")
    for name, values in state.items():
        check_array(strategy, hook, f"{hook}()[{name!r}] is", values, (clients, ...))
        if np.isnan(values).any():
            raise refusal(strategy, hook, f"{hook}()[{name!r}] contains NaN; it must contain numbers")
    return dict(state)


def check_state_update(strategy: ClientStrategy, hook: str, state: Any, declared: Mapping[str, Array]) -> None:
    """Raise unless `ctx.state` after a hook has the names, shapes and types that `client_state` declared.

    An array of another floating-point type is cast to the declared type: otherwise a client's state would depend on
    when the other clients of its block first took part.
    """
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise refusal(strategy, hook, f"ctx.state is a {kind} after {hook}(); it must be a dict of arrays")
    if state.keys() != declared.keys():
        names = f"{list(state)} after {hook}(); allowed: {list(declared)}, the names that client_state() returns"
        raise refusal(strategy, hook, f"ctx.state has the names {names}")
    for name, old in declared.items():
        new = check_array(strategy, hook, f"ctx.state[{name!r}] is", state[name], old.shape, ("clients", *["..."] * 9))
        if not np.can_cast(new.dtype, old.dtype, "same_kind"):
            types = f"is of {new.dtype} after {hook}(); it must be {old.dtype}"
            raise refusal(strategy, hook, f"ctx.state[{name!r}] {types}")
        state[name] = new.astype(old.dtype, copy=False)


def check_server_state(strategy: ClientStrategy, hook: str, state: Any) -> dict[str, Array]:
    """Return the server state after a hook if it is a dict of name to array of numbers."""
    if not isinstance(state, Mapping):
        raise refusal(strategy, hook, f"state is a {type(state).__name__} after {hook}(); it must be a dict of arrays")
    arrays = {name: np.asarray(values) for name, values in state.items()}
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf":
            kind = type(state[name]).__name__
            raise refusal(strategy, hook, f"state[{name!r}] is a {kind} after {hook}(); it must be an array of numbers")
    return arrays


def check_personal(
    strategy: ClientStrategy, values: Any, clients: Array, parameters: int, client_names: Sequence[str] = ()
) -> Array:
    """Return the result of `personalise` as finite rows of weights: one for all clients, or one for each."""
    rows = values[None] if isinstance(values, np.ndarray) and values.ndim == 1 else values
    count = 1 if isinstance(rows, np.ndarray) and rows.shape[:1] == (1,) else len(clients)
    rows = check_array(strategy, "personalise", "personalise() returned", rows, (count, parameters))
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        first = clients[int(np.argmin(finite))] if len(rows) == len(clients) else None
        client = "" if first is None else f" for {describe_client(first, client_names)}"
        raise refusal(strategy, "personalise", f"personalise() returned weights that are not finite{client}")
    return rows


def check_weights(strategy: ClientStrategy, values: Any, clients: int) -> Array:
    """Return the result of `weigh` if it is finite and at least 0, of shape (clients,) or (clients, groups)."""
    shape: tuple[Any, ...] = (clients, values.shape[1]) if getattr(values, "ndim", 1) == 2 else (clients,)
    weights = check_array(strategy, "weigh", "weigh() returned", values, shape, ("clients", "groups"))
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise refusal(strategy, "weigh", f"weigh() returned {_short(values)}; allowed: finite numbers of at least 0")
    return weights


def check_groups(strategy: ClientStrategy, groups: Any, allowed: Sequence[Group]) -> Sequence[Group]:
    """Return the result of `private_groups` if it is a list of some of the model's groups of parameters."""
    if not isinstance(groups, list | tuple) or not all(group in allowed for group in groups):
        returned = f"private_groups() returned {_short(groups)}; allowed: some of the model's groups, {_short(allowed)}"
        raise refusal(strategy, "private_groups", returned)
    return groups


def check_softmax(strategy: ClientStrategy, model: Model) -> None:
    """Raise unless the model's loss is the softmax cross-entropy."""
    check_choice(f"loss with {type(strategy).__name__}, which changes the softmax,", model.loss, ["cross_entropy"])


def _short(value: Any) -> str:
    """Return a value on one line, cut if it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
