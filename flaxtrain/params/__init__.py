"""Facts about parameters (owner, role, local shape, order of use), masks and tables of them."""

from flaxtrain.params.adapters import Adapters, LoRA
from flaxtrain.params.decay import (
    DECAY_PRESETS,
    DecayChoice,
    check_decay_choice,
    decay_mask,
    preset_differences,
)
from flaxtrain.params.facts import Facts, ParamFact, check_facts
from flaxtrain.params.inspection import facts_from, param_facts
from flaxtrain.params.layers import Layers, layers
from flaxtrain.params.low_rank import join_adapters, split_adapters
from flaxtrain.params.overview import OverviewRow, Table, overview
from flaxtrain.params.resampling import interp2d
from flaxtrain.params.restore import Restore
from flaxtrain.params.restore_report import RestoreRecord, RestoreReport
from flaxtrain.params.restoring import apply_restore
from flaxtrain.params.roles import ROLES
from flaxtrain.params.select import Selector, SelectorLike, select, selected_tree, selector
from flaxtrain.params.units import own_axes, unit_axes

__all__ = [
    "DECAY_PRESETS",
    "ROLES",
    "Adapters",
    "DecayChoice",
    "Facts",
    "Layers",
    "LoRA",
    "OverviewRow",
    "ParamFact",
    "Restore",
    "RestoreRecord",
    "RestoreReport",
    "Selector",
    "SelectorLike",
    "Table",
    "apply_restore",
    "check_decay_choice",
    "check_facts",
    "decay_mask",
    "facts_from",
    "interp2d",
    "join_adapters",
    "layers",
    "overview",
    "own_axes",
    "param_facts",
    "preset_differences",
    "select",
    "selected_tree",
    "selector",
    "split_adapters",
    "unit_axes",
]
