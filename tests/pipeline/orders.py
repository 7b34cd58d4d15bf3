"""Who is to stand still: a file that says so, and one by whoever has taken it. For hanging.py and test_hangs.py."""

import os
import tempfile
from pathlib import Path

ORDERS = Path(tempfile.gettempdir()) / f"g1-ray-hang-{os.getuid()}"
TAKEN = ORDERS.with_suffix(".taken")
