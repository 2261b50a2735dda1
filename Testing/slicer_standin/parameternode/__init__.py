"""``slicer.parameterNodeWrapper``: PyPI's slicer-core lacks it. Written after Slicer's interface and stored form; none
of its code is Slicer's.
"""

from __future__ import annotations

import types

from . import annotations, guiConnectors, guiCreation, pack, serializers, validators, wrapper

_SOURCES = (annotations, validators, serializers, pack, guiConnectors, guiCreation, wrapper)


def modules() -> dict[str, types.ModuleType]:
    """Returns full module name -> module, each cut to the names that a real Slicer has there."""
    from .. import names

    made = {}
    for name in (
        "slicer.parameterNodeWrapper",
        "slicer.parameterNodeWrapper.guiConnectors",
        "slicer.parameterNodeWrapper.serializers",
        "slicer.parameterNodeWrapper.validators",
    ):
        module = types.ModuleType(name, "Typed access to parameter nodes")
        for public in names.python_names(name):
            source = next((source for source in _SOURCES if hasattr(source, public)), None)
            if source is not None:
                setattr(module, public, getattr(source, public))
        made[name] = module
    package = made["slicer.parameterNodeWrapper"]
    package.__path__ = []  # type: ignore[attr-defined]
    for name, module in made.items():
        if module is not package:
            setattr(package, name.rpartition(".")[2], module)
    return made
