"""A random forest (Breiman 2001) that learns from scribbles or labelled examples what voxels look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingPackage

#: Voxels of a label in an image that it learns from, drawn at random from more.
MOST_SAMPLES = 5_000
#: Voxels labelled together.
CHUNK = 200_000


class Forest:
    """Learns labels of voxels from their features, and labels others.

    Args:
        trees: how many.
        seed: of the draw and of the trees; the same gives the same forest.

    Raises:
        MissingPackage: scikit-learn is not installed.
    """

    def __init__(self, trees: int = 100, seed: int = 0) -> None:
        try:
            from sklearn.ensemble import RandomForestClassifier
        except ImportError as error:
            raise MissingPackage(
                "The Python package scikit-learn is not installed.",
                "The random forest is its.",
                "Install it with: pip install scikit-learn.",
            ) from error
        self._rng = np.random.default_rng(seed)
        self._forest = RandomForestClassifier(trees, min_samples_leaf=3, random_state=seed, n_jobs=-1)
        self._samples: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.integer[Any]]]] = []

    def show(self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.integer[Any]]) -> None:
        """Give voxels to learn from: features (n, f), and labels (n,) of which those below 0 are not known."""
        for label in np.unique(labels[labels >= 0]):
            there = np.flatnonzero(labels == label)
            if there.size > MOST_SAMPLES:
                there = np.sort(self._rng.choice(there, MOST_SAMPLES, replace=False))
            self._samples.append((features[there], labels[there]))

    def learn(self, *, even: bool) -> None:
        """Grow the trees; `even` lets each label count as much as any other, as it should where somebody drew a few."""
        found = np.concatenate([f for f, _ in self._samples]), np.concatenate([y for _, y in self._samples])
        self._forest.fit(*found, sample_weight=1.0 / np.bincount(found[1])[found[1]] if even else None)
        self._samples = []

    def labels(
        self, features: npt.NDArray[np.float32], fraction: Callable[[float], None] = lambda value: None
    ) -> npt.NDArray[np.uint8]:
        """The likeliest label of each voxel, (n,)."""
        parts = []
        for first in range(0, len(features), CHUNK):
            parts.append(self._forest.predict(features[first : first + CHUNK]).astype(np.uint8))
            fraction(min(1.0, (first + CHUNK) / len(features)))
        return np.concatenate(parts)

    def importance(self, names: Sequence[str]) -> dict[str, float]:
        """How much each feature told apart (Gini importance, their sum is 1), the most first."""
        values = self._forest.feature_importances_
        order = np.argsort(-values)
        return {names[i]: float(values[i]) for i in order}
