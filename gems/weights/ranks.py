"""The ranks of the subspaces of a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gems.model.errors import GemsError

SHARED = "shared"


@dataclass(frozen=True)
class Ranks:
    """Sizes of the subspaces: the shared one as a count or as a share, and in the same way that of each task.

    rank: directions of the shared basis, at least 1.
    rank_share: the same as a share of the smaller dimension of a weight, in (0, 1]. Exactly one of the two is given.
    task_rank, task_rank_share: the same for each task's basis; at most one is given, neither means half of `shared`.
    Raises `GemsError` for both or neither of a pair, and for values out of range.
    """

    rank: int | None = None
    rank_share: float | None = None
    task_rank: int | None = None
    task_rank_share: float | None = None

    def __post_init__(self) -> None:
        _check_pair("rank", self.rank, self.rank_share)
        _check_pair("task_rank", self.task_rank, self.task_rank_share)
        if self.rank is None and self.rank_share is None:
            raise GemsError(
                "give rank (a count of directions) or rank_share (a share of the smaller dimension in (0, 1])"
            )

    def allot(self, name: str, shape: tuple[int, int], tasks: Sequence[str], known: int) -> Allotment:
        """Return the rank of each family for a weight [m, n].

        known: number of protected input directions.
        The gradient outside of them has at most min(m, n − known) directions. Shared and task basis together hold no
        more: where they are wanted larger, both are cut down in proportion.
        Raises `GemsError` if there is no room for one direction of each.
        """
        m, n = shape
        room = min(m, n - known)
        shared = _count(min(m, n), self.rank, self.rank_share) or 1
        own = _count(min(m, n), self.task_rank, self.task_rank_share) or max(1, shared // 2)
        if not tasks:
            own = 0
        if room < (2 if tasks else 1):
            raise GemsError(
                f"{name} ({m} × {n}, {known} directions protected) has no room for a subspace of "
                f"{'each kind' if tasks else 'one direction'}: leave it out of `linears`, or protect less"
            )
        fits = shared + own <= room
        if not fits:
            least = 1 if tasks else 0
            shared, total = max(1, min(room - least, room * shared // (shared + own))), room
            own = total - shared if tasks else 0
        return Allotment({SHARED: shared, **dict.fromkeys(tasks, own)}, fits)


@dataclass(frozen=True)
class Allotment:
    """Rank of each family of a weight, and whether all that was wanted fits."""

    ranks: dict[str, int]
    fits: bool


def _check_pair(name: str, count: int | None, share: float | None) -> None:
    """Raise `GemsError` unless the pair holds at most one value, of its own type and in its range."""
    if count is not None and share is not None:
        raise GemsError(f"give {name} or {name}_share, not both ({name} {count}, {name}_share {share})")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise GemsError(
            f"{name} {count} must be a count of directions (int); write {name}_share={count} for a share of the "
            "smaller dimension"
        )
    if count is not None and count < 1:
        raise GemsError(f"{name} {count} must be a count above 0")
    if share is not None and (isinstance(share, bool) or not 0 < share <= 1):
        raise GemsError(
            f"{name}_share {share} must be a share of the smaller dimension in (0, 1]; write {name} for a count of "
            "directions"
        )


def _count(size: int, count: int | None, share: float | None) -> int | None:
    return max(1, round(share * size)) if share is not None else count
