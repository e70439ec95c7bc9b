"""The benchmark, with what only a checkout has: the synthetic model and the load file.

--help is its manual.
"""

import sys
from pathlib import Path

from plimsoll.bench.comparison.command import main

ROOT = Path(__file__).resolve().parent.parent
LOAD_FILE = ROOT.parent / "shared" / "data" / "load-mixed.jsonl"

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.synthetic import cached_synthetic

    load_file = LOAD_FILE if LOAD_FILE.is_file() else None
    sys.exit(main(make_synthetic=cached_synthetic, load_file=load_file))
