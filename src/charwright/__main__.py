"""`python -m charwright` is `charwright`."""

from charwright.cli import main

main()
