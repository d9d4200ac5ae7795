"""Pseudo-IDs at default settings on people who are no round clouds, against peers at their best settings.

The kinds of `kinds.py` scatter around a centre each. Real embeddings also share an offset, drift, lie along curves,
have two modes, come in groups, have heavy tails, or vary along directions that tell nobody apart (`_shapes.py`). Peers,
lists and choice of their settings are as in `kinds.py`, but their thresholds are quantiles of the cosines, because an
offset moves these.

`--images 20000` leaves out the peers that compare all pairs, and writes `shapes_20000.json`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import report
from benchmarks._oracle import PRECISION
from benchmarks._shapes import SHAPES, planted
from benchmarks.kinds import ALL_PAIRS, MOST_FOR_ALL_PAIRS, Row, installed, measure, of, percent

IMAGES, SEED, LEVELS = 2000, 11, ("easy", "medium")
QUANTILES = 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half as many images; writes no results file")
    parser.add_argument("--images", type=int, default=IMAGES, help="of each set")
    parser.add_argument("--seed", type=int, default=SEED, help="of the generator")
    asked = parser.parse_args()
    n = asked.images // 2 if asked.quick else asked.images
    peers = tuple(peer for peer in installed() if n <= MOST_FOR_ALL_PAIRS or peer not in ALL_PAIRS)
    rows = [
        measure(kind, level, planted(kind, n, level, asked.seed), peers, QUANTILES)
        for kind, level in itertools.product(SHAPES, LEVELS)
    ]

    def best(row: Row) -> float:
        return max(float(row[peer]) for peer in peers)

    kinds = [(kind, [row for row in rows if row["kind"] == kind]) for kind in SHAPES]
    claims = [
        percent(f"mean F against the best of {len(peers)} peers", rows, best, 1.0),
        *(percent(f"mean F against {name}", rows, of(name), 1.0) for name in peers),
        *(percent(f"F of {kind} against best peer", some, best, 0.85) for kind, some in kinds),
        *(percent(f"precision of {kind}", some, lambda _: 1.0, PRECISION, "precision") for kind, some in kinds),
    ]
    name = "shapes" if asked.images == IMAGES else f"shapes_{asked.images}"
    return report(name, claims, is_quick=asked.quick)


if __name__ == "__main__":
    raise SystemExit(main())
