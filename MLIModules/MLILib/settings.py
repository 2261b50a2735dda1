"""How a task declares its settings: one dataclass field each, with default, range, unit, kind and help.

The command line's flags, the worker's JSON, the module's parameter node and the run record are all made from these
fields, so that a setting is written down once. Imports neither torch nor monai.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from .errors import BadInput

#: What a text setting stands for. "input*" must exist, "output*" must be writable; "model" is a bundle's name or path.
KINDS = ("", "input", "input_image", "input_folder", "output", "output_image", "output_folder", "model", "device")

_REQUIRED = object()


def setting(
    default: Any = _REQUIRED,
    help: str = "",
    *,
    flag: str = "",
    short: str = "",
    unit: str = "",
    kind: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    positional: bool = False,
    metavar: str = "",
    group: str = "",
) -> Any:
    """A dataclass field that carries what every door to the task needs to know about it.

    Args:
        default: the value when nothing is said; leave out for a setting that must be given.
        help: a sentence in the reader's words.
        flag: the long flag without dashes; made from the field's name when empty.
        short: a one-letter flag.
        unit: "mm", "voxels", "s" ...
        kind: one of :data:`KINDS`.
        minimum, maximum: inclusive range of a number.
        choices: the allowed texts.
        positional: given on the command line without a flag.
        metavar: name of the value in the help.
        group: heading under which the help lists it; "" is the first list.
    """
    if kind not in KINDS:
        msg = f"unknown kind of setting {kind!r}"
        raise ValueError(msg)
    metadata = {
        "help": help,
        "flag": flag,
        "short": short,
        "unit": unit,
        "kind": kind,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "positional": positional,
        "metavar": metavar,
        "group": group,
    }
    if default is _REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def device_setting() -> Any:
    """The setting "device", the same in every task that computes."""
    return setting(
        "auto",
        "Where to compute: auto takes a GPU when there is one.",
        kind="device",
        metavar="auto|cpu|cuda|cuda:N|mps",
    )


def trust_setting() -> Any:
    """The setting "trust", the same in every task that opens models."""
    return setting((), "sha256 of a bundle whose configuration may name any Python callable.", metavar="SHA256")


def setting_of(request: type[Request], name: str) -> Any:
    """A field like one of another request, whose default and help are written there."""
    field = next(f for f in dataclasses.fields(request) if f.name == name)
    if field.default is dataclasses.MISSING:
        return dataclasses.field(metadata=field.metadata)
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a task, read off its dataclass field."""

    name: str
    type: type
    many: bool
    required: bool
    default: Any
    help: str
    flag: str
    short: str
    unit: str
    kind: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    positional: bool
    metavar: str
    group: str

    def checked(self, value: Any) -> Any:
        """`value` as this setting's type, or :class:`BadInput`."""
        if self.many:
            if isinstance(value, str) or not isinstance(value, list | tuple):
                raise BadInput(f"The setting {self.name!r} takes a list, not {value!r}.", "", "Give a list of values.")
            return tuple(self._one(v) for v in value)
        return self._one(value)

    def _one(self, value: Any) -> Any:
        if self.type is float and type(value) is int:
            value = float(value)
        if self.type is not type(value):
            raise BadInput(
                f"The setting {self.name!r} is {value!r}.", f"It takes a value of type {self.type.__name__}.", self.help
            )
        if self.choices and value not in self.choices:
            raise BadInput(f"The setting {self.name!r} is {value!r}.", "", f"Choose one of: {', '.join(self.choices)}.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            low = self.minimum is not None and value < self.minimum
            high = self.maximum is not None and value > self.maximum
            if low or high or math.isnan(value):
                raise BadInput(f"The setting {self.name!r} is {value}.", "", f"It must be {self.range_text()}.")
        return value

    def range_text(self) -> str:
        """The allowed range in words, "" where there is none."""
        unit = f" {self.unit}" if self.unit else ""
        if self.minimum is not None and self.maximum is not None:
            return f"from {_number(self.minimum)} to {_number(self.maximum)}{unit}"
        if self.minimum is not None:
            return f"at least {_number(self.minimum)}{unit}"
        if self.maximum is not None:
            return f"at most {_number(self.maximum)}{unit}"
        return ""


@dataclasses.dataclass(frozen=True)
class Request:
    """Base of all requests: what is asked of a task, as plain values that travel as JSON.

    Subclasses name the task (`task`), the words of the command line (`words`), and the module whose
    ``run(request, progress)`` does it (`runner`).
    """

    task: ClassVar[str] = ""
    words: ClassVar[tuple[str, ...]] = ()
    runner: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    @classmethod
    def settings(cls) -> Iterator[Setting]:
        """The task's settings in the order they were declared."""
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            many = typing.get_origin(hint) is tuple
            kind = typing.get_args(hint)[0] if many else hint
            if isinstance(kind, types.UnionType) or kind not in (str, int, float, bool):
                msg = f"{cls.__name__}.{field.name}: a setting is a str, int, float, bool or a tuple of one of them"
                raise TypeError(msg)
            required = field.default is dataclasses.MISSING
            meta = dict(field.metadata)
            meta["flag"] = meta["flag"] or field.name.replace("_", "-")
            yield Setting(
                name=field.name,
                type=kind,
                many=many,
                required=required,
                default=None if required else field.default,
                **meta,
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """A request from plain values: unknown names, wrong types and values out of range are refused."""
        known = {s.name: s for s in cls.settings()}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise BadInput(f"The task {cls.task!r} has no setting {unknown[0]!r}.", "", f"It has: {', '.join(known)}.")
        missing = [s.name for s in known.values() if s.required and s.name not in values]
        if missing:
            raise BadInput(f"The task {cls.task!r} needs the setting {missing[0]!r}.", "", known[missing[0]].help)
        return cls(**{name: known[name].checked(value) for name, value in values.items()})

    def to_json(self) -> dict[str, Any]:
        """All settings as plain values."""
        out = {}
        for s in self.settings():
            value = getattr(self, s.name)
            out[s.name] = list(value) if s.many else value
        return out

    def check(self) -> None:
        """Say what is wrong with the request, and what to do about it, before any model is loaded.

        Raises:
            BadInput: for the first thing that cannot work.
        """
        from . import files  # imports SimpleITK-free code only; kept here so that the declarations stay pure data

        for s in self.settings():
            value = s.checked(getattr(self, s.name))
            if s.required and s.many and not value:
                raise BadInput(f"The task {self.task!r} was given no {s.name}.", "", s.help)
            for text in value if s.many else (value,):
                if text == "" and not s.required:
                    continue
                if s.kind.startswith("input"):
                    files.require_input(text, folder=s.kind == "input_folder", name=s.name)
                elif s.kind.startswith("output"):
                    files.require_writable(text, name=s.name)
        self.check_task()

    def check_task(self) -> None:
        """What a subclass adds to :meth:`check`."""

    def require_distinct(self) -> None:
        """Raise :class:`BadInput` where a file is an input and an output, or two outputs at once."""
        clash = set(self.outputs()) & set(self.inputs())
        if clash:
            raise BadInput(f"{clash.pop()} is an input and an output.", "", "Write to another file.")
        if len(set(self.outputs())) < len(self.outputs()):
            raise BadInput("Two outputs have the same file name.", "", "Give each output a name of its own.")

    def inputs(self) -> tuple[str, ...]:
        """The paths that are read, for the run record."""
        return self._paths("input")

    def outputs(self) -> tuple[str, ...]:
        """The paths that are written."""
        return self._paths("output")

    def _paths(self, kind: str) -> tuple[str, ...]:
        found: list[str] = []
        for s in self.settings():
            if s.kind.startswith(kind):
                value = getattr(self, s.name)
                found.extend(v for v in (value if s.many else (value,)) if v)
        return tuple(found)

    def command(self) -> str:
        """The exact `mli` command that repeats this request; settings at their default are left out."""
        words = ["mli", *self.words]
        options: list[str] = []
        for s in self.settings():
            value = getattr(self, s.name)
            if s.positional:
                words.extend(value if s.many else ([value] if value else []))
            elif s.required or value != s.default:
                options.extend(_flag_words(s, value))
        return shlex.join([*words, *options])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _flag_words(s: Setting, value: Any) -> list[str]:
    flag = f"--{s.flag}"
    if s.type is bool and not s.many:
        return [flag if value else f"--no-{s.flag}"]
    return [flag, *(str(v) for v in (value if s.many else (value,)))]


def absolute(path: str) -> str:
    """`path` made absolute against the current folder, for a request that is handed to another process."""
    return str(Path(path).expanduser().absolute()) if path else path
