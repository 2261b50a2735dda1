"""MLILib: the library behind the Machine Learning for Imaging extension.

Works without Slicer, on SimpleITK images and torch tensors. Importing it imports neither torch nor monai.
"""

__version__ = "0.1.0"
