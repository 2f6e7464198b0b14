"""Checkpoints: named trees on disk, whole or not there, verified before they are used."""

from __future__ import annotations

from flaxtrain.checkpoint.compare import tree_differences
from flaxtrain.checkpoint.differences import environment, environment_differences
from flaxtrain.checkpoint.leaves import LeafRecord
from flaxtrain.checkpoint.manifest import Manifest, read_manifest
from flaxtrain.checkpoint.named import from_named, to_named
from flaxtrain.checkpoint.steps import clean_up, latest, step_path, steps
from flaxtrain.checkpoint.storage import read_meta, restore, save

__all__ = [
    "LeafRecord",
    "Manifest",
    "clean_up",
    "environment",
    "environment_differences",
    "from_named",
    "latest",
    "read_manifest",
    "read_meta",
    "restore",
    "save",
    "step_path",
    "steps",
    "to_named",
    "tree_differences",
]
