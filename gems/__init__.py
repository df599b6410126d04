"""The GEMS method (gradient multi-subspace tuning), in pure PyTorch. See docs/gems.md."""

from gems.conflict import conflict, measure_conflict
from gems.errors import GemsError
from gems.gate import Gate
from gems.knowledge import KnowledgeBasis, collect_knowledge
from gems.layers import find_linears
from gems.linear import plain_gradients
from gems.optimizer import GEMS

__all__ = [
    "GEMS",
    "Gate",
    "GemsError",
    "KnowledgeBasis",
    "collect_knowledge",
    "conflict",
    "find_linears",
    "measure_conflict",
    "plain_gradients",
]
