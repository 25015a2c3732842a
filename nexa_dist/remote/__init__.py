"""Programs that are sent to a host on stdin: each whole by itself, of the standard library (ranks: and torch)."""

from pathlib import Path

DATA_STORE = Path(__file__).with_name("data_store.py")
ENVIRONMENTS = Path(__file__).with_name("environments.py")
FOOTPRINT = Path(__file__).with_name("footprint.py")
GROUP_TEST = Path(__file__).with_name("group_test.py")
SNAPSHOT = Path(__file__).with_name("snapshot.py")
IMAGES = Path(__file__).with_name("images.py")
