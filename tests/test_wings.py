"""The order of the wings is data: no import climbs, be it lazy or for types alone, and none goes in a circle.

And no file and no function is too long to be read.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = """
envs
g1_ray.processes
g1_ray.seeds g1_ray.tables g1_ray.files g1_ray.logs g1_ray.grammar g1_ray.config_text
g1_ray.config_file g1_ray.config_optimizer g1_ray.types
g1_ray.models
g1_ray.config g1_ray.config_checks g1_ray.config_page
g1_ray.runs
g1_ray.rollout
g1_ray.engines
g1_ray.learner
g1_ray.cluster
g1_ray.evaluation
g1_ray.pipeline
g1_ray.coldstart
g1_ray.report
g1_ray.serve
g1_ray.rllib
jobs
"""
"""From the ground up; what stands in one line may import each other, without a circle."""
FLOORS = {name: floor for floor, line in enumerate(ORDER.strip().splitlines()) for name in line.split()}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the code by its name."""
    found = {}
    for package in ("envs", "g1_ray", "jobs"):
        for path in sorted((root / package).rglob("*.py")):
            found[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the code that a module imports, wherever in it that is written, or names in a string."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports are not read here"
            named |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("g1_ray."):
            named |= {node.value, node.value.rpartition(".")[0]}
    # `from package import module` is an import of the module.
    return {
        name
        for name in named
        if name in known and not any(other.startswith(f"{name}.") for other in named & set(known))
    }


def wing_of(module: str) -> str:
    return max((wing for wing in FLOORS if f"{module}.".startswith(f"{wing}.")), key=len)


def climbing(root: Path) -> list[str]:
    """Imports of what stands higher up, or beside, in another wing."""
    known = modules(root)
    found = []
    for module, path in known.items():
        if module == "g1_ray":
            continue
        for imported in imports(path, known) - {"g1_ray"}:
            here, there = wing_of(module), wing_of(imported)
            if FLOORS[there] > FLOORS[here]:
                found.append(f"{module} -> {imported}")
    return found


def circles(root: Path) -> list[str]:
    """Modules that import themselves in the end, and those above them.

    What is left when all that import nothing are taken away, again and again.
    """
    known = modules(root)
    arrows = {module: imports(path, known) - {module} for module, path in known.items()}
    arrows = {m: {n for n in its if not known[n].name == "__init__.py"} for m, its in arrows.items()}
    while free := [module for module, its in arrows.items() if not its & set(arrows)]:
        for module in free:
            del arrows[module]
    return sorted(arrows)


def test_no_import_climbs():
    assert not climbing(ROOT)


def test_no_modules_import_in_a_circle():
    assert not circles(ROOT)


@pytest.mark.parametrize(
    "text",
    [
        "from g1_ray.pipeline.graph import Actors\n",
        "def f():\n    import g1_ray.evaluation.play\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from g1_ray.report import write\n",
        'WORKER = "g1_ray.coldstart.sft.Trainer"\n',
    ],
)
def test_an_import_that_climbs_is_found(tmp_path, text):
    (climbs,) = climbing(copy_with(tmp_path, text))
    assert climbs.startswith("g1_ray.engines.base -> ")


def test_a_circle_is_found(tmp_path):
    assert not circles(copy_with(tmp_path, ""))
    found = circles(copy_with(tmp_path, "from g1_ray.engines.make import GB\n"))
    assert {"g1_ray.engines.base", "g1_ray.engines.make"} <= set(found)
    assert not {module for module in found if module.startswith(("envs.", "g1_ray.models."))}  # they stand below it


def copy_with(folder: Path, text: str) -> Path:
    """A copy of the code, with text put at the end of one module."""
    for name, path in modules(ROOT).items():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + (text if name == "g1_ray.engines.base" else ""))
    return folder


def test_no_file_or_function_is_too_long():
    long = []
    for path in modules(ROOT).values():
        text = path.read_text()
        if len(text.splitlines()) > 400:
            long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long


def test_every_wing_says_what_it_is_and_every_module_stands_in_one():
    for package in (ROOT / "g1_ray").glob("*/__init__.py"):
        told = ast.get_docstring(ast.parse(package.read_text())) or ""
        assert "May import" in told, package
    assert all(wing_of(module) for module in modules(ROOT) if module != "g1_ray")


@pytest.mark.parametrize("file", [".gitignore", ".rayignore"])
def test_no_module_is_left_behind_by_git_or_ray(file):
    pathspec = pytest.importorskip("pathspec")
    spec = pathspec.PathSpec.from_lines("gitignore", (ROOT / file).read_text().splitlines())
    kept = {path.relative_to(ROOT).as_posix() for path in modules(ROOT).values()}
    assert not [path for path in kept if spec.match_file(path)]
