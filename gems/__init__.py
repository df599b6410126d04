"""The GEMS method (gradient multi-subspace tuning), in pure PyTorch. See docs/gems.md."""

from gems.checkpoint import load_sharded, load_weights, save_sharded, weights_of
from gems.gate import Gate
from gems.model.conflict import conflict, measure_conflict
from gems.model.errors import GemsError
from gems.model.knowledge import KnowledgeBasis, collect_knowledge
from gems.model.layers import find_linears
from gems.model.linear import plain_gradients
from gems.model.sites import find_sites
from gems.optimizer import GEMS

__all__ = [
    "GEMS",
    "Gate",
    "GemsError",
    "KnowledgeBasis",
    "collect_knowledge",
    "conflict",
    "find_linears",
    "find_sites",
    "load_sharded",
    "load_weights",
    "measure_conflict",
    "plain_gradients",
    "save_sharded",
    "weights_of",
]
