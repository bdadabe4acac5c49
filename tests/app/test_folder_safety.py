"""What a command finds in its folders and did not write stays; what it wrote is known by more than its name."""

import json
import os
import shutil

import pytest

from sparse_xmc.app.cli import main
from sparse_xmc.storage.lock import FolderLock
from tests.app.test_run_folder import COMMAND, contents, finished, refused, run  # noqa: F401 (fixtures)
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
OVERWRITE = [*COMMAND, "--overwrite"]


@pytest.mark.parametrize(
    "path",
    ["model/weights.bin", "checkpoints/mine/a.ckpt", "checkpoints/notes.txt", "model/sub/x.json", "model.partial/x.bin",
     "checkpoints/step-0000000003/mine.bin"],
)  # fmt: skip
def test_overwrite_removes_nothing_where_something_foreign_lies(run, capsys, path):  # noqa: F811
    (run / "run" / path).parent.mkdir(parents=True, exist_ok=True)
    (run / "run" / path).write_text("mine")
    refused(run, capsys, OVERWRITE, "is or holds what no run wrote: nothing is removed")


@pytest.mark.parametrize("content", [None, "{}", '{"x": 1}', "[]", "{"])
def test_overwrite_removes_nothing_without_an_identity(run, capsys, content):  # noqa: F811
    path = run / "run" / "identity.json"
    path.unlink() if content is None else path.write_text(content)
    refused(run, capsys, OVERWRITE, "run")


@pytest.mark.parametrize("name", ["metrics.json", "metrics.jsonl", "curves.png"])
@pytest.mark.parametrize("command", [COMMAND, OVERWRITE])
def test_files_of_somebody_else_are_not_replaced(run, capsys, name, command):  # noqa: F811
    shutil.rmtree(run / "run")
    (run / "run").mkdir()
    (run / "run" / name).write_text("mine")
    refused(run, capsys, command, "run")


def test_a_configuration_with_comments_stays(run, capsys):  # noqa: F811
    shutil.rmtree(run / "run")
    (run / "run").mkdir()
    config = run / "run" / "config.toml"
    config.write_text("# my options\nseed = 3\n")
    assert main([*COMMAND, "--config", "run/config.toml"]) == 0
    assert "run/config.toml was not written by this program: left as it is" in capsys.readouterr().out
    assert config.read_text() == "# my options\nseed = 3\n"
    assert main([*COMMAND, "--config", "run/config.toml"]) == 0


def test_an_own_configuration_is_renewed(run):  # noqa: F811
    config = run / "run" / "config.toml"
    assert main(COMMAND) == 0
    before = config.read_text()
    assert main([*COMMAND, "--log-every", "7"]) == 0
    assert config.read_text() == before.replace("log_every = 50", "log_every = 7")


def test_two_runs_do_not_share_a_folder(run, capsys):  # noqa: F811
    with FolderLock("run"):
        for command in (COMMAND, OVERWRITE):
            refused(run, capsys, command, "run is in use by another run: wait for its end, or choose another --out")
    assert main(COMMAND) == 0


def test_a_run_goes_on_with_its_data_elsewhere(run, capsys):  # noqa: F811
    os.mkdir("moved")
    for name in ("train.jsonl", "other.jsonl"):
        os.rename(name, f"moved/{name}")
    command = [part if not part.endswith(".jsonl") else f"./moved/{part}" for part in COMMAND]
    assert main(command) == 0
    assert "resumed at step 8 of 8" in capsys.readouterr().out
    at = command.index("--valid")
    refused(run, capsys, command[:at] + command[at + 2 :], "other options (valid)")


def test_remains_of_killed_runs_are_swept(run):  # noqa: F811
    folder = run / "run"
    remains = [folder / "model.partial", folder / "model.old"]
    remains += [folder / "checkpoints" / f"step-000000000{n}.partial" for n in (1, 2, 3)]
    for path in remains:
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    (folder / "metrics.json.4711.partial").write_text("half")
    (folder / "notes.partial").write_text("mine")
    (folder / "mine.partial").mkdir()
    assert main(COMMAND) == 0
    assert not any(path.exists() for path in (*remains, folder / "metrics.json.4711.partial"))
    assert (folder / "notes.partial").exists() and (folder / "mine.partial").exists()


def test_evaluating_another_file_keeps_the_metrics_of_the_own_test_split(run):  # noqa: F811
    before = (run / "run" / "metrics.json").read_bytes()
    assert main(["evaluate", "run", "--test", "other.jsonl", "--no-progress"]) == 0
    assert (run / "run" / "metrics.json").read_bytes() == before
    assert json.loads((run / "run" / "metrics-other.json").read_text())["rows"] == 60


def test_parts_of_two_runs_do_not_mix(run, capsys):  # noqa: F811
    assert main([*COMMAND[:-1], "second"]) == 0
    shutil.rmtree("run/model")
    shutil.copytree("second/model", "run/model")
    capsys.readouterr()
    for command in (COMMAND, ["evaluate", "run", "--test", "other.jsonl"]):
        assert main([*command, "--no-progress"]) == 1
        assert "is of another run" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["link.jsonl", "null"])
def test_predictions_go_through_links_and_devices(run, out):  # noqa: F811
    (run / "real.jsonl").write_text("")
    (run / "link.jsonl").symlink_to("real.jsonl")
    (run / "null").symlink_to("/dev/null")
    assert main(["predict", "run", "--input", "other.jsonl", "--out", out, "--no-progress"]) == 0
    assert (run / out).is_symlink()
    assert out == "null" or len((run / "real.jsonl").read_text().splitlines()) == 60


@pytest.mark.parametrize("out", ["other.jsonl", "./other.jsonl", "alias.jsonl"])
def test_predictions_do_not_replace_their_input(run, capsys, out):  # noqa: F811
    (run / "alias.jsonl").symlink_to("other.jsonl")
    before = contents(run)
    assert main(["predict", "run", "--input", "other.jsonl", "--out", out, "--no-progress"]) == 1
    assert "out and input are the same file" in capsys.readouterr().err
    assert contents(run) == before


def test_a_run_that_cannot_be_written_is_used(run, capsys, monkeypatch):  # noqa: F811
    """Also for root, whom permissions do not stop: opening for writing fails below the run."""
    import builtins

    real = builtins.open

    def read_only(path, mode="r", *args, **options):
        if (
            set(mode) & set("wa+x")
            and str(path).startswith(str(run / "run"))
            or str(path).startswith("run/")
            and "w" in mode
        ):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *args, **options)

    monkeypatch.setattr(builtins, "open", read_only)
    before = contents(run / "run")
    assert main(["evaluate", "run", "--test", "other.jsonl", "--no-progress"]) == 0
    said = capsys.readouterr().out
    assert "P@1" in said and "metrics not kept: could not write" in said
    assert main(["predict", "run", "--input", "other.jsonl", "--out", "p.jsonl", "--no-progress"]) == 0
    assert contents(run / "run") == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--train", "missing.jsonl", "--out", "train.jsonl"], "train.jsonl is a file: name another place"),
        (
            ["predict", "run", "--input", "missing.jsonl", "--out", "run"],
            "run is a folder: name another place to write to",
        ),
        (["predict", "run", "--input", "missing.jsonl", "--out", "no/p.jsonl"], "no is no folder"),
        (["convert", "run", "--out", "train.jsonl/c"], "train.jsonl is no folder"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_told_first(run, capsys, command, message):  # noqa: F811
    assert main(command) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.txt", "two words\nmore\n", "test.txt: a file of raw texts needs a file of labels"),
        ("test.txt", "2 9\n1:1 2:1\n3:1\n", "test.txt: a file of features needs a file of labels"),
        ("test.jsonl", "", "missing.jsonl: no such file"),
        ("test.foo", "words\n", "test.foo: unknown format '.foo'"),
    ],
)
def test_a_test_split_that_cannot_be_read_is_told_before_the_training(run, capsys, name, content, message):  # noqa: F811
    (run / name).write_text(content)
    test = "missing.jsonl" if "missing" in message else name
    assert main(["train", "--train", "train.jsonl", "--test", test, "--out", "new", "--no-progress"]) == 1
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and not (run / "new").exists()
