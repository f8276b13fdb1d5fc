"""Tables, figures and pages from the files of runs."""

import os
from importlib.util import find_spec

# A notebook passes MPLBACKEND on to the commands it starts. Without that backend's package, matplotlib's import fails.
_backend = os.environ.get("MPLBACKEND", "").partition("module://")[2].partition(".")[0]
if _backend and find_spec(_backend) is None:
    del os.environ["MPLBACKEND"]
