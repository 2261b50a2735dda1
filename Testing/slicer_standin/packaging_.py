"""``slicer.packaging``: checks packages as a real Slicer does, and never installs any under testing."""

from __future__ import annotations

import importlib.metadata
import logging
import tomllib
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import slicer
from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

# Each call of pip_install and pip_uninstall: (function's name, requirements). Nothing is ever installed.
calls: list[tuple[str, list[str]]] = []


def load_requirements(path: str | Path) -> list[Requirement]:
    """Returns the requirements of a requirements.txt, without comments and options."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and line[0] not in "#-"]


def load_pyproject_dependencies(path: str | Path) -> list[Requirement]:
    """Returns [project] dependencies of a pyproject.toml.

    Raises:
        KeyError: there is no table [project].
    """
    content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    if "project" not in content:
        raise KeyError(f"pyproject.toml has no [project] table: {path}")
    return [Requirement(text) for text in content["project"].get("dependencies", [])]


def _requirements(reqs: Any) -> list[Requirement]:
    if isinstance(reqs, Requirement):
        return [reqs]
    if isinstance(reqs, str):
        try:
            return [Requirement(reqs)]
        except InvalidRequirement:
            return [Requirement(part) for part in reqs.split()]
    if not isinstance(reqs, list):
        raise TypeError(f"Expected str, Requirement, or list, got {type(reqs).__name__}")
    return [req if isinstance(req, Requirement) else Requirement(req) for req in reqs]


def pip_check(req: Any, _seen: set | None = None) -> bool:
    """Whether one or more requirements are installed, extras and markers considered."""
    seen = set() if _seen is None else _seen
    return all(_satisfied(one, seen) for one in _requirements(req))


def _satisfied(req: Requirement, seen: set) -> bool:
    if req.marker is not None and not req.marker.evaluate():
        return True
    key = (canonicalize_name(req.name), frozenset(req.extras))
    if key in seen:
        return True
    seen.add(key)
    try:
        installed = importlib.metadata.version(req.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if installed not in req.specifier:
        return False
    for text in importlib.metadata.requires(req.name) or [] if req.extras else []:
        needed = Requirement(text)
        environments = [{**default_environment(), "extra": extra} for extra in req.extras]
        if needed.marker is not None and any(needed.marker.evaluate(environment) for environment in environments):
            needed.marker = None
            if not _satisfied(needed, seen):
                return False
    return True


def pip_ensure(
    requirements: Any,
    constraints: str | Path | None = None,
    skip_packages: list[str] | None = None,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    requester: str | None = None,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> list[str] | None:
    """Installs what is missing, after asking; under testing it installs nothing and does not complain."""
    missing = [str(req) for req in _requirements(requirements) if not pip_check(req)]
    if not missing:
        return None
    if skip_in_testing and slicer.app.testingEnabled():
        logging.info(f"Testing mode is enabled: skipping pip_ensure for [{', '.join(missing)}]")
        return None
    if prompt_install:
        title = f"{requester} - Install Python Packages" if requester else "Install Python Packages"
        if not slicer.util.confirmOkCancelDisplay(f"{len(missing)} Python packages need to be installed.", title):
            raise RuntimeError("User declined package installation")
    return pip_install(missing, constraints, skip_packages=skip_packages, requester=requester)


def pip_install(
    requirements: str | list[str],
    constraints: str | Path | None = None,
    no_deps_requirements: str | list[str] | None = None,
    skip_packages: list[str] | None = None,
    blocking: bool = True,
    show_progress: bool = True,
    requester: str | None = None,
    logCallback: Any = None,
    completedCallback: Any = None,
) -> list[str] | None:
    """Notes the call in ``calls`` and refuses.

    Raises:
        CalledProcessError: always, as when pip cannot reach its index.
    """
    wanted = [requirements] if isinstance(requirements, str) else [str(req) for req in requirements]
    calls.append(("pip_install", wanted))
    if not blocking:
        if completedCallback is not None:
            completedCallback(1)
        return None
    raise CalledProcessError(1, ["pip", "install", *wanted], "the stand-in installs nothing")


def pip_uninstall(
    requirements: str | list[str], blocking: bool = True, logCallback: Any = None, completedCallback: Any = None
) -> None:
    """Notes the call in ``calls`` and refuses.

    Raises:
        CalledProcessError: always.
    """
    wanted = [requirements] if isinstance(requirements, str) else list(requirements)
    calls.append(("pip_uninstall", wanted))
    raise CalledProcessError(1, ["pip", "uninstall", *wanted], "the stand-in uninstalls nothing")


def isPipInstallInProgress() -> bool:
    """Whether pip runs in the background, which it never does here."""
    return False
