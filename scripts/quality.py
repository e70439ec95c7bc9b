"""Spearman correlation of a model's cosines with people's scores, on a file that anyone can fetch:

    curl -LO https://raw.githubusercontent.com/PhilipMay/stsb-multi-mt/main/data/stsb-en-dev.csv
    .venv/bin/python scripts/quality.py stsb-en-dev.csv [MODEL]

The file has a pair of sentences and a score from 0 to 5 a row, without a header.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from plimsoll import Embedder


def main() -> None:
    """Print 100 times the rank correlation, and over how many pairs."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with Path(sys.argv[1]).open(encoding="utf-8", newline="") as file:
        pairs = [row for row in csv.reader(file) if len(row) == 3]
    if not pairs:
        sys.exit(f"{sys.argv[1]} has no rows of two sentences and a score")
    with Embedder(*sys.argv[2:]) as embedder:
        left, right = (embedder.embed([row[side] for row in pairs]) for side in (0, 1))
    cosines = np.einsum("ij,ij->i", left, right)
    correlation = spearmanr(cosines, [float(row[2]) for row in pairs]).statistic
    sys.stdout.write(f"Spearman {100 * correlation:.2f} over {len(pairs)} pairs\n")


if __name__ == "__main__":
    main()
