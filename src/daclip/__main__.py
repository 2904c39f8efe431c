"""`python -m daclip`, the same as `daclip`."""

from daclip.cli import main

main()
