"""The rules of the house that import-linter cannot say, read from the source."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PINNED = Path(__file__).with_name("public_names.txt")

REQUEST_PATH = (
    *("errors", "clock", "deadline", "context", "telemetry", "calls", "cache", "queue", "inference", "flags"),
    *("admission", "shadow", "migration"),
)
ALLOWED_ON_REQUEST_PATH = {"fairlead", "msgspec", "xxhash"}


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLIC = load_script("public_names")


def imports_of(path: Path) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Line, module and imported names of every import, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ()
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module, tuple(alias.name for alias in node.names)


def request_path_files() -> Iterator[Path]:
    for room in REQUEST_PATH:
        if (SOURCE / "fairlead" / f"{room}.py").exists():
            yield SOURCE / "fairlead" / f"{room}.py"
        yield from sorted((SOURCE / "fairlead" / room).rglob("*.py"))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_reference_systems_import_only_what_strangers_may():
    public = {name: set(PUBLIC.names_in(path)) for name, path in PUBLIC.public_modules().items()}
    broken = []
    for path in sorted((SOURCE / "fairlead_systems").rglob("*.py")):
        for line, module, names in imports_of(path):
            if module == "fairlead":
                broken += [f"{where(path, line)}: import from the room, not from fairlead"]
            elif module.startswith("fairlead."):
                if module not in public:
                    broken += [f"{where(path, line)}: {module} is not public"]
                else:
                    submodules = {name for name in names if f"{module}.{name}" in public}
                    unknown = sorted(set(names) - public[module] - submodules)
                    broken += [f"{where(path, line)}: {module}.{name} is not public" for name in unknown]
    assert not broken, "\n".join(broken)


def test_request_path_imports_third_party_packages_only_in_drivers():
    broken = [
        f"{where(path, line)}: {module}"
        for path in request_path_files()
        for line, module, _ in imports_of(path)
        if (top := module.partition(".")[0]) not in sys.stdlib_module_names
        and top not in ALLOWED_ON_REQUEST_PATH
        and path.stem not in PUBLIC.DRIVERS
    ]
    assert not broken, "\n".join(broken)


def test_rooms_do_not_import_their_own_drivers():
    broken = [
        f"{where(path, line)}: {module}"
        for path in sorted((SOURCE / "fairlead").glob("*/__init__.py"))
        for line, module, _ in imports_of(path)
        if (driver := SOURCE.joinpath(*module.split(".")).with_suffix(".py")).exists()
        and any(
            top.partition(".")[0] not in sys.stdlib_module_names | ALLOWED_ON_REQUEST_PATH
            for _, top, _ in imports_of(driver)
        )
        and driver.stem in PUBLIC.DRIVERS
    ]
    assert not broken, "\n".join(broken)


class EnvironmentReads(ast.NodeVisitor):
    def __init__(self) -> None:
        self.lines: list[int] = []
        self.functions: list[str] = []
        self.handed_on: set[ast.expr] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.functions.append(node.name)
        self.generic_visit(node)
        self.functions.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Dict(self, node: ast.Dict) -> None:
        # `{**os.environ, …}` hands the environment on to a process without looking at it.
        self.handed_on |= {value for key, value in zip(node.keys, node.values, strict=True) if key is None}
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if (
            isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and node.attr in ("environ", "environb", "getenv")
            and node not in self.handed_on
            and "from_environment" not in self.functions
        ):
            self.lines.append(node.lineno)
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module == "os" and any(
            alias.name in ("environ", "environb", "getenv") for alias in node.names
        ):
            self.lines.append(node.lineno)


def test_nothing_below_the_command_line_reads_the_environment():
    broken = []
    for path in sorted((SOURCE / "fairlead").rglob("*.py")):
        if "cli" not in path.relative_to(SOURCE / "fairlead").parts:
            reads = EnvironmentReads()
            reads.visit(ast.parse(path.read_text(encoding="utf-8")))
            broken += [where(path, line) for line in reads.lines]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("module", sorted(PUBLIC.public_modules()))
def test_public_modules_declare_each_name_once_and_have_it(module: str):
    names = PUBLIC.names_in(PUBLIC.public_modules()[module])
    assert names, f"{module} has no __all__"
    assert len(names) == len(set(names))
    loaded = importlib.import_module(module)
    assert [name for name in names if not hasattr(loaded, name)] == []


def test_public_names_are_those_that_were_agreed():
    now = subprocess.run(
        [sys.executable, "scripts/public_names.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    agreed = PINNED.read_text(encoding="utf-8").splitlines()
    gone, new = sorted(set(agreed) - set(now)), sorted(set(now) - set(agreed))
    assert (gone, new) == ([], []), (
        f"gone: {gone}, new: {new}; if meant: python scripts/public_names.py > {PINNED.relative_to(ROOT)}"
    )


def test_every_source_file_opens_with_a_docstring_and_postponed_annotations():
    broken = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            broken.append(f"{path.relative_to(ROOT)}: no docstring")
        has_code = any(not isinstance(node, ast.Expr | ast.Assign) for node in tree.body)
        if has_code and not any(module == "__future__" for _, module, _ in imports_of(path)):
            broken.append(f"{path.relative_to(ROOT)}: no 'from __future__ import annotations'")
    assert not broken, "\n".join(broken)


def test_no_room_is_named_after_nothing():
    nameless = {"base", "common", "core", "helpers", "manager", "misc", "util", "utils"}
    assert [str(path) for path in SOURCE.rglob("*") if path.stem in nameless] == []


def test_the_reference_page_lists_the_public_names_as_they_are():
    now = subprocess.run(
        [sys.executable, "scripts/api_reference.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    page = ROOT / "docs" / "reference" / "api.md"
    assert page.read_text(encoding="utf-8") == now, (
        f"python scripts/api_reference.py > {page.relative_to(ROOT)}"
    )
