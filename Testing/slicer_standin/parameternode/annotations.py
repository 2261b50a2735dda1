"""Type annotations for ``slicer.parameterNodeWrapper``: Annotated[...] apart, Default, node types, dotted names."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import slicer


class Default:
    """Annotation that gives a parameter's default, by value or by a function called each time."""

    def __init__(self, value: Any = None, *, generator: Callable | None = None) -> None:
        self._value = value
        self._generator = generator

    @property
    def value(self) -> Any:
        """The default."""
        return self._generator() if self._generator else self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Default) and (self._value, self._generator) == (other._value, other._generator)

    def __hash__(self) -> int:
        return hash(self._generator)

    def __repr__(self) -> str:
        return f"Default(value={self._value}, generator={self._generator})"


@dataclasses.dataclass
class Decimals:
    """Annotation: digits after the point in a spin box or slider."""

    value: int


@dataclasses.dataclass
class SingleStep:
    """Annotation: step of a spin box or slider."""

    value: float


@dataclasses.dataclass
class Label:
    """Annotation: what stands beside a widget that is made for the parameter."""

    label: str


@dataclasses.dataclass
class Parameter:
    """One parameter of a wrapper or a pack, from its annotation."""

    basename: str
    serializer: Any
    default: Any
    unalteredType: Any


def splitAnnotations(possiblyAnnotatedType: Any) -> tuple[Any, tuple]:
    """Returns the type and its annotations, which are none where the type is not Annotated."""
    first, *rest = typing.get_args(Annotated[possiblyAnnotatedType, None])
    return first, tuple(rest[:-1])


def unannotatedType(possiblyAnnotatedType: Any) -> Any:
    """Returns the type without annotations."""
    return splitAnnotations(possiblyAnnotatedType)[0]


def findFirstAnnotation(annotationsList: Iterable, annotationType: type) -> Any:
    """Returns the first annotation of a class, or None."""
    return next((annotation for annotation in annotationsList if isinstance(annotation, annotationType)), None)


def extract_default(annotations: Iterable) -> tuple[Default | None, list]:
    """Returns the Default among the annotations, and the others.

    Raises:
        ValueError: there are several.
    """
    annotations = list(annotations)
    found = [annotation for annotation in annotations if isinstance(annotation, Default)]
    if len(found) > 1:
        raise ValueError("Multiple defaults found")
    return (found[0] if found else None), [a for a in annotations if not isinstance(a, Default)]


def split_dotted(name: str) -> tuple[str, str | None]:
    """Splits "box.corner.x" into "box" and "corner.x"; the second is None where there is no dot."""
    first, dot, rest = name.partition(".")
    return first, rest if dot else None


def is_union(type_: Any) -> bool:
    """Whether a type is a union, written either way."""
    return typing.get_origin(type_) is typing.Union or isinstance(type_, types.UnionType)


def _is_node_class(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, slicer.vtkMRMLNode)


def isNodeOrUnionOfNodes(datatype: Any) -> bool:
    """Whether a type is a node class, or a union of node classes and None."""
    bare = unannotatedType(datatype)
    if not is_union(bare):
        return _is_node_class(bare)
    return all(part is type(None) or _is_node_class(part) for part in map(unannotatedType, typing.get_args(bare)))


def getNodeTypes(datatype: Any) -> tuple[str, ...]:
    """Returns the class names of a type for which isNodeOrUnionOfNodes holds."""
    bare = unannotatedType(datatype)
    if _is_node_class(bare):
        return (bare.__name__,)
    if not is_union(bare):
        raise TypeError(f"Cannot handle type {datatype}")
    return tuple(part.__name__ for part in map(unannotatedType, typing.get_args(bare)) if _is_node_class(part))
