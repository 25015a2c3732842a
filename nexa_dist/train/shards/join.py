"""A node's files of a sharded step, put to those that another node has of it. Standard library only."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from nexa_dist.errors import NexaError
from nexa_dist.train import checkpoint
from nexa_dist.train.fence import OPEN
from nexa_dist.train.shards.cover import KEY


def join(part: Path, root: Path) -> Path:
    """Move the files of `part`, a whole folder of a step, into that of the same step in `root`; returns that.

    Where that one is damaged, or of another save, it is replaced. Raises NexaError when `part` is damaged.
    """
    if problems := checkpoint.verify(part):
        raise NexaError(f"checkpoint {part} is damaged: {problems[0]}")
    body = checkpoint.manifest(part)
    folders, own = [part], root / part.name
    if own.is_dir() and not checkpoint.verify(own):
        same = checkpoint.identity(checkpoint.manifest(own)) == checkpoint.identity(body)
        folders += [own] if same else []
    known = {key: value for key, value in body.items() if key not in ("files", "sha256", KEY)}
    temp = checkpoint.begin(root, body["step"])
    try:
        for folder in folders:
            for name in checkpoint.manifest(folder)["files"]:
                if not (temp / name).exists():
                    checkpoint.link(folder / name, temp / name)
        files = {name: body[KEY]["of"][name] for name in checkpoint.names(temp)}
        checkpoint.seal(temp, {**known, "files": files, KEY: body[KEY]})
        made = checkpoint.put(temp, own)
    finally:
        OPEN.sweep(root)
    shutil.rmtree(part)
    return made


if __name__ == "__main__":
    try:
        print(join(Path(sys.argv[1]), Path(sys.argv[2])))
    except NexaError as error:
        sys.exit(f"error: {error}")
