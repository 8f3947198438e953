"""Arrays in `.npy` files."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import open_regular
from rws.errors import FormatError, first_line


def map_array(path: Path) -> NDArray[Any]:
    """Map the array of an `.npy` file into memory, read-only; nothing of it is read yet.

    Raises FormatError if it is not a regular file that holds a whole array of numbers.
    """
    try:
        open_regular(path).close()
        with np.errstate(over="ignore"):  # of the lengths in the header
            return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); give an .npy file") from error
    except Exception as error:  # the header is Python's own syntax, and NumPy hands on what its parser raises
        raise FormatError(
            f"{path}: is not a NumPy array file ({first_line(error)}); save it with numpy.save"
        ) from error
