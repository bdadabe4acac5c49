"""One system on one data set, in a process of its own: trains from the files, saves, predicts; measured by ``peers``.

Run by whatever Python has the system: imports nothing of this project but for the project itself, and PyTorch for nothing else.

    python bench/studies/peer_process.py '{"system": "omikuji", "train": ..., "test": ..., ...}'
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time
from typing import Any

import numpy as np
import scipy.sparse as sp

K = 5
_ALONE = 200  # texts that are predicted one by one


def cpu_seconds() -> float:
    """User and system time of this process and of those it waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def folder_bytes(path: str) -> int:
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(path) for name in names)


def read_texts(path: str, fields: list[str], label_field: str) -> tuple[list[str], list[list[str]]]:
    texts, labels = [], []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            parts = [record.get(field) or "" for field in fields]
            texts.append(" ".join(" ".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts))
            labels.append([str(label) for label in record[label_field]])
    return texts, labels


def read_features(path: str) -> tuple[sp.csr_matrix, list[list[str]]]:
    """A file of the Extreme Classification Repository."""
    labels, data, columns, offsets = [], [], [], [0]
    with gzip.open(path, "rt") as file:
        width = int(next(file).split()[1])
        for line in file:
            named, *pairs = line.rstrip("\n").split(" ")
            labels.append([label for label in named.split(",") if label])
            for pair in filter(None, pairs):
                column, _, value = pair.partition(":")
                columns.append(int(column))
                data.append(float(value))
            offsets.append(len(data))
    return sp.csr_matrix((np.array(data, np.float32), columns, offsets), shape=(len(labels), width)), labels


def top_columns(scores: Any, k: int = K) -> np.ndarray:
    """Columns of the ``k`` largest stored scores of each row, -1 where there are fewer."""
    scores = sp.csr_matrix(scores)
    top = np.full((scores.shape[0], k), -1)
    for i in range(scores.shape[0]):
        row = slice(scores.indptr[i], scores.indptr[i + 1])
        best = np.argsort(-scores.data[row], kind="stable")[:k]
        top[i, : len(best)] = scores.indices[row][best]
    return top


class Vectorised:
    """Systems that read rows of features: tf-idf of texts, sublinear, as the tree ensembles are used; features as they are."""

    distribution = ""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.folder, self.threads = job, job["folder"], job["threads"]

    def fit(self) -> None:
        x, rows = self._training_rows()
        names = sorted({label for row in rows for label in row})
        place = {name: i for i, name in enumerate(names)}
        self.names = np.array([*names, ""], dtype=object)
        offsets = np.cumsum([0, *map(len, rows)])
        columns = [place[label] for row in rows for label in row]
        y = sp.csr_matrix((np.ones(len(columns), np.float32), columns, offsets), shape=(len(rows), len(names)))
        y.sum_duplicates()
        y.data[:] = 1
        self.train(x, y)

    def _training_rows(self) -> tuple[sp.csr_matrix, list[list[str]]]:
        job = self.job
        if job["fields"] is None:
            x, rows = read_features(job["train"])
            return self._normalised(x), rows
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts, rows = read_texts(job["train"], job["fields"], job["label_field"])
        self.vectorizer = TfidfVectorizer(
            sublinear_tf=True, min_df=job["min_df"], max_features=job["max_features"], dtype=np.float32
        )
        x = self.vectorizer.fit_transform(texts).tocsr()
        x.sort_indices()
        return x, rows

    @staticmethod
    def _normalised(x: sp.csr_matrix) -> sp.csr_matrix:
        from sklearn.preprocessing import normalize

        return normalize(x)

    def inputs(self, raw: Any) -> sp.csr_matrix:
        if self.job["fields"] is None:
            return self._normalised(raw)
        x = self.vectorizer.transform(raw).tocsr()
        x.sort_indices()
        return x

    def predict(self, raw: Any) -> np.ndarray:
        """Names of the best labels ``[N, K]``, best first; empty where there are fewer."""
        return self.names[self.top(self.inputs(raw))]

    def train(self, x: sp.csr_matrix, y: sp.csr_matrix) -> None:
        raise NotImplementedError

    def top(self, x: sp.csr_matrix) -> np.ndarray:
        raise NotImplementedError


class Omikuji(Vectorised):
    distribution = "omikuji"

    def train(self, x: sp.csr_matrix, y: sp.csr_matrix) -> None:
        import omikuji

        path = os.path.join(self.job["scratch"], "omikuji.txt")
        with open(path, "w") as file:
            file.write(f"{x.shape[0]} {x.shape[1]} {y.shape[1]}\n")
            for i in range(x.shape[0]):
                a, b = x.indptr[i : i + 2]
                pairs = zip(x.indices[a:b].tolist(), x.data[a:b].tolist(), strict=True)
                labels = ",".join(map(str, y.indices[y.indptr[i] : y.indptr[i + 1]].tolist()))
                line = labels + " " + " ".join(f"{column}:{value:.6f}" for column, value in pairs)
                file.write(line.rstrip() + "\n")  # a row without features may not end in a space
        self.model = omikuji.Model.train_on_data(path, omikuji.Model.default_hyper_param(), n_threads=self.threads)
        self.model.save(self.folder)

    def top(self, x: sp.csr_matrix) -> np.ndarray:
        top = np.full((x.shape[0], K), -1)
        for i in range(x.shape[0]):
            a, b = x.indptr[i : i + 2]
            row = list(zip(x.indices[a:b].tolist(), x.data[a:b].tolist(), strict=True))
            for place, (label, _) in enumerate(self.model.predict(row, beam_size=10, top_k=K)):
                top[i, place] = label
        return top


class Pecos(Vectorised):
    distribution = "libpecos"

    def train(self, x: sp.csr_matrix, y: sp.csr_matrix) -> None:
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel

        clusters = Indexer.gen(LabelEmbeddingFactory.create(y, x, method="pifa"), threads=self.threads)
        XLinearModel.train(x, y, C=clusters, threads=self.threads).save(self.folder)
        self.model = XLinearModel.load(self.folder, is_predict_only=True)

    def top(self, x: sp.csr_matrix) -> np.ndarray:
        return top_columns(self.model.predict(x, only_topk=K, threads=self.threads))


class NapkinXC(Vectorised):
    distribution = "napkinxc"

    def train(self, x: sp.csr_matrix, y: sp.csr_matrix) -> None:
        from napkinxc.models import PLT

        self.model = PLT(self.folder, threads=self.threads, seed=0)
        self.model.fit(x, y)

    def top(self, x: sp.csr_matrix) -> np.ndarray:
        top = np.full((x.shape[0], K), -1)
        for i, row in enumerate(self.model.predict(x, top_k=K)):
            top[i, : len(row)] = row
        return top


class OneVsRest(Vectorised):
    """scikit-learn's one-vs-rest of linear SVMs; a run that would take too long is told from its first labels."""

    distribution = "scikit-learn"
    _tried = 20

    def train(self, x: sp.csr_matrix, y: sp.csr_matrix) -> None:
        import joblib
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.svm import LinearSVC

        needed = 8 * y.shape[1] * x.shape[1]
        if needed > self.job["memory_bytes"]:
            raise MemoryError(f"does not fit: its weights alone take {needed / 1e9:,.1f} GB")
        tried = min(self._tried, y.shape[1])
        began = cpu_seconds()
        for label in np.linspace(0, y.shape[1] - 1, tried).astype(int):
            LinearSVC().fit(x, y[:, label].toarray().ravel() if y[:, label].nnz else np.arange(x.shape[0]) == 0)
        predicted = (cpu_seconds() - began) / tried * y.shape[1]
        if predicted > self.job["cpu_limit"]:
            raise TimeoutError(f"not run: {predicted:,.0f} CPU seconds, told from {tried} of {y.shape[1]:,} labels")
        self.model = OneVsRestClassifier(LinearSVC(), n_jobs=1).fit(x, y)
        joblib.dump(self.model, os.path.join(self.folder, "model.joblib"))

    def top(self, x: sp.csr_matrix) -> np.ndarray:
        parts = [self.model.decision_function(x[i : i + 256]) for i in range(0, x.shape[0], 256)]
        return np.concatenate([np.argsort(-part, axis=1, kind="stable")[:, :K] for part in parts])


class FastText:
    """One-vs-all with the settings that fastText's tutorial recommends for several labels a text."""

    distribution = "fasttext"
    options = {"lr": 0.5, "epoch": 25, "wordNgrams": 2, "bucket": 200_000, "dim": 50, "loss": "ova"}

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job

    def fit(self) -> None:
        import fasttext

        job = self.job
        if job["fields"] is None:
            x, rows = read_features(job["train"])
            texts = self._words(x)
        else:
            texts, rows = read_texts(job["train"], job["fields"], job["label_field"])
        labels = len({label for row in rows for label in row})
        words = sum(len(text.split()) for text in texts)
        # each epoch: all labels for every text, and the words' vectors; measured at 1 to 2 GFLOP/s a core
        flops = self.options["epoch"] * self.options["dim"] * (6 * labels * len(texts) + 4 * words)
        if flops / 1.5e9 > job["cpu_limit"]:
            raise TimeoutError(f"not run: {flops / 1.5e9:,.0f} CPU seconds, predicted from its products at 1.5 GFLOP/s")
        path = os.path.join(job["scratch"], "fasttext.txt")
        with open(path, "w", encoding="utf-8") as file:
            for text, row in zip(texts, rows, strict=True):
                named = " ".join(f"__label__{label}" for label in row)
                file.write(f"{named} {self._line(text)}\n")
        self.model = fasttext.train_supervised(path, thread=job["threads"], verbose=0, **self.options)
        self.model.save_model(os.path.join(job["folder"], "model.bin"))

    @staticmethod
    def _words(x: sp.csr_matrix) -> list[str]:
        return [
            " ".join(f"w{column}" for column in x.indices[x.indptr[i] : x.indptr[i + 1]]) for i in range(x.shape[0])
        ]

    @staticmethod
    def _line(text: str) -> str:
        return " ".join(text.lower().split())

    def predict(self, raw: Any) -> np.ndarray:
        texts = raw if isinstance(raw, list) else self._words(raw)
        named = np.full((len(texts), K), "", dtype=object)
        found = self.model.predict([self._line(text) for text in texts], k=K)[0]
        for row, labels in zip(named, found, strict=True):
            row[: len(labels)] = [label.removeprefix("__label__") for label in labels]
        return named


class Ours:
    distribution = "sparse_xmc"

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job

    def fit(self) -> None:
        import sparse_xmc

        job = self.job
        fields = {} if job["fields"] is None else {"text_field": job["fields"], "label_field": job["label_field"]}
        run = os.path.join(job["folder"], "run")
        sparse_xmc.train(
            train=job["train"],
            out=run,
            threads=job["threads"],
            progress=False,
            report=print,
            **fields,
            **job["options"],
        )
        self.model = sparse_xmc.load(run, threads=job["threads"])
        self.names = np.array([str(label) for label in self.model.labels], dtype=object)

    def predict(self, raw: Any) -> np.ndarray:
        return self.names[self.model.topk(raw, k=K)[1]]


SYSTEMS = {
    "sparse_xmc": Ours,
    "omikuji": Omikuji,
    "pecos": Pecos,
    "napkinxc": NapkinXC,
    "sklearn_ovr": OneVsRest,
    "fasttext_ova": FastText,
}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and predicts; seconds from the start of the process, imports and reading included."""
    system = SYSTEMS[job["system"]](job)
    try:
        system.fit()
    except (MemoryError, TimeoutError) as reason:
        return {"status": "not run", "reason": str(reason), "version": _version(system)}
    trained = {"train_cpu_s": cpu_seconds(), "train_wall_s": time.time() - job["started"]}
    disk = folder_bytes(job["folder"])
    if job["fields"] is None:
        raw, true = read_features(job["test"])
    else:
        raw, true = read_texts(job["test"], job["fields"], job["label_field"])
    cpu, wall = cpu_seconds(), time.perf_counter()
    named = system.predict(raw)
    batch = {"batch_cpu_s": cpu_seconds() - cpu, "batch_wall_s": time.perf_counter() - wall, "batch_texts": len(true)}
    alone = []
    for i in range(min(_ALONE, len(true))):
        began = time.perf_counter()
        system.predict(raw[i : i + 1])
        alone.append(1e3 * (time.perf_counter() - began))
    with open(os.path.join(job["scratch"], "predicted.json"), "w") as file:
        json.dump({"predicted": named.tolist(), "true": true}, file)
    one = {"text_ms_p50": statistics.median(alone), "text_ms_p90": sorted(alone)[int(0.9 * len(alone))]}
    return {"status": "ok", "version": _version(system), **trained, **batch, **one, "disk_bytes": disk}


def _version(system: Any) -> str:
    try:
        return f"{system.distribution} {importlib.metadata.version(system.distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return str(system.distribution)


if __name__ == "__main__":
    outcome = run(json.loads(sys.argv[1]))
    print("\n" + json.dumps(outcome))
