"""Sweeps, which kdcore knows how to make."""

from kdcore import SweepCell as Cell
from kdcore import make_sweep as make_cells
from kdcore import read_axes

__all__ = ["Cell", "make_cells", "read_axes"]
