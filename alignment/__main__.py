"""`python -m alignment` is `visalign`."""

import sys

from alignment.cli.main import main

sys.exit(main())
