"""Everything that knows `paddle.Model`."""
