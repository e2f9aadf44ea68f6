"""The columns of "Colour and detail", which are measured on the images of every prompt."""

from __future__ import annotations

from pipeline.evaluation.benchmarks import Column

APPEARANCE = (
    Column(
        "brightness_shift",
        "brightness shift",
        2,
        note="Brightness and chroma (0 is grey) are means over the pixels in grey levels of 255; their shifts are mean"
        " differences to the teacher's image of the same prompt and noise.",
    ),
    Column("chroma_shift", "chroma shift", 2),
    Column(
        "contrast",
        "contrast",
        3,
        note="Contrast is the standard deviation of the brightness, detail the energy of its frequencies above half of"
        " Nyquist; both are means over prompts, over the teacher's: 1 is the teacher's, and blur lowers the detail.",
    ),
    Column("detail", "detail", 3),
)
