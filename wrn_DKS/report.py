"""Print a table of runs and draw their error curves.

    python report.py logs/demo --figure logs/demo/error.png

Runs of imagenet are read as well. Runs that differ only in the seed are averaged.
"""

import sys

from common.run_report import main

if __name__ == "__main__":
    sys.exit(main())
