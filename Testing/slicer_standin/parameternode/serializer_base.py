"""The base of ``slicer.parameterNodeWrapper``'s serializers, and how the serializer of a type is found."""

from __future__ import annotations

import abc
import logging
from typing import Any

from .annotations import splitAnnotations
from .validators import extractValidators


class Serializer(abc.ABC):
    """Base of all serializers, including users'."""

    @staticmethod
    @abc.abstractmethod
    def canSerialize(type_: Any) -> bool:
        """Whether this class can store values of a type."""

    @staticmethod
    @abc.abstractmethod
    def create(type_: Any) -> Any:
        """Returns a serializer for the type, or None."""

    @abc.abstractmethod
    def default(self) -> Any:
        """The value of a parameter without another default."""

    @abc.abstractmethod
    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether the node has a value under the name."""

    @abc.abstractmethod
    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores a value."""

    @abc.abstractmethod
    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the stored value."""

    @abc.abstractmethod
    def remove(self, parameterNode: Any, name: str) -> None:
        """Forgets the stored value."""

    @staticmethod
    def supportsCaching() -> bool:
        """Whether a value read once may be handed out again; not where changing it would go unnoticed."""
        return False


class ValidatedSerializer(Serializer):
    """A serializer that checks a value before it stores it."""

    @staticmethod
    def canSerialize(type_: Any) -> bool:
        """Never chosen by type."""
        return False

    @staticmethod
    def create(type_: Any) -> Any:
        """Not made from a type.

        Raises:
            TypeError: always.
        """
        raise TypeError("ValidatedSerializer does not support create!")

    def __init__(self, serializer: Serializer, validators: list) -> None:
        self.serializer = serializer
        self.validators = list(validators or [])
        if isinstance(serializer, ValidatedSerializer):
            self.serializer = serializer.serializer
            self.validators = serializer.validators + self.validators

    def default(self) -> Any:
        """The default of the serializer within."""
        return self.serializer.default()

    def validate(self, value: Any) -> None:
        """Raises where a validator refuses the value."""
        for validator in self.validators:
            validator.validate(value)

    def isIn(self, parameterNode: Any, name: str) -> bool:
        """Whether the node has a value under the name."""
        return self.serializer.isIn(parameterNode, name)

    def write(self, parameterNode: Any, name: str, value: Any) -> None:
        """Stores a value that passes all checks."""
        self.validate(value)
        self.serializer.write(parameterNode, name, value)

    def read(self, parameterNode: Any, name: str) -> Any:
        """Returns the stored value."""
        return self.serializer.read(parameterNode, name)

    def remove(self, parameterNode: Any, name: str) -> None:
        """Forgets the stored value."""
        self.serializer.remove(parameterNode, name)

    def supportsCaching(self) -> bool:  # type: ignore[override]
        """As the serializer within."""
        return self.serializer.supportsCaching()


_registered: list[type[Serializer]] = []


def parameterNodeSerializer(classtype: type | None = None) -> Any:
    """Class decorator that registers a serializer; used with or without parentheses."""

    def register(cls: type[Serializer]) -> type[Serializer]:
        if not issubclass(cls, Serializer):
            raise TypeError("Must be a serializer type.")
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def extractSerializer(annotations: Any) -> tuple[Any, list]:
    """Returns the serializer among the annotations, if any, and the others."""

    def is_serializer(item: Any) -> bool:
        return isinstance(item, Serializer) or (isinstance(item, type) and issubclass(item, Serializer))

    found = [item for item in annotations if is_serializer(item)]
    if len(found) > 1:
        raise ValueError("Multiple serializers found")
    return (found[0] if found else None), [item for item in annotations if not is_serializer(item)]


def createSerializer(type_: Any, annotations: Any) -> tuple[ValidatedSerializer, list]:
    """Returns the serializer for a type with its annotated checks, and the annotations that are left.

    Raises:
        TypeError: no registered serializer can store the type.
    """
    validators, rest = extractValidators(annotations)
    serializer, rest = extractSerializer(rest)
    if serializer is None:
        factory = next((cls for cls in _registered if cls.canSerialize(type_)), None)
        if factory is None:
            raise TypeError(f"Unable to create serializer for type: {type_}")
        serializer = factory.create(type_)
    return ValidatedSerializer(serializer, validators), rest


def createSerializerFromAnnotatedType(annotatedType: Any) -> ValidatedSerializer:
    """Returns the serializer for a type that may be Annotated."""
    type_, annotations = splitAnnotations(annotatedType)
    serializer, rest = createSerializer(type_, annotations)
    if rest:
        logging.warning(f"Unused annotations: {rest}")
    return serializer
