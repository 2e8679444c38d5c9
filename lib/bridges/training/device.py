"""Where to compute."""

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def find_device(name: str = "auto") -> str:
    """The device to compute on; `auto` takes the GPU when there is one, CUDA's or Apple's.

    Raises:
        ValueError: for a name that is not known, or a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in there.items() if found)
    if name not in there:
        raise ValueError(f"device {name!r} is unknown; choose from {', '.join(DEVICES)}")
    if not there[name]:
        raise ValueError(f"device {name!r} is not on this machine; there is {', '.join(d for d in there if there[d])}")
    return name
