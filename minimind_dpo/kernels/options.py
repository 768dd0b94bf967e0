"""Names of the libraries that multiply float32 matrices on a CPU."""

from typing import Final

LIBRARIES: Final = ("auto", "onednn", "torch")
