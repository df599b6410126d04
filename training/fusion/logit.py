"""Fit of the weights of a fusion: a conditional logit with an outside option, by penalised maximum likelihood.

    −log p(y_c)  =  log Σ_o exp(u_co) − u_c,y         over the options o of case c: its candidates, and nothing
    loss(w)      =  Σ_c a_c (−log p(y_c)) + ½ Σ_s ((w_s − m_s) / σ_s)²

The penalty pulls towards weights that hold in general (`PRIOR`), so that a few cases do not decide alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from index.pool.fusion import ITEM_SIGNALS, MAX_WEIGHT, NOTHING_SIGNALS, UNBOUNDED
from index.sequence.events import Task

# (weight in general, width of the penalty)
PRIOR: Mapping[str, tuple[float, float]] = {
    "code": (0.8, 0.3),
    "popularity": (0.1, 0.2),
    "query_log": (0.3, 0.5),
    "transitions": (0.3, 0.5),
    "co_occurrence": (0.3, 0.5),
    "likeness": (1.0, 2.0),
    "dense": (0.1, 0.3),
    "bm25": (0.2, 0.2),
    "all_words": (1.0, 1.0),
    "title_share": (0.5, 1.0),
    "exact_title": (3.0, 2.0),
    "exact_attribute": (3.0, 2.0),
    "exact_category": (1.0, 1.0),
    "fresh": (-4.0, 3.0),
    "fresh_likeness": (1.0, 2.0),
    "fresh_dense": (0.5, 0.3),
    "fresh_bm25": (0.3, 0.2),
    "fresh_all_words": (1.0, 1.0),
    "fresh_title_share": (0.5, 1.0),
    "fresh_exact_title": (3.0, 2.0),
    "fresh_exact_attribute": (3.0, 2.0),
    "fresh_exact_category": (1.0, 1.0),
    "nothing": (-2.0, 3.0),
    "unknown_words": (2.0, 3.0),
}


@dataclass(frozen=True, eq=False)
class Choice:
    """One case to fit to.

    signals: `ITEM_SIGNALS` of the candidates, float64 [n, signals].
    nothing: `NOTHING_SIGNALS`, float64 [signals].
    target: position of the item that was taken among the candidates; None if it is not there.
    weight: how much the case counts.
    """

    signals: NDArray[np.float64]
    nothing: NDArray[np.float64]
    target: int | None
    weight: float = 1.0


def fit_weights(task: Task, choices: Sequence[Choice]) -> dict[str, float]:
    """Return the weights of a task by signal."""
    names = (*ITEM_SIGNALS[task], *NOTHING_SIGNALS[task])
    mean, width = (np.array([PRIOR[name][k] for name in names]) for k in (0, 1))
    options, begin, taken = _options(task, choices)
    weight = np.array([choice.weight for choice in choices])
    owner = np.repeat(np.arange(len(choices)), np.diff(np.append(begin, len(options))))

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        utility = options @ w
        top = np.maximum.reduceat(utility, begin)
        exps = np.exp(utility - top[owner])
        total = np.add.reduceat(exps, begin)
        residual = exps / total[owner] * weight[owner]
        residual[taken] -= weight
        nll = float(weight @ (np.log(total) + top - utility[taken]))
        apart = (w - mean) / width
        return nll + 0.5 * float(apart @ apart), options.T @ residual + apart / width

    bounds = [(-MAX_WEIGHT if name in UNBOUNDED else 0.0, MAX_WEIGHT) for name in names]
    # The usual tolerance of the loss ends the search while the gradient is still large.
    limits = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-6}
    found = minimize(loss, mean, jac=True, method="L-BFGS-B", bounds=bounds, options=limits)
    return {name: round(float(value), 6) for name, value in zip(names, found.x, strict=True)}


def _options(
    task: Task, choices: Sequence[Choice]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the signals of all options, float64 [options, all signals], case after case, with nothing last.

    Also returns the first option of each case and the option that was taken, int64 [cases].
    """
    items, nothing = len(ITEM_SIGNALS[task]), len(NOTHING_SIGNALS[task])
    sizes = np.array([len(choice.signals) + 1 for choice in choices])
    end = np.cumsum(sizes)
    options = np.zeros((int(end[-1]), items + nothing))
    begin = end - sizes
    taken = end - 1
    for k, choice in enumerate(choices):
        options[begin[k] : end[k] - 1, :items] = choice.signals
        options[end[k] - 1, items:] = choice.nothing
        if choice.target is not None:
            taken[k] = begin[k] + choice.target
    return options, begin, taken
