"""`python -m alignment` is `visalign`."""

import sys

from alignment.cli import main

sys.exit(main())
