"""The plan of the house: imports go down the list of wings, and never in a circle."""

import ast
import functools
import graphlib
from collections.abc import Collection, Iterator
from pathlib import Path

import rome_lens

PACKAGE = Path(rome_lens.__file__).parent

# From the top down. A module may import from its own wing and from the rows below, but not from
# other wings of its row.
ROWS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("",),  # rome_lens/__init__.py, the public names
    ("viz",),
    ("sweeps", "composing"),
    ("checks",),
    ("localisation",),
    ("evaluation",),
    ("editing", "tracing"),
    ("keys",),
    ("forward",),
    ("models",),
    ("data",),
    ("stores",),
    ("results",),
    ("storage", "field_checks", "intervals"),
    ("arguments",),
    ("errors", "warning", "version"),
)
ASKS_THE_CLASS = {"hooked.py", "bridge.py", "loading.py"}


def modules(package: Path) -> dict[str, Path]:
    """Every module below the package by its dotted name; the package itself has the name ``""``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def parsed(code: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(code)))


def imports(known: Collection[str], name: str, path: Path) -> Iterator[str]:
    """Names of the known modules that a module imports, at its top or inside a function."""
    for node in parsed(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            if full != "rome_lens" and not full.startswith("rome_lens."):
                continue
            inner = full.removeprefix("rome_lens").lstrip(".")
            yield inner if inner in known else inner.rpartition(".")[0]


def wing(module: str) -> str:
    return module.partition(".")[0]


def row(module: str) -> int:
    places = [i for i, names in enumerate(ROWS) if wing(module) in names]
    assert places, f"{module} is in no row of the plan"
    return places[0]


def broken(package: Path) -> list[str]:
    """Every way in which the package departs from the plan, in words."""
    known = modules(package)
    arrows = {name: set(imports(known, name, path)) - {name} for name, path in known.items()}
    wrong = []
    for name, targets in arrows.items():
        for target in sorted(targets):
            neighbours = row(name) == row(target) and wing(name) != wing(target)
            if row(target) < row(name) or neighbours:
                wrong.append(
                    f"{name} imports {target or 'rome_lens'}, which is above it or in the same row"
                )
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        wrong.append("a circle: " + " -> ".join(each or "rome_lens" for each in error.args[1]))
    return wrong


def test_imports_go_down_the_wings_and_never_in_a_circle() -> None:
    assert broken(PACKAGE) == []


PLANTED = [
    ("models/lens.py", "from rome_lens.viz.html import Html"),
    ("tracing/causal.py", "from rome_lens.editing.edit import Edit"),
    ("editing/edit.py", "from rome_lens.tracing.results import CausalTrace"),
    ("data/facts.py", "from rome_lens.models.lens import LensModel"),
    ("tracing/noise.py", "from rome_lens.tracing.causal import causal_trace"),
    ("intervals.py", "from rome_lens import viz"),
]


def test_a_planted_arrow_is_found(tmp_path: Path) -> None:
    for path in modules(PACKAGE).values():
        copy = tmp_path / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert broken(tmp_path) == []
    missed = []
    for module, line in PLANTED:
        planted = tmp_path / module
        whole = planted.read_text(encoding="utf-8")
        planted.write_text(f"{whole}\n\ndef late() -> None:\n    {line}\n", encoding="utf-8")
        if broken(tmp_path) == []:
            missed.append(module)
        planted.write_text(whole, encoding="utf-8")
    assert missed == []


def test_only_the_files_of_the_model_classes_ask_which_class_a_model_is() -> None:
    asking = (
        "isinstance(model, TransformerBridge)",
        "isinstance(model, HookedTransformer)",
        "is_bridge(",
    )
    found = [
        str(path.relative_to(PACKAGE))
        for path in modules(PACKAGE).values()
        if path.name not in ASKS_THE_CLASS
        and any(words in path.read_text(encoding="utf-8") for words in asking)
    ]
    assert found == []


def test_no_module_bears_the_name_of_a_function_that_its_package_hands_on() -> None:
    """Else ``import rome_lens.rome`` would be a function."""
    shadowed = []
    for name, path in modules(PACKAGE).items():
        if path.name != "__init__.py":
            continue
        package = __import__(f"rome_lens.{name}" if name else "rome_lens", fromlist=["*"])
        inside = {each.name.removesuffix(".py") for each in path.parent.iterdir()}
        shadowed += [
            f"{name}.{each}"
            for each in inside & set(vars(package))
            if not hasattr(getattr(package, each), "__path__")
            and getattr(package, each).__class__.__name__ != "module"
        ]
    assert shadowed == []


def test_nothing_in_the_package_prints() -> None:
    printing = []
    for name, path in modules(PACKAGE).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
            ):
                printing.append(name)
    assert printing == []


def test_hooks_are_put_on_in_one_place() -> None:
    """TransformerLens takes its hooks off in a clean-up that an interrupt can end half-way."""
    puts_on = {"hooks", "run_with_hooks", "run_with_cache", "add_hook"}
    places = {
        name
        for name, path in modules(PACKAGE).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in puts_on
        and ast.unparse(node.func.value) in ("model", "self.model", "type(model)")
    }
    assert places == {"forward.module_hooks"}
