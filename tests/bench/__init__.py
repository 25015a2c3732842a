"""What the launch bench runs: two hosts, launchers, the job, the fan-out."""

from tests.state import own_state

own_state()
