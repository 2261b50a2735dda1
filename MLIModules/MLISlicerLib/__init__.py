"""The bridge between Slicer and MLILib: MRML nodes, jobs in a worker process, and what the five widgets share.

Beside the module files, the only code of the extension that imports slicer, qt or vtk. It never imports torch or monai:
what needs them runs in the worker (:mod:`MLISlicerLib.jobs`). Methods of widgets are camelCase as in Slicer, the rest
is PEP 8.
"""
