"""`python -m qianyi`."""

from qianyi.cli.main import main

main()
