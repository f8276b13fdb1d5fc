"""Tables, figures and pages from the files of runs."""

import os
import sys
from contextlib import suppress

# A notebook passes MPLBACKEND on to the commands that it starts. Matplotlib cannot be imported where that backend is
# missing, and no figure here needs it.
_backend = os.environ.get("MPLBACKEND")
if _backend and "matplotlib" not in sys.modules:
    del os.environ["MPLBACKEND"]
    try:
        import matplotlib as mpl
    finally:
        os.environ["MPLBACKEND"] = _backend
    with suppress(ValueError):  # it is missing
        mpl.rcParams["backend"] = _backend  # for later figures of the user
