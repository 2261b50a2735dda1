"""Where the files of the sample data lie, which the modules share."""

from __future__ import annotations

from pathlib import Path


def sample_file(module: str, name: str) -> Path:
    """A file of the sample data.

    Args:
        module: path of a module's file. Installed, the sample data of all modules lie beside it; in the source tree
            each module keeps its own, and may use another's.
        name: of the file.

    Raises:
        FileNotFoundError: it is not installed.
    """
    here = Path(module).resolve().parent
    for folder in (here, *sorted(here.parent.iterdir())):
        path = folder / "Resources" / "SampleData" / name
        if path.is_file():
            return path
    raise FileNotFoundError(name)
