"""``parameterPack``: a class of typed members stored as one parameter, member by member under ``name.member``;
FloatRange.
"""

from __future__ import annotations

import logging
import typing
from typing import Any

import slicer

from .annotations import Parameter, extract_default, split_dotted, splitAnnotations, unannotatedType
from .serializers import Serializer, ValidatedSerializer, createSerializer, parameterNodeSerializer
from .validators import IsInstance, NotNone


def isParameterPack(obj: Any) -> bool:
    """Whether an object or class is a parameterPack."""
    return getattr(obj, "_is_parameterPack", False)


def _member(pack: Any, name: str) -> Parameter:
    if name not in pack.allParameters:
        raise ValueError(f"{pack} has no member '{name}'")
    return pack.allParameters[name]


def check_member(pack: Any, name: str) -> None:
    """Raises ValueError where a pack has no member of a name, which may be dotted ("corner.x")."""
    first, rest = split_dotted(name)
    kind = unannotatedType(_member(pack, first).unalteredType)
    if rest is not None:
        if not isParameterPack(kind):
            raise ValueError(f"{kind} is not a parameter pack but expects to have '{rest}'")
        check_member(kind, rest)


def _property(name: str) -> property:
    def read(self: Any) -> Any:
        return self._values[name]

    def write(self: Any, value: Any) -> None:
        self.allParameters[name].serializer.validate(value)
        self._values[name] = value
        self._changed()

    return property(read, write)


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    given = dict(zip(self.allParameters, args, strict=False))
    for name, value in kwargs.items():
        if name not in self.allParameters:
            raise TypeError(f"__init__() got an unexpected keyword argument '{name}'")
        if name in given:
            raise TypeError(f"__init__() got multiple values for argument '{name}'")
        given[name] = value
    self.__dict__["_values"] = {name: info.default for name, info in self.allParameters.items()}
    for name, value in given.items():
        self.allParameters[name].serializer.validate(value)
        self._values[name] = value


def _changed(self: Any) -> None:
    stored = self.__dict__.get("_stored")
    if stored is not None:
        node, serializer, name = stored
        serializer.write(node, name, self)


def _equal(self: Any, other: Any) -> bool:
    return isParameterPack(other) and self.allParameters is other.allParameters and self._values == other._values


def _text(self: Any) -> str:
    members = ", ".join(f'{name}="{v}"' if isinstance(v, str) else f"{name}={v}" for name, v in self._values.items())
    return f"{type(self).__name__}({members})"


def _get_value(self: Any, membername: str) -> Any:
    """Returns a member, or a member of a member ("corner.x")."""
    check_member(self, membername)
    first, rest = split_dotted(membername)
    value = getattr(self, first)
    return value if rest is None else value.getValue(rest)


def _set_value(self: Any, membername: str, value: Any) -> None:
    """Sets a member, or a member of a member."""
    check_member(self, membername)
    first, rest = split_dotted(membername)
    if rest is None:
        setattr(self, first, value)
    else:
        getattr(self, first).setValue(rest, value)
        self._changed()


def _process(cls: type) -> type:
    parameters: dict[str, Parameter] = {}
    for name, full_type in typing.get_type_hints(cls, include_extras=True).items():
        kind, annotations = splitAnnotations(full_type)
        serializer, rest = createSerializer(kind, annotations)
        default, rest = extract_default(rest)
        value = getattr(cls, name) if hasattr(cls, name) else default.value if default else serializer.default()
        if rest:
            logging.warning(f"Unused annotations: {rest}")
        try:
            serializer.validate(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The default parameter of '{value}' fails the validation checks:\n  {error}") from error
        parameters[name] = Parameter(name, serializer, value, full_type)
        setattr(cls, name, _property(name))
    if not parameters:
        raise ValueError("Unable to find any members in parameterPack")
    own_init = cls.__dict__.get("__init__")

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        _init(self, *(() if own_init else args), **({} if own_init else kwargs))
        if own_init:
            own_init(self, *args, **kwargs)

    def data_type(membername: str) -> Any:
        check_member(cls, membername)
        first, rest = split_dotted(membername)
        kind = parameters[first].unalteredType
        return kind if rest is None else unannotatedType(kind).dataType(rest)

    reserved = {
        "allParameters": parameters, "_is_parameterPack": True, "_changed": _changed, "getValue": _get_value,
        "setValue": _set_value, "dataType": staticmethod(data_type),
    }  # fmt: skip
    for name, value in reserved.items():
        if hasattr(cls, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterPack")
        setattr(cls, name, value)
    cls.__init__ = init  # type: ignore[misc]
    for name, value in {"__eq__": _equal, "__str__": _text, "__repr__": _text}.items():
        if name not in cls.__dict__:
            setattr(cls, name, value)
    return cls


def parameterPack(classtype: type | None = None) -> Any:
    """Class decorator that makes a class with annotated members a parameterPack."""
    return _process if classtype is None else _process(classtype)


def nestedParameterNames(parameterPackClassOrInstance: Any) -> list[str]:
    """Returns the dotted names of all members that are not packs themselves."""
    pack = parameterPackClassOrInstance
    pack = pack if isParameterPack(pack) else unannotatedType(pack)
    found = []
    for name, info in pack.allParameters.items():
        kind = unannotatedType(info.unalteredType)
        found += [f"{name}.{rest}" for rest in nestedParameterNames(kind)] if isParameterPack(kind) else [name]
    return found


@parameterNodeSerializer
class ParameterPackSerializer(Serializer):
    """A pack, member by member."""

    def __init__(self, type_: Any) -> None:
        self.type = type_

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """Any parameterPack."""
        return isParameterPack(type_)

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a checked serializer."""
        if not isParameterPack(type_):
            return None
        return ValidatedSerializer(ParameterPackSerializer(type_), [NotNone(), IsInstance(type_)])

    def default(self) -> Any:
        """A pack of defaults."""
        return self.type()

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether the first member is stored."""
        first = next(iter(self.type.allParameters.values()))
        return first.serializer.isIn(parameterNode, f"{name}.{first.basename}")

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores all members."""
        with slicer.util.NodeModify(parameterNode):
            for member, info in self.type.allParameters.items():
                info.serializer.write(parameterNode, f"{name}.{member}", value._values[member])

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns a pack that stores itself again when it is changed."""
        pack = self.type.__new__(self.type)
        pack.__dict__["_values"] = {
            member: info.serializer.read(parameterNode, f"{name}.{member}")
            for member, info in self.type.allParameters.items()
        }
        pack.__dict__["_stored"] = (parameterNode, self, name)
        return pack

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes all members."""
        for member, info in self.type.allParameters.items():
            info.serializer.remove(parameterNode, f"{name}.{member}")

    def supportsCaching(self) -> bool:  # type: ignore[override]
        """Where all members do."""
        return all(info.serializer.supportsCaching() for info in self.type.allParameters.values())


@parameterPack
class FloatRange:
    """Two numbers, the first not above the second."""

    _minimum: float
    _maximum: float

    def __init__(self, minimum: float = 0, maximum: float = 0) -> None:
        self.setRange(minimum, maximum)

    @staticmethod
    def checkRange(minimum: float, maximum: float) -> None:
        """Raises ValueError where the first number is above the second."""
        if not minimum <= maximum:
            raise ValueError(f"FloatRange must have minimum <= maximum: {minimum} <= {maximum}")

    def setRange(self, minimum: float, maximum: float) -> None:
        """Sets both numbers."""
        self.checkRange(minimum, maximum)
        self._minimum = minimum
        self._maximum = maximum

    @property
    def minimum(self) -> float:
        """The lower number."""
        return self._minimum

    @minimum.setter
    def minimum(self, value: float) -> None:
        self.checkRange(value, self.maximum)
        self._minimum = value

    @property
    def maximum(self) -> float:
        """The upper number."""
        return self._maximum

    @maximum.setter
    def maximum(self, value: float) -> None:
        self.checkRange(self.minimum, value)
        self._maximum = value

    def __str__(self) -> str:
        return f"FloatRange(minimum={self.minimum}, maximum={self.maximum})"

    __repr__ = __str__
