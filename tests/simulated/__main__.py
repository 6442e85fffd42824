"""`python -m tests.simulated MODULE ARG ...`: `python -m MODULE ARG ...` on the simulated device, which computes.

For example `python -m tests.simulated parity --device cuda --quick`.
"""

import sys
import tempfile
from pathlib import Path

from tests.simulated import device


def main() -> int:
    if why := device.missing():
        print(why, file=sys.stderr)
        return 2
    module, *arguments = sys.argv[1:]
    program = f"import tests.simulated.computing, runpy, sys; sys.argv[1:] = {arguments!r}; "
    program += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    with tempfile.TemporaryDirectory() as folder:
        result = device.run(["-W", "ignore", "-c", program], device.build(Path(folder)), computing=True)
    print(result.stdout, end="")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
