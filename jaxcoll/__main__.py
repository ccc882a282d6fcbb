"""The command line: ``jaxcoll COMMAND`` or ``python -m jaxcoll COMMAND``."""

import sys

from jaxcoll._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
