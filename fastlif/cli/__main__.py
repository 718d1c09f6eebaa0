"""`python -m fastlif.cli`."""

from fastlif.cli import main

main()
