"""`python -m fastlif`, the command `fastlif`."""

from fastlif.cli import main

if __name__ == "__main__":
    main()
