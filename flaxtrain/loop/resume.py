"""Continuing the run that a workdir holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flaxtrain import checkpoint
from flaxtrain.checkpoint import CHECKPOINTS
from flaxtrain.data import Stream
from flaxtrain.data.local_rows import as_given
from flaxtrain.errors import CheckpointError
from flaxtrain.loop.plan import spec_data
from flaxtrain.loop.recorded import Change, Recorded
from flaxtrain.loop.steps_per_call import CallForm
from flaxtrain.parallel import barrier, is_writer
from flaxtrain.parallel.engine import ONE_DEVICE, Engine
from flaxtrain.params import Restore, join_adapters, split_adapters
from flaxtrain.precision import UNSCALED, Precision, rounding_rule
from flaxtrain.spec import AccumulateBatches, Lookahead, OptSpec, OptState
from flaxtrain.train import NO_AVERAGE, Recipe, TrainState
from flaxtrain.tree import named_leaves

__all__ = ["Start", "begin", "checkpoint_meta", "continued", "data_facts"]


def data_facts(stream: Stream, seed: int) -> dict[str, Any]:
    """Returns what decides the order of the examples, for a later resume to compare."""
    stream = as_given(stream)
    return {
        "seed": seed,
        "batch_size": stream.rows,
        "batches_per_epoch": stream.batches_per_epoch,
        "examples_per_epoch": stream.examples_per_epoch,
    }


def checkpoint_meta(
    recipe: Recipe, state: TrainState, stream: Stream, seed: int
) -> dict[str, Any]:
    """Returns what a checkpoint says beside the state, as JSON values.

    Two states of one run with the same `meta` are the same: it tells how many batches were
    seen, and hyperparameters that were edited.
    """
    opt_state = state.opt_state
    groups = opt_state.hyperparams if isinstance(opt_state, OptState) else {}
    numbers = {name: dict(scalars) for name, scalars in groups.items()}
    step, batches, numbers = jax.device_get((state.step, state.counters.batches, numbers))
    return {
        "spec": spec_data(recipe.spec),
        **{name: now.as_meta() for name, now in _recorded(recipe).items()},
        "batches_per_update": recipe.spec.accumulation.count,
        "update": recipe.casts.precision.update,
        "data": data_facts(stream, seed),
        "step": int(step),
        "batches": int(batches),
        "hyperparams": {name: float(number) for name, number in named_leaves(numbers)},
    }


def _recorded(recipe: Recipe) -> dict[str, Recorded]:
    """Returns what a run is made with beside its spec."""
    values = {
        "adapters": None if recipe.adapters is None else recipe.adapters.lora,
        "ema": recipe.spec.ema,
        "accumulate": recipe.spec.accumulation,
        "loss_scale": recipe.options.loss_scale,
        "precision": recipe.casts.precision,
    }
    return {name: Recorded.of(value) for name, value in values.items()}


_DEFAULTS: Mapping[str, Any] = {
    "adapters": None,
    "ema": None,
    "accumulate": AccumulateBatches(1),
    "loss_scale": UNSCALED,
    "precision": Precision(),
}
"""What earlier versions, which did not say it, made runs with."""


def _changes(meta: Mapping[str, Any], recipe: Recipe, found: Path) -> dict[str, Change]:
    return {
        name: Change(Recorded.read(meta, name, _DEFAULTS[name], where=str(found)), now)
        for name, now in _recorded(recipe).items()
    }


class Start(NamedTuple):
    """What a run begins with.

    Attributes:
        recipe: that of the phase which the state is in.
        state: the state.
        notes: what was decided, as sentences.
        texts: tables about it, by name.
        call_form: how many steps its calls made; None where that is not known.
    """

    recipe: Recipe
    state: TrainState
    notes: list[str]
    texts: dict[str, str]
    call_form: CallForm | None = None


def begin(
    recipe: Recipe,
    stream: Stream,
    seed: int,
    workdir: Path | None,
    init_from: Restore | None,
    engine: Engine = ONE_DEVICE,
) -> Start:
    """Returns the state of the workdir's last checkpoint, or the state before the first step.

    Of several processes either all have a workdir, or none of them.

    Args:
        recipe: what does not change in the run.
        stream: the training data; differences from the checkpoint's are noted.
        seed: for the state before the first step.
        workdir: the run's directory, or None.
        init_from: where the weights of a run that begins come from; a run that goes on has
            its own.
        engine: where the state is to lie.

    Raises:
        CheckpointError: the checkpoint was made with another spec, or does not fit the model;
            or the source of `init_from` can't be read.
        ParameterError: the source does not fit the model.
    """
    found = None
    if workdir is not None:
        if is_writer():
            checkpoint.clean_up(workdir / CHECKPOINTS)
        barrier("the workdir is clean")
        found = checkpoint.latest(workdir / CHECKPOINTS)
    if found is None:
        return _first(recipe, seed, init_from, engine)
    start = continued(recipe, stream, seed, found, engine)
    notes = [f"continuing the run in {workdir}, checkpoint {found.name}", *start.notes]
    if init_from is not None:
        notes.append("init_from= is not read again: the run goes on from its own checkpoint")
    return start._replace(notes=notes)


def continued(
    recipe: Recipe, stream: Stream, seed: int, found: Path, engine: Engine = ONE_DEVICE
) -> Start:
    """Returns the state of a checkpoint; a process that calls this waits for no other one.

    Args:
        recipe: what does not change in the run.
        stream: the training data; differences from the checkpoint's are noted.
        seed: the trainer's seed.
        found: the checkpoint.
        engine: where the state is to lie.

    Raises:
        CheckpointError: the checkpoint was made with another spec, or does not fit the model.
    """
    meta = checkpoint.read_meta(found)
    changes, call_form = _changes(meta, recipe, found), CallForm.read(meta, where=str(found))
    notes = [
        *_spec_notes(meta, recipe, changes["adapters"], found),
        *checkpoint.environment_differences(found),
    ]
    data = meta.get("data", {})
    notes += [
        f"{name} was {data[name]} and is {value}: not the examples that would have followed"
        for name, value in data_facts(stream, seed).items()
        if name in data and data[name] != value
    ]
    notes += _options_notes(meta, recipe, changes, found)
    notes += _devices_notes(meta.get("devices", ""), engine.describe())
    recipe = recipe.at(meta.get("step", 0))
    like = jax.eval_shape(lambda: recipe.init(seed))
    goes_on, told = _average_notes(changes["ema"])
    if not goes_on:
        like = like.replace(ema=NO_AVERAGE)
    # The spec is the same: what was edited since is in the checkpoint.
    left = () if goes_on else ("ema",)
    state = checkpoint.restore(found, like=like, from_like=(), if_present=left)
    if not goes_on:
        state = state.replace(ema=recipe.begin_average(state.exact_params, state.collections))
    state = engine.place_state(state.resumable())
    return Start(recipe, state, notes + told, {}, call_form)


def _spec_notes(
    meta: Mapping[str, Any], recipe: Recipe, adapters: Change, found: Path
) -> list[str]:
    unknown: list[str] = []
    before, now = meta.get("spec"), spec_data(recipe.spec)
    if before is None or now is None:
        unknown = ["the optimizer spec holds code: whether it is that of the run is not known"]
    elif _trajectory(before) != _trajectory(now):
        raise CheckpointError(
            "the run in the workdir was made with another optimizer spec, or with another "
            "length where the spec has relative durations",
            where=str(found),
            fix="use the same spec and total, or another workdir",
        )
    # Also where the spec holds code.
    count = meta.get("batches_per_update", 1)
    if count != recipe.spec.accumulation.count:
        raise CheckpointError(
            f"in the run in the workdir {count} batches make an update, in the trainer's spec "
            f"{recipe.spec.accumulation.count}",
            where=str(found),
            fix=f"pass accumulate=AccumulateBatches({count}), or use another workdir",
        )
    if adapters.differs:
        raise CheckpointError(
            f"the run in the workdir has adapters {adapters.before.text}, the trainer "
            f"{adapters.now.text}",
            where=str(found),
            fix="pass the same adapters=, or use another workdir",
        )
    return unknown


def _trajectory(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a spec says but for the number of microbatches, which changes no gradient.

    An average of the weights is left out too, unless training depends on it.
    Fields that an earlier version did not know have their defaults.
    """
    known = OptSpec.from_dict(spec)
    count = known.accumulation.count
    average = known.ema if isinstance(known.ema, Lookahead) else None
    return known.replace(accumulate=AccumulateBatches(count), ema=average).to_dict()


def _average_notes(ema: Change) -> tuple[bool, list[str]]:
    """Returns whether the checkpoint's average of the weights goes on, and notes about it."""
    before, now = ema
    if not ema.is_other_kind:
        changed = [f"ema was {before.text} and is {now.text} from here on"]
        return True, changed if ema.differs else []
    notes = []
    if before.kind is not None:
        notes.append(f"the average {before.text} of the weights does not go on")
    if now.kind is not None:
        notes.append(
            f"the average {now.text} of the weights begins with those of the checkpoint"
        )
    return False, notes


def _options_notes(
    meta: Mapping[str, Any], recipe: Recipe, changes: Mapping[str, Change], found: Path
) -> list[str]:
    """Returns what differs in how a step is made.

    Raises:
        CheckpointError: the loss scale, or the update of 16-bit parameters, is of another kind,
            with another state.
    """
    before, now = meta.get("update", "nearest"), recipe.casts.precision.update
    keeps = rounding_rule(before, where=str(found)).keeps or recipe.rounding.keeps
    if before != now and keeps:
        raise CheckpointError(
            f"the run in the workdir has parameters of 16 bits updated by {before!r}, the "
            f"trainer by {now!r}, and these keep different things",
            where=str(found),
            fix=f"pass Precision(update={before!r}), or use another workdir",
        )
    scale = changes["loss_scale"]
    if scale.is_other_kind:
        raise CheckpointError(
            f"the run in the workdir has loss scale {scale.before.text}, the trainer "
            f"{scale.now.text}",
            where=str(found),
            fix="pass a loss_scale= of the same class, or use another workdir",
        )
    return [
        f"{name} was {change.before.text} and is {change.now.text}: not the bits that would "
        "have followed"
        for name, change in changes.items()
        if change.differs and name not in ("adapters", "ema")
    ]


def _devices_notes(before: str, now: str) -> list[str]:
    if before == now:
        return []
    texts = (text or "one device" for text in (before, now))
    return ["devices were {} and are {}: not the bits that would have followed".format(*texts)]


def _first(recipe: Recipe, seed: int, init_from: Restore | None, engine: Engine) -> Start:
    if init_from is None:
        return Start(recipe, engine.make_state(lambda: recipe.init(seed)), [], {})
    params, collections, rng = recipe.initial(seed)
    base, own = params, {}
    if recipe.adapters is not None:
        base, own = split_adapters(params)
    variables = {"params": base, **collections}
    restored, report = checkpoint.restored_variables(init_from, variables)
    params = restored.pop("params")
    if recipe.adapters is not None:
        params = join_adapters(params, own)
    state = recipe.state(params, restored, rng)
    table = {"restore": report.markdown()}
    return Start(recipe, engine.place_state(state), [report.summary], table)
