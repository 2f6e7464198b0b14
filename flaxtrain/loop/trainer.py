"""The trainer: a compiled step and hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn

from flaxtrain.checks import answering_class
from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.errors import StateError
from flaxtrain.loop.arguments import FitCall, as_directory, check_arguments
from flaxtrain.loop.batch_stats import with_batch_stats
from flaxtrain.loop.debug.debuggable import Debuggable
from flaxtrain.loop.debug.modes import debug_fit
from flaxtrain.loop.evaluation import evaluate, predict
from flaxtrain.loop.evaluation_hook import evaluation_hooks
from flaxtrain.loop.feature_cache import feature_cache
from flaxtrain.loop.hooks import Hook, all_hooks, check_hooks
from flaxtrain.loop.interrupt import DeferredInterrupt
from flaxtrain.loop.length import (
    check_length,
    epochs_and_notes,
    horizon_of,
    position_in,
    total_batches,
)
from flaxtrain.loop.padding import check_padding
from flaxtrain.loop.plan import Plan
from flaxtrain.loop.plan_start import planned_start
from flaxtrain.loop.programs import Programs
from flaxtrain.loop.result import FitResult
from flaxtrain.loop.resume import begin
from flaxtrain.loop.run import Run
from flaxtrain.loop.streams import stream_in_order, training_stream
from flaxtrain.params import LoRA, Restore
from flaxtrain.precision import LossScale, Policy, Precision
from flaxtrain.spec import OptSpec
from flaxtrain.spec.validate import SPEC_ARGUMENTS
from flaxtrain.train import LossFn, Recipe, StepOptions, TrainState, make_recipe
from flaxtrain.typing import HostTree

__all__ = ["Trainer"]


@answering_class(**SPEC_ARGUMENTS)
class Trainer(Debuggable):
    """Trains a Linen module.

    Args:
        model: the Linen module.
        opt_spec: what the optimizer does.
        loss: `loss_fn(model, batch)`, the name of a loss, or None to infer one from the batch:
            softmax cross-entropy for integer labels, squared error for float targets of the
            prediction's shape.
        metrics: a `clu.metrics.Collection` class, computed from `logits`, `labels` and `loss`,
            or from what a loss function returns as its second value. As in clu, a row counts or
            does not: fractional example weights weigh the loss only.
        seed: root of all randomness: initial values, dropout, the order of arrays.
        workdir: directory of the run: TensorBoard files and checkpoints. A run that is found
            there is continued.
        hooks: further hooks.
        log_every: number of batches between two log points.
        verbose: whether lines are printed.
        init_from: where a run that begins takes its weights from; what is not loaded keeps its
            initial values.
        adapters: which kernels get a trained low-rank matrix beside them, while the rest of the
            model is frozen.
        loss_scale: what the loss is multiplied by while it is differentiated; default: a
            `DynamicScale()` where `precision` has float16, else nothing.
        precision: the dtypes in which parameters are stored and the model computes: a policy
            such as `"bf16"` or `"p=f32,c=bf16,o=f32"`, or a `Precision`.

    Attributes:
        state: the training state, or None before the first `fit`.
        recipe: what does not change in the run, or None before the first `fit`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentError: an argument is out of range.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> trainer = Trainer(nn.Dense(2), OptSpec("sgd", learning_rate=0.5), verbose=False)
        >>> before = trainer.fit({"x": x, "label": (x[:, 0] > 0).astype("int32")}, steps=1)
        >>> after = trainer.fit({"x": x, "label": (x[:, 0] > 0).astype("int32")}, steps=50)
        >>> after.history.train[-1]["accuracy"] > 0.9, int(trainer.state.step)
        (True, 51)
    """

    def __init__(
        self,
        model: nn.Module,
        opt_spec: OptSpec,
        loss: LossFn | str | None = None,
        metrics: Any = None,
        *,
        seed: int = 0,
        workdir: str | Path | None = None,
        hooks: tuple[Hook, ...] | list[Hook] = (),
        log_every: int = 50,
        verbose: bool = True,
        init_from: Restore | None = None,
        adapters: LoRA | None = None,
        loss_scale: LossScale | None = None,
        precision: str | Policy | Precision = "f32",
    ) -> None:
        check_arguments(model, opt_spec, loss, metrics, seed, log_every, init_from, adapters)
        self.model, self.spec, self.loss, self.metrics = model, opt_spec, loss, metrics
        self.seed, self.log_every, self.verbose = seed, log_every, verbose
        self.workdir = as_directory(workdir)
        self.init_from, self.adapters = init_from, adapters
        self.options = StepOptions(loss_scale, precision)
        self.hooks = check_hooks(hooks)
        self.state: TrainState | None = None
        self.recipe: Recipe | None = None
        self._fitted = False
        self._programs = Programs(log_every)

    @property
    def compilations(self) -> dict[str, int]:
        """How often each step function was compiled so far.

        The promise is once each, and the training step once for each phase of the run.
        """
        return self._programs.compilations

    def fit(
        self,
        ds: Any,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        eval_ds: Any = None,
        eval_every: int | str | None = None,
        batch_size: int | None = None,
        cache_frozen: bool = False,
        debug: str | None = None,
    ) -> FitResult:
        """Trains on `ds` and returns what the run leaves behind.

        A second `fit` on the same trainer continues from its state, for further steps. In a
        `workdir` that holds a checkpoint, the first `fit` continues that run up to the given
        total.

        Args:
            ds: `ft.data.batches(...)`, arrays (a dict or tuple; shuffled in every epoch), or
                any iterable of batches. A batch is a dict of arrays or `(inputs, targets)`.
            steps: number of batches to train on, whether their step is rejected or not and
                however many make an update; what the spec says in steps counts updates.
            epochs: number of passes over `ds`; default 1 if `steps` is not given either.
            eval_ds: data set to evaluate on.
            eval_every: how often: batches, `"1ep"`, `"10%"`; default once per epoch, or at the
                end where the length of an epoch is not known.
            batch_size: for arrays only; default 128.
            cache_frozen: for arrays only: run the frozen modules once per example, before the
                first step, and take their outputs from memory in every epoch. Refused where the
                outputs would not be the same each time. It ends when the first phase does.
            debug: `"smoke"`: two steps of everything; `"overfit"`: one batch, to a loss near 0;
                `"checkify"`: every operation is checked. Trainer and workdir stay as they are.

        Raises:
            DebugError: a debugging run has found something.
            FlaxtrainError: something is wrong with the data, the loss or an argument; all of it
                is found before the first step where it can be.
            NonFiniteError: the run diverged; `state` is the last good one.
            KeyboardInterrupt: Ctrl-C; `state` is the one after the last step.
        """
        call = FitCall(ds, steps, epochs, eval_ds, eval_every, batch_size, cache_frozen)
        if debug is not None:
            return debug_fit(debug, self, call)
        call.check()
        stream, notes = training_stream(ds, batch_size, self.seed)
        cache = feature_cache(cache_frozen, stream)
        epochs, told = epochs_and_notes(steps, epochs, self.spec.accumulation)
        notes += told
        fresh = not self._fitted
        horizon = horizon_of(stream, steps, epochs, self.spec.accumulation)
        recipe = self._build(stream, horizon)
        notes += self._inferred(recipe)
        if not fresh and self.spec != recipe.spec:
            notes.append("relative durations of the spec were resolved for the first fit")
        evaluation = evaluation_hooks(recipe, stream, call)
        before, texts = self.state, {}
        if self.state is None:
            start = begin(recipe, stream, self.seed, self.workdir, self.init_from)
            recipe = self.recipe = start.recipe
            self.state = start.state
            notes, texts = notes + start.notes, start.texts
        run = Run(
            recipe=recipe,
            state=self.state,
            stream=stream,
            horizon=horizon,
            total=total_batches(self.state, horizon.batches, fresh),
            epochs=epochs if horizon.batches is None else None,
            hooks=all_hooks(self.hooks, evaluation, self.verbose, self.workdir),
            program=self._programs.train,
            evaluate=self._evaluate,
            position=position_in(stream, self.state, fresh),
            workdir=self.workdir,
            announcements=tuple(notes),
            texts=texts,
            seed=self.seed,
            cache=cache,
        )
        try:
            with DeferredInterrupt() as interrupt:
                return run.drive(interrupt)
        finally:
            # A run that failed before its first step leaves no trace.
            self.state = before if run.error is not None and not run.dispatched else run.state
            self.recipe = run.recipe if self.state is run.state else self.recipe
            self._fitted = self._fitted or run.dispatched

    def evaluate(
        self, ds: Any, *, batch_size: int | None = None, weights: str | None = "raw"
    ) -> dict[str, float]:
        """Returns loss and metrics over all of `ds`, exact whatever the batch size.

        Args:
            ds: as for `fit`; one pass, in order.
            batch_size: for arrays only; default 128.
            weights: `"raw"`, the trained weights; `"ema"`, their average; `"both"`, in one
                pass, with names such as `loss/ema`; None: what `fit` reports, all there are.

        Raises:
            StateError: nothing was trained yet, or there is no average.
            UnknownNameError: `weights` is another word.
        """
        state = self._trained("evaluate")
        return self._evaluate(ds, batch_size=batch_size, state=state, weights=weights)

    def predict(
        self, ds: Any, *, batch_size: int | None = None, weights: str = "raw"
    ) -> HostTree:
        """Returns the model's outputs for all of `ds`, in order, without padding.

        Args:
            ds: as for `fit`; targets may be missing.
            batch_size: for arrays only; default 128.
            weights: `"raw"`, the trained weights, or `"ema"`, their average.

        Returns:
            Numpy arrays `[examples, ...]`, in the structure of the model's output.

        Raises:
            StateError: nothing was trained yet, or there is no average.
            UnknownNameError: `weights` is another word.
        """
        state = self._trained("predict")
        assert self.recipe is not None
        program = self._programs.predict(self.recipe)
        return predict(program, state, stream_in_order(ds, batch_size), weights)

    def recompute_batch_stats(
        self,
        ds: Any,
        n_batches: int | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        """Gives the averaged weights statistics of BatchNorm of their own, which `Swa` needs.

        They are those of all rows, run in training mode. What is trained stays as it is.

        Args:
            ds: as for `fit`, in the order of its first epoch.
            n_batches: number of batches; None: one epoch.
            batch_size: for arrays only; default 128.

        Raises:
            FlaxtrainError: there is no average with statistics, no BatchNorm, too little data,
                or a statistic is not finite; the state is as it was.
        """
        state = self._trained("recompute_batch_stats")
        assert self.recipe is not None
        stream, _ = training_stream(ds, batch_size, self.seed)
        program = self._programs.statistics(self.recipe)
        self.state = with_batch_stats(self.recipe, program, state, stream, n_batches)

    def plan(
        self,
        ds: Any,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
    ) -> Plan:
        """Returns what `fit` with these arguments will do; print it. Nothing is trained.

        Args:
            ds: as for `fit`.
            steps: as for `fit`.
            epochs: as for `fit`.
            batch_size: as for `fit`.
        """
        check_length(steps, epochs)
        stream, notes = training_stream(ds, batch_size, self.seed)
        horizon = horizon_of(stream, steps, epochs, self.spec.accumulation)
        recipe = self._build(stream, horizon, keep=False)
        notes += self._inferred(recipe)
        start = planned_start(recipe, self.state, self.workdir, self.init_from)
        return Plan.of(recipe, stream, horizon, tuple(notes), start)

    # What fit is made of.

    def _build(self, stream: Stream, horizon: Horizon, keep: bool = True) -> Recipe:
        recipe = self.recipe if self._fitted else None
        if recipe is None:
            recipe = make_recipe(
                self.model,
                self.spec,
                stream.example().data,
                loss=self.loss,
                metrics=self.metrics,
                horizon=horizon,
                adapters=self.adapters,
                options=self.options,
            )
        check_padding(recipe, stream)
        if keep and recipe is not self.recipe:
            self.recipe = recipe
            self._programs.forget()
        return recipe

    def _inferred(self, recipe: Recipe) -> list[str]:
        loss, notes = recipe.supervised, [*recipe.options.notes]
        if self.loss is None and loss is not None:
            notes.append(f"loss= was not given, inferred from the targets: {loss.name}")
        return notes

    def _evaluate(
        self, ds: Any, *, batch_size: int | None, state: TrainState, weights: str | None = None
    ) -> dict[str, float]:
        assert self.recipe is not None
        program = self._programs.evaluate(self.recipe)
        stream = stream_in_order(ds, batch_size)
        return evaluate(self.recipe, program, state, stream, weights)

    def _trained(self, verb: str) -> TrainState:
        if self.state is None:
            raise StateError(
                "there is no state yet", where=f"Trainer.{verb}", fix="call fit first"
            )
        return self.state
