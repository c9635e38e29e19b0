"""Where the detector computes: on the device that was passed, leaving Paddle's global state as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle


@contextlib.contextmanager
def paddle_on(device: str | None) -> Iterator[None]:
    """Dynamic mode on a device (None = where Paddle is), in float32; afterwards everything is as it was."""
    paddle.get_device()  # settles Paddle's own default, which the guard would otherwise restore as "none"
    try:
        place = None if device is None else paddle.device._convert_to_place(device)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"device {device!r} cannot be used by this Paddle: {error}") from error
    # The guard leaves static mode and brings a table of names of its own: later layers of the caller get the
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
