"""Lists and dicts that write themselves back to the parameter node whenever they are changed."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterator
from typing import Any


class ObservedList(collections.abc.MutableSequence):
    """A list of a parameter node; changing it in place changes the node. It has no + and *, which make new lists."""

    def __init__(self, parameterNode: Any, listSerializer: Any, name: str, startingValue: list) -> None:
        self._node, self._serializer, self._name, self._list = parameterNode, listSerializer, name, startingValue

    def _save(self) -> None:
        try:
            self._serializer.write(self._node, self._name, self._list)
        finally:
            # Read back what was stored: elements that are lists become observed too, and a refused change is undone.
            self._list = self._serializer.read(self._node, self._name)._list

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, index: Any) -> Any:
        return self._list[index]

    def __setitem__(self, index: Any, item: Any) -> None:
        self._list[index] = item
        self._save()

    def __delitem__(self, index: Any) -> None:
        del self._list[index]
        self._save()

    def __iadd__(self, other: Any) -> ObservedList:  # type: ignore[misc]
        self.extend(other)
        return self

    def __imul__(self, count: int) -> ObservedList:
        self._list *= count
        self._save()
        return self

    def __eq__(self, other: object) -> bool:
        return self._list == (other._list if isinstance(other, ObservedList) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ObservedList({self._list})"

    def insert(self, index: int, item: Any) -> None:
        """Inserts an item."""
        self._list.insert(index, item)
        self._save()

    def extend(self, other: Any) -> None:
        """Appends several items."""
        self._list.extend(other)
        self._save()

    def append(self, item: Any) -> None:
        """Appends an item."""
        self._list.append(item)
        self._save()

    def clear(self) -> None:
        """Removes all items."""
        self._list.clear()
        self._save()

    def reverse(self) -> None:
        """Reverses the order."""
        self._list.reverse()
        self._save()

    def sort(self, *args: Any, **kwargs: Any) -> None:
        """Sorts in place."""
        self._list.sort(*args, **kwargs)
        self._save()


class ObservedDict(collections.abc.MutableMapping):
    """A dict of a parameter node; changing it in place changes the node."""

    def __init__(self, parameterNode: Any, dictSerializer: Any, name: str, startingValue: dict) -> None:
        self._node, self._serializer, self._name, self._dict = parameterNode, dictSerializer, name, startingValue

    def _save(self) -> None:
        try:
            self._serializer.write(self._node, self._name, self._dict)
        finally:
            self._dict = self._serializer.read(self._node, self._name)._dict

    def __len__(self) -> int:
        return len(self._dict)

    def __iter__(self) -> Iterator:
        return iter(self._dict)

    def __getitem__(self, key: Any) -> Any:
        return self._dict[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._dict[key] = value
        self._save()

    def __delitem__(self, key: Any) -> None:
        del self._dict[key]
        self._save()

    def __eq__(self, other: object) -> bool:
        return self._dict == (other._dict if isinstance(other, ObservedDict) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ObservedDict({self._dict})"
