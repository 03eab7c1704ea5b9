"""Makes `python -m visual_ar` the same as `visual-ar`."""

from visual_ar.cli.main import main

if __name__ == "__main__":
    main()
