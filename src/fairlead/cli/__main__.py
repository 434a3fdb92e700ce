"""`python -m fairlead.cli`, for places where the script is not on the path."""

from __future__ import annotations

import sys

from fairlead.cli import main

sys.exit(main())
