"""Every public name has an example in its docstring, every public method is used in one, and all of them run."""

import doctest
import importlib.util
import inspect
import re
from typing import Any

import pytest

from tests.models import tiny_bert

MODULES = [
    "sparse_xmc", "sparse_xmc.ops", "sparse_xmc.models", "sparse_xmc.optim", "sparse_xmc.topology", "sparse_xmc.metrics",
    "sparse_xmc.data", "sparse_xmc.distributed", "sparse_xmc.sklearn",
]  # fmt: skip
NEEDS = {"sparse_xmc.sklearn": "sklearn"}
REQUESTS = {"set_partial_fit_request", "set_score_request"}  # that scikit-learn adds to its estimators
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _ours(value: Any) -> bool:
    return value.__module__.startswith("sparse_xmc")


def _public() -> dict[str, Any]:
    """Classes and functions by the shortest name they are imported by; type aliases have no docstring of their own."""
    found: dict[str, Any] = {}
    for module in MODULES:
        if module in NEEDS and importlib.util.find_spec(NEEDS[module]) is None:
            continue
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            value = getattr(loaded, name)
            documents_itself = (inspect.isclass(value) or inspect.isfunction(value)) and _ours(value)
            if documents_itself and not any(value is known for known in found.values()):
                found[f"{module}.{name}"] = value
    return found


PUBLIC = _public()


def _methods(value: Any) -> dict[str, Any]:
    """Documented public methods that a class defines itself."""
    if not inspect.isclass(value):
        return {}
    own = {name: getattr(value, name) for name in vars(value) if not name.startswith("_")}
    others = [base for base in value.__mro__[1:] if not _ours(base)]
    inherited = {name for base in others for name in vars(base)}
    return {n: m for n, m in own.items() if inspect.isroutine(m) and m.__doc__ and n not in inherited | REQUESTS}


def _examples(name: str, value: Any) -> list[doctest.DocTest]:
    """The class's own examples, then those of its methods, which go on in the same namespace."""
    parser, namespace = doctest.DocTestParser(), {"__name__": name}
    documented = {name: value, **{f"{name}.{method}": v for method, v in _methods(value).items()}}
    tests = []
    for place, part in documented.items():
        if ">>>" in (part.__doc__ or ""):
            test = parser.get_doctest(inspect.getdoc(part), {}, place, inspect.getsourcefile(value), None)
            test.globs = namespace
            tests.append(test)
    return tests


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_show_the_name_and_run(name, tmp_path, monkeypatch):
    """In a scratch folder, where some write their files."""
    value = PUBLIC[name]
    monkeypatch.chdir(tmp_path)
    if name == "sparse_xmc.models.TransformerEncoder":
        pytest.importorskip("transformers")
        tiny_bert.save(tmp_path / "bert-base-uncased")
    tests = _examples(name, value)
    assert ">>>" in (value.__doc__ or ""), f"{name} has no example"
    code = "".join(example.source for test in tests for example in test.examples)
    used = {*re.findall(r"\w+", code)}
    assert name.rpartition(".")[2] in used, f"the example of {name} does not use it"
    for method in _methods(value):
        assert method in used, f"no example of {name} uses {method}"
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append, clear_globs=False)
    assert runner.failures == 0, "".join(said)
