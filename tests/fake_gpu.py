"""A GPU without its values: training on it shows what would be copied, and what would wait.

    with FakeGpu(monkeypatch) as gpu:
        torch.zeros(3, device="cuda") + 1
        gpu.take()  # the operators that were called

The backward pass needs a real device; `trace_epoch` sets the gradients to zero instead.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WITHOUT_FAKE = ("_fused_sgd_",)  # changes its arguments and returns nothing
# Where PyTorch asks for a GPU, and the answers.
ANSWERS = (
    (fake_tensor, "init_gpu_context", None),
    (torch.cuda, "get_device_capability", (8, 0)),
    (torch.cuda, "device_count", 1),
    (torch.cuda, "is_bf16_supported", True),
    (torch.cuda.amp.common, "amp_definitely_not_available", False),
)


class Call(NamedTuple):
    """A call of an operator with a CUDA tensor."""

    name: str
    devices: set[str]  # types of all tensors that go in and come out
    waits: bool  # it is a copy that the host waits for, or turns a mask into indices


class FakeGpu(TorchDispatchMode):
    """Makes CUDA tensors fake; those on the CPU stay real. Notes the calls with CUDA tensors.

    Reading a value, and a result whose shape depends on values, raise a RuntimeError: a GPU would
    be waited for. So do tensors on different devices, except scalars.
    """

    def __init__(self, patch):
        super().__init__()
        for owner, name, answer in ANSWERS:
            patch.setattr(owner, name, lambda *_, answer=answer: answer)
        self._patch, self._calls = patch, []
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._warnings = warnings.catch_warnings()

    def __enter__(self):
        self._warnings.__enter__()
        warnings.simplefilter("ignore")  # of copies of fake tensors, and of no memory to pin
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._fake.__exit__(*error)
        self._warnings.__exit__(*error)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(operator).split(".")[1]
        tensors = tensors_in((args, kwargs))
        created = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not created and not any(isinstance(each, FakeTensor) for each in tensors):
            with unset_fake_temporarily():
                return operator(*args, **kwargs)
        result = None if name in WITHOUT_FAKE else operator(*args, **kwargs)
        if name != "device":  # Python reads the attribute
            devices = {each.device.type for each in (*tensors, *tensors_in(result))}
            masks = name == "index_put_" and any(i.dtype == torch.bool for i in tensors_in(args[1]))
            waits = masks or (len(devices) > 1 and not kwargs.get("non_blocking"))
            self._calls.append(Call(name, devices, waits))
        return result

    def take(self) -> list[Call]:
        """Return the calls so far, and forget them."""
        calls, self._calls = self._calls, []
        return calls

    def trace_epoch(self, trainer, batches, progress) -> list[list[Call]]:
        """Train an epoch; return the calls before and in its first step, and in each other step."""

        def backward(loss):
            assert loss.device.type == "cuda" and loss.requires_grad
            for parameter in trainer.model.parameters():
                parameter.grad = torch.zeros_like(parameter)

        self._patch.setattr(Tensor, "backward", backward)
        self._patch.setattr(trainer, "check_losses", lambda: None)  # every 50 steps, and waits
        self.take()
        calls = []
        trainer.train_epoch(batches, progress, lambda: calls.append(self.take()))
        assert trainer.step == batches.steps == len(calls)
        return calls


def tensors_in(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def transfers(calls: list[Call]) -> list[Call]:
    """Return the calls that involve both the host and the GPU, or that wait."""
    return [call for call in calls if len(call.devices) > 1 or call.waits]
