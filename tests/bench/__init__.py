"""What the launch bench runs: two hosts, launchers, the job, the fan-out."""
