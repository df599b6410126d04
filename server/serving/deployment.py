"""One bundle being served: its index version, its engine and the queue before it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from index.bundle.bundle import Bundle
from index.popularity import Popularity
from index.sequence.events import Event
from index.titles import TitleIndex
from server.engine.contract import HostedEngine, RankRequest
from server.serving.scheduler import Scheduler
from server.settings import Settings
from server.telemetry.metrics import Metrics


class Deployment:
    """A bundle with its engine and scheduler; its index version may change.

    popularity: of the items of the index version; None if the bundle holds no counts.
    titles: of the items that are not removed.
    """

    def __init__(self, bundle: Bundle, engine: HostedEngine, metrics: Metrics, settings: Settings) -> None:
        self.bundle = bundle
        self.popularity = _popularity(bundle)
        self.titles = _titles(bundle)
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

    async def start(self) -> None:
        """Start the engine and rank the longest prompt of the bundle, so that faults show before the first request.

        Raises what the engine raises.
        """
        try:
            await self.scheduler.start(self._warm_up())
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

    async def refresh(self) -> tuple[Bundle, Bundle]:
        """Serve the index version that is now the current one on disk. Returns the bundle before, and after.

        The new version is opened on a thread, here and by the engine, while the old one serves. Raises `BundleError`,
        `EngineError`.
        """
        fresh = await asyncio.to_thread(self.bundle.refreshed)
        popularity = await asyncio.to_thread(_popularity, fresh)
        titles = await asyncio.to_thread(_titles, fresh)
        await asyncio.to_thread(self.engine.prepare, fresh.index)
        before, self.bundle, self.popularity, self.titles = self.bundle, fresh, popularity, titles
        return before, fresh

    def _warm_up(self) -> list[RankRequest]:
        items = len(self.bundle.index.catalogue)
        longest = [Event(k % items) for k in range(self.bundle.info.max_events)]
        prompt = self.bundle.encoder.prompt(longest)
        return [RankRequest(prompt.ids, self._settings.default_limit, self._settings.default_beam_width)]


def _popularity(bundle: Bundle) -> Popularity | None:
    counts = bundle.popularity()
    return None if counts is None else Popularity.of(counts, len(bundle.index.catalogue))


def _titles(bundle: Bundle) -> TitleIndex:
    return TitleIndex.build([item.title for item in bundle.index.catalogue], bundle.index.removed)
