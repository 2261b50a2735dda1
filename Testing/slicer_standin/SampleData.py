"""The module ``SampleData``: sources of sample data are registered as in Slicer and loaded from files that are there;
the stand-in downloads from file addresses only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import slicer
import vtk


def _listed(value: Any, count: int) -> list:
    return list(value) if isinstance(value, list | tuple) else [value] * count


class SampleDataSource:
    """Describes a set of files of sample data."""

    def __init__(
        self,
        sampleName: str | None = None,
        sampleDescription: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        checksums: Any = None,
        loadFiles: Any = None,
        customDownloader: Callable | None = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: Any = None,
        loadFileProperties: dict | None = None,
        loadFileType: Any = None,
    ) -> None:
        if loadFileType is not None and loadFileTypes is not None:
            raise ValueError("loadFileType and loadFileTypes cannot be specified at the same time")
        self.sampleName = sampleName
        self.sampleDescription = sampleName if sampleDescription is None else sampleDescription
        several = isinstance(uris, list | tuple)
        self.uris = list(uris) if several else [uris]
        count = len(self.uris)
        self.fileNames = _listed(fileNames, count)
        self.nodeNames = _listed(nodeNames, count)
        self.checksums = _listed(checksums, count)
        self.loadFiles = _listed(loadFiles, count)
        self.loadFileTypes = _listed(loadFileTypes if loadFileType is None else loadFileType, count)
        self.customDownloader = customDownloader
        self.thumbnailFileName = thumbnailFileName
        self.loadFileProperties = loadFileProperties or {}
        fields = (self.fileNames, self.nodeNames, self.checksums, self.loadFiles, self.loadFileTypes)
        if any(len(field) != count for field in fields):
            raise ValueError(f"All fields of sample data source {sampleName} must have the same length ({count})")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SampleDataSource) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def _sources() -> dict[str, list]:
    if not hasattr(slicer.modules, "sampleDataSources"):
        slicer.modules.sampleDataSources = {}
    return slicer.modules.sampleDataSources


class SampleDataLogic:
    """Finds, fetches and loads sample data."""

    def __init__(self, logMessage: Callable | None = None) -> None:
        if logMessage is not None:
            self.logMessage = logMessage  # type: ignore[method-assign]

    def logMessage(self, message: str, logLevel: int = logging.DEBUG) -> None:
        """Logs a message."""
        logging.log(logLevel, message)

    @staticmethod
    def registerCustomSampleDataCategory(category: str, title: str) -> None:
        """Gives a category a title."""
        if not hasattr(slicer.modules, "sampleDataSourceCategories"):
            slicer.modules.sampleDataSourceCategories = {}
        slicer.modules.sampleDataSourceCategories.setdefault(category, {})["title"] = title

    @staticmethod
    def categoryTitle(category: str) -> str:
        """Returns a category's title."""
        known = getattr(slicer.modules, "sampleDataSourceCategories", {})
        return known.get(category, {}).get("title", category)

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Callable | None = None,
        thumbnailFileName: str | None = None,
        loadFileTypes: Any = None,
        loadFiles: Any = None,
        loadFileProperties: dict = {},  # noqa: B006 - Slicer's signature; it is copied, not changed
        checksums: Any = None,
        loadFileType: Any = None,
    ) -> None:
        """Adds a set of files to a category, once."""
        source = SampleDataSource(
            sampleName=sampleName,
            uris=uris,
            fileNames=fileNames,
            nodeNames=nodeNames,
            customDownloader=customDownloader,
            thumbnailFileName=thumbnailFileName,
            loadFileTypes=loadFileTypes,
            loadFiles=loadFiles,
            loadFileProperties=dict(loadFileProperties),
            checksums=checksums,
            loadFileType=loadFileType,
        )
        registered = _sources().setdefault(category, [])
        if source not in registered:
            registered.append(source)

    @staticmethod
    def sampleDataSourcesByCategory(category: str | None = None) -> Any:
        """Returns the sources of a category, or all by category."""
        return _sources() if category is None else _sources().get(category, [])

    @staticmethod
    def isSampleDataSourceRegistered(category: str, sampleDataSource: SampleDataSource) -> bool:
        """Whether a category has a source."""
        if not isinstance(sampleDataSource, SampleDataSource):
            raise TypeError(f"unsupported sampleDataSource type '{type(sampleDataSource)}'")
        return sampleDataSource in _sources().get(category, [])

    def sourceForSampleName(self, sampleName: str) -> SampleDataSource | None:
        """Returns a source by its name, or None."""
        found = (source for sources in _sources().values() for source in sources if source.sampleName == sampleName)
        return next(found, None)

    def categoryForSource(self, a_source: SampleDataSource) -> str | None:
        """Returns the category of a source, or None."""
        return next((category for category, sources in _sources().items() if a_source in sources), None)

    def downloadFile(
        self, uri: str, destFolderPath: str, name: str, checksum: str | None = None, forceDownload: bool = False
    ) -> str:
        """Copies a file into a folder and checks it.

        Returns:
            The path.

        Raises:
            ValueError: the address is not that of a file, there is no such file, or its checksum differs.
        """
        address = urllib.parse.urlparse(uri)
        if address.scheme != "file":
            raise ValueError(f"The stand-in downloads nothing: {uri}")
        path = os.path.join(destFolderPath, name)
        source = urllib.request.url2pathname(address.path)
        if not os.path.isfile(source):
            raise ValueError(f"Failed to download {uri} to {path}")
        shutil.copyfile(source, path)
        algorithm, digest = extractAlgoAndDigest(checksum)
        if algorithm is not None and computeChecksum(algorithm, path) != digest:
            os.remove(path)
            raise ValueError(f"Checksum verification failed: {path}")
        return path

    def downloadFileIntoCache(
        self, uri: str, name: str, checksum: str | None = None, forceDownload: bool = False
    ) -> str:
        """Copies a file into the application's cache."""
        folder = slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory() or slicer.app.cachePath
        os.makedirs(folder, exist_ok=True)
        return self.downloadFile(uri, folder, name, checksum, forceDownload)

    def loadNode(self, uri: str, name: str | None, fileType: str | None = None, fileProperties: dict = {}) -> Any:  # noqa: B006
        """Loads a file; returns the first node, or None."""
        properties = {**fileProperties, "fileName": uri, **({"name": name} if name else {})}
        nodes = vtk.vtkCollection()
        manager = slicer.app.coreIOManager()
        if not manager.loadNodes(fileType or manager.fileType(uri), properties, nodes):
            return None
        for index in range(nodes.GetNumberOfItems()):
            node = nodes.GetItemAsObject(index)
            storage = node.GetStorageNode() if node.IsA("vtkMRMLStorableNode") else None
            if storage is not None:
                # The file lies in a folder for temporary files.
                slicer.mrmlScene.RemoveNode(storage)
        return nodes.GetItemAsObject(0) or slicer.mrmlScene

    def loadScene(self, uri: str, fileProperties: dict = {}) -> bool:  # noqa: B006
        """Loads a scene."""
        return self.loadNode(uri, None, "SceneFile", fileProperties) is not None

    def downloadFromSource(
        self, source: SampleDataSource, maximumAttemptsCount: int = 3, forceDownload: bool = False
    ) -> list:
        """Fetches and loads a source's files; its customDownloader is what the module's button calls in their place.

        Returns:
            A node for each file that is loaded, the path of one that is not, True for a scene.
        """
        results: list = []
        for uri, file, node, load, kind, checksum in zip(
            source.uris, source.fileNames, source.nodeNames, source.loadFiles, source.loadFileTypes, source.checksums,
            strict=True,
        ):  # fmt: skip
            path = self.downloadFileIntoCache(uri, file, checksum, forceDownload)
            if load is False or (load is None and node is None):
                results.append(path)
            elif kind == "SceneFile" or path.lower().endswith((".mrb", ".mrml")):
                results.append(self.loadScene(path, source.loadFileProperties))
            else:
                results.append(self.loadNode(path, node, kind, source.loadFileProperties))
        return results

    def downloadSample(self, sampleName: str) -> Any:
        """Loads a source by its name and returns the first node."""
        return self.downloadSamples(sampleName)[0]

    def downloadSamples(self, sampleName: str) -> list:
        """Loads a source by its name.

        Raises:
            ValueError: no source has the name.
        """
        source = self.sourceForSampleName(sampleName)
        if source is None:
            raise ValueError(f"No sample data is registered under the name {sampleName}")
        return self.downloadFromSource(source)


def extractAlgoAndDigest(checksum: str | None) -> tuple[str | None, str | None]:
    """Splits "SHA256:cc21..." into its parts."""
    if checksum is None:
        return None, None
    algorithm, colon, digest = checksum.partition(":")
    if not colon:
        raise ValueError(f"invalid checksum '{checksum}'. Expected format is '<algo>:<digest>'.")
    return algorithm, digest


def computeChecksum(algo: str, filePath: str) -> str:
    """Returns the checksum of a file."""
    with open(filePath, "rb") as file:
        return hashlib.file_digest(file, algo.lower()).hexdigest()


def downloadFromURL(**keywords: Any) -> list:
    """Fetches and loads files given by their addresses."""
    return SampleDataLogic().downloadFromSource(SampleDataSource(**keywords))


def downloadSample(sampleName: str) -> Any:
    """Loads a source by its name and returns the first node."""
    return SampleDataLogic().downloadSample(sampleName)


def downloadSamples(sampleName: str) -> list:
    """Loads a source by its name."""
    return SampleDataLogic().downloadSamples(sampleName)
