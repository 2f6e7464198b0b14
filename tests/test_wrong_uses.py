"""Wrong uses of the assembled product: each is a named error that says what, where, what to do.

Nothing is lost by a wrong use: a state that was there is unchanged, or the last good one.
"""
# ruff: noqa: E501, the texts are not wrapped when they are printed either

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import flaxtrain as ft
from flaxtrain import errors
from tests.runs import bits

# beartype would answer wrong types before the product does.
pytestmark = pytest.mark.usefixtures("unchecked_types")

BUILTIN: dict[type[ft.FlaxtrainError], type[Exception]] = {
    errors.ArgumentError: ValueError,
    errors.ArgumentTypeError: TypeError,
    errors.BatchError: ValueError,
    errors.DataError: ValueError,
    errors.DebugError: RuntimeError,
    errors.EmptyDatasetError: ValueError,
    errors.LossError: ValueError,
    errors.MissingKeyError: KeyError,
    errors.ModelError: ValueError,
    errors.NonFiniteError: ArithmeticError,
    errors.ParameterError: ValueError,
    errors.StateError: RuntimeError,
    errors.UnknownNameError: ValueError,
}

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
LABEL = (np.arange(12) % 3).astype(np.int32)
DATA = {"x": X, "label": LABEL}
SPEC = ft.OptSpec("sgd", learning_rate=0.1)
NAN = float("nan")
ADAM = "accumulate, b1, b2, clip, clip_norm, decay, decay_to, ema, eps, eps_root, freeze, groups, layer_decay, learning_rate, max_skips, mu_dtype, nesterov, nonfinite, spikes, weight_decay"
DURATIONS = "'500' or '500st' (steps), '10ep' (epochs), '5%' (of the run), '1M ex' (examples)"


class Trainers:
    """Makes the trainers of a row, so that their states can be looked at afterwards."""

    def __init__(self) -> None:
        self.made: list[ft.Trainer] = []
        self.before: dict[str, bytes] | None = None

    def __call__(self, model: Any = None, spec: Any = SPEC, **kwargs: Any) -> ft.Trainer:
        model = nn.Dense(3) if model is None else model
        self.made.append(ft.Trainer(model, spec, verbose=False, **kwargs))
        return self.made[-1]

    def trained(self, *args: Any, **kwargs: Any) -> ft.Trainer:
        """Returns a trainer with one step behind it, which must stay as it is."""
        trainer = self(*args, **kwargs)
        trainer.fit(DATA, batch_size=12)
        self.before = bits(trainer.state)
        return trainer


def batch(rows: slice, label: Any = LABEL) -> dict[str, np.ndarray]:
    return {"x": X[rows], "label": label[rows]}


def ragged() -> Iterator[dict[str, np.ndarray]]:
    """Five rows, five rows, two rows: nobody can know beforehand."""
    yield from (batch(slice(0, 5)), batch(slice(5, 10)), batch(slice(10, 12)))


def whole() -> Iterator[dict[str, np.ndarray]]:
    yield DATA


def wrong_later(label: int) -> list[dict[str, np.ndarray]]:
    """Three batches; the last one holds a wrong label in its second row."""
    labels = LABEL.copy()
    labels[9] = label
    return [batch(slice(start, start + 4), labels) for start in (0, 4, 8)]


def cross_entropy(model: ft.BoundModel, batch: Any) -> Any:
    return ft.losses.softmax_cross_entropy_with_integer_labels(
        model(batch["x"]), batch["label"]
    )


def scalar_loss(model: ft.BoundModel, batch: Any) -> Any:
    return cross_entropy(model, batch).mean()


def mean_without_mask(model: ft.BoundModel, batch: Any) -> Any:
    return ft.Mean.of(cross_entropy(model, batch))


def with_metric(name: Any, value: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda model, batch: (cross_entropy(model, batch), {name: value(model(batch["x"]))})


def returning(value: Any) -> Callable[..., Any]:
    def loss_fn(model: ft.BoundModel, batch: Any) -> Any:
        model(batch["x"])
        return value

    return loss_fn


class NormOverReshapedRows(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(-1, 2))
        return nn.Dense(3)(x.reshape(-1, 4))


class DropoutWithoutFlag(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x))


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(x + jax.random.normal(self.make_rng("noise"), x.shape))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(x), x


def config(**fields: Any) -> ConfigDict:
    return ConfigDict({"opt": {"optimizer": "sgd", "learning_rate": 0.1}, **fields})


class Row(NamedTuple):
    """`text` is the whole message, or pieces of it; `steps` the updates in the state, if any."""

    run: Callable[[Trainers], Any]
    kind: type[ft.FlaxtrainError]
    text: str | tuple[str, ...]
    steps: int | None = None


SPECS = {
    "unknown optimizer": Row(
        lambda _: ft.OptSpec("adamm", learning_rate=0.1),
        errors.UnknownNameError,
        f"""unknown optimizer 'adamm'
  where: OptSpec(optimizer)
  fix:   did you mean 'adam'? Known: {", ".join(sorted(ft.optim.NAMED))}""",
    ),
    "misspelt argument of OptSpec": Row(
        lambda _: ft.OptSpec("adam", learningrate=0.1),
        errors.UnknownNameError,
        f"""unknown argument 'learningrate'
  where: OptSpec('adam')
  fix:   did you mean 'learning_rate'? Known: {ADAM}""",
    ),
    "another library's name of an argument": Row(
        lambda _: ft.OptSpec("adam", lr=0.1),
        errors.UnknownNameError,
        f"""unknown argument 'lr'
  where: OptSpec('adam')
  fix:   did you mean 'learning_rate'? Known: {ADAM}""",
    ),
    "misspelt hyperparameter": Row(
        lambda _: ft.OptSpec("adam", learning_rate=0.1, beta1=0.9),
        errors.UnknownNameError,
        f"""unknown argument 'beta1'
  where: OptSpec('adam')
  fix:   did you mean 'b1'? Known: {ADAM}""",
    ),
    "hyperparameter out of range": Row(
        lambda _: ft.OptSpec("adam", learning_rate=0.1, b1=1.5),
        errors.ArgumentError,
        """b1=1.5 is out of range
  where: OptSpec('adam')
  fix:   pass a finite number in [0, 1)""",
    ),
    "missing learning rate": Row(
        lambda _: ft.OptSpec("adam"),
        errors.ArgumentError,
        """no learning rate is given
  where: OptSpec('adam')
  fix:   pass learning_rate=1e-3, or a schedule from flaxtrain.schedules""",
    ),
    "negative learning rate": Row(
        lambda _: ft.OptSpec("adam", learning_rate=-1),
        errors.ArgumentError,
        """learning_rate=-1.0 is out of range
  where: OptSpec('adam')
  fix:   pass a finite number in [0, inf)""",
    ),
    "NaN learning rate": Row(
        lambda _: ft.OptSpec("adam", learning_rate=NAN),
        errors.ArgumentError,
        """learning_rate=nan is out of range
  where: OptSpec('adam')
  fix:   pass a finite number in [0, inf)""",
    ),
    "learning rate as text": Row(
        lambda _: ft.OptSpec("adam", learning_rate="1e-3"),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        """learning_rate='1e-3' is a str, not a number
  where: OptSpec('adam')
  fix:   pass a number for learning_rate""",
    ),
    "learning rate with axes": Row(
        lambda make: make(spec=ft.OptSpec("sgd", lambda count: jnp.ones(3))).fit(DATA),
        errors.ArgumentError,
        (
            "the learning rate has shape (3,)",
            "where: learning_rate=",
            "fix:   return one number",
        ),
    ),
    "negative clip norm": Row(
        lambda _: ft.OptSpec("adam", learning_rate=0.1, clip_norm=-1.0),
        errors.ArgumentError,
        """clip_norm=-1.0 is out of range
  where: OptSpec('adam')
  fix:   pass a finite number in (0, inf)""",
    ),
    "average of no kind": Row(
        lambda _: ft.OptSpec("adam", learning_rate=0.1, ema="swa"),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        """ema='swa' is a str, not an average
  where: OptSpec
  fix:   pass the decay of a moving average, ft.Ema(...), ft.Swa(...) or ft.Lookahead(...)""",
    ),
    "decay of 1": Row(
        lambda _: ft.OptSpec("adam", learning_rate=0.1, ema=1.0),
        errors.ArgumentError,
        """ema=1.0: decay=1.0 is out of range
  where: OptSpec
  fix:   pass a finite number in [0, 1)""",
    ),
    "limit of no kind": Row(
        lambda _: ft.OptSpec("adam", learning_rate=0.1, clip=1.0),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        """clip=1.0 is a float, not a kind of clipping
  where: OptSpec
  fix:   pass one, or a list, of ClipNorm(...), ClipValue(...), ClipBlockRms(...), AdaptiveClip(...), ClipZScore(...)""",
    ),
    "two limits for the norm": Row(
        lambda _: ft.OptSpec("adam", 0.1, clip_norm=1.0, clip=[ft.ClipNorm(2.0)]),
        errors.ArgumentError,
        """both clip_norm=1.0 and ClipNorm(2.0) limit the norm
  where: OptSpec
  fix:   leave clip_norm out: it comes first, ClipNorm where it stands in the list""",
    ),
    "one kind of clipping twice": Row(
        lambda _: ft.Group("head", clip=[ft.ClipValue(2.0), ft.ClipValue(1.0)]),
        errors.ArgumentError,
        """clip= holds ClipValue twice
  where: Group('head')
  fix:   say each kind once, in one place""",
    ),
    "negative limit of entries": Row(
        lambda _: ft.ClipValue(-1.0),
        errors.ArgumentError,
        """limit=-1.0 is out of range
  where: ClipValue
  fix:   pass a finite number in (0, inf)""",
    ),
    "warm-up of one update": Row(
        lambda _: ft.ClipZScore(warmup=1),
        errors.ArgumentError,
        """warmup=1: one norm has no variance
  where: ClipZScore
  fix:   pass at least 2 updates""",
    ),
    "unknown decay preset": Row(
        lambda _: ft.OptSpec("adamw", learning_rate=0.1, decay="kernel"),
        errors.UnknownNameError,
        """unknown decay preset 'kernel'
  where: OptSpec('adamw')
  fix:   did you mean 'kernels'? Known: all, big_vision, hf, kernels, levanter, ndim, timm""",
    ),
    "decay of another structure": Row(
        lambda make: make(
            spec=ft.OptSpec("adamw", 0.1, weight_decay=0.1, decay={"Dense_0": {"kernel": True}})
        ).fit(DATA),
        errors.ParameterError,
        (
            "2 missing: bias, kernel; 1 unknown: Dense_0/kernel",
            "where: ",
            "fix:   give one value",
        ),
    ),
    "more rejections than are counted": Row(
        lambda _: ft.OptSpec("adam", 0.1, max_skips=2**31),
        errors.ArgumentError,
        ("max_skips=2147483648 is too large", "where: OptSpec", "an integer <= 2147483647"),
    ),
    "more batches to an update than are counted": Row(
        lambda _: ft.AccumulateBatches(2**31),
        errors.ArgumentError,
        ("count=2147483648 is too large", "where: AccumulateBatches", "an integer <= "),
    ),
    "array as the optimizer of a group": Row(
        lambda _: ft.OptSpec("adam", 0.1, groups=[ft.Group("head", optimizer=jnp.ones(2))]),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("Array([1., 1.], dtype=float32) is an ArrayImpl, not an optimizer", "where: Group"),
    ),
    "misspelt nonfinite": Row(
        lambda _: ft.OptSpec("adam", 0.1, nonfinite="skipp"),  # type: ignore[arg-type]
        errors.UnknownNameError,
        """unknown choice of nonfinite 'skipp'
  where: OptSpec('adam')
  fix:   did you mean 'skip'? Known: raise, skip""",
    ),
}

TRAINERS = {
    "model class instead of an instance": Row(
        lambda make: make(nn.Dense),
        errors.ArgumentTypeError,
        """<class 'flax.linen.linear.Dense'> is not a Linen module
  where: Trainer(model)
  fix:   pass an instance of flax.linen.Module, such as nn.Dense(10)""",
    ),
    "dict instead of an OptSpec": Row(
        lambda make: make(spec={"optimizer": "adam"}),
        errors.ArgumentTypeError,
        """{'optimizer': 'adam'} is a dict, not an OptSpec
  where: Trainer(opt_spec)
  fix:   wrap it: OptSpec('adamw', learning_rate=1e-3) or OptSpec(transformation)""",
    ),
    "unknown loss name": Row(
        lambda make: make(loss="softmax_cross_entropy"),
        errors.UnknownNameError,
        """unknown loss 'softmax_cross_entropy'
  where: Trainer(loss=...)
  fix:   did you mean 'softmax_cross_entropy_with_integer_labels'? Known: softmax_cross_entropy_with_integer_labels, squared_error""",
    ),
    "loss that is no function": Row(
        lambda make: make(loss=3),
        errors.ArgumentTypeError,
        """loss=3 is an int
  where: Trainer(loss=...)
  fix:   pass a function loss_fn(model, batch), the name of a loss, or None""",
    ),
    "loss function of one argument": Row(
        lambda make: make(loss=lambda batch: batch["x"]),
        errors.ArgumentTypeError,
        """the loss function has the signature (batch)
  where: Trainer(loss=...)
  fix:   write it with two arguments: def loss_fn(model, batch)""",
    ),
    "metrics that are no collection": Row(
        lambda make: make(metrics={"accuracy": 1}),
        errors.ArgumentTypeError,
        """{'accuracy': 1} is no clu.metrics.Collection
  where: metrics
  fix:   pass Collection.create(loss=clu.metrics.Average.from_output("loss"))""",
    ),
    "hook that is no Hook": Row(
        lambda make: make(hooks=[ft.Console(), print]),
        errors.ArgumentTypeError,
        """<built-in function print> is not a Hook
  where: Trainer(hooks=...), number 1
  fix:   pass an instance of a class derived from ft.Hook""",
    ),
    "one hook instead of a list": Row(
        lambda make: make(hooks=ft.Console()),
        errors.ArgumentTypeError,
        ("is a Console, not a list of hooks", "where: Trainer(hooks=...)", "hooks=[...]"),
    ),
    "log_every=0": Row(
        lambda make: make(log_every=0),
        errors.ArgumentError,
        "log_every=0 is too small\n  where: Trainer\n  fix:   pass an integer >= 1",
    ),
    "seed as text": Row(
        lambda make: make(seed="a"),
        errors.ArgumentTypeError,
        "seed='a' is a str, not an integer\n  where: Trainer\n  fix:   pass an integer for seed",
    ),
    "negative seed": Row(
        lambda make: make(seed=-1),
        errors.ArgumentError,
        "seed=-1 is too small\n  where: Trainer\n  fix:   pass an integer >= 0",
    ),
    "seed of 33 bits": Row(
        lambda make: make(seed=2**32),
        errors.ArgumentError,
        """seed=4294967296 is too large
  where: Trainer
  fix:   pass an integer <= 4294967295""",
    ),
    "seed of 33 bits for a recipe": Row(
        lambda _: RECIPE().init(2**32),
        errors.ArgumentError,
        ("seed=4294967296 is too large", "where: Recipe.init"),
    ),
    "log points that never come": Row(
        lambda make: make(log_every=2**31),
        errors.ArgumentError,
        ("log_every=2147483648 is too large", "where: Trainer", "an integer <= 2147483647"),
    ),
    "level of verbosity": Row(
        lambda _: ft.Trainer(nn.Dense(3), SPEC, verbose=3),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        """verbose=3 is an int, not True or False
  where: Trainer
  fix:   pass True or False for verbose""",
    ),
    "text as verbose": Row(
        lambda _: ft.Trainer(nn.Dense(3), SPEC, verbose="no"),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("verbose='no' is a str, not True or False", "where: Trainer"),
    ),
    "text as the value of a scale": Row(
        lambda make: make(loss_scale=ft.DynamicScale(value="a")),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        """value='a' is a str, not a number
  where: DynamicScale
  fix:   pass a number for value""",
    ),
    "adapters in 8 bits": Row(
        lambda make: make(adapters=ft.LoRA("kernel", 1, dtype="float8_e5m2"), precision="bf16"),
        errors.UnknownNameError,
        """unknown dtype 'float8_e5m2'
  where: LoRA(dtype=...)
  fix:   did you mean 'float32'? Known: bfloat16, float16, float32, float64""",
    ),
    "number as the directory of checkpoints": Row(
        lambda _: ft.SaveEvery(directory=3),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("directory=3 is an int, not a path", "where: SaveEvery"),
    ),
    "empty text as the directory of curves": Row(
        lambda _: ft.TensorBoard(""),
        errors.ArgumentError,
        ("directory is an empty text", "where: TensorBoard", "name a folder"),
    ),
    "text as a writer": Row(
        lambda _: ft.Console("a"),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("writer='a' is a str, not a ConsoleWriter", "where: Console"),
    ),
    "evaluation of no rows at once": Row(
        lambda _: ft.Evaluate(DATA, batch_size=0),
        errors.ArgumentError,
        ("batch_size=0 is too small", "where: Evaluate", "an integer >= 1"),
    ),
    "number as workdir": Row(
        lambda make: make(workdir=3),
        errors.ArgumentTypeError,
        """workdir=3 is an int, not a path
  where: Trainer
  fix:   pass a string or a pathlib.Path""",
    ),
    "evaluate before fit": Row(
        lambda make: make().evaluate(DATA),
        errors.StateError,
        "there is no state yet\n  where: Trainer.evaluate\n  fix:   call fit first",
    ),
    "predict before fit": Row(
        lambda make: make().predict(DATA),
        errors.StateError,
        "there is no state yet\n  where: Trainer.predict\n  fix:   call fit first",
    ),
    "TensorBoard without a workdir": Row(
        lambda make: make(hooks=[ft.TensorBoard()]).fit(DATA),
        errors.StateError,
        """TensorBoard() needs a directory
  where: Trainer
  fix:   pass workdir= to the Trainer""",
    ),
    "SaveEvery with a bad duration": Row(
        lambda make: make(hooks=[ft.SaveEvery("1 eq")]),
        errors.ArgumentError,
        f"'1 eq' is not a duration\n  where: SaveEvery(every=...)\n  fix:   write it like {DURATIONS}",
    ),
}


MISPLACED = "  fix:   pass it as OptSpec({}=...)"
RECIPE: Any = cache(lambda: ft.make_recipe(nn.Dense(3), SPEC, DATA))


def stepped(*args: Any, **kwargs: Any) -> Any:
    """Calls `train_step` with some of its arguments replaced."""
    given = [RECIPE(), RECIPE().init(0), DATA]
    return ft.train_step(*args, *given[len(args) :], **kwargs)


CALLS = {
    "argument of the spec given to the trainer": Row(
        lambda make: make(accumulate=2),
        errors.ArgumentTypeError,
        "accumulate= is no argument of Trainer\n  where: Trainer\n"
        + MISPLACED.format("accumulate"),
    ),
    "argument of the spec given to the options": Row(
        lambda _: ft.StepOptions(accumulate=2),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        "accumulate= is no argument of StepOptions\n  where: StepOptions\n"
        + MISPLACED.format("accumulate"),
    ),
    "argument of the spec given to make_recipe": Row(
        lambda _: ft.make_recipe(nn.Dense(3), SPEC, DATA, clip_norm=1.0),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        "clip_norm= is no argument of make_recipe\n  where: make_recipe\n"
        + MISPLACED.format("clip_norm"),
    ),
    "argument of the options given to make_recipe": Row(
        lambda _: ft.make_recipe(nn.Dense(3), SPEC, DATA, precision="bf16"),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        (
            "precision= is no argument of make_recipe",
            "pass it as options=StepOptions(precision=",
        ),
    ),
    "misspelt argument of the trainer": Row(
        lambda make: make(los="squared_error"),
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'los'", "where: Trainer", "did you mean 'loss'?"),
    ),
    "trainer of nothing": Row(
        lambda _: ft.Trainer(),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        (
            "missing a required argument: 'model'",
            "where: Trainer",
            "Arguments: model, opt_spec",
        ),
    ),
    "another library's length": Row(
        lambda make: make().fit(DATA, max_steps=3),
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'max_steps'", "where: fit", "did you mean 'steps'?"),
    ),
    "length without its name": Row(
        lambda make: make().fit(DATA, 3),
        errors.ArgumentTypeError,
        ("too many positional arguments", "where: fit", "Arguments: ds, steps, epochs"),
    ),
    "misspelt argument of evaluate": Row(
        lambda make: make.trained().evaluate(DATA, weight="ema"),
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'weight'", "where: evaluate", "did you mean 'weights'?"),
        steps=1,
    ),
    "misspelt argument of plan": Row(
        lambda make: make().plan(DATA, epoch=3),
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'epoch'", "where: plan", "did you mean 'epochs'?"),
    ),
    "misspelt argument of batches": Row(
        lambda _: ft.data.batches(DATA, 4, shufle=True),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'shufle'", "where: batches", "did you mean 'shuffle'?"),
    ),
    "misspelt argument of SaveEvery": Row(
        lambda _: ft.SaveEvery(evry=3),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'evry'", "where: SaveEvery", "did you mean 'every'?"),
    ),
    "misspelt argument of a loss scale": Row(
        lambda _: ft.DynamicScale(growth=3),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'growth'", "where: DynamicScale", "'growth_interval'?"),
    ),
    "argument for no scale": Row(
        lambda _: ft.NoScale(3),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("too many positional arguments", "where: NoScale"),
    ),
    "fixed scale of nothing": Row(
        lambda _: ft.FixedScale(),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("missing a required argument: 'value'", "where: FixedScale"),
    ),
    "misspelt argument of a precision": Row(
        lambda _: ft.Precision(polcy="bf16"),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("unexpected keyword argument 'polcy'", "where: Precision", "did you mean 'policy'?"),
    ),
    "spec of nothing": Row(
        lambda _: ft.OptSpec(),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("missing a required argument: 'optimizer'", "where: OptSpec"),
    ),
    "weight decay without its name": Row(
        lambda _: ft.OptSpec("adamw", 0.1, 0.01),  # type: ignore[misc]
        errors.ArgumentTypeError,
        ("too many positional arguments", "where: OptSpec", "learning_rate, weight_decay"),
    ),
    "group of nothing": Row(
        lambda _: ft.Group(),  # type: ignore[call-arg]
        errors.ArgumentTypeError,
        ("missing a required argument: 'select'", "where: Group"),
    ),
    "number as a horizon": Row(
        lambda _: SPEC.resolve(1000),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("1000 is an int, not a Horizon", "where: OptSpec.resolve", "Horizon(batches=..."),
    ),
    "name instead of a spec": Row(
        lambda _: ft.make_recipe(nn.Dense(3), "adam", DATA),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("spec='adam' is a str, no OptSpec", "where: make_recipe", "an instance of OptSpec"),
    ),
    "policy instead of options": Row(
        lambda _: ft.make_recipe(nn.Dense(3), SPEC, DATA, options="bf16"),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("options='bf16' is a str, no StepOptions", "where: make_recipe"),
    ),
    "recipe of an empty batch": Row(
        lambda _: ft.make_recipe(nn.Dense(3), SPEC, {}),
        errors.EmptyDatasetError,
        ("the batch holds no array", "where: make_recipe", "fix:   pass a dict"),
    ),
    "text as the seed of a recipe": Row(
        lambda _: RECIPE().init("a"),
        errors.ArgumentTypeError,
        ("seed='a' is a str, not an integer", "where: Recipe.init"),
    ),
    "None for norms": Row(
        lambda _: stepped(norms=None),
        errors.ArgumentTypeError,
        """norms=None is a NoneType, not True or False
  where: train_step
  fix:   pass a bool, or a bool scalar that is traced""",
    ),
    "number for norms": Row(
        lambda _: stepped(norms=1.0),
        errors.ArgumentTypeError,
        ("norms=1.0 is a float", "where: train_step"),
    ),
    "step of no recipe": Row(
        lambda _: stepped(SPEC),
        errors.ArgumentTypeError,
        ("recipe is an OptSpec, not a Recipe", "where: train_step", "ft.make_recipe"),
    ),
    "step of no state": Row(
        lambda _: stepped(RECIPE(), None),
        errors.ArgumentTypeError,
        ("state is a NoneType, not a TrainState", "where: train_step", "recipe.init(seed)"),
    ),
    "step without a batch": Row(
        lambda _: stepped(RECIPE(), RECIPE().init(0), None),
        errors.ArgumentTypeError,
        ("the batch, a NoneType, holds no array", "where: train_step"),
    ),
    "mask of another batch": Row(
        lambda _: stepped(mask=np.ones(3, bool)),
        errors.ArgumentError,
        ("mask has shape (3,), not that of the rows of the batch, (12,)", "where: train_step"),
    ),
    "evaluation step of no state": Row(
        lambda _: ft.eval_step(RECIPE(), None, DATA),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("state is a NoneType, not a TrainState", "where: eval_step"),
    ),
    "prediction step without a batch": Row(
        lambda _: ft.predict_step(RECIPE(), RECIPE().init(0), None),
        errors.ArgumentTypeError,
        ("the batch, a NoneType, holds no array", "where: predict_step"),
    ),
    "batch file without a path": Row(
        lambda _: ft.data.save_batch(None, DATA),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("path=None is a NoneType, not a path", "where: save_batch"),
    ),
    "batch file of no batch": Row(
        lambda _: ft.data.save_batch("nowhere.npz", {}),
        errors.DataError,
        ("the batch holds no array", "where: save_batch"),
    ),
    "number as the path of a batch": Row(
        lambda _: ft.data.load_batch(3),  # type: ignore[arg-type]
        errors.ArgumentTypeError,
        ("path=3 is an int, not a path", "where: load_batch"),
    ),
    "empty text as workdir": Row(
        lambda make: make(workdir=""),
        errors.ArgumentError,
        ("workdir is an empty text", "where: Trainer", "name a folder"),
    ),
}

LENGTHS = {
    "steps=0": Row(
        lambda make: make().fit(DATA, steps=0),
        errors.ArgumentError,
        "steps=0 is too small\n  where: fit\n  fix:   pass an integer >= 1",
    ),
    "epochs=-1": Row(
        lambda make: make().fit(DATA, epochs=-1),
        errors.ArgumentError,
        "epochs=-1 is too small\n  where: fit\n  fix:   pass an integer >= 1",
    ),
    "half an epoch": Row(
        lambda make: make().fit(DATA, epochs=0.5),
        errors.ArgumentTypeError,
        "epochs=0.5 is a float, not an integer\n  where: fit\n  fix:   pass an integer for epochs",
    ),
    "steps and epochs": Row(
        lambda make: make.trained().fit(DATA, steps=3, epochs=1),
        errors.ArgumentError,
        "both steps=3 and epochs=1 are given\n  where: fit\n  fix:   give one of them",
        steps=1,
    ),
    "misspelt debug mode": Row(
        lambda make: make.trained().fit(DATA, debug="chekify"),
        errors.UnknownNameError,
        """unknown debug 'chekify'
  where: fit
  fix:   did you mean 'checkify'? Known: checkify, overfit, smoke""",
        steps=1,
    ),
    "batch that is not learnt": Row(
        lambda make: make.trained(spec=ft.OptSpec("sgd", learning_rate=1e-9)).fit(
            DATA, steps=3, debug="overfit"
        ),
        errors.DebugError,
        (
            "100.00% of the first, in 3 steps",
            "where: fit(debug='overfit')",
            "the learning rate (the last one: default 1e-09)",
        ),
        steps=1,
    ),
    "check of an iterator": Row(
        lambda make: make.trained().check(whole()),
        errors.DataError,
        """the generator can be iterated once only: its batches would be missing in the run that follows
  where: check
  fix:   pass arrays, a list of batches, or a function that returns a new iterator""",
        steps=1,
    ),
    "range test of an object's rate": Row(
        lambda make: make(spec=ft.OptSpec(ft.optim.sgd(0.1))).find_lr(DATA),
        errors.ArgumentError,
        """the optimizer is an object, which keeps its learning rate to itself
  where: find_lr
  fix:   pass the optimizer by name: OptSpec('adamw', learning_rate=...)""",
    ),
    "nonsense in eval_every": Row(
        lambda make: make().fit(DATA, eval_ds=DATA, eval_every="1 eq"),
        errors.ArgumentError,
        f"'1 eq' is not a duration\n  where: fit(eval_every=...)\n  fix:   write it like {DURATIONS}",
    ),
    "eval_every=0": Row(
        lambda make: make().fit(DATA, eval_ds=DATA, eval_every=0),
        errors.ArgumentError,
        "a period of 0 is no period\n  where: fit(eval_every=...)\n  fix:   pass at least one step",
    ),
    "eval_every without eval_ds": Row(
        lambda make: make.trained().fit(DATA, eval_every="1ep"),
        errors.ArgumentError,
        """eval_every='1ep' is given, and no eval_ds
  where: fit
  fix:   pass the data set to evaluate on as eval_ds=, or leave eval_every out""",
        steps=1,
    ),
    "eval_every without eval_ds in a rehearsal": Row(
        lambda make: make.trained().fit(DATA, eval_every=1, debug="overfit"),
        errors.ArgumentError,
        ("eval_every=1 is given, and no eval_ds", "where: fit", "pass the data set"),
        steps=1,
    ),
    "evaluation per epoch of unknown length": Row(
        lambda make: make().fit(whole, steps=2, eval_ds=DATA, eval_every="1ep"),
        errors.ArgumentError,
        (
            "the number of batches per epoch is not known yet: '1ep' can't be turned into "
            "batches",
            "where: eval_every",
            "fix:   give the duration in batches",
        ),
    ),
    "relative schedule over epochs of unknown length": Row(
        lambda make: make(
            spec=ft.OptSpec("sgd", ft.schedules.cosine_decay_schedule(0.1, "2ep"))
        ).fit(whole, epochs=2),
        errors.ArgumentError,
        (
            "the number of batches per epoch is not known yet: '2ep' can't be turned into steps",
            "where: cosine_decay_schedule(decay_steps='2ep')",
            "fix:   give the duration in steps",
        ),
    ),
    "generator for two epochs": Row(
        lambda make: make().fit(whole(), epochs=2),
        errors.DataError,
        """epochs=2, but the generator can be iterated once only
  where: fit
  fix:   pass something that can be iterated again: a function that returns a new iterator (lambda: make_batches()), a list of batches, or ft.data.batches(...)""",
    ),
    "more steps than a generator has": Row(
        lambda make: make().fit(whole(), steps=3),
        errors.DataError,
        (
            "the generator can be iterated once only, and was",
            "where: epoch 1",
            "fix:   train for",
        ),
        steps=1,
    ),
    "generator for two evaluations": Row(
        lambda make: make().fit(DATA, epochs=2, eval_ds=whole()),
        errors.DataError,
        """the evaluation data set can be iterated once only, for several evaluations
  where: eval_ds
  fix:   pass arrays, a list of batches, or a function that returns a new iterator""",
    ),
}

DATA_SETS = {
    "empty arrays": Row(
        lambda make: make().fit({"x": X[:0], "label": LABEL[:0]}),
        errors.EmptyDatasetError,
        "the arrays have 0 rows\n  where: batches(arrays, ...)\n  fix:   pass at least one example",
    ),
    "empty list": Row(
        lambda make: make().fit([]),
        errors.EmptyDatasetError,
        """the data set yields no batch
  where: list
  fix:   check that it has data; a generator that was used before is empty""",
    ),
    "misspelt target": Row(
        lambda make: make().fit({"x": X, "lable": LABEL}),
        errors.MissingKeyError,
        ("no target; its keys are 'lable', 'x'", "where: batch -> target", "meant as 'label'?"),
    ),
    "misspelt target in eval_ds": Row(
        lambda make: make().fit(DATA, epochs=5, eval_ds={"x": X, "lable": LABEL}),
        errors.MissingKeyError,
        ("no target; its keys are 'lable', 'x'", "where: batch -> target", "meant as 'label'?"),
    ),
    "key that the loss function asks for": Row(
        lambda make: make(loss=lambda m, b: cross_entropy(m, {"x": b["xs"]})).fit(DATA),
        errors.MissingKeyError,
        """the loss function raised KeyError: 'xs', and the batch has no such key
  where: loss_fn
  fix:   did you mean 'x'? The batch has 'label', 'x'""",
    ),
    "two targets": Row(
        lambda make: make().fit({**DATA, "target": LABEL}),
        errors.LossError,
        ("the batch has 2 targets: 'label', 'target'", "where: batch -> target", "keep one of"),
    ),
    "label out of range": Row(
        lambda make: make().fit({"x": X, "label": LABEL + 1}, batch_size=12),
        errors.LossError,
        (
            "label 3 is out of range: the model predicts 3 classes, 0 to 2",
            "where: epoch 0, batch 0, row ",
            "fix:   give the model 4 outputs, or correct the labels",
        ),
    ),
    "label -1": Row(
        lambda make: make().fit([batch(slice(0, 12), LABEL - 1)]),
        errors.LossError,
        """label -1 is out of range: the model predicts 3 classes, 0 to 2
  where: epoch 0, batch 0, row 0
  fix:   correct the labels, leave such examples out, or give them weight 0 (an entry 'mask' or 'weight' of the batch, one number per example)""",
    ),
    "label out of range in a later batch": Row(
        lambda make: make().fit(wrong_later(3)),
        errors.LossError,
        """label 3 is out of range: the model predicts 3 classes, 0 to 2
  where: epoch 0, batch 2, row 1
  fix:   give the model 4 outputs, or correct the labels""",
        steps=2,
    ),
    "label out of range in evaluation": Row(
        lambda make: make.trained().evaluate(wrong_later(7)),
        errors.LossError,
        """label 7 is out of range: the model predicts 3 classes, 0 to 2
  where: evaluation, batch 2, row 1
  fix:   give the model 8 outputs, or correct the labels""",
        steps=1,
    ),
    "float labels for a classifier": Row(
        lambda make: make().fit({"x": X, "label": LABEL.astype(np.float32)}, batch_size=12),
        errors.LossError,
        (
            "no loss was given, and none can be inferred: predictions have shape (12, 3), targets (12,)",
            "where: Trainer(loss=None)",
            "make them integers: labels.astype('int32')",
        ),
    ),
    "float labels for a loss by name": Row(
        lambda make: make(loss="softmax_cross_entropy_with_integer_labels").fit(
            {"x": X, "label": LABEL.astype(np.float32)}
        ),
        errors.LossError,
        ("labels have dtype float32", "where: loss 'softmax", "labels.astype('int32')"),
    ),
    "predictions [n, 1] for targets [n]": Row(
        lambda make: make(nn.Dense(1)).fit({"x": X, "target": X[:, 0]}, batch_size=12),
        errors.LossError,
        (
            "predictions have shape (12, 1), targets (12,)",
            "where: Trainer(loss=None)",
            "give the targets the shape of the predictions: targets[..., None]",
        ),
    ),
    "model that returns two arrays": Row(
        lambda make: make(Pair()).fit(DATA),
        errors.LossError,
        (
            "the model returns a tuple, not one array",
            "where: Trainer(loss=None)",
            "loss=loss_fn",
        ),
    ),
    "shape change in an epoch": Row(
        lambda make: make().fit([DATA, {"x": X[:, :3], "label": LABEL}]),
        errors.BatchError,
        """x has rows of shape (3,), in the first batch (4,)
  where: epoch 0, batch 1
  fix:   make every batch alike; only the number of rows may be smaller than in the first""",
        steps=1,
    ),
    "dtype change in an epoch": Row(
        lambda make: make().fit([DATA, {"x": X.astype(np.float16), "label": LABEL}]),
        errors.BatchError,
        """x has dtype float16, in the first batch float32
  where: epoch 0, batch 1
  fix:   make every batch alike; only the number of rows may be smaller than in the first""",
        steps=1,
    ),
    "leading axes that disagree": Row(
        lambda make: make().fit([{"x": X, "label": LABEL[:5]}]),
        errors.BatchError,
        """the leading axes disagree: label has 5, x has 12
  where: epoch 0, batch 0
  fix:   give every array one row per example""",
    ),
    "other shape in evaluation": Row(
        lambda make: make.trained().evaluate({"x": X[:, :3], "label": LABEL}),
        errors.ModelError,
        (
            "the parameters don't fit this call: ",
            "where: Dense.__call__",
            "fix:   give inputs with the shapes of the training data, except for the batch axis",
        ),
        steps=1,
    ),
    "other shape in a second fit": Row(
        lambda make: make.trained().fit({"x": X[:, :3], "label": LABEL}),
        errors.ModelError,
        ("the parameters don't fit this call: ", "where: Dense.__call__", "fix:   give inputs"),
        steps=1,
    ),
    "batch_size for batches": Row(
        lambda make: make().fit([DATA], batch_size=4),
        errors.ArgumentError,
        """batch_size=4 was given for a list, which has batches already
  where: the data set
  fix:   leave batch_size out, or pass a dict or tuple of arrays""",
    ),
    "name instead of a data set": Row(
        lambda make: make().fit("mnist"),
        errors.ArgumentTypeError,
        """'mnist' is a str, not a data set
  where: the data set
  fix:   load the file first, and pass its arrays""",
    ),
    "NaN in the data": Row(
        lambda make: make().fit([DATA, {"x": X * NAN, "label": LABEL}, DATA]),
        errors.NonFiniteError,
        (
            "became NaN or infinite",
            "where: batch 1 of the run, after 1 update",
            "fix:   trainer.state is the last good state",
        ),
        steps=1,
    ),
}

SCALAR = """'loss' is a scalar, but the batch has rows that don't count
  where: loss_fn
  fix:   return the per-example values [batch] instead of their mean (leave out jnp.mean), or ft.Mean.of(values, model.mask)"""
FIX_LOSS = "\n  where: loss_fn\n  fix:   return per-example values [batch], a Mean, a scalar or a metric object"

LOSSES = {
    "scalar loss on a padded batch, known beforehand": Row(
        lambda make: make(loss=scalar_loss).fit(DATA, batch_size=5), errors.LossError, SCALAR
    ),
    "scalar loss on a padded batch, unknown beforehand": Row(
        lambda make: make(loss=scalar_loss).fit(ragged), errors.LossError, SCALAR, steps=2
    ),
    "scalar loss on padded batches in a second fit": Row(
        lambda make: make.trained(loss=scalar_loss).fit(DATA, batch_size=5),
        errors.LossError,
        SCALAR,
        steps=1,
    ),
    "scalar loss on padded batches of eval_ds": Row(
        lambda make: make(loss=scalar_loss).fit(
            [DATA], eval_ds=ft.data.batches(DATA, batch_size=5)
        ),
        errors.LossError,
        SCALAR,
    ),
    "scalar loss on padded batches in evaluation": Row(
        lambda make: make.trained(loss=scalar_loss).evaluate(DATA, batch_size=5),
        errors.LossError,
        SCALAR,
        steps=1,
    ),
    "Mean without the mask on a padded batch": Row(
        lambda make: make(loss=mean_without_mask).fit(DATA, batch_size=5),
        errors.LossError,
        """'loss' is a Mean over all rows, but the batch has rows that don't count
  where: loss_fn
  fix:   form it with the row mask: ft.Mean.of(values, model.mask)""",
    ),
    "metric named loss": Row(
        lambda make: make(loss=with_metric("loss", lambda logits: logits[:, 0])).fit(DATA),
        errors.LossError,
        """metric name 'loss' is one that the step itself reports
  where: loss_fn
  fix:   choose another name than loss, grad_norm, clipped_grad_norm, update_norm, param_norm, learning_rate, weight_decay, loss_scale""",
    ),
    "metric of the wrong shape": Row(
        lambda make: make(loss=with_metric("top", lambda logits: logits)).fit([DATA]),
        errors.LossError,
        """'top' has shape (12, 3), the batch 12 rows
  where: loss_fn
  fix:   return one value per example, shape (12,), or ft.Mean.of(values, model.mask) for values of any shape""",
    ),
    "metric without a value": Row(
        lambda make: make(loss=with_metric("top", lambda logits: None)).fit([DATA]),
        errors.LossError,
        "'top' is a NoneType, not an array" + FIX_LOSS,
    ),
    "metric named by a number": Row(
        lambda make: make(loss=with_metric(3, lambda logits: logits[:, 0])).fit([DATA]),
        errors.LossError,
        "a metric is named 3, which is no string\n  where: loss_fn\n  fix:   name metrics with strings",
    ),
    "loss function without return": Row(
        lambda make: make(loss=returning(None)).fit([DATA]),
        errors.LossError,
        "'loss' is a NoneType, not an array" + FIX_LOSS,
    ),
    "loss that is text": Row(
        lambda make: make(loss=returning("0.5")).fit([DATA]),
        errors.LossError,
        "'loss' is a str, not an array" + FIX_LOSS,
    ),
    "loss of integers": Row(
        lambda make: make(loss=returning(np.ones(12, np.int32))).fit([DATA]),
        errors.LossError,
        """the loss has dtype int32, which has no gradient
  where: loss_fn
  fix:   return a real floating-point value that depends on the model's output""",
    ),
    "loss with three parts": Row(
        lambda make: make(loss=returning((1.0, {}, 2.0))).fit([DATA]),
        errors.LossError,
        """the loss function returned 3 things
  where: loss_fn
  fix:   return loss, or (loss, {name: metric})""",
    ),
    "loss and a bare metric": Row(
        lambda make: make(loss=lambda m, b: (scalar_loss(m, b), m(b["x"]))).fit([DATA]),
        errors.LossError,
        """the second thing that the loss function returned is an array, not a dict
  where: loss_fn
  fix:   return loss, or (loss, {name: metric})""",
    ),
    "BatchNorm over reshaped rows with padding": Row(
        lambda make: make(NormOverReshapedRows()).fit(DATA, batch_size=5),
        errors.ModelError,
        """BatchNorm sees 10 rows, the row mask of the batch has 5
  where: BatchNorm_0
  fix:   normalise before rows are reshaped, pass mask= to nn.BatchNorm yourself, or make every batch full (drop_remainder=True)""",
    ),
    "dropout without a train flag": Row(
        lambda make: make.trained(DropoutWithoutFlag()).evaluate(DATA),
        errors.ModelError,
        """the model draws random numbers in evaluation (Dropout_0 needs PRNG for "dropout")
  where: DropoutWithoutFlag.__call__
  fix:   give it one of the arguments train, training, is_training, deterministic and pass it on to nn.Dropout""",
        steps=1,
    ),
    "dropout without a train flag, with eval_ds": Row(
        lambda make: make(DropoutWithoutFlag()).fit(DATA, epochs=9, eval_ds=DATA),
        errors.ModelError,
        (
            "draws random numbers in evaluation",
            "where: DropoutWithoutFlag",
            "fix:   give it one",
        ),
    ),
    "random numbers in evaluation": Row(
        lambda make: make.trained(Noisy()).predict(DATA),
        errors.ModelError,
        (
            'needs PRNG for "noise"',
            "where: Noisy.__call__",
            "fix:   give it one of the arguments",
        ),
        steps=1,
    ),
    "unknown weights": Row(
        lambda make: make.trained().evaluate(DATA, weights="swa"),
        errors.UnknownNameError,
        "unknown weights 'swa'\n  where: evaluate\n  fix:   Known: both, ema, raw",
        steps=1,
    ),
    "averaged weights, and none are kept": Row(
        lambda make: make.trained().evaluate(DATA, weights="ema"),
        errors.StateError,
        """no average of the weights is kept
  where: evaluate(weights='ema')
  fix:   pass OptSpec(ema=0.999) or another average when the trainer is made""",
        steps=1,
    ),
    "statistics of a model without BatchNorm": Row(
        lambda make: make.trained(spec=SPEC.replace(ema=0.9)).recompute_batch_stats(DATA),
        errors.ModelError,
        """the model has no BatchNorm with running statistics
  where: recompute_batch_stats
  fix:   leave the call out: there is nothing to compute anew""",
        steps=1,
    ),
}

CONFIGS = {
    "unknown task": Row(
        lambda _: ft.trainer_from_config(config(task="no such task")),
        errors.UnknownNameError,
        (
            "unknown task 'no such task'",
            "where: config.task",
            "import the module that registers",
        ),
    ),
    "unknown config field": Row(
        lambda _: ft.trainer_from_config(config(task="digits", epoch=3)),
        errors.UnknownNameError,
        """unknown config field 'epoch'
  where: config.epoch
  fix:   did you mean 'epochs'? Known: adapters, backend, batch_size, data, epochs, eval_every, init_from, log_every, loss_scale, mesh, model, opt, precision, schedule, seed, sharding, steps, steps_per_call, task""",
    ),
    "unknown schedule": Row(
        lambda _: ft.spec_from_config(config(schedule={"schedule": "cosin"})),
        errors.UnknownNameError,
        ("unknown schedule 'cosin'", "where: config.schedule", "mean 'cosine_decay_schedule'?"),
    ),
}

ROWS: dict[str, Row] = {
    **SPECS,
    **TRAINERS,
    **CALLS,
    **LENGTHS,
    **DATA_SETS,
    **LOSSES,
    **CONFIGS,
}


@pytest.mark.parametrize("use", ROWS)
def test_a_wrong_use_says_what_where_and_what_to_do_and_loses_nothing(use: str) -> None:
    row, make = ROWS[use], Trainers()
    with pytest.raises(row.kind) as caught:
        row.run(make)
    error = caught.value
    assert type(error) is row.kind
    assert isinstance(error, BUILTIN[row.kind])
    assert error.found and error.where and error.fix
    if isinstance(row.text, str):
        assert str(error) == row.text
    for piece in (row.text,) if isinstance(row.text, str) else row.text:
        assert piece in str(error)
    states = [trainer.state for trainer in make.made]
    assert [None if state is None else int(state.step) for state in states] == (
        [row.steps] if states else []
    )
    for state in filter(None, states):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
        assert make.before is None or bits(state) == make.before


def test_the_state_is_usable_after_an_error_in_the_middle_of_a_run() -> None:
    trainer = Trainers()(loss=scalar_loss)
    with pytest.raises(errors.LossError):
        trainer.fit(ragged)
    full = ft.data.batches(DATA, batch_size=6)
    before = trainer.evaluate(full)["loss"]
    trainer.fit([batch(slice(0, 5)), batch(slice(5, 10))], epochs=10)
    assert int(trainer.state.step) == 2 + 20  # type: ignore[union-attr]
    assert trainer.evaluate(full)["loss"] < before


def test_a_label_out_of_range_in_a_row_of_weight_zero_is_no_mistake() -> None:
    labels, weight = LABEL.copy(), np.ones(12, np.float32)
    labels[3], weight[3] = -1, 0.0
    trainer = Trainers()()
    trainer.fit({"x": X, "label": labels, "weight": weight}, batch_size=12)
    others = np.arange(12) != 3
    fresh = Trainers()()
    fresh.fit({"x": X[others], "label": LABEL[others]}, batch_size=12)
    # The same eleven rows in another order: sums in float32.
    np.testing.assert_allclose(
        trainer.predict({"x": X}), fresh.predict({"x": X}), rtol=1e-5, atol=1e-6
    )


def test_there_are_more_than_thirty_rows() -> None:
    groups = (SPECS, TRAINERS, CALLS, LENGTHS, DATA_SETS, LOSSES, CONFIGS)
    assert len(ROWS) == sum(map(len, groups)) >= 30
