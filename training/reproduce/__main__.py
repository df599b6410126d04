"""The child process of `gems reproduce`: `python -m training.reproduce FOLDER` does the job in `FOLDER/job.json`."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

from rich.console import Console

from gems import GemsError
from index.bundle.manifest import BundleError
from index.embeddings import EmbeddingError
from index.identifiers.identifiers import IdentifierError
from server.engine.contract import EngineError
from training.errors import UserError
from training.outputs import write_json
from training.reproduce.job import FAILED, JOB, RESULT, Job, run_job
from training.run.locks import claim

EXPECTED = (UserError, BundleError, EmbeddingError, IdentifierError, EngineError, GemsError)


def main(folder: Path) -> int:
    """Do a job, and leave its result or the reason why there is none. Return the exit code."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with claim(folder / "lock", wait=True):  # a child of a killed parent may be about to end
        if (folder / RESULT).exists():
            return 0
        try:
            run_job(Job.model_validate_json((folder / JOB).read_text("utf-8")), folder, Console())
        except EXPECTED as error:
            write_json(folder / FAILED, {"reason": " ".join(str(error).split())})
            return 2
        except KeyboardInterrupt:  # the parent is told, too
            return 130
        except Exception as error:
            traceback.print_exc()
            write_json(folder / FAILED, {"reason": " ".join(f"{type(error).__name__}: {error}".split())})
            return 1
    return 0


def _end_with_parent() -> None:
    """End this process when its parent does: the parent holds the other end of its standard input."""
    os.read(0, 1)  # past Python's buffer, which a thread must not hold at the end
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
