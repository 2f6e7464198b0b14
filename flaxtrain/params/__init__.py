"""Facts about parameters (owner, role, local shape, order of use), masks and tables of them."""

from flaxtrain.params.decay import DECAY_PRESETS, decay_mask
from flaxtrain.params.facts import Facts, ParamFact
from flaxtrain.params.inspection import facts_from, param_facts
from flaxtrain.params.overview import OverviewRow, Table, overview, readable_bytes
from flaxtrain.params.roles import ROLES

__all__ = [
    "DECAY_PRESETS",
    "ROLES",
    "Facts",
    "OverviewRow",
    "ParamFact",
    "Table",
    "decay_mask",
    "facts_from",
    "overview",
    "param_facts",
    "readable_bytes",
]
