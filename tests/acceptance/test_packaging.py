"""What `pip install fairlead` brings: built as for a release, looked into, installed alone, and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fairlead import __version__

ROOT = Path(__file__).resolve().parents[2]

WHEEL_LIMIT = 2_000_000  # a third of a megabyte are the home feed's two models
SDIST_LIMIT = 3_000_000


def uv(*arguments: str | Path) -> str:
    beside = Path(sys.executable).with_name("uv")
    command = str(beside) if beside.exists() else shutil.which("uv")
    assert command, "uv is neither in this environment nor on PATH: make setup"
    # The environment that the tests run in must not be the one that uv installs into.
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    run = subprocess.run(
        [command, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def sources() -> set[str]:
    """Every file under src/, as its path inside a package."""
    return {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"fairlead-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    return built / f"fairlead-{__version__}.tar.gz"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that holds the wheel with [try], at the locked versions, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    uv("venv", "--quiet", "--python", sys.executable, folder / "venv")
    locked = folder / "locked.txt"
    selection = ["--frozen", "--no-default-groups", "--extra", "try", "--no-emit-project", "--no-hashes"]
    locked.write_text(uv("export", "--quiet", *selection), encoding="utf-8")
    python = folder / "venv" / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, "--constraint", locked, f"{wheel}[try]")
    return python.parent


def test_wheel_holds_every_source_file_and_nothing_else(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith(f"fairlead-{__version__}.dist-info/")}
    assert names - metadata == sources()
    assert f"fairlead-{__version__}.dist-info/licenses/LICENSE" in metadata


@pytest.mark.parametrize("package", ["fairlead", "fairlead_systems"])
def test_packages_say_that_they_are_typed(package: str, wheel: Path):
    assert f"{package}/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_wheel_brings_the_model_and_its_manifest(wheel: Path):
    suffixes = {
        Path(name).suffix
        for name in zipfile.ZipFile(wheel).namelist()
        if name.startswith("fairlead_systems/")
    }
    assert {".onnx", ".json"} <= suffixes


def test_sdist_holds_what_the_tests_and_the_makefile_need(sdist: Path):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in sources()} <= names
    needed = {
        *(
            "LICENSE",
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "pyproject.toml",
            "uv.lock",
        ),
        *("Makefile", ".importlinter", "scripts/bootstrap", "scripts/debian-packages", "tests/conftest.py"),
        *("bench/__main__.py", "docs/reference/exit-codes.md"),
    }
    assert needed - names == set()


def test_no_build_leftovers_are_shipped(wheel: Path, sdist: Path):
    with tarfile.open(sdist) as archive:
        names = [*archive.getnames(), *zipfile.ZipFile(wheel).namelist()]
    unwanted = ("__pycache__", ".pyc", ".venv", ".mypy_cache", "/runs/", ".hypothesis")
    assert [name for name in names if any(part in name for part in unwanted)] == []


def test_packages_stay_small(wheel: Path, sdist: Path):
    assert wheel.stat().st_size <= WHEEL_LIMIT
    assert sdist.stat().st_size <= SDIST_LIMIT


def run_installed(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -P and an empty folder: nothing of the checkout may be importable by accident.
    return subprocess.run(
        [installed / "python", "-P", installed / "fairlead", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_installed_command_tells_its_version(installed: Path, tmp_path: Path):
    run = run_installed(installed, tmp_path, "--version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"fairlead {__version__}\n", "")


def test_installed_doctor_finds_the_main_job_ready(installed: Path, tmp_path: Path):
    run = run_installed(installed, tmp_path, "doctor", "--json")
    report = json.loads(run.stdout)
    lacking = [finding for finding in report["findings"] if finding["required"] and finding["status"] != "ok"]
    assert lacking == []
    assert run.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_installed_library_works_without_any_extra(wheel: Path, tmp_path: Path):
    uv("venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, str(wheel))
    code = "import fairlead.cache, fairlead.calls, fairlead.flags, fairlead.inference, fairlead.telemetry"
    run = subprocess.run(
        [python, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    command = subprocess.run(
        [python.with_name("fairlead"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert command.returncode == 1
    assert command.stderr == "fairlead: typer is not installed: pip install 'fairlead[cli]'\n"


def test_installed_command_plays_the_home_feed(installed: Path, tmp_path: Path):
    run = run_installed(installed, tmp_path, "try", "home_feed", "--quick", "--json")
    result = json.loads(run.stdout)
    # A late run is INCONCLUSIVE on a busy machine, and says so; anything else must be valid.
    late = [reason for reason in result["validity"]["reasons"] if "sent late" in reason]
    assert (run.returncode, result["validity"]["reasons"]) in ((0, []), (4, late)), run.stderr
    assert {figure["arm"] for figure in result["figures"]} == {"control", "treatment"}
    assert list(tmp_path.glob("runs/*/report.html"))
