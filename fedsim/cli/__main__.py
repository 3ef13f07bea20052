"""``python -m fedsim.cli``."""

from fedsim.cli.main import main

main()
