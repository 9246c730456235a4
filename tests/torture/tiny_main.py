"""Run imagenet/main.py, which must be on the path, on networks of `TinyNetwork`."""

from halves import TinyNetwork

import resnet

resnet.build = resnet.DKSResNet = TinyNetwork

if __name__ == "__main__":
    import main
    from common.command_line import run_script

    run_script(main.main)
