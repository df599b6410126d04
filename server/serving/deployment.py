"""One bundle being served: its index version, its engine and the queue before it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from index.bundle.bundle import Bundle
from index.popularity import Popularity
from index.sequence.events import Event
from index.titles import TitleIndex
from server.engine.contract import HostedEngine, RankRequest
from server.runtime.threads import on_daemon_thread
from server.serving.scheduler import Scheduler
from server.settings import Settings
from server.telemetry.metrics import Metrics


@dataclass(frozen=True, eq=False)
class Contents:
    """A bundle with one version of its index, from which requests are answered.

    popularity: of the items of the index version; None if the bundle holds no counts.
    titles: of the items that are not removed.
    """

    bundle: Bundle
    popularity: Popularity | None
    titles: TitleIndex

    @classmethod
    def of(cls, bundle: Bundle) -> Contents:
        """Make everything that is looked up in. Slow: call it on a thread. Raises `BundleError`."""
        return cls(bundle, popularity_of(bundle), bundle.index.titles())


def popularity_of(bundle: Bundle) -> Popularity | None:
    """Return the popularity of the items of a bundle; None if it holds no counts. Raises `BundleError`."""
    counts = bundle.popularity()
    return None if counts is None else Popularity.of(counts, len(bundle.index.catalogue))


class Deployment:
    """A bundle with its engine and scheduler; its index version may change.

    Making one is slow: do it on a thread. Raises `BundleError`.
    """

    def __init__(self, bundle: Bundle, engine: HostedEngine, metrics: Metrics, settings: Settings) -> None:
        self.contents = Contents.of(bundle)
        self.engine = engine
        self._settings = settings
        self._users = 0
        engine.on_restart = metrics.engine_restarts.inc
        self.scheduler = Scheduler(
            engine,
            metrics,
            max_batch_size=settings.max_batch_size,
            window=settings.batch_window_ms / 1000,
            queue_limit=settings.queue_limit,
        )

    @property
    def bundle(self) -> Bundle:
        """The bundle, with the index version that is served now."""
        return self.contents.bundle

    async def start(self) -> None:
        """Start the engine and rank the longest prompt of the bundle, so that faults show before the first request.

        Raises what the engine raises.
        """
        try:
            await self.scheduler.start(await on_daemon_thread(self._warm_up))
        except BaseException:
            await self.scheduler.stop(0)
            raise

    @contextmanager
    def used(self) -> Iterator[None]:
        """Mark the deployment as used by a request; `retire` waits for its users."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def retire(self, patience: float) -> None:
        """Stop when no request uses it any more, after `patience` seconds at the latest."""
        clock = asyncio.get_running_loop().time
        end = clock() + patience
        while self._users and clock() < end:
            await asyncio.sleep(0.02)
        await self.scheduler.stop(patience)

    def refreshed(self) -> Contents:
        """Open the index version that is now current on disk. Slow: call it on a thread. Raises `BundleError`."""
        return Contents.of(self.bundle.refreshed())

    def _warm_up(self) -> list[RankRequest]:
        items = len(self.bundle.index.catalogue)
        longest = [Event(k % items) for k in range(self.bundle.info.max_events)]
        prompt = self.bundle.encoder.prompt(longest)
        return [RankRequest(prompt.ids, self._settings.default_limit, self._settings.default_beam_width)]
