"""Results of a run's stages on disk: a killed run goes on with the first one that is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import numpy as np

from sparse_xmc.storage.checkpoint import read_arrays, write_folder
from sparse_xmc.storage.errors import ArtefactError


class StageFolder:
    """``folder/step-0000000007``: a stage each, in the order in which they are asked for.

    Args:
        folder: where checkpoints of a run are.
        run: identity of the run; stages of another one are made anew.
        report: told of stages that are there and of damaged ones, which are made anew.
    """

    def __init__(self, folder: str, run: str | None, report: Callable[[str], object]) -> None:
        self.folder, self.run, self.report, self.count, self.found = folder, run, report, 0, 0

    def __call__(self, name: str, work: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        self.count += 1
        path = os.path.join(self.folder, f"step-{self.count:010d}")
        if os.path.isdir(path) or os.path.isdir(f"{path}.old"):
            try:
                arrays, documents = read_arrays(path, run=self.run)
            except ArtefactError as error:
                self.report(f"stage {name!r} is made anew: {error}")
            else:
                if documents.get("stage") == name:
                    if not self.found:
                        self.report(f"resumed behind stage {name!r}")
                    self.found += 1
                    return arrays["stage_results"]
        results = work()
        os.makedirs(self.folder, exist_ok=True)
        write_folder(path, {"stage_results": results}, {"stage": name}, run=self.run)
        return results

    def remove(self) -> None:
        """Removes the stages of the run."""
        for number in range(1, self.count + 1):
            shutil.rmtree(os.path.join(self.folder, f"step-{number:010d}"), ignore_errors=True)
        if os.path.isdir(self.folder) and not os.listdir(self.folder):
            os.rmdir(self.folder)
