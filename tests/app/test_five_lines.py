"""From a CSV of texts and labels to a served prediction in five lines of shell and five of Python, run as they stand."""

import csv
import json
import os
import random
import subprocess
import sys
import threading
import urllib.request

import pytest

from tests.conftest import INTERPRETING

pytestmark = [
    pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels"),
    pytest.mark.skipif(os.name == "nt", reason="lines of a POSIX shell"),
]
SHELL = """\
sparse-xmc train --train train.csv --test test.csv --epochs 12 --embedding-dim 32 --out runs/a
sparse-xmc inspect runs/a
sparse-xmc evaluate runs/a --test test.csv
echo "rust and mildew on roses" | sparse-xmc predict runs/a --input - --k 2
sparse-xmc predict runs/a --input new.csv --threshold 0.3 --format csv --out tags.csv
"""
PYTHON = """\
import json, sparse_xmc, wsgiref.simple_server as server
model = sparse_xmc.load("runs/a")
texts = lambda request: [request["wsgi.input"].read(int(request["CONTENT_LENGTH"])).decode()]
app = lambda request, respond: respond("200 OK", []) and None or [json.dumps(model.predict(texts(request))).encode()]
server.make_server("127.0.0.1", PORT, app).serve_forever()
"""
WORDS = {
    "plants": ["roses", "garden", "leaves", "soil"],
    "disease": ["rust", "mildew", "fungus", "rot"],
    "law, trade": ["tariff", "treaty", "customs", "duty"],
    "7": ["engine", "wheel", "brake", "clutch"],
}


def write(path, rows, seed, labelled=True):
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "labels"] if labelled else ["text"])
        for _ in range(rows):
            labels = rng.sample(sorted(WORDS), rng.randint(1, 2))
            text = ", ".join(rng.choice(WORDS[label]) for label in labels for _ in range(4)) + "\nand more"
            table.writerow([text, ";".join(labels)] if labelled else [text])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    write(folder / "train.csv", 300, 0)
    write(folder / "test.csv", 60, 1)
    write(folder / "new.csv", 20, 2, labelled=False)
    shell = f'sparse-xmc() {{ "{sys.executable}" -m sparse_xmc "$@"; }}\nset -e\n' + SHELL
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", shell], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_five_lines_of_shell(folder):
    path, said = folder
    assert len(SHELL.splitlines()) == 5
    (one,) = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert set(one["labels"]) == {"plants", "disease"}
    assert json.loads((path / "runs/a/metrics.json").read_text())["P@1"] > 95
    with (path / "tags.csv").open(newline="", encoding="utf-8") as file:
        tags = list(csv.DictReader(file))
    assert {tag["label"] for tag in tags} == set(WORDS)
    assert {int(tag["row"]) for tag in tags} == set(range(20)) and all(float(tag["score"]) >= 0.3 for tag in tags)


def test_five_lines_of_python(folder, monkeypatch):
    import wsgiref.simple_server as simple

    path, _ = folder
    monkeypatch.chdir(path)
    assert len(PYTHON.splitlines()) == 5
    made, ready = [], threading.Event()
    original = simple.make_server

    def make_server(*arguments):
        made.append(original(*arguments))
        ready.set()
        return made[0]

    monkeypatch.setattr(simple, "make_server", make_server)
    monkeypatch.setattr(simple.WSGIRequestHandler, "log_message", lambda *arguments: None)
    thread = threading.Thread(target=exec, args=(PYTHON, {"PORT": 0}), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        url = f"http://127.0.0.1:{made[0].server_port}/"
        with urllib.request.urlopen(url, b"customs duty on engine parts", timeout=60) as answer:
            ((first, second, *_),) = json.loads(answer.read())
    finally:
        made[0].shutdown()
        made[0].server_close()
    assert {str(first[0]), str(second[0])} == {"law, trade", "7"}
