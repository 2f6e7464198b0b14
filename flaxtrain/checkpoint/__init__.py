"""Checkpoints: named trees on disk, whole or not there, verified before they are used."""

from __future__ import annotations

from flaxtrain.checkpoint.adapter_files import load_adapters, read_lora, save_adapters
from flaxtrain.checkpoint.compare import tree_differences
from flaxtrain.checkpoint.differences import environment, environment_differences
from flaxtrain.checkpoint.leaves import LeafRecord
from flaxtrain.checkpoint.manifest import Manifest, read_manifest
from flaxtrain.checkpoint.named import from_named, to_named
from flaxtrain.checkpoint.sources import find_source, read_source, restored_variables
from flaxtrain.checkpoint.steps import CHECKPOINTS, clean_up, latest, step_path, steps
from flaxtrain.checkpoint.storage import read_meta, restore, save

__all__ = [
    "CHECKPOINTS",
    "LeafRecord",
    "Manifest",
    "clean_up",
    "environment",
    "environment_differences",
    "find_source",
    "from_named",
    "latest",
    "load_adapters",
    "read_lora",
    "read_manifest",
    "read_meta",
    "read_source",
    "restore",
    "restored_variables",
    "save",
    "save_adapters",
    "step_path",
    "steps",
    "to_named",
    "tree_differences",
]
