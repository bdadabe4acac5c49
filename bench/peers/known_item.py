"""omikuji or PECOS on prepared rows, in an environment of their own: called by ``bench/studies/known_item.py``."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp


def omikuji_top(x, queries, folder):
    import omikuji

    path = folder / "omikuji.txt"
    told = np.flatnonzero(np.diff(x.indptr)).tolist()  # its reader refuses files with a row without terms
    with open(path, "w") as file:
        file.write(f"{len(told)} {x.shape[1]} {x.shape[0]}\n")
        for i in told:
            part = slice(x.indptr[i], x.indptr[i + 1])
            pairs = " ".join(
                f"{t}:{v:.5f}" for t, v in zip(x.indices[part].tolist(), x.data[part].tolist(), strict=True)
            )
            file.write(f"{i} {pairs}\n")
    model = omikuji.Model.train_on_data(str(path), omikuji.Model.default_hyper_param(), n_threads=2)
    top = np.full((queries.shape[0], 5), -1)
    for i in range(queries.shape[0]):
        part = slice(queries.indptr[i], queries.indptr[i + 1])
        row = list(zip(queries.indices[part].tolist(), queries.data[part].tolist(), strict=True))
        found = [label for label, _ in model.predict(row, beam_size=10, top_k=5)]
        top[i, : len(found)] = found
    model.save(str(folder / "model"))
    return top


def pecos_top(x, queries, folder):
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    targets = sp.identity(x.shape[0], dtype=np.float32, format="csr")
    clusters = Indexer.gen(LabelEmbeddingFactory.create(targets, x, method="pifa"), threads=2)
    model = XLinearModel.train(x, targets, C=clusters, threads=2)
    found = model.predict(queries, only_topk=5, threads=2).tocsr()
    top = np.full((queries.shape[0], 5), -1)
    for i in range(queries.shape[0]):
        part = slice(found.indptr[i], found.indptr[i + 1])
        order = np.argsort(-found.data[part], kind="stable")
        top[i, : len(order)] = found.indices[part][order]
    model.save(str(folder / "model"))
    return top


def main():
    name, folder = sys.argv[1], Path(sys.argv[2])
    x, queries = (sp.load_npz(folder / f"{split}.npz").astype(np.float32) for split in ("train", "test"))
    order, wanted = np.load(folder / "train.npy"), np.load(folder / "test.npy")
    x = x[np.argsort(order)][: int(os.environ["KNOWN_ITEM_ROWS"])].tocsr()
    there = wanted < x.shape[0]
    queries, wanted = queries[there].tocsr(), wanted[there]
    x.sort_indices()
    queries.sort_indices()
    own = folder / name
    own.mkdir(exist_ok=True)
    hit = {"omikuji": omikuji_top, "pecos": pecos_top}[name](x, queries, own) == wanted[:, None]
    size = sum(path.stat().st_size for path in (own / "model").rglob("*") if path.is_file())
    scores = {"P@1": 100 * float(hit[:, 0].mean()), "R@5": 100 * float(hit.any(axis=1).mean())}
    print(json.dumps({**scores, "queries": len(wanted), "disk": size}))


if __name__ == "__main__":
    main()
