"""The training of `fit_loop.py` by Lightning, on torch.

Lightning is spared what the others do: its `barebones` mode has no logger, progress bar,
checkpoints or checks, no norms are computed, and a batch is gathered by one `index_select`, not
row by row as by a `DataLoader`. Loss and accuracy are summed by the module.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning
import numpy as np
import torch
from hand_loop import LEARNING_RATE, WEIGHT_DECAY, Case
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from torch import Tensor, nn

PACKAGES = ("torch", "lightning")


class Batches:
    """The data in batches, in another order in every epoch."""

    def __init__(self, case: Case) -> None:
        self.image, self.label = to_torch(case.image), torch.from_numpy(case.label).long()
        self.size = case.batch_size

    def __len__(self) -> int:
        return len(self.label) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.label)).split(self.size):
            yield self.image.index_select(0, rows), self.label.index_select(0, rows)


class Module(lightning.LightningModule):
    """The model, its optimizer, and the metrics of a window."""

    def __init__(self, case: Case, logdir: Path) -> None:
        super().__init__()
        self.model = _cnn() if case.image.ndim > 2 else _mlp()
        self.writer, self.log_every = SummaryWriter(str(logdir)), case.log_every
        self.count, self.sums = 0, torch.zeros(2)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.tx = torch.optim.AdamW(
            groups, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the one optimizer, so that its moments live on from call to call."""
        return self.tx

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the loss; at log points metrics are read and written."""
        image, label = batch
        logits = self.model(image)
        loss = nn.functional.cross_entropy(logits, label)
        hits = (logits.argmax(-1) == label).float().mean()
        self.sums += torch.stack([loss.detach(), hits])
        self.count += 1
        if self.count % self.log_every == 0:
            for name, value in zip(("loss", "accuracy"), self.sums.tolist(), strict=True):
                self.writer.add_scalar(name, value / self.log_every, self.count)
            self.sums.zero_()
        return loss


class LightningLoop:
    """`lightning.Trainer.fit`; continues where the call before left off."""

    def __init__(self, case: Case, logdir: Path) -> None:
        torch.manual_seed(0)
        warnings.filterwarnings("ignore", module="lightning.*")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        self.module, self.batches = Module(case, logdir), Batches(case)

    def run(self, steps: int) -> None:
        """Train for so many steps, which have to be whole epochs; it waits for the result."""
        epochs = steps // len(self.batches)
        trainer = lightning.Trainer(accelerator="cpu", max_epochs=epochs, barebones=True)
        trainer.fit(self.module, self.batches)
        self.module.writer.flush()

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of some examples, with running statistics."""
        with torch.no_grad():
            logits = self.module.model.eval()(to_torch(image)).numpy()
        self.module.model.train()
        return logits


def to_torch(image: NDArray[np.float32]) -> Tensor:
    """Return pictures with their channels in front, and vectors as they are."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1)))


def _mlp() -> nn.Sequential:
    """Return the layers of `hand_loop.MLP`."""
    first, second = _start(nn.Linear(784, 512)), _start(nn.Linear(512, 512))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), _start(nn.Linear(512, 10)))


def _cnn() -> nn.Sequential:
    """Return the layers of `hand_loop.CNN`, padded on both sides rather than on one."""
    layers: list[nn.Module] = []
    for channels, features in ((1, 16), (16, 32)):
        layers.append(_start(nn.Conv2d(channels, features, 3, stride=2, padding=1)))
        layers += [nn.BatchNorm2d(features, eps=1e-5, momentum=0.01), nn.ReLU()]
    dense = _start(nn.Linear(32 * 7 * 7, 128))
    return nn.Sequential(*layers, nn.Flatten(), dense, nn.ReLU(), _start(nn.Linear(128, 10)))


def _start(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Give a layer flax's initial values: LeCun's truncated normal ones, and zero biases."""
    deviation = layer.weight[0].numel() ** -0.5 / 0.8796
    nn.init.trunc_normal_(layer.weight, 0.0, deviation, -2 * deviation, 2 * deviation)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
