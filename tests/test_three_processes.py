"""Three processes: a resumed run equals an uninterrupted one, bit for bit.

With three or more, the order in which gradients are added depends on DistributedDataParallel's
buckets, which must be the same in both runs.
"""

import cifar_runs
import training
from conftest import TESTS
from processes import free_ports

# Arguments: `train` or `main`, an output folder, three free ports, and the arguments of the script,
# in which SAVE stands for the folder of a run.
SCRIPT = """
import os, sys
import torch

torch.set_num_threads(1)
script, folder, *ports = sys.argv[1:6]
argv = sys.argv[6:]
if script == "train":
    import train
    from training import TinyNetwork

    train.build = TinyNetwork
    main = train.main
else:
    from main import main

def run(save, epochs, port):
    words = [folder + "/" + save if word == "SAVE" else word for word in argv]
    os.environ.update(WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    pids = []
    for rank in range(3):
        os.environ["RANK"] = str(rank)
        pid = os.fork()
        if not pid:
            status = main([*words, "--epochs", epochs])
            sys.stdout.flush()
            os._exit(status)
        pids.append(pid)
    if any([os.waitpid(pid, 0)[1] for pid in pids]):
        sys.exit(1)

run("resumed", "1", ports[0])
run("resumed", "2", ports[1])
run("whole", "2", ports[2])
"""


def run_three(python, scripts, script, folder, argv):
    """Run a script for two epochs in `folder`/whole, and with an interruption in `resumed`."""
    (folder / "three.py").write_text(SCRIPT)
    path = [scripts.path, TESTS]
    done = python.run(folder / "three.py", script, folder, *free_ports(3), *argv, path=path)
    assert done.returncode == 0, done.stderr


def test_imagenet(python, imagenet, tmp_path):
    data = training.write_data(tmp_path / "data")
    argv = training.command_line(data, "SAVE", "--resume", "auto")
    run_three(python, imagenet, "train", tmp_path, argv)
    training.assert_same_run(tmp_path / "resumed", tmp_path / "whole")


def test_cifar(python, wrn, tmp_path):
    argv = "--dataset digits --depth 10 --width 0.25 --batch_size 800 --epoch_step [3] --save SAVE"
    run_three(python, wrn, "main", tmp_path, [*argv.split(), "--device", "cpu", "--resume", "auto"])
    cifar_runs.assert_same_run(tmp_path / "resumed", tmp_path / "whole")
