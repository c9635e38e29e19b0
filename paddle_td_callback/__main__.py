"""`python -m paddle_td_callback` is `paddle-td`."""

import sys

from .cli import main

sys.exit(main())
