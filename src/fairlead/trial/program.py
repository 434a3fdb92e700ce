"""The program that computes a run's figures, by the bytes of its source.

A version says what was meant to be installed; a line edited in place has the same version. So evidence names the hash
of every source file of Fairlead and of the system, taken when the promise is: before a process starts.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["program_sha256"]


def program_sha256(system: object) -> str:
    """SHA-256 over the source files of Fairlead and of the package, or module, that `system` is defined in. Blocks."""
    digest = hashlib.sha256()
    for name in ("fairlead", type(system).__module__):
        for said, file in _sources(name, sys.modules[name]):
            digest.update(f"{said}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _sources(name: str, module: ModuleType) -> list[tuple[str, Path]]:
    roots = [Path(root) for root in getattr(module, "__path__", ())]
    found = [
        (f"{name}/{file.relative_to(root).as_posix()}", file) for root in roots for file in root.rglob("*.py")
    ]
    if not roots and getattr(module, "__file__", None):  # none for what was typed into a shell
        found.append((name, Path(str(module.__file__))))
    return sorted(found)
