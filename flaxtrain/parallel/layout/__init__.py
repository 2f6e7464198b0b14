"""Where every array of a training state lies on a mesh, and what a device has to hold of it."""

from flaxtrain.parallel.layout.layout import Layout
from flaxtrain.parallel.layout.table import DeviceBytes, LayoutRow, LayoutTable

__all__ = ["DeviceBytes", "Layout", "LayoutRow", "LayoutTable"]
