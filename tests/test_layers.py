"""Imports run downwards only, in no circle, and nothing imports the application."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# from the bottom up: a package may import those before it (and itself)
FLOORS = (
    (
        "sparse_xmc._version",
        "sparse_xmc._progress",
        "sparse_xmc._extras",
        "sparse_xmc._heap",
        "sparse_xmc._interrupt",
        "sparse_xmc._renamed",
    ),
    ("sparse_xmc.kernels",),
    ("sparse_xmc.ops.cpu_kernels", "sparse_xmc.ops.triton_kernels", "sparse_xmc.ops"),
    ("sparse_xmc.storage",),
    (
        "sparse_xmc.models",
        "sparse_xmc.solver",
        "sparse_xmc.data",
        "sparse_xmc.metrics",
        "sparse_xmc.optim",
        "sparse_xmc.topology",
    ),
    ("sparse_xmc.distributed",),
    ("sparse_xmc.app",),
    ("sparse_xmc.sklearn", "bench"),
)
# names of former releases, and the package's face: they name what they pass on
FACES = ("sparse_xmc", "sparse_xmc.training", "sparse_xmc.__main__")


def _modules(folder: str) -> dict[str, Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def _imports(path: Path, known: dict[str, Path], *, deferred: bool) -> set[str]:
    """Modules of this project that a file imports when it is run; ``deferred``: also those inside of functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if is_typing or (isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not deferred):
            hidden.update(ast.walk(node))
    found = set()
    for node in set(ast.walk(tree)) - hidden:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in known else node.module for name in names)
    return {name for name in found if name in known}


def _floor(module: str) -> int:
    for height, packages in enumerate(FLOORS):
        if any(module == package or module.startswith(package + ".") for package in packages):
            return height
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS")


MODULES = _modules("sparse_xmc") | _modules("bench")
INNER = [name for name in MODULES if name not in FACES]


def test_imports_run_downwards():
    for module in INNER:
        imported = _imports(MODULES[module], MODULES, deferred=True) - set(FACES)
        upwards = sorted(name for name in imported if _floor(name) > _floor(module))
        assert not upwards, f"{module} imports from above: {', '.join(upwards)}"


def test_there_is_no_circle():
    imports = {name: _imports(MODULES[name], MODULES, deferred=False) - {name} for name in INNER}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "circle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(imports.get(name, ())):
                visit(other, (*path, name))
            done.add(name)

    for name in INNER:
        visit(name, ())


def test_no_library_module_imports_the_application():
    for name, path in MODULES.items():
        if name.startswith(("sparse_xmc.app", "sparse_xmc.sklearn", "bench")) or name == "sparse_xmc.__main__":
            continue
        assert not {m for m in _imports(path, MODULES, deferred=False) if m.startswith("sparse_xmc.app")}, name


# Public signatures whose names are fixed, and one device function that is no entry point; CONTRIBUTING gives the reasons.
LONG = {
    "sparse_xmc.app.trainer.Trainer.__init__",
    "sparse_xmc.distributed.linear.LabelShardedLinear.__init__",
    "sparse_xmc.kernels.dual_svm._descend",
    "sparse_xmc.ops.prune_regrow.prune_regrow_",
    "sparse_xmc.ops.reference.prune_regrow_",
    "sparse_xmc.ops.sampled_softmax.fixed_fan_in_sampled_softmax",
    "sparse_xmc.ops.triton_kernels.topk._scores_of_group",
    "sparse_xmc.sklearn.SparseXMCClassifier.__init__",
}
ENTRY_POINT = re.compile(r"kernel\b|triton\.jit\(|tuning\.autotune")


def _functions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            full = f"{name}.{child.name}"
            if isinstance(child, ast.FunctionDef):
                yield full, child
            yield from _functions(child, full)


def test_no_function_takes_more_than_twelve_parameters():
    """But for compiled entry points, whose arguments are pointers and sizes."""
    long = set()
    for module, path in MODULES.items():
        if module.startswith("bench"):
            continue
        for name, function in _functions(ast.parse(path.read_text(encoding="utf-8")), module):
            arguments = function.args
            number = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
            own = bool(arguments.args) and arguments.args[0].arg in ("self", "cls", "ctx")
            entry = any(ENTRY_POINT.match(ast.unparse(decorator)) for decorator in function.decorator_list)
            if number - own > 12 and not entry:
                long.add(name)
    assert long == LONG


SHAPE = re.compile(r"\[[^\]\n]*\w[^\]\n]*\]|0-dim|the shape of")


def _kernels(folder: str, decorator: str) -> Iterator[tuple[str, ast.FunctionDef, list[str]]]:
    for path in sorted((ROOT / folder).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and any(
                re.match(decorator, ast.unparse(one)) for one in node.decorator_list
            ):
                yield f"{path.stem}.{node.name}", node, text.splitlines()


def _comment(line: str) -> str:
    return line.partition("#")[2]


def test_every_load_of_a_triton_kernel_tells_its_shape():
    """At its statement or in the line above: ``# [BLOCK_L, BLOCK_B]``, ``# 0-dim``."""
    kinds = (ast.Assign, ast.AugAssign, ast.Return, ast.Expr)
    for name, function, lines in _kernels("sparse_xmc/ops/triton_kernels", r"triton\.jit|tuning\.autotune"):
        for node in (node for node in ast.walk(function) if isinstance(node, kinds)):
            if any(isinstance(part, ast.Call) and ast.unparse(part.func) == "tl.load" for part in ast.walk(node)):
                near = lines[node.lineno - 2 : node.end_lineno]
                assert any(SHAPE.search(_comment(line)) for line in near), f"{name}, line {node.lineno}"


def test_every_cpu_kernel_tells_the_shapes_of_its_arrays():
    for folder in ("sparse_xmc/ops/cpu_kernels", "sparse_xmc/kernels"):
        for name, function, lines in _kernels(folder, r"kernel\b|register_jitable"):
            arrays = {argument.arg for argument in function.args.args}
            reads = [node for node in ast.walk(function) if isinstance(node, ast.Subscript)]
            if any(isinstance(node.value, ast.Name) and node.value.id in arrays for node in reads):
                comments = [_comment(line) for line in lines[function.lineno - 1 : function.end_lineno]]
                assert SHAPE.search("\n".join([ast.get_docstring(function) or "", *comments])), name
