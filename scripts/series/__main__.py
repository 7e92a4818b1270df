# SPDX-License-Identifier: Apache-2.0
"""`python -m series`."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    message = "error: this is Python %d.%d, the tool needs 3.10 or newer; set PYTHON="
    print(message % sys.version_info[:2], file=sys.stderr)
    sys.exit(2)

from .cli import main

sys.exit(main())
