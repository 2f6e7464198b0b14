"""A network pretrained on the digits 0-4, fine-tuned on ten digits of each class 5-9.

The ways of fine-tuning are `head`, `gradual`, `full` and `scratch`; the name of one stands
behind the file: `--config=configs/finetune_digits.py:gradual`. `:pretrain` is the config of
what comes first. `python -m tasks.finetune_digits` runs and compares them all. One by one:

    flaxtrain fit --config=configs/finetune_digits.py:pretrain --workdir=runs/digits_0_to_4
    flaxtrain fit --config=configs/finetune_digits.py:gradual --workdir=runs/gradual \\
        --config.init_from.source=runs/digits_0_to_4

Without a source a way starts from new weights.

About 80 seconds of processor time. Accuracy on the held-out digits, three seeds:

    head only             0.936 +- 0.012
    gradual unfreezing    0.965 +- 0.009
    all, layer decay 0.7  0.964 +- 0.009
    from scratch          0.947 +- 0.009
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

import flaxtrain as ft
import tasks.finetune_digits  # noqa: F401  registers the tasks

WAYS: dict[str, dict[str, Any]] = {
    "head": {"freeze": ("backbone",)},
    "gradual": {"freeze": (ft.Freeze("backbone", until="20%", every="20%", rewarm="10%"),)},
    "full": {"layer_decay": 0.7},
    "scratch": {},
}
RUNS: dict[str, dict[str, Any]] = {
    "pretrain": {"task": "digits_0_to_4", "batch_size": 64, "steps": 150},
    "finetune": {
        "task": "digits_5_to_9",
        "data": {"per_class": 10, "tune": False},
        "batch_size": 25,
        "steps": 50,
    },
}


def get_config(way: str = "full") -> ConfigDict:
    """Returns the config of one way of fine-tuning, or of `"pretrain"`.

    Raises:
        UnknownNameError: there is no such way.
    """
    if way != "pretrain" and way not in WAYS:
        known = ("pretrain", *WAYS)
        raise ft.errors.unknown_name("way", way, known, where="configs/finetune_digits.py")
    opt = {"optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.05}
    return ConfigDict(
        {
            **RUNS["pretrain" if way == "pretrain" else "finetune"],
            "model": {"features": (16, 32, 64)},
            "opt": opt | WAYS.get(way, {}),
            "init_from": {"source": placeholder(str), "skip": ("head",)},
            "eval_every": "100%",
            "log_every": 10,
            "seed": 0,
        }
    )
