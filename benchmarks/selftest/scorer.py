"""Stands in for an official scorer: writes the share of red of each image in a folder of grids to a CSV file."""

import argparse
from pathlib import Path

from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("images", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--crash-after", type=int, default=-1, help="stop with an error after so many rows")
parser.add_argument("--drop", default="", help="leave out the rows of this file")
options = parser.parse_args()

with options.out.open("w") as file:
    file.write("file,image,red\n")
    places = [(path, image) for path in sorted(options.images.glob("*.png")) for image in range(2)]
    for row, (path, image) in enumerate(places):
        if row == options.crash_after:
            raise SystemExit(f"stopped after {row} rows, as asked")
        grid, half = Image.open(path), Image.open(path).width // 2
        cell = grid.crop((image * half, 0, image * half + half, grid.height))
        red, green, blue = cell.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        if path.name != options.drop:
            file.write(f"{path.name},{image},{red / max(1, red + green + blue)}\n")
