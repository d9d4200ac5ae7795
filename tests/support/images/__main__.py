"""Build the images of the tests, or print why that is impossible here."""

from __future__ import annotations

import sys

from tests.support import images

try:
    print(images.our_image())
except images.NoDocker as reason:
    sys.exit(str(reason))
