"""Serializers of several values under names derived from one: lists, tuples, dicts, unions, typing.Any."""

from __future__ import annotations

import importlib
import typing
from typing import Any

import slicer

from .annotations import is_union
from .observed import ObservedDict, ObservedList
from .serializer_base import Serializer, ValidatedSerializer, createSerializerFromAnnotatedType, parameterNodeSerializer
from .single_values import NoneSerializer, StringSerializer


class _Several(Serializer):
    """Base of what is stored under names derived from one, ``name.0``, ``name.1`` and so on."""

    def _part(self, name: str, index: int) -> str:
        return f"{name}.{index}"


@parameterNodeSerializer
class ListSerializer(_Several):
    """list: the length under ``name.len`` and the elements."""

    def __init__(self, elementTypeSerializer: Serializer) -> None:
        self._element = elementTypeSerializer

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """list, with or without the type of its elements."""
        return type_ is list or typing.get_origin(type_) is list

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a serializer; elements without a type are stored as typing.Any."""
        if not ListSerializer.canSerialize(type_):
            return None
        return ListSerializer(createSerializerFromAnnotatedType((typing.get_args(type_) or (Any,))[0]))

    def default(self) -> Any:
        """An empty list."""
        return []

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether a length is stored."""
        return parameterNode.HasParameter(f"{name}.len")

    def _length(self, parameterNode: Any, name: str) -> int:
        return int(parameterNode.GetParameter(f"{name}.len")) if self.isIn(parameterNode, name) else 0

    def write(self, parameterNode: Any, name: str, values: Any) -> None:
        """Stores all elements, or none where one is refused."""
        values = list(values)
        with slicer.util.NodeModify(parameterNode):
            before = list(self.read(parameterNode, name)) if self.isIn(parameterNode, name) else None
            length = self._length(parameterNode, name)
            try:
                for index, value in enumerate(values):
                    self._element.write(parameterNode, self._part(name, index), value)
            except Exception:
                self.remove(parameterNode, name)
                if before is not None:
                    self.write(parameterNode, name, before)
                raise
            parameterNode.SetParameter(f"{name}.len", str(len(values)))
            for index in range(len(values), length):
                self._element.remove(parameterNode, self._part(name, index))

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns a list that stores itself again when it is changed."""
        count = self._length(parameterNode, name)
        values = [self._element.read(parameterNode, self._part(name, index)) for index in range(count)]
        return ObservedList(parameterNode, self, name, values)

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the elements and the length."""
        with slicer.util.NodeModify(parameterNode):
            for index in range(self._length(parameterNode, name)):
                self._element.remove(parameterNode, self._part(name, index))
            parameterNode.UnsetParameter(f"{name}.len")

    def supportsCaching(self) -> bool:  # type: ignore[override]
        """As the elements."""
        return self._element.supportsCaching()


@parameterNodeSerializer
class TupleSerializer(_Several):
    """tuple of a fixed length."""

    def __init__(self, serializers: list) -> None:
        self._serializers = serializers

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """tuple with the types of its elements."""
        return typing.get_origin(type_) is tuple

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a serializer."""
        if not TupleSerializer.canSerialize(type_):
            return None
        return TupleSerializer([createSerializerFromAnnotatedType(part) for part in typing.get_args(type_)])

    def default(self) -> Any:
        """The defaults of the elements."""
        return tuple(serializer.default() for serializer in self._serializers)

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether the first element is stored."""
        return self._serializers[0].isIn(parameterNode, self._part(name, 0))

    def write(self, parameterNode: Any, name: str, values: Any) -> None:
        """Stores the elements.

        Raises:
            ValueError: there are too many or too few.
        """
        values = tuple(values)
        if len(values) != len(self._serializers):
            raise ValueError(f"{name} takes {len(self._serializers)} values, not {len(values)}")
        with slicer.util.NodeModify(parameterNode):
            for index, (serializer, value) in enumerate(zip(self._serializers, values, strict=True)):
                serializer.write(parameterNode, self._part(name, index), value)

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the elements."""
        parts = enumerate(self._serializers)
        return tuple(serializer.read(parameterNode, self._part(name, index)) for index, serializer in parts)

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the elements."""
        with slicer.util.NodeModify(parameterNode):
            for index, serializer in enumerate(self._serializers):
                serializer.remove(parameterNode, self._part(name, index))

    def supportsCaching(self) -> bool:  # type: ignore[override]
        """Where all elements do."""
        return all(serializer.supportsCaching() for serializer in self._serializers)


@parameterNodeSerializer
class DictSerializer(Serializer):
    """dict, as a list of pairs."""

    def __init__(self, keySerializer: Serializer, valueSerializer: Serializer) -> None:
        self._pairs = ListSerializer(TupleSerializer([keySerializer, valueSerializer]))

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """dict, with or without types."""
        return type_ is dict or typing.get_origin(type_) is dict

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a serializer; without types, keys and values are stored as typing.Any."""
        if not DictSerializer.canSerialize(type_):
            return None
        return DictSerializer(
            *(createSerializerFromAnnotatedType(part) for part in typing.get_args(type_) or (Any, Any))
        )

    def default(self) -> Any:
        """An empty dict."""
        return {}

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether pairs are stored."""
        return self._pairs.isIn(parameterNode, name)

    def write(self, parameterNode: Any, name: str, dictionary: Any) -> None:
        """Stores the pairs in order."""
        self._pairs.write(parameterNode, name, dictionary.items())

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns a dict that stores itself again when it is changed."""
        return ObservedDict(parameterNode, self, name, dict(self._pairs.read(parameterNode, name)))

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the pairs."""
        self._pairs.remove(parameterNode, name)

    def supportsCaching(self) -> bool:  # type: ignore[override]
        """Where keys and values do."""
        return self._pairs.supportsCaching()


@parameterNodeSerializer
class UnionSerializer(_Several):
    """Unions and optional values: the value lies under the number of its type."""

    def __init__(self, serializers: list) -> None:
        self._serializers = [ValidatedSerializer(serializer, []) for serializer in serializers]

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """A union written either way."""
        return is_union(type_)

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a serializer."""
        if not is_union(type_):
            return None
        return UnionSerializer([createSerializerFromAnnotatedType(part) for part in typing.get_args(type_)])

    def default(self) -> Any:
        """None where the union is of one type and None, else the default of the first type."""
        optional = len(self._serializers) == 2 and isinstance(self._serializers[1].serializer, NoneSerializer)
        return None if optional else self._serializers[0].default()

    def _stored(self, parameterNode: Any, name: str) -> int | None:
        numbered = enumerate(self._serializers)
        return next((index for index, one in numbered if one.isIn(parameterNode, self._part(name, index))), None)

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether a value of any of the types is stored."""
        return self._stored(parameterNode, name) is not None

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores a value as the first of the types that takes it.

        Raises:
            TypeError: none of the types takes it.
        """
        refusal: Exception = TypeError(f"Unable to write value '{value}' of type '{type(value)}'")
        for index, serializer in enumerate(self._serializers):
            if serializer.serializer.canSerialize(type(value)):
                try:
                    serializer.validate(value)
                except (TypeError, ValueError) as error:
                    refusal = error
                    continue
                with slicer.util.NodeModify(parameterNode):
                    self.remove(parameterNode, name)
                    serializer.write(parameterNode, self._part(name, index), value)
                return
        raise refusal

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the stored value.

        Raises:
            KeyError: there is none.
        """
        index = self._stored(parameterNode, name)
        if index is None:
            raise KeyError(f"Unable to find value for name: {name}")
        return self._serializers[index].read(parameterNode, self._part(name, index))

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the value, of whichever type."""
        with slicer.util.NodeModify(parameterNode):
            for index, serializer in enumerate(self._serializers):
                serializer.remove(parameterNode, self._part(name, index))

    def supportsCaching(self) -> bool:  # type: ignore[override]
        """Where all types do."""
        return all(serializer.supportsCaching() for serializer in self._serializers)


@parameterNodeSerializer
class AnySerializer(Serializer):
    """typing.Any: the class's module and name under ``name.type``, the value under ``name.value``."""

    def __init__(self) -> None:
        self._kind = TupleSerializer([StringSerializer(), StringSerializer()])

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """typing.Any alone."""
        return type_ is Any

    @staticmethod
    def create(type_: Any) -> Any:
        """Returns a serializer."""
        return AnySerializer() if AnySerializer.canSerialize(type_) else None

    def default(self) -> Any:
        """None."""
        return None

    def _of_stored(self, parameterNode: Any, name: str) -> Serializer:
        module, class_name = self._kind.read(parameterNode, f"{name}.type")
        if class_name == "NoneType":
            return createSerializerFromAnnotatedType(type(None))
        return createSerializerFromAnnotatedType(getattr(importlib.import_module(module), class_name))

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether a class is stored."""
        return self._kind.isIn(parameterNode, f"{name}.type")

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores the value and its class."""
        self.remove(parameterNode, name)
        createSerializerFromAnnotatedType(type(value)).write(parameterNode, f"{name}.value", value)
        self._kind.write(parameterNode, f"{name}.type", (type(value).__module__, type(value).__name__))

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the value."""
        return self._of_stored(parameterNode, name).read(parameterNode, f"{name}.value")

    def remove(self, parameterNode: Any, name: str) -> None:
        """Removes the value and its class."""
        if self.isIn(parameterNode, name):
            self._of_stored(parameterNode, name).remove(parameterNode, f"{name}.value")
            self._kind.remove(parameterNode, f"{name}.type")
