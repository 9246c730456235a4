"""imagenet/train.py on `TinyNetwork`."""

import sys

from training import TinyNetwork

import train
from common.leaving import run_script

train.build = TinyNetwork

if __name__ == "__main__":
    run_script(lambda: train.main(sys.argv[1:]))
