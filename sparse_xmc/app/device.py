"""The device of a command."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """``"auto"``: a GPU where there is one.

    Raises:
        ValueError: torch does not see the device.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
