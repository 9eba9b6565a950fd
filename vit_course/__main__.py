"""`python -m vit_course …`, which is the command `vit-course …`; `accelerate launch -m vit_course …` too."""

import sys

from vit_course.cli import main

if __name__ == "__main__":  # workers that are started by spawn import this module
    sys.exit(main())
