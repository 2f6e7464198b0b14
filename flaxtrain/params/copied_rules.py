"""The decay rules of four other projects, applied to Linen's parameters.

They are kept as they are, so that a run can be moved over unchanged and so that differences
show. They go by name and number of axes. Three of them were written for the names and shapes of
other frameworks: here they show what copying them does, not how those projects train their own
models. A path is written with `.` between its keys for these three.
"""

from __future__ import annotations

import fnmatch
import re

import flax.linen as nn

from flaxtrain.params.facts import ParamFact
from flaxtrain.params.selectors import classes_around

# For the table of presets, which exports them by name.
__all__ = ["big_vision_decays", "hf_decays", "levanter_decays", "timm_decays"]

# What timm's vision transformers declare in `no_weight_decay`, and its tables of positions.
_TIMM_LISTED = ("pos_embed", "cls_token", "*relative_position_bias_table")
_HF_NAMES = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")
_LEVANTER_PARTS = ("LayerNorm", "RMSNorm", "RmsNorm", "Embedding")


def timm_decays(fact: ParamFact) -> bool:
    """Whether timm decays it: two axes or more, no `.bias`, not among the names it lists.

    The axes are those in the params, so a norm scale in `nn.scan` is decayed. The names are
    those that its models declare (`pos_embed`, `cls_token`, tables of relative positions);
    `pos_embedding` and `cls` are not among them. A bias at the top level has no dot before it.
    """
    name = _dotted(fact)
    listed = any(fnmatch.fnmatchcase(name, pattern) for pattern in _TIMM_LISTED)
    return len(fact.shape) > 1 and not name.endswith(".bias") and not listed


def hf_decays(fact: ParamFact) -> bool:
    """Whether Hugging Face's Trainer decays it: not in a `LayerNorm`, and no norm by name.

    Names that contain `bias`, `layernorm` or `rmsnorm`, or have a level `norm` or one that ends
    in `_norm`, are left alone, in any case. `BatchNorm` and `GroupNorm` called otherwise, norms
    of one's own, embeddings and single numbers are decayed.
    """
    in_norm = any(issubclass(cls, nn.LayerNorm) for cls in classes_around(fact))
    return not in_norm and not _HF_NAMES.search(_dotted(fact).lower())


def big_vision_decays(fact: ParamFact) -> bool:
    """Whether big_vision decays it: its path ends in `/kernel`.

    A kernel of another name is missed, and so is one at the top level, which has no slash.
    """
    return re.fullmatch(".*/kernel", "/".join(fact.path)) is not None


def levanter_decays(fact: ParamFact) -> bool:
    """Whether levanter decays it: no norm or embedding by name, and no name that ends in bias.

    `LayerNorm`, `RMSNorm`, `RmsNorm` and `Embedding` are looked for, with their capitals, in
    the path from the root and in the class of the module with the parameter's name behind it.
    Linen calls that class `Embed`, so embeddings are decayed, and so is `BatchNorm`.
    """
    paths = (_dotted(fact), f"{fact.owner_name}.{fact.path[-1]}")
    return not any(
        path.endswith("bias") or any(part in path for part in _LEVANTER_PARTS) for path in paths
    )


def _dotted(fact: ParamFact) -> str:
    return "/".join(fact.path).replace("/", ".")
