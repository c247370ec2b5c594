"""Two skeleton recordings: a clean one, and the same as another machine wrote it, with zeros where a joint was lost.

python examples/skeleton-csv/make_data.py [FOLDER]
"""

from __future__ import annotations

import csv
import math
import random
import sys
from pathlib import Path

JOINTS = ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
FRAMES = 400
LOST = 0.03
"""Share of the values that the second recording has as zeros."""


def frames() -> list[dict[str, float]]:
    """Joints that swing, in metres."""
    rows = []
    for frame in range(FRAMES):
        row: dict[str, float] = {"frame": frame}
        for number, joint in enumerate(JOINTS):
            phase = 2 * math.pi * (frame / 60 + number / 7)
            row[f"{joint}_x"] = round(0.2 * math.sin(phase) + 0.4, 6)
            row[f"{joint}_y"] = round(0.1 * math.cos(phase) + 0.3 * number + 0.2, 6)
            row[f"{joint}_z"] = round(2.0 + 0.05 * math.sin(phase / 2), 6)
        rows.append(row)
    return rows


def write(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(folder: Path) -> None:
    """Writes clean.csv and zeros.csv, and same.csv: the clean one with other digits in the last place."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = frames()
    write(folder / "clean.csv", rows)
    chance = random.Random(7)
    lost = [{k: 0.0 if k != "frame" and chance.random() < LOST else v for k, v in row.items()} for row in rows]
    write(folder / "zeros.csv", lost)
    near = [{k: v if k == "frame" else math.nextafter(v, 10) for k, v in row.items()} for row in rows]
    write(folder / "same.csv", near)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
