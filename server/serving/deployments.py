"""The deployment that is served now, and the swap to another version of its index or to another bundle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from index.bundle.bundle import Bundle
from index.bundle.manifest import BundleError
from server.api.errors import BundleRefusedError, EngineUnavailableError, IndexRefusedError, NotFoundError
from server.engine.contract import EngineError, EngineLostError, HostedEngine
from server.runtime import garbage
from server.runtime.threads import on_daemon_thread
from server.serving.deployment import Deployment
from server.settings import Settings
from server.telemetry.metrics import Metrics

logger = logging.getLogger("server.serving.deployments")

# Seconds for opening an index version or a bundle; after them a file is taken to hang, for instance on a lost disk.
OPENING_SECONDS = 600.0

Reopen = Callable[[], tuple[Bundle, HostedEngine]]
Answer = TypeVar("Answer")
Tell = Callable[[Bundle, Bundle], Answer]  # says what a switch from the first to the second means


class Deployments:
    """Holds the current deployment. A request reads it once, and so keeps to one bundle and index version.

    reopen: opens the bundle that is now at the served path, and makes an engine for it; None if there is no path.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: HostedEngine,
        metrics: Metrics,
        settings: Settings,
        reopen: Reopen | None,
    ) -> None:
        self.current = Deployment(bundle, engine, metrics, settings)
        self._metrics = metrics
        self._settings = settings
        self._reopen = reopen
        self._swapping = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        metrics.show(metrics.describe(bundle))
        metrics.watch_memory(lambda: self.current.engine.pid)

    async def start(self) -> None:
        """Start the current deployment. Raises what its engine raises."""
        await self.current.start()

    async def stop(self) -> None:
        """Stop the current deployment and those that are still retiring."""
        await asyncio.gather(self.current.scheduler.stop(self._settings.shutdown_seconds), *self._retiring)

    async def refresh_index(self, tell: Tell[Answer]) -> Answer:
        """Serve the index version that is now the current one on disk. Returns what `tell` says about it.

        The new version is opened on a thread, here and by the engine, while the old one serves.
        Raises `IndexRefusedError` for a damaged version, `EngineUnavailableError` if the engine is lost meanwhile.
        After any error the old version goes on.
        """
        async with self._swapping:
            current = self.current
            try:
                async with _opening():
                    fresh = await on_daemon_thread(current.refreshed)
                    answer, series = tell(current.bundle, fresh.bundle), self._metrics.describe(fresh.bundle)
                    await on_daemon_thread(partial(current.engine.prepare, fresh.bundle.index))
            except EngineLostError as error:
                raise EngineUnavailableError("The model's process was lost; try again.") from error
            except (BundleError, EngineError) as error:
                logger.error("index refused", extra={"reason": str(error)})
                raise IndexRefusedError(error) from error
            current.contents = fresh  # nothing fails from here on
            self._metrics.show(series)
            garbage.settle_again()
            logger.info("index swapped", extra={"index_version": fresh.bundle.index.version})
            return answer

    async def refresh_bundle(self, tell: Tell[Answer]) -> Answer:
        """Serve the bundle that is now at the served path. Returns what `tell` says about it.

        Its engine is started and warmed up next to the old one, which ends when its last request has been answered.
        Raises `BundleRefusedError` for a bundle that cannot be served. After any error the old one goes on.
        """
        if self._reopen is None:
            raise NotFoundError("This server was not started from a path.")
        async with self._swapping:
            try:
                async with _opening():
                    fresh = await on_daemon_thread(partial(self._prepare, self._reopen))
                    answer, series = (
                        tell(self.current.bundle, fresh.bundle),
                        self._metrics.describe(fresh.bundle),
                    )
                    await fresh.start()
            except (BundleError, EngineError) as error:
                logger.error("bundle refused", extra={"reason": str(error)})
                raise BundleRefusedError(error) from error
            old, self.current = self.current, fresh  # nothing fails from here on
            self._metrics.show(series)
            retiring = asyncio.create_task(old.retire(self._settings.shutdown_seconds))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            garbage.settle_again()
            logger.info("bundle swapped", extra={"bundle_id": fresh.bundle.info.bundle_id})
            return answer

    async def forget(self) -> None:
        """Drop what is kept of earlier prompts: texts that were tokenised, and the prefix cache of the engine."""
        current = self.current
        current.bundle.encoder.forget()
        try:
            await on_daemon_thread(current.engine.forget)
        except EngineError as error:
            logger.error("the prefix cache was not emptied", extra={"reason": str(error)})

    def _prepare(self, reopen: Reopen) -> Deployment:
        bundle, engine = reopen()
        return Deployment(bundle, engine, self._metrics, self._settings)


@asynccontextmanager
async def _opening() -> AsyncIterator[None]:
    """Give the block `OPENING_SECONDS`, so that one that hangs does not block all later swaps. Raises `BundleError`."""
    limit = asyncio.timeout(OPENING_SECONDS)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise BundleError(f"it was not open after {OPENING_SECONDS:g} s; does a disk hang?") from error
