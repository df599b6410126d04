"""What is being served: a bundle, and the swap to another version of its index."""

from __future__ import annotations

import asyncio
import logging

from index.bundle import Bundle
from index.manifest import BundleError
from server.errors import IndexRefusedError
from server.metrics import Metrics

logger = logging.getLogger("server.served")


class Served:
    """Holds the bundle. A request reads `bundle` once, and so begins and ends on one version of the index."""

    def __init__(self, bundle: Bundle, metrics: Metrics) -> None:
        self.bundle = bundle
        self._metrics = metrics
        self._swapping = asyncio.Lock()
        metrics.name_bundle(bundle)

    async def refresh(self) -> tuple[Bundle, Bundle]:
        """Serve the version that is now the current one on disk: what was served before, and what is now.
        It is opened off to the side, on a thread.

        Raises `IndexRefusedError` for a damaged version; the one that was served goes on.
        """
        async with self._swapping:
            try:
                fresh = await asyncio.to_thread(self.bundle.refreshed)
            except BundleError as error:
                logger.error("index refused", extra={"reason": str(error)})
                raise IndexRefusedError(
                    "The current index version on disk is damaged or of another bundle; the log names the file. "
                    "The version that was served goes on."
                ) from error
            before, self.bundle = self.bundle, fresh
            self._metrics.name_bundle(fresh)
            logger.info("index swapped", extra={"index_version": fresh.index.version})
            return before, fresh
