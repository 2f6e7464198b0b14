"""The texts of the errors a user of data meets, as they are printed."""
# ruff: noqa: E501, the texts are not wrapped when they are printed either

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flaxtrain.data import as_stream, batches, model_inputs, target
from flaxtrain.errors import (
    ArgumentError,
    ArgumentTypeError,
    BatchError,
    DataError,
    EmptyDatasetError,
    FlaxtrainError,
    LossError,
    MissingKeyError,
)

X, Y = np.ones((4, 2), np.float32), np.array([0, 1, 0, 1], np.int32)


def exhaust(ds: Any, epochs: int = 1) -> None:
    stream = as_stream(ds)
    for epoch in range(epochs):
        list(stream.epoch(epoch))


WRONG: dict[str, tuple[Callable[[], Any], type[FlaxtrainError], str]] = {
    "empty arrays": (
        lambda: batches({"x": np.ones((0, 2))}, 4),
        EmptyDatasetError,
        """the arrays have 0 rows
  where: batches(arrays, ...)
  fix:   pass at least one example""",
    ),
    "fewer examples than a batch": (
        lambda: batches((X, Y), 8, drop_remainder=True),
        EmptyDatasetError,
        """4 examples are fewer than one batch of 8
  where: batches(..., drop_remainder=True)
  fix:   pass drop_remainder=False, or batch_size <= 4""",
    ),
    "empty loader": (
        lambda: as_stream([]),
        EmptyDatasetError,
        """the data set yields no batch
  where: list
  fix:   check that it has data; a generator that was used before is empty""",
    ),
    "arrays of different lengths": (
        lambda: batches({"image": X, "label": Y[:3]}, 2),
        DataError,
        """the leading axes disagree: image has 4, label has 3
  where: batches(arrays, ...)
  fix:   give every array one row per example""",
    ),
    "python list": (
        lambda: as_stream({"image": X, "label": [0, 1, 0, 1]}),
        DataError,
        """label is a list of int, not an array
  where: batches(arrays, ...)
  fix:   make it an array: np.asarray(...); text has to become numbers first""",
    ),
    "shape change": (
        lambda: exhaust([{"x": X}, {"x": np.ones((4, 3), np.float32)}]),
        BatchError,
        """x has rows of shape (3,), in the first batch (2,)
  where: epoch 0, batch 1
  fix:   make every batch alike; only the number of rows may be smaller than in the first""",
    ),
    "larger batch": (
        lambda: exhaust([{"x": X[:2]}, {"x": X}]),
        BatchError,
        """the batch has 4 rows, more than the first, which has 2
  where: epoch 0, batch 1
  fix:   make every batch alike; only the number of rows may be smaller than in the first""",
    ),
    "single examples": (
        lambda: as_stream([(X[0], 1), (X[1], 0)]),
        BatchError,
        """1 is an int, not an array
  where: epoch 0, batch 0
  fix:   a batch needs a leading batch axis: does the data set yield single examples? Batch them""",
    ),
    "generator in a second epoch": (
        lambda: exhaust((batch for batch in [{"x": X}]), epochs=2),
        DataError,
        """the generator can be iterated once only, and was
  where: epoch 1
  fix:   train for one epoch, or pass something that can be iterated again: a function that \
returns a new iterator (lambda: make_batches()), a list of batches, or ft.data.batches(arrays, ...)""",
    ),
    "length in examples": (
        lambda: exhaust(type("Set", (list,), {"__len__": lambda self: 8})([(X, Y), (X, Y)])),
        DataError,
        """len() promised 8 batches per epoch, but 2 came
  where: epoch 0 of Set
  fix:   let len() count batches, not examples; without a len() any number is fine""",
    ),
    "batch size for a loader": (
        lambda: as_stream([(X, Y)], batch_size=2),
        ArgumentError,
        """batch_size=2 was given for a list, which has batches already
  where: the data set
  fix:   leave batch_size out, or pass a dict or tuple of arrays""",
    ),
    "list of arrays": (
        lambda: as_stream([X, Y]),
        ArgumentTypeError,
        """a list of arrays is given, which may mean inputs and targets, or batches
  where: the data set
  fix:   pass a tuple (inputs, targets), or a list of dicts or tuples, one per batch""",
    ),
    "misspelt input": (
        lambda: model_inputs({"token": X, "segments": X, "label": Y}, ["tokens", "segments"]),
        MissingKeyError,
        """the model's argument 'tokens' has no entry in the batch, whose keys are 'token', 'segments', 'label'
  where: batch -> model
  fix:   is 'token' meant? rename the entry to 'tokens', or write the loss yourself:
       def loss_fn(model, batch):
           prediction = model(batch['segments'])
           return ft.losses.softmax_cross_entropy_with_integer_labels(prediction, batch['label'])
       trainer = ft.Trainer(model, spec, loss=loss_fn)""",
    ),
    "misspelt target": (
        lambda: target({"image": X, "lable": Y}),
        MissingKeyError,
        """the batch has no target; its keys are 'image', 'lable'
  where: batch -> target
  fix:   is 'lable' meant as 'label'? name the target one of 'label', 'labels', 'target', 'targets', 'y', \
or write the loss yourself:
       def loss_fn(model, batch):
           prediction = model(batch['image'])
           return ft.losses.softmax_cross_entropy_with_integer_labels(prediction, batch['lable'])
       trainer = ft.Trainer(model, spec, loss=loss_fn)""",
    ),
    "entry the model does not take": (
        lambda: model_inputs({"image": X, "id": Y, "label": Y}, ["image"]),
        LossError,
        """the entry 'id' of the batch is no argument of the model's __call__, which takes 'image'
  where: batch -> model
  fix:   leave 'id' out of the data set, or write the loss yourself:
       def loss_fn(model, batch):
           prediction = model(batch['image'])
           return ft.losses.softmax_cross_entropy_with_integer_labels(prediction, batch['label'])
       trainer = ft.Trainer(model, spec, loss=loss_fn)""",
    ),
}


@pytest.mark.parametrize("use", WRONG)
def test_the_error_says_what_and_where_and_what_to_do(use: str) -> None:
    run, kind, text = WRONG[use]
    with pytest.raises(kind) as caught:
        run()
    assert type(caught.value) is kind
    assert str(caught.value) == text
