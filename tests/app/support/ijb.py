"""IJB-B and IJB-C in small, in the layout in which they are distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from app.data.faces.align import TEMPLATE


def write_ijb(folder: Path, faces: np.ndarray) -> Path:
    """Write 24 faces as an IJB folder: templates of two images, two templates a person.

    The faces are turned and doubled in size inside larger pictures.
    """
    for part in ("meta", "loose_crop"):
        (folder / part).mkdir(parents=True)
    to_picture = np.array([[0.0, -2.0, 300.0], [2.0, 0.0, 40.0]])  # a quarter turn, twice the size, a shift
    points = TEMPLATE @ to_picture[:, :2].T + to_picture[:, 2]
    located, members = [], []
    for number, face in enumerate(faces):
        picture = Image.new("RGB", (420, 360))
        large = Image.fromarray(face).resize((224, 224), Image.Resampling.NEAREST).transpose(Image.Transpose.ROTATE_270)
        picture.paste(large, (300 - 224, 40))
        picture.save(folder / "loose_crop" / f"{number + 1}.png", compress_level=0)
        located.append(f"{number + 1}.png {' '.join(f'{v:.4f}' for v in points.ravel())} 0.{90 + number % 10}")
        members.append(f"{number + 1}.png {number // 2 + 1} {number}")
    pairs = [f"{a} {b} {int((a - 1) // 2 == (b - 1) // 2)}" for a in range(1, 13) for b in range(a + 1, 13)]
    for name, lines in (("face_tid_mid", members), ("name_5pts_score", located), ("template_pair_label", pairs)):
        (folder / "meta" / f"ijbc_{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_search(folder: Path) -> Path:
    """Add the lists of the search to an IJB folder: people 0 to 2 in one gallery, 3 to 5 in the other."""
    heading = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID\n"
    for name, people, template in (
        ("gallery_G1", range(3), 1), ("gallery_G2", range(3, 6), 1), ("probe_mixed", range(6), 2),
    ):  # fmt: skip
        rows = [f"{2 * person + template},{person},img/{image}.jpg,{image}" for person in people for image in (1, 2)]
        (folder / "meta" / f"ijbc_1N_{name}.csv").write_text(heading + "\n".join(rows) + "\n")
    return folder
