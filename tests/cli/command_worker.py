"""A command of the package as a script that launchers can start: ``command_worker.py WORD...``."""

import sys

from selftrain.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
