"""The training loop written by hand that `Trainer.fit` is measured against.

Flax and optax, nothing of ours: one jitted step, donated state, asynchronous dispatch, metrics
summed on the device, no wait between log points, a bounded number of steps in flight. At log
points it logs through tensorboardX what `fit` logs. `Design` names the choices in it; README.md
holds the measurements they were made by.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

BATCH_SIZE, LOG_EVERY = 128, 50
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4


class MLP(nn.Module):
    """784-512-512-10: three dense layers."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        for features in (512, 512):
            image = nn.relu(nn.Dense(features)(image))
        return nn.Dense(10)(image)


class CNN(nn.Module):
    """Two strided convolutions with BatchNorm and two dense layers."""

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        for features in (16, 32):
            image = nn.Conv(features, (3, 3), strides=2)(image)
            image = nn.relu(nn.BatchNorm(use_running_average=not train)(image))
        image = nn.relu(nn.Dense(128)(image.reshape(image.shape[0], -1)))
        return nn.Dense(10)(image)


class Case(NamedTuple):
    """A model, the arguments of its call in training, its data, and how they are used."""

    model: nn.Module
    training: dict[str, Any]
    image: NDArray[np.float32]
    label: NDArray[np.int32]
    batch_size: int = BATCH_SIZE
    log_every: int = LOG_EVERY


def make_case(name: str, examples: int = 12_800) -> Case:
    """Return a model with learnable data: noisy copies of ten random pictures."""
    random = np.random.default_rng(0)
    shape = (784,) if name == "mlp" else (28, 28, 1)
    pictures = random.standard_normal((10, *shape), dtype=np.float32)
    label = random.integers(0, 10, examples).astype(np.int32)
    image = pictures[label] + 8 * random.standard_normal((examples, *shape), dtype=np.float32)
    return Case(*((MLP(), {}) if name == "mlp" else (CNN(), {"train": True})), image, label)


@dataclasses.dataclass(frozen=True)
class Design:
    """The choices in the loop written by hand; the defaults are the official baseline.

    Args:
        norms: Update and parameter norm in every step, under `lax.cond`, or in a second
            compiled step that runs at log points only.
        metrics: Summed inside the step, by a second jitted function, or kept as one array per
            step and averaged on the host.
        packed: The window's sums as one vector instead of five scalars.
        put: Leave batches to the dispatch, `device_put` them, or do so one step ahead.
        donate_batch: Donate the batch as well as the state.
        late: Read and write a window's metrics some steps later instead of waiting for them.
        in_flight: Steps that may be under way; None for no bound.
        record: The state as a flax dataclass with a step counter instead of a plain tuple.
        gather: Index a shuffled order per batch, `np.take`, or copy the data once per epoch.
    """

    norms: Literal["every", "cond", "second"] = "second"
    metrics: Literal["inside", "outside", "list"] = "inside"
    packed: bool = True
    put: Literal["dispatch", "now", "ahead"] = "dispatch"
    donate_batch: bool = False
    late: bool = False
    in_flight: int | None = 8
    record: bool = False
    gather: Literal["index", "take", "copy"] = "take"


class Plain(NamedTuple):
    """What changes from step to step."""

    params: Any
    stats: Any
    opt_state: optax.OptState
    step: Any = ()


@flax.struct.dataclass
class Record:
    """The same, as a flax dataclass."""

    params: Any
    stats: Any
    opt_state: optax.OptState
    step: jax.Array


class HandLoop:
    """The loop written by hand; continues where the call before left off."""

    def __init__(self, case: Case, logdir: Path, design: Design) -> None:
        self.case, self.design, self.count = case, design, 0
        self.tx = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=kernels_only)
        stats = case.model.init(jax.random.key(0), case.image[:1])
        params = stats.pop("params")
        make = functools.partial(Record, step=jnp.int32(0)) if design.record else Plain
        self.state: Any = make(params=params, stats=stats, opt_state=self.tx.init(params))
        self.writer = SummaryWriter(str(logdir))
        self.batches = self._batches()
        self.flying: collections.deque[jax.Array] = collections.deque()
        self.pending: tuple[int, Any, float] | None = None
        donated = (0, 2, 3) if design.donate_batch else (0,)
        jit = functools.partial(jax.jit, donate_argnums=donated)
        self.step = jit(functools.partial(self._step, design.norms != "second"))
        self.log_step = jit(functools.partial(self._step, True))
        self.add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

    def run(self, steps: int) -> None:
        """Train for so many steps (a multiple of the log interval) and wait for the result."""
        self.clock = time.perf_counter()
        sums: Any = self._zeros()
        for index in range(1, steps + 1):
            logging = index % self.case.log_every == 0
            second = logging and self.design.norms == "second"
            step = self.log_step if second else self.step
            self.count += 1
            self.state, sums = self._advance(step, sums, *next(self.batches))
            self._bound(sums)
            if logging:
                self._log(sums)
                sums = self._zeros()
            elif self.pending and index % self.case.log_every == 10:
                self._write(*self.pending)
        if self.pending:
            self._write(*self.pending)
        self.writer.flush()
        jax.block_until_ready(self.state)
        self.flying.clear()

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of some examples, with running statistics."""
        variables = {"params": self.state.params, **self.state.stats}
        return np.asarray(self.case.model.apply(variables, image))

    def accuracy(self, examples: int) -> float:
        """Return the accuracy on the first examples, with running statistics."""
        found = np.argmax(self.logits(self.case.image[:examples]), -1)
        return float(np.mean(found == self.case.label[:examples]))

    def _step(self, with_norms: bool, state: Any, sums: Any, image: Any, label: Any) -> Any:
        (loss, (logits, stats)), grads = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.stats, image, label
        )
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == label)
        norms = self._norms(with_norms, state, updates)
        new = [loss, accuracy, optax.global_norm(grads), *norms]
        if self.design.packed:
            new = jnp.stack(new)
        if self.design.metrics == "inside":
            new = jax.tree.map(jnp.add, sums, new)
        counter = {"step": state.step + 1} if self.design.record else {}
        return type(state)(params=params, stats=stats, opt_state=opt_state, **counter), new

    def _norms(self, with_norms: bool, state: Any, updates: Any) -> Any:
        def compute() -> Any:
            return optax.global_norm(updates), optax.global_norm(state.params)

        if not with_norms:
            return jnp.float32(0), jnp.float32(0)
        if self.design.norms == "second":
            return compute()
        adam = state.opt_state[0]
        logging = (adam.count + 1) % self.case.log_every == 0
        if self.design.norms == "cond":
            return jax.lax.cond(logging, compute, lambda: (jnp.float32(0), jnp.float32(0)))
        return tuple(jnp.where(logging, norm, 0) for norm in compute())

    def _loss(self, params: Any, stats: Any, image: Any, label: Any) -> Any:
        logits, stats = self.case.model.apply(
            {"params": params, **stats}, image, **self.case.training, mutable=list(stats)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return losses.mean(), (logits, stats)

    def _advance(self, step: Any, sums: Any, image: Any, label: Any) -> Any:
        if self.design.metrics == "inside":
            return step(self.state, sums, image, label)
        state, new = step(self.state, (), image, label)
        if self.design.metrics == "list":
            return state, [*sums, new]
        return state, self.add(sums, new)

    def _zeros(self) -> Any:
        if self.design.metrics == "list":
            return []
        return np.zeros(5, np.float32) if self.design.packed else [np.float32(0)] * 5

    def _bound(self, sums: Any) -> None:
        if self.design.in_flight is None:
            return
        self.flying.append(jax.tree.leaves(sums)[-1])
        if len(self.flying) > self.design.in_flight:
            self.flying.popleft().block_until_ready()

    def _log(self, sums: Any) -> None:
        now = time.perf_counter()
        speed, self.clock = self.case.log_every * self.case.batch_size / (now - self.clock), now
        self.pending = (self.count, sums, speed)
        if not self.design.late:
            self._write(*self.pending)

    def _write(self, count: int, sums: Any, speed: float) -> None:
        self.pending = None
        values = jax.device_get(sums)
        total = np.sum(values, axis=0) if self.design.metrics == "list" else values
        loss, accuracy, grads = (float(value) / self.case.log_every for value in total[:3])
        scalars = {"loss": loss, "accuracy": accuracy, "grad_norm": grads}
        scalars |= {"update_norm": float(total[3]), "param_norm": float(total[4])}
        scalars |= {"learning_rate": LEARNING_RATE, "examples_per_second": speed}
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, count)

    def _batches(self) -> Iterator[Any]:
        batches = self._host_batches()
        if self.design.put == "dispatch":
            yield from batches
        elif self.design.put == "now":
            yield from map(jax.device_put, batches)
        # Neither of the two above ends.
        ahead = jax.device_put(next(batches))
        for batch in batches:
            following = jax.device_put(batch)
            yield ahead
            ahead = following

    def _host_batches(self) -> Iterator[Any]:
        random, image, label = np.random.default_rng(0), self.case.image, self.case.label
        while True:
            order = random.permutation(len(label))
            if self.design.gather == "copy":
                image, label = self.case.image[order], self.case.label[order]
            for start in range(0, len(label), self.case.batch_size):
                span = slice(start, start + self.case.batch_size)
                if self.design.gather == "copy":
                    yield image[span], label[span]
                elif self.design.gather == "take":
                    yield image.take(order[span], axis=0), label.take(order[span])
                else:
                    yield image[order[span]], label[order[span]]


def kernels_only(params: Any) -> Any:
    """Return the weight-decay mask: kernels yes, biases and norms no."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
