"""The models at hand: list them, show one, import a bundle of the user's, remove it again.

Run as ``python -m MLILib.catalogue FOLDER`` it writes the folder's catalogue.json from the bundles in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import bundles, files, folders
from .bundles import Bundle
from .errors import BadInput, MLIError
from .progress import Progress
from .tasks import ModelsImportRequest, ModelsInfoRequest, ModelsListRequest, ModelsRemoveRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Not part of a model: what version control, Python and a training run leave beside it.
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")


def run_list(request: ModelsListRequest, progress: Progress) -> dict[str, Any]:
    """The shipped and the imported models; one that cannot be read is listed with what is wrong with it."""
    progress.stage("Looking for models")
    models: list[dict[str, Any]] = []
    for home, shipped in ((folders.shipped(), True), (folders.user(), False)):
        for name in sorted({*folders.entries(home), *_found_in(home)}):
            if any(model["name"] == name for model in models):
                problem = "A shipped model has the same name. Remove it, and import it under another name."
                models.append({"name": name, "shipped": shipped, "problem": problem})
                continue
            try:
                models.append(_entry(bundles.find(name)) | {"shipped": shipped})
            except MLIError as error:
                models.append({"name": name, "shipped": shipped, "problem": str(error)})
    result = {"models": models, "shipped_folder": str(folders.shipped() or ""), "user_folder": str(folders.user())}
    return {**result, "text": format_list(models)}


def run_info(request: ModelsInfoRequest, progress: Progress) -> dict[str, Any]:
    """All there is to say about one model, its card included; nothing of it is run."""
    progress.stage("Reading the model")
    bundle = bundles.find(request.model)
    info = _entry(bundle) | {
        "shipped": bundle.shipped,
        "trusted": bundle.trusted,
        "folder": str(bundle.folder),
        "version": str(bundle.metadata["version"]),
        "description": str(bundle.metadata["description"]),
        "authors": str(bundle.metadata["authors"]),
        "copyright": str(bundle.metadata["copyright"]),
        "dimensions": bundle.dimensions,
        "channels": list(bundle.channels),
        "labels": [dataclasses.asdict(label) | {"color": list(label.color)} for label in bundle.labels],
        "card": bundle.card,
    }
    return {**info, "text": format_info(info)}


def run_import(request: ModelsImportRequest, progress: Progress) -> dict[str, Any]:
    """Check a bundle by making its network and transforms, then copy it to the user's models, whole or not at all.

    Raises:
        BadInput: the bundle is not usable or not safe, or the name is taken.
    """
    progress.stage("Checking the model")
    bundle = bundles.find(str(Path(request.source).expanduser().absolute()), trust=request.trust)
    name = request.name or bundle.name
    _check_name(name, replace=request.replace)
    bundles.inferer_settings(bundle)
    bundles.preprocessing(bundle)
    bundles.postprocessing(bundle)
    bundles.network(bundle, "cpu")
    progress.stage("Copying the model")
    home = folders.user()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".importing-", dir=home) as staging:
            copy = Path(staging) / name
            shutil.copytree(bundle.folder, copy, ignore=_LEFT_OUT)
            if bundles.digest(copy) != bundle.sha256:
                raise BadInput(
                    f"The model {name} changed while it was copied.",
                    "",
                    "Wait until it is complete and import it again.",
                )
            _replace(home / name, copy, Path(staging) / "old")
        copied = dataclasses.replace(bundle, name=name, folder=home / name)
        entry = _entry(copied) | ({"trusted": True} if bundle.trusted else {})
        _write(home, {**folders.entries(home), name: entry})
    except OSError as error:
        raise _unwritable(home, error) from error
    uses = {"registration": "mli register FIXED MOVING --model", "anomaly": "mli anomaly IMAGE -m"}
    use = f"{uses.get(bundle.kind, 'mli segment IMAGE -m')} {name}"
    return {
        **_entry(copied),
        "folder": str(copied.folder),
        "text": f"Imported {copied.title} as {name}. Use it with: {use} -o OUT",
    }


def run_remove(request: ModelsRemoveRequest, progress: Progress) -> dict[str, Any]:
    """Remove a model of the user's.

    Raises:
        BadInput: there is no such model, or it was shipped.
    """
    progress.stage("Removing the model")
    home, name = folders.user(), request.model
    listed = folders.entries(home)
    if name not in {*listed, *_found_in(home)}:
        shipped = name in folders.entries(folders.shipped())
        yours = ", ".join(sorted({*listed, *_found_in(home)})) or "none"
        raise BadInput(
            f"The model {name!r} was shipped and stays." if shipped else f"There is no model {name!r} of yours.", "",
            f"Models of yours: {yours}.",
        )  # fmt: skip
    try:
        if (home / name).exists():
            with tempfile.TemporaryDirectory(prefix=".removing-", dir=home) as staging:
                os.replace(home / name, Path(staging) / "old")
        _write(home, {key: value for key, value in listed.items() if key != name})
    except OSError as error:
        raise _unwritable(home, error) from error
    return {"removed": name, "text": f"Removed {name}."}


def refresh_catalogue(folder: Path) -> list[dict[str, Any]]:
    """Write the catalogue.json of a folder of bundles: each one's name, title, checksum, task, modality and size.

    Raises:
        BadInput: a bundle in it is incomplete.
    """
    entries = {name: _entry(bundles.read(folder / name)) for name in _found_in(folder)}
    _write(folder, entries)
    return list(entries.values())


def format_list(models: Sequence[Mapping[str, Any]]) -> str:
    """The models as a table for the terminal."""
    if not models:
        return "No models. Import one with: mli models import BUNDLE"
    rows = [("NAME", "", "SIZE", "TASK")]
    for model in models:
        origin = "shipped" if model["shipped"] else "yours"
        if "problem" in model:
            rows.append((model["name"], origin, "", f"cannot be used: {model['problem']}"))
        else:
            rows.append((model["name"], origin, _size(model["bytes"]), model["task"]))
    widths = [max(len(str(row[i])) for row in rows) for i in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows)


def format_info(info: Mapping[str, Any]) -> str:
    """One model for the terminal."""
    origin = "shipped with MLI" if info["shipped"] else "yours"
    facts = {
        "Name": f"{info['name']} ({origin}{', trusted' if info['trusted'] else ''})",
        "Task": info["task"],
        "Images": f"{info['dimensions']}-D {info['modality']}".strip() + f": {', '.join(info['channels'])}",
        "Labels": ", ".join(f"{label['value']} {label['name']}" for label in info["labels"]),
        "Version": info["version"],
        "Authors": info["authors"],
        "Size": _size(info["bytes"]),
        "Checksum": info["sha256"],
        "Folder": info["folder"],
    }
    lines = [info["title"], "=" * len(info["title"])]
    lines += [f"{key + ':':<10} {value}" for key, value in facts.items() if value]
    return "\n".join(lines) + (f"\n\n{info['card'].strip()}" if info["card"] else "\n\nThis model has no card.")


def main(arguments: Sequence[str]) -> int:
    """Write the catalogue of the folder named in `arguments`; the process's exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m MLILib.catalogue FOLDER", file=sys.stderr)
        return 2
    try:
        for entry in refresh_catalogue(Path(arguments[0])):
            print(f"{entry['sha256']}  {entry['name']}")
    except MLIError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _entry(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "title": bundle.title,
        "sha256": bundle.sha256,
        "task": bundle.task,
        "modality": bundle.modality,
        "bytes": sum(p.stat().st_size for p in bundle.folder.rglob("*") if p.is_file()),
    }


def _found_in(home: Path | None) -> list[str]:
    if home is None or not home.is_dir():
        return []
    found = [p.parent.parent.name for p in home.glob("*/configs/metadata.json")]
    return sorted(name for name in found if not name.startswith("."))


def _check_name(name: str, *, replace: bool) -> None:
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"A model cannot be called {name!r}.", "A name is letters, digits, '.', '_' and '-', 64 at most.",
            "Give another with --name.",
        )  # fmt: skip
    if name in folders.entries(folders.shipped()):
        raise BadInput(f"A shipped model is called {name}.", "It is never replaced.", "Give another with --name.")
    if (folders.user() / name).exists() and not replace:
        raise BadInput(
            f"You already have a model called {name}.",
            "",
            "Replace it with --replace, or give another name with --name.",
        )


def _replace(target: Path, new: Path, old: Path) -> None:
    """Move `new` to `target`; what was there goes to `old`, and comes back if the move fails."""
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise


def _write(home: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    text = json.dumps({"models": [dict(entries[name]) for name in sorted(entries)]}, indent=2)
    with files.Outputs() as outputs:
        Path(outputs.path(home / folders.CATALOGUE)).write_text(text + "\n", encoding="utf-8")


def _unwritable(home: Path, error: OSError) -> MLIError:
    if files.is_disk_full(error):
        return files.disk_full(home if home.is_dir() else Path(home.anchor))
    return BadInput(
        f"The folder of your models {home} cannot be written.", f"{error.strerror or error}.",
        "Set MLI_MODELS to a folder you may write to.",
    )  # fmt: skip


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
