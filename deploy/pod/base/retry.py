"""How long laptop and machine retry, in seconds: pauses between attempts, and the patience of a whole series.

Two files have their own pauses, because they run without this one: deploy/pod/image/init.py and
deploy/pod/watchdog/release.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

# A lost SSH connection. Short at first, to reconnect within three seconds of the network's return; then longer,
# because a busy machine may need the time.
CONNECT_LIMITS_S = (2.0, 2.0, 3.0, 5.0, 10.0)
CONNECT_PAUSES_S = (0.1, 0.2, 0.5, 1.0)
CONNECT_PATIENCE_S = 60.0
FIRST_PATIENCE_S = 10.0  # a machine that was never reached is more likely the wrong one than one with a short outage
OTHERS_PATIENCE_S = 20.0  # for a machine other than rank 0's
FOLLOW_PATIENCE_S = 3600.0  # for a followed job: the laptop may sleep, and the job runs on without it
LANE_PAUSES_S = (0.3, 0.6, 0.9, 1.2)  # a connection of a copy, then fails

# A range of a data set, then fails; received bytes start over.
DOWNLOAD_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)

API_PAUSES_S = (1, 2, 4, 8, 16, 30)  # a call of a provider's API
# A new machine: a warm one is ready at once, an image pull takes minutes.
MACHINE_POLLS_S = (2, 2, 2, 5, 5, 5, 5, 10)
ELSEWHERE_PAUSES_S = (15, 30, 60, 120, 300)  # another machine for a run that was lost


def endless(pauses_s: Sequence[float]) -> Iterator[float]:
    """Yield each pause, then the last one for ever."""
    return itertools.chain(pauses_s, itertools.repeat(pauses_s[-1]))
