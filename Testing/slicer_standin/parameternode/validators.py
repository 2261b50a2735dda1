"""``slicer.parameterNodeWrapper.validators``: what a parameter's value may be. Each raises ValueError (IsInstance:
TypeError) on a value that is not allowed.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any


class Validator(abc.ABC):
    """Base of all validators, including users'."""

    @abc.abstractmethod
    def validate(self, value: Any) -> None:
        """Raises where the value is not allowed."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(str(value) for value in vars(self).values())})"


class IsNone(Validator):
    """Allows None alone."""

    def validate(self, value: Any) -> None:
        """Raises where the value is anything else."""
        if value is not None:
            raise ValueError("Value must be None")


class NotNone(Validator):
    """Allows anything but None."""

    def validate(self, value: Any) -> None:
        """Raises on None."""
        if value is None:
            raise ValueError("Value must not be None")


class IsInstance(Validator):
    """Allows None and objects of a class, or of one of several."""

    def __init__(self, classtype: Any) -> None:
        self.classtype = classtype

    def validate(self, value: Any) -> None:
        """Raises on an object of another class."""
        if not (value is None or isinstance(value, self.classtype)):
            raise TypeError(f"Value must be of type '{self.classtype}', is type '{type(value)}' value '{value}'")


class WithinRange(Validator):
    """Allows numbers from a minimum to a maximum, both included."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        """Raises on a number outside."""
        if value < self.minimum or value > self.maximum or value != value:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


class Minimum(Validator):
    """Allows numbers from a minimum on."""

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum

    def validate(self, value: Any) -> None:
        """Raises on a smaller number."""
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, is {value}")


class Maximum(Validator):
    """Allows numbers up to a maximum."""

    def __init__(self, maximum: float) -> None:
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        """Raises on a larger number."""
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, is {value}")


class Choice(Validator):
    """Allows the values of a list."""

    def __init__(self, choices: Iterable) -> None:
        self.choices = choices

    def validate(self, value: Any) -> None:
        """Raises on a value that is not in the list."""
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be in one of the following: {self.choices}")


class Exclude(Validator):
    """Allows all but the values of a list."""

    def __init__(self, excludedValues: Iterable) -> None:
        self.excludedValues = excludedValues

    def validate(self, value: Any) -> None:
        """Raises on a value of the list."""
        if value in self.excludedValues:
            raise ValueError(f"Value is {value}, but must not be one of {self.excludedValues}")


class RangeBounds(Validator):
    """Allows ranges that lie within bounds."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        """Raises on a range that reaches beyond."""
        if value.minimum < self.minimum or value.maximum > self.maximum:
            raise ValueError(
                f"Range must be within [{self.minimum}, {self.maximum}], is [{value.minimum}, {value.maximum}]"
            )


def _is_validator(annotation: Any) -> bool:
    return isinstance(annotation, Validator) or (isinstance(annotation, type) and issubclass(annotation, Validator))


def extractValidators(annotations: Iterable) -> tuple[list, list]:
    """Returns the annotations that are validators, and the others."""
    annotations = list(annotations)
    return [a for a in annotations if _is_validator(a)], [a for a in annotations if not _is_validator(a)]
