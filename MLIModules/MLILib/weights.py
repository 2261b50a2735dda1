"""Weights files: tensors by name, read so that a file cannot run code, and put into the network they belong to."""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BadInput

if TYPE_CHECKING:
    import torch

_ASK = "Ask its authors for the weights as a state dictionary, saved with torch.save(network.state_dict())."


def load(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name; the file cannot run code.

    Raises:
        BadInput: it is not a file of weights, it is damaged, or it would execute code when read.
    """
    import torch

    if not file.is_file():
        raise BadInput(f"The weights {file} do not exist.", "The model's configuration names them.", _ASK)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        callable_ = _refused_by_torch(str(error)) or _named_by_pickle(file)
        if callable_:
            raise BadInput(
                f"The weights {file} were refused: reading them would run code.",
                f"They call {callable_}, where plain weights hold only tensors.", _ASK,
            ) from error  # fmt: skip
        raise _damaged(file, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, IndexError, TypeError) as error:
        if "TorchScript" in str(error):
            raise BadInput(
                f"The weights {file} are a TorchScript program and not only weights.", "", _ASK
            ) from error  # fmt: skip
        raise _damaged(file, error) from error
    for key in ("model", "state_dict", "model_state_dict", "network"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    state = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)} if isinstance(loaded, Mapping) else {}
    if not state:
        raise BadInput(f"The file {file} holds no weights.", f"It holds a {type(loaded).__name__}.", _ASK)
    if all(key.startswith("module.") for key in state):  # saved from DataParallel
        state = {key[len("module.") :]: value for key, value in state.items()}
    return state


def fit(net: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Put `state` into `net`, every tensor of it, or say which one does not fit; `name` is the model's."""
    own = net.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    cause = ""
    if shapes:
        k = shapes[0]
        cause = f"{k} has the shape {tuple(state[k].shape)}, the network's has {tuple(own[k].shape)}."
    elif missing:
        cause = f"They lack {missing[0]!r} ({len(missing)} of {len(own)} are missing)."
    elif extra:
        cause = f"They have {extra[0]!r}, which the network has not ({len(extra)} are too many)."
    if cause:
        raise BadInput(
            f"The weights of the model {name} do not fit its network.", cause,
            "The configuration and the weights are of different versions; ask its authors for a matching pair.",
        )  # fmt: skip
    net.load_state_dict(dict(state))


def _damaged(file: Path, error: Exception) -> BadInput:
    if not file.stat().st_size:
        cause = "The file is empty."
    elif isinstance(error, pickle.UnpicklingError):  # torch's text is a page about weights_only
        cause = "The file is damaged or not one of torch's."
    else:
        cause = f"The file is damaged or cut off ({str(error).partition('.')[0] or type(error).__name__:.120})."
    return BadInput(f"The weights {file} cannot be read.", cause, "Get the model again.")


def _refused_by_torch(text: str) -> str:
    """The callable that torch's refusal names, "" when it is about something else."""
    found = re.search(r"GLOBAL ([\w.]+)", text)
    return found.group(1) if found else ""


def _named_by_pickle(file: Path) -> str:
    """The first callable that a bare pickle names, from its opcodes alone; "" when it names none or is no pickle."""
    texts: list[str] = []
    try:
        with open(file, "rb") as stream:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(texts[-2:])
                if isinstance(argument, str):
                    texts.append(argument)
    except (ValueError, EOFError, UnicodeDecodeError):
        return ""
    return ""
