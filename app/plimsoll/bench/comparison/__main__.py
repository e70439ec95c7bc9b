"""`python -m plimsoll.bench.comparison`: the benchmark, without what only a checkout has."""

import sys

from plimsoll.bench.comparison.command import main

if __name__ == "__main__":
    sys.exit(main())
