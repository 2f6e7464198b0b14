"""The trainer: a compiled step and hooks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh

from flaxtrain.answering import answering_class
from flaxtrain.checks import as_directory
from flaxtrain.data import Stream
from flaxtrain.durations import Horizon
from flaxtrain.loop.arguments import FitCall, check_arguments
from flaxtrain.loop.debug.debuggable import Debuggable
from flaxtrain.loop.debug.modes import debug_fit
from flaxtrain.loop.evaluating import Evaluating, evaluated
from flaxtrain.loop.evaluation_hook import evaluation_hooks
from flaxtrain.loop.feature_cache import feature_cache
from flaxtrain.loop.hooks import Hook
from flaxtrain.loop.hooks_of_run import all_hooks, check_hooks
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
from flaxtrain.loop.plan_devices import planned_devices
from flaxtrain.loop.plan_start import planned_start
from flaxtrain.loop.programs import Programs
from flaxtrain.loop.result import FitResult
from flaxtrain.loop.resume import Start, begin
from flaxtrain.loop.run import Run
from flaxtrain.loop.several_processes import agree_on_the_run, agree_on_the_source
from flaxtrain.loop.steps_per_call import check_steps_per_call
from flaxtrain.loop.streams import on_devices, training_stream
from flaxtrain.parallel import Sharding, peer_watch
from flaxtrain.parallel.devices import Devices
from flaxtrain.params import LoRA, Restore
from flaxtrain.precision import LossScale, Policy, Precision
from flaxtrain.spec import OptSpec
from flaxtrain.spec.validate import SPEC_ARGUMENTS
from flaxtrain.train import (
    AxisReplicas,
    LossFn,
    Recipe,
    StepOptions,
    TrainState,
    check_replicas,
    make_recipe,
)

__all__ = ["Trainer"]


@answering_class(**SPEC_ARGUMENTS)
class Trainer(Debuggable, Evaluating):
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
        seed: root of all randomness, in [0, 2^32): initial values, dropout, order of arrays.
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
        mesh: the axes of the mesh of devices and their lengths, such as `{"data": -1}` for data
            parallelism over all of them; None: one device, or all where there are several
            processes. A batch is spread over the axes `data` and `fsdp`.
        sharding: what is split: `"replicated"`, `"zero1"` (slots), `"fsdp"` (parameters too),
            or a `Sharding`; None: `"fsdp"` where the mesh has that axis, else `"replicated"`.
        backend: `"jit"`; or `"pmap"`, for data parallelism alone.
        steps_per_call: how many steps one compiled call makes, at most `log_every`: for small
            models, whose steps take about as long as a call. `"auto"` times a few steps first.
            Runs that differ in it agree up to rounding, not bit for bit.

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
        mesh: Mapping[str, int] | Mesh | None = None,
        sharding: str | Sharding | None = None,
        backend: str = "jit",
        steps_per_call: int | str = 1,
    ) -> None:
        check_arguments(
            model, opt_spec, loss, metrics, seed, log_every, verbose, init_from, adapters
        )
        check_steps_per_call(steps_per_call, log_every)
        self.model, self.spec, self.loss, self.metrics = model, opt_spec, loss, metrics
        self.seed, self.log_every, self.verbose = seed, log_every, verbose
        self.workdir = as_directory("workdir", workdir, where="Trainer")
        self.hooks, self.init_from, self.adapters = check_hooks(hooks), init_from, adapters
        self.options = StepOptions(loss_scale, precision)
        self._devices = Devices.of(mesh, sharding, backend)
        self.state: TrainState | None = None
        self.recipe: Recipe | None = None
        self._fitted, self._programs = False, Programs(log_every, steps_per_call)
        self._running: Run | None = None

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
            KeyboardInterrupt: Ctrl-C; `state` is the one after the last step. Of several
                processes, all raise it after the same one.
        """
        call = FitCall(ds, steps, epochs, eval_ds, eval_every, batch_size, cache_frozen)
        with peer_watch().guard(self._flush):
            return self._fit(call) if debug is None else debug_fit(debug, self, call)

    def _fit(self, call: FitCall) -> FitResult:
        call.check()
        stream, notes = self._training(call.ds, call.batch_size)
        cache = feature_cache(call.cache_frozen, stream)
        epochs, told = epochs_and_notes(call.steps, call.epochs, self.spec.accumulation)
        notes += told
        fresh = not self._fitted
        horizon = horizon_of(stream, call.steps, epochs, self.spec.accumulation)
        recipe = self._build(stream, horizon)
        notes += self._inferred(recipe)
        if not fresh and self.spec != recipe.spec:
            notes.append("relative durations of the spec were resolved for the first fit")
        evaluation = evaluation_hooks(recipe, stream, call, self._devices)
        before, start = self.state, self._start(recipe, stream)
        total = total_batches(start.state, horizon.batches, fresh)
        agree_on_the_run(
            start.recipe,
            start.state,
            stream,
            self.seed,
            total=total,
            log_every=self.log_every,
            steps_per_call=self._programs.steps_per_call.asked,
            mesh=self._devices.mesh and dict(self._devices.mesh.shape),
            sharding=repr(self._devices.sharding),
            eval_every=call.eval_every,
        )
        self.recipe, self.state = start.recipe, start.state
        run = self._running = Run(
            recipe=start.recipe,
            state=start.state,
            stream=stream,
            horizon=horizon,
            total=total,
            epochs=epochs if horizon.batches is None else None,
            hooks=all_hooks(self.hooks, evaluation, self.verbose, self.workdir),
            program=self._programs.train,
            evaluate=partial(evaluated, self),
            position=position_in(stream, start.state, fresh),
            workdir=self.workdir,
            announcements=(*notes, *start.notes),
            texts=start.texts,
            seed=self.seed,
            cache=cache,
            steps_per_call=self._programs.steps_per_call,
        )
        try:
            with DeferredInterrupt() as interrupt, peer_watch().run():
                return run.drive(interrupt)
        finally:
            # A run that failed before its first step leaves no trace.
            self.state = before if run.error is not None and not run.dispatched else run.state
            self.recipe = run.recipe if self.state is run.state else self.recipe
            self._fitted, self._running = self._fitted or run.dispatched, None

    def _flush(self) -> None:
        if self._running is not None:
            self._running.flush()

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
        stream, notes = self._training(ds, batch_size)
        horizon = horizon_of(stream, steps, epochs, self.spec.accumulation)
        recipe = self._build(stream, horizon, keep=False)
        notes += self._inferred(recipe)
        start = planned_start(recipe, self.state, self.workdir, self.init_from)
        devices = planned_devices(recipe, stream, self._devices, self._programs.steps_per_call)
        return Plan.of(recipe, stream, horizon, tuple(notes), start, devices)

    # What fit is made of.

    def _training(self, ds: Any, batch_size: int | None) -> tuple[Stream, list[str]]:
        stream, notes = training_stream(ds, batch_size, self.seed)
        microbatches = self.spec.accumulation.microbatches
        return on_devices(stream, self._devices, microbatches), notes + self._devices.notes()

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
        if recipe is not self.recipe:
            engine = self._devices.engine(recipe.facts)
            if engine.axis_name is not None:
                check_replicas(recipe, AxisReplicas(engine.axis_name))
            if keep:
                self.recipe = recipe
                self._programs.forget(engine)
        return recipe

    def _start(self, recipe: Recipe, stream: Stream) -> Start:
        """Returns what the run begins with: the trainer's state, if it has one."""
        agree_on_the_source(self.workdir, self.state)
        engine, steps_per_call = self._programs.engine, self._programs.steps_per_call
        if self.state is not None:
            return Start(recipe, engine.place_state(self.state), [], {})
        start = begin(recipe, stream, self.seed, self.workdir, self.init_from, engine)
        return start._replace(notes=start.notes + steps_per_call.resume(start.call_form))

    def _inferred(self, recipe: Recipe) -> list[str]:
        loss, notes = recipe.supervised, [*recipe.options.notes]
        if self.loss is None and loss is not None:
            notes.append(f"loss= was not given, inferred from the targets: {loss.name}")
        return notes
