"""Run seeds by hand: see --help."""

from tests.simulation.command import main

main()
