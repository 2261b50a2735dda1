"""``slicer.parameterNodeWrapper.serializers``: values to text parameters and node references of a
vtkMRMLScriptedModuleNode and back, in the same form as Slicer stores them, so that scenes can be exchanged.
"""

from .annotations import splitAnnotations
from .observed import ObservedDict, ObservedList
from .serializer_base import (
    Serializer,
    ValidatedSerializer,
    createSerializer,
    createSerializerFromAnnotatedType,
    extractSerializer,
    parameterNodeSerializer,
)
from .several_values import AnySerializer, DictSerializer, ListSerializer, TupleSerializer, UnionSerializer
from .single_values import (
    BoolSerializer,
    EnumSerializer,
    NodeSerializer,
    NoneSerializer,
    NumberSerializer,
    PathSerializer,
    QColorSerializer,
    StringSerializer,
)
from .validators import IsInstance, IsNone, NotNone, extractValidators

__all__ = [
    "AnySerializer",
    "BoolSerializer",
    "DictSerializer",
    "EnumSerializer",
    "IsInstance",
    "IsNone",
    "ListSerializer",
    "NodeSerializer",
    "NoneSerializer",
    "NotNone",
    "NumberSerializer",
    "ObservedDict",
    "ObservedList",
    "PathSerializer",
    "QColorSerializer",
    "Serializer",
    "StringSerializer",
    "TupleSerializer",
    "UnionSerializer",
    "ValidatedSerializer",
    "createSerializer",
    "createSerializerFromAnnotatedType",
    "extractSerializer",
    "extractValidators",
    "parameterNodeSerializer",
    "splitAnnotations",
]
