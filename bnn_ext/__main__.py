"""`python -m bnn_ext`: what is installed, and a self-test."""

import sys

from bnn_ext.diagnostics import main

sys.exit(main())
