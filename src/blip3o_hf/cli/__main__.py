"""`python -m blip3o_hf.cli`, the same as the command `blip3o-hf`."""

import sys

from . import main

sys.exit(main())
