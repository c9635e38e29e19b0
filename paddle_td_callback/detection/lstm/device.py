"""Where the detector computes: on the device that was passed, leaving Paddle's global state as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle

from ...messages import escape


def check_device(device: str | None) -> None:
    """Refuse, before any work, a device on which this Paddle cannot compute.

    Raises:
        ValueError: it cannot; the message names the devices there are.
    """
    if device is None:
        return
    try:
        with paddle_on(device):
            paddle.zeros([1]).numpy()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(_unusable(device)) from error


@contextlib.contextmanager
def paddle_on(device: str | None) -> Iterator[None]:
    """Dynamic mode on a device (None = where Paddle is), in float32; afterwards everything is as it was."""
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
    there = ", ".join(sorted({"cpu", *map(str, paddle.device.get_available_device() or [])}))
    return (
        f"device '{escape(device, limit=40)}' cannot be used: this Paddle computes on {there}; choose one of these, or "
        "install Paddle for your device as its install page says"
    )
