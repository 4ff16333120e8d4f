"""HDF5 files as a source: links (what may be followed), holes (rows that no one wrote), datasets (one file), source."""

from .datasets import look
from .links import damage, open_file
from .source import open_hdf5, open_source

__all__ = ["damage", "look", "open_file", "open_hdf5", "open_source"]
