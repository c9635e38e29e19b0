"""Make the shipped weights and the held-out detectors: record what is missing in the cache, then train.

    python -m benchmarks.shipped_detector

Takes about four hours on 2 cores from an empty cache. A recording that is in the cache is not made again.
"""

from __future__ import annotations

import sys

from . import train_detector
from .recordings import record

N_RANDOM = 2000  # random trainings

if __name__ == "__main__":
    if not {"-h", "--help"} & set(sys.argv[1:]):
        record.main(["table"])
        record.main(["random", "0", str(N_RANDOM)])
    train_detector.main()
