"""Make the images of the tests, or say why there can be none."""

from __future__ import annotations

import sys

from tests.support import images

try:
    print(images.our_image())
except images.NoDocker as reason:
    sys.exit(str(reason))
