"""sparse_xmc as a backend of Annif 1.4: ``backend=sparse_xmc`` in ``projects.cfg``.

Annif looks its backends up in a table of its own, so this file adds one to it and then is Annif's command line:

    python sparse_xmc_annif.py load-vocab gnd subjects.tsv
    python sparse_xmc_annif.py train my-project training.tsv
    python sparse_xmc_annif.py suggest my-project < text.txt
    python sparse_xmc_annif.py eval my-project test.tsv

In a program, ``import sparse_xmc_annif`` before the project is opened. Options of ``sparse-xmc train`` may stand in the
project's section of ``projects.cfg`` (``fan_in=64``); the vectoriser is sparse_xmc's own, so no ``analyzer`` is needed.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from typing import Any

import annif.backend
from annif.backend import backend
from annif.corpus import Document
from annif.corpus.types import DocumentCorpus
from annif.exception import NotInitializedException, NotSupportedException, OperationFailedException
from annif.suggestion import SubjectSuggestion, SuggestionBatch

import sparse_xmc
from sparse_xmc.app.config import TrainingConfig

_KINDS = {"int": int, "float": float, "bool": lambda text: str(text).lower() in ("1", "true", "yes", "on")}


class SparseXMCBackend(backend.AnnifBackend):
    """Trains a run folder in the project's data directory, and suggests with the model in it."""

    name = "sparse_xmc"
    _model: Any = None

    TRAIN_FILE = "sparse_xmc-train.jsonl"
    RUN_FOLDER = "sparse_xmc-run"

    def _run(self) -> str:
        return os.path.join(self.datadir, self.RUN_FOLDER)

    def initialize(self, parallel: bool = False) -> None:
        if self._model is not None:
            return
        if not os.path.isdir(os.path.join(self._run(), "model")):
            raise NotInitializedException(f"no model in {self._run()}", backend_id=self.backend_id)
        self.debug(f"loading model from {self._run()}")
        try:
            self._model = sparse_xmc.load(self._run())
        except ValueError as error:
            raise OperationFailedException(str(error)) from error

    def _write_documents(self, corpus: DocumentCorpus, path: str) -> int:
        """One JSON object a line: the text, and the numbers of its subjects in the vocabulary."""
        written = 0
        with open(path, "w", encoding="utf-8") as file:
            for document in corpus.documents:
                subjects = [int(subject) for subject in document.subject_set]
                if subjects and document.text.strip():
                    file.write(json.dumps({"text": document.text, "labels": subjects}) + "\n")
                    written += 1
        return written

    def _options(self, params: dict[str, Any]) -> dict[str, Any]:
        """Those of the project's parameters that are options of a training."""
        options = {}
        for field in fields(TrainingConfig):
            if field.name in params:
                kind = str(field.type).split(" | ")[0]
                options[field.name] = _KINDS.get(kind, str)(params[field.name])
        return options

    def _train(self, corpus: DocumentCorpus, params: dict[str, Any], jobs: int = 0) -> None:
        path = os.path.join(self.datadir, self.TRAIN_FILE)
        if corpus == "cached":
            self.info("reusing the training data of the run before")
        elif corpus.is_empty() or not self._write_documents(corpus, path):
            raise NotSupportedException(f"cannot train {self.project.project_id}: no documents with subjects")
        options = {"threads": jobs, "progress": False} | self._options(params)
        self._model = None
        try:
            sparse_xmc.train(train=path, out=self._run(), overwrite=True, report=self.info, **options)
        except (TypeError, ValueError) as error:
            raise OperationFailedException(str(error)) from error
        self.initialize()

    def _suggest_batch(self, documents: list[Document], params: dict[str, Any]) -> SuggestionBatch:
        assert self._model is not None
        limit = min(int(params["limit"]), len(self._model.labels))
        results = self._model.predict([document.text for document in documents], k=limit)
        return SuggestionBatch.from_sequence(
            [
                [SubjectSuggestion(subject_id=int(subject), score=score) for subject, score in found if score > 0]
                for found in results
            ],
            self.project.subjects,
            limit=limit,
        )


annif.backend._backend_fns[SparseXMCBackend.name] = lambda: SparseXMCBackend

if __name__ == "__main__":
    from annif.cli import cli

    cli()
