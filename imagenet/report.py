"""Print a table of runs and draw their error curves.

    python report.py runs/r18 runs/r18-baseline --figure runs/error.png

Runs of wrn_DKS are read as well. Runs that differ only in the seed are averaged.
"""

import sys

from common.run_report import main

if __name__ == "__main__":
    sys.exit(main())
