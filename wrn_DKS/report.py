"""Print a table of runs and draw their error curves.

    python report.py logs/demo --figure logs/demo/error.png

Runs of the same code that differ only in the seed are averaged. Runs of both script folders can be
compared.
"""

from common.command_line import run_script
from common.report import main

if __name__ == "__main__":
    run_script(main)
