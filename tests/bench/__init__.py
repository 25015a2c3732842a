"""What scripts/bench_* run; of the launch bench two hosts, launchers, the job, the fan-out; train/: of the backends."""

from tests.state import own_places

own_places()
