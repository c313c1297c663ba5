"""`python -m toolkit.cli VERB …`, as launchers start it; people type `pollard VERB …`."""

import sys

from toolkit.cli.main import main

sys.exit(main())
