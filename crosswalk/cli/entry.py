"""Where the installed commands begin: Ctrl-C is understood before anything else is imported, and after all is said."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys


def crosswalk() -> None:
    """``crosswalk``."""
    _start("commands")


def compile_mappings() -> None:
    """``compile-mappings``."""
    _start("build")


def _start(module: str) -> None:
    # numpy only copies here: the threads that it starts for linear algebra would spin on the cores that move the bytes.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code: object = 130
    try:
        importlib.import_module(f"crosswalk.cli.{module}").main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
    except SystemExit as ended:
        code = ended.code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to break off but the end of the interpreter
    gc.freeze()  # or the interpreter would look for cycles first, in all that ends with it: a tenth of a short command
    raise SystemExit(code)
