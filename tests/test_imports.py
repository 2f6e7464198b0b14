"""`import flaxtrain` and a whole `fit` stay clear of the libraries that users may not want."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UNWANTED = ("optax", "tensorflow", "torch", "tqdm", "flax.training")

IMPORT = "import flaxtrain"
FIT = """
import flax.linen as nn
import numpy as np
import flaxtrain as ft

data = {"x": np.ones((8, 3), np.float32), "label": np.arange(8) % 2}
trainer = ft.Trainer(nn.Dense(2), ft.OptSpec("sgd", learning_rate=0.1), workdir="run")
trainer.fit(data, steps=2)
assert int(trainer.state.step) == 2
"""
REPORT = f"""
import json, sys
print(json.dumps([name for name in {UNWANTED} if name in sys.modules]))
"""


def loaded_by(program: str, directory: Path) -> list[str]:
    """Returns which unwanted modules a fresh interpreter has loaded after the program."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", program + REPORT],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", [IMPORT, FIT], ids=["import", "fit with a work directory"])
def test_nothing_unwanted_is_loaded(program: str, tmp_path: Path) -> None:
    assert loaded_by(program, tmp_path) == []


def test_an_unwanted_import_would_be_seen(tmp_path: Path) -> None:
    found = loaded_by("import flax.training.train_state\n", tmp_path)
    assert set(found) == {"optax", "flax.training"}
