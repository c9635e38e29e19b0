"""Where the detector computes: by NumPy on a CPU, by Paddle on a device, whose global state stays as it was."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from ...messages import escape


def uses_numpy(device: str | None) -> bool:
    """Whether the detector computes with NumPy, which it does on a CPU: it is faster there, and needs no Paddle.

    Args:
        device: any Paddle device string; None = where Paddle is now, or would be.
    """
    if device is not None:
        return device == "cpu"
    paddle: Any = sys.modules.get("paddle")
    if hasattr(paddle, "get_device"):
        return str(paddle.get_device()) == "cpu"
    try:
        if importlib.util.find_spec("paddle") is None:
            return True
    except ImportError:  # by a finder that refuses it
        return True
    try:
        metadata.version("paddlepaddle")  # the build for CPUs
    except metadata.PackageNotFoundError:
        return False
    return True


def check_device(device: str | None) -> None:
    """Refuse, before any work, a device on which this Paddle cannot compute.

    Raises:
        ValueError: it cannot; the message names the devices there are.
    """
    if device is None or uses_numpy(device):
        return
    import paddle

    try:
        with paddle_on(device):
            paddle.zeros([1]).numpy()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(_unusable(device)) from error


@contextlib.contextmanager
def paddle_on(device: str | None) -> Iterator[None]:
    """Dynamic mode on a device (None = where Paddle is), in float32; afterwards everything is as it was."""
    import paddle

    paddle.get_device()  # settles Paddle's own default, which the guard would otherwise restore as "none"
    try:
        place = None if device is None else paddle.device._convert_to_place(device)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(_unusable(device)) from error
    # The guard leaves static mode and brings its own table of names: later layers of the caller get the
    # names, and checkpoints the keys, that they would have had. Gradient mode and AMP reach through it.
    with paddle.base.dygraph.guard(place), paddle.amp.auto_cast(enable=False), paddle.enable_grad():
        dtype = paddle.get_default_dtype()
        # Where the caller has set a random global initializer, it is asked for our layers too, and draws.
        random_state = paddle.get_rng_state()
        paddle.set_default_dtype("float32")
        try:
            yield
        finally:
            paddle.set_default_dtype(dtype)
            paddle.set_rng_state(random_state)


def _unusable(device: Any) -> str:
    import paddle

    there = ", ".join(sorted({"cpu", *map(str, paddle.device.get_available_device() or [])}))
    return (
        f"device '{escape(device, limit=40)}' cannot be used: this Paddle computes on {there}; choose one of these, or "
        "install Paddle for your device as its install page says"
    )
