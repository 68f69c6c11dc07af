"""Import kdcore's functions for sweeps."""

from kdcore import SweepCell as Cell
from kdcore import make_sweep as make_cells
from kdcore import read_axes

__all__ = ["Cell", "make_cells", "read_axes"]
