"""The default run: a small CNN on the embedded digits, AdamW, warm-up and cosine decay.

About 10 seconds on two cores; validation accuracy about 0.99 on the random split.
"""

from __future__ import annotations

from ml_collections import ConfigDict

import tasks.digits  # noqa: F401  registers the task


def get_config() -> ConfigDict:
    """Returns the config of the run."""
    return ConfigDict(
        {
            "task": "digits",
            "data": {"split": "random"},
            "model": {"features": (32, 64), "dropout": 0.3},
            "opt": {"optimizer": "adamw", "learning_rate": 3e-3, "weight_decay": 0.05},
            "schedule": {
                "schedule": "warmup_cosine_decay_schedule",
                "init_value": 0.0,
                "warmup_steps": "5%",
                "decay_steps": "100%",
            },
            "batch_size": 64,
            "epochs": 30,
            "eval_every": "5ep",
            "log_every": 50,
            "seed": 0,
        }
    )
