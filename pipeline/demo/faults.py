"""Which errors a visitor sees as a sentence, and how the sentence reads."""

from pipeline import console, out_of_memory

SAID = (ValueError, OSError, RuntimeError, MemoryError)
"""What reading a bundle, loading a base and drawing raise; a RuntimeError is said only where memory was full."""


def sentence(error: Exception) -> str:
    """The error in one sentence; raises the error again if it is a defect of the program."""
    if isinstance(error, ValueError | OSError):
        said = "; ".join(console.sentences(error, "the page"))
    elif out_of_memory.out_of_memory(error):
        said = "the device has too little memory for this picture: choose a smaller base or another --device"
    else:
        raise error
    return said if said.endswith(".") else f"{said}."
