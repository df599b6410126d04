"""The deployment that is served now, and the swap to another version of its index or to another bundle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from index.bundle.bundle import Bundle
from index.bundle.manifest import BundleError
from server.api.errors import BundleRefusedError, EngineUnavailableError, IndexRefusedError, NotFoundError
from server.engine.contract import EngineError, EngineLostError, HostedEngine
from server.runtime import garbage
from server.serving.deployment import Deployment
from server.settings import Settings
from server.telemetry.metrics import Metrics

logger = logging.getLogger("server.serving.deployments")

Reopen = Callable[[], tuple[Bundle, HostedEngine]]


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
        metrics.name_bundle(bundle)
        metrics.watch_memory(lambda: self.current.engine.pid)

    async def start(self) -> None:
        """Start the current deployment. Raises what its engine raises."""
        await self.current.start()

    async def stop(self) -> None:
        """Stop the current deployment and those that are still retiring."""
        await asyncio.gather(self.current.scheduler.stop(self._settings.shutdown_seconds), *self._retiring)

    async def refresh_index(self) -> tuple[Bundle, Bundle]:
        """Serve the index version that is now the current one on disk. Returns the bundle before, and after.

        Raises `IndexRefusedError` for a damaged version, `EngineUnavailableError` if the engine is lost meanwhile;
        the old version goes on.
        """
        async with self._swapping:
            try:
                before, fresh = await self.current.refresh()
            except EngineLostError as error:
                raise EngineUnavailableError("The model's process was lost; try again.") from error
            except (BundleError, EngineError) as error:
                logger.error("index refused", extra={"reason": str(error)})
                raise IndexRefusedError(
                    "The current index version on disk is damaged or of another bundle; the log names the file. "
                    "The version that was served goes on."
                ) from error
            self._metrics.name_bundle(fresh)
            garbage.settle_again()
            logger.info("index swapped", extra={"index_version": fresh.index.version})
            return before, fresh

    async def refresh_bundle(self) -> tuple[Bundle, Bundle]:
        """Serve the bundle that is now at the served path. Returns the bundle before, and after.

        Its engine is started and warmed up next to the old one, which ends when its last request has been answered.
        Raises `BundleRefusedError` for a bundle that cannot be served; the old one goes on.
        """
        if self._reopen is None:
            raise NotFoundError("This server was not started from a path.")
        async with self._swapping:
            try:
                fresh = await asyncio.to_thread(self._prepare, self._reopen)
                await fresh.start()
            except (BundleError, EngineError) as error:
                logger.error("bundle refused", extra={"reason": str(error)})
                raise BundleRefusedError(
                    "The bundle at the served path is damaged or cannot be served; the log holds the reason. "
                    "The bundle that was served goes on."
                ) from error
            old, self.current = self.current, fresh
            retiring = asyncio.create_task(old.retire(self._settings.shutdown_seconds))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            self._metrics.name_bundle(fresh.bundle)
            garbage.settle_again()
            logger.info("bundle swapped", extra={"bundle_id": fresh.bundle.info.bundle_id})
            return old.bundle, fresh.bundle

    def _prepare(self, reopen: Reopen) -> Deployment:
        bundle, engine = reopen()
        return Deployment(bundle, engine, self._metrics, self._settings)
