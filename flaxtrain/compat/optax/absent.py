"""What the door says about names that it does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flaxtrain.errors import FlaxtrainError, nearest

__all__ = ["AbsentNameError", "answer_for", "listing"]

OUTSIDE = {
    "assignment": "the Hungarian algorithm",
    "experimental": "Optax's experiments (aggregation of per-example updates)",
    "microbatch": "gradients by microbatches",
    "microbatching": "gradients by microbatches",
    "perturbations": "functions made differentiable by perturbing them",
    "projections": "projections onto convex sets",
    "second_order": "diagonals of Hessians and Fisher matrices",
}
"""Names that are no optimizer, schedule or loss, and what they are."""

LATER = {
    "ScaleByBacktrackingLinesearchState": "the state of a line search",
    "ScaleByLBFGSState": "the state of L-BFGS",
    "ScaleByZoomLinesearchState": "the state of a line search",
    "ZoomLinesearchInfo": "the state of a line search",
    "lbfgs": "L-BFGS",
    "scale_by_backtracking_linesearch": "a line search",
    "scale_by_lbfgs": "L-BFGS",
    "scale_by_zoom_linesearch": "a line search",
    "value_and_grad_from_state": "a helper of the line searches",
    "DifferentiallyPrivateAggregateState": "the state of differentially private SGD",
    "differentially_private_aggregate": "differentially private SGD",
    "dpsgd": "differentially private SGD",
}
"""Names of the suite that are not there yet, and what they are."""

CONTRIB = (
    "acprop",
    "ademamix",
    "adopt",
    "cocob",
    "dadapt_adamw",
    "differentially_private_aggregate",
    "dog",
    "dowg",
    "dpsgd",
    "galore",
    "hutchinson_estimator_diag_hessian",
    "madgrad",
    "mechanize",
    "momo",
    "momo_adam",
    "muon",
    "normalize",
    "prodigy",
    "reduce_on_plateau",
    "sam",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_eval_params",
    "schedule_free_sgd",
    "simplified_ademamix",
    "sophia",
    "split_real_and_imaginary",
)
"""The functions of Optax's `contrib`, beside their `scale_by_...` and states."""


class AbsentNameError(FlaxtrainError, AttributeError):
    """The door has no such name: outside the suite, not there yet, or misspelt."""


def answer_for(page: str, known: Iterable[str]) -> Callable[[str], Any]:
    """Returns a module's `__getattr__`, which says why a name is not there.

    Args:
        page: the submodule, `""` for the door itself.
        known: the names that the module has.

    Example:
        >>> answer_for("", ["adam", "sgd"])("lbfgs")
        Traceback (most recent call last):
            ...
        flaxtrain.compat.optax.absent.AbsentNameError: optax.lbfgs is not there yet: L-BFGS
          where: flaxtrain.compat.optax
          fix:   use Optax's own object in its place; both libraries' objects run together
    """
    names, path = list(known), ".".join(filter(None, ["optax", page]))

    def answer(name: str) -> Any:
        where, full = f"flaxtrain.compat.{path}", f"{path}.{name}"
        if page == "" and name in OUTSIDE:
            raise AbsentNameError(
                f"{full} is not part of the suite: {OUTSIDE[name]}",
                where=where,
                fix="import it from Optax itself",
            )
        if what := _later(page, name):
            raise AbsentNameError(
                f"{full} is not there yet: {what}",
                where=where,
                fix="use Optax's own object in its place; both libraries' objects run together",
            )
        guess = nearest(name, names)
        hint = f"did you mean {guess[0]!r}?" if guess else f"dir({path}) lists what is there"
        raise AbsentNameError(f"{path} has no {name!r}", where=where, fix=hint)

    return answer


def _later(page: str, name: str) -> str | None:
    if page in ("", "contrib") and name in LATER:
        return LATER[name]
    short = name.removeprefix("scale_by_")
    if page == "contrib" and (short in CONTRIB or name[:1].isupper()):
        return "one of Optax's contributed optimizers"
    return None


def listing(known: Iterable[str]) -> Callable[[], list[str]]:
    """Returns a module's `__dir__`: the names that it exports, and no others.

    Example:
        >>> listing(["sgd", "adam"])()
        ['adam', 'sgd']
    """
    names = sorted(known)
    return lambda: list(names)
