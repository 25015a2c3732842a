"""The way of a sharded checkpoint to what outlives the nodes: each node brings its files, the manifest comes last."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.train import checkpoint
from nexa_dist.train.durable import Durable
from nexa_dist.train.env import RankEnv
from nexa_dist.train.shards import cover
from nexa_dist.train.shards.ranks import Ranks


class Store(Durable):
    """The stores of one run, for the first rank of each node: `enter` and `put` are collectives of these.

    In the bucket, and in a durable folder that all nodes see, the files of all nodes lie together, so that it is a
    checkpoint like any other. Where each node has a durable folder of its own, there is a copy of what the node has.
    """

    def __init__(self, env: RankEnv, ranks: Ranks, keep: int) -> None:
        super().__init__(env, keep)
        self._ranks, self._leaders = ranks, ranks.leaders
        self._first = env.rank == 0
        self.shared = False
        """Whether all nodes see one durable folder."""

    def look(self) -> None:
        """Find out about the folder. A collective of all ranks."""
        if (root := self._env.durable) is None:
            return

        def mark() -> str:
            if not self._first:
                return ""
            try:
                root.parent.mkdir(parents=True, exist_ok=True)
                return Path(tempfile.mkdtemp(prefix=f".tmp-{self._env.attempt}-seen-", dir=root.parent)).name
            except OSError:  # then nobody sees it; what the store cannot do is said when it is used
                return ""

        name = self._ranks.on_leaders(mark)[0]
        self.shared = all(self._ranks.on_leaders(lambda: bool(name) and (root.parent / name).is_dir()))
        self._ranks.on_leaders(
            lambda: shutil.rmtree(root.parent / name, ignore_errors=True) if self._first and name else None
        )

    def enter(self) -> int | None:
        def mine() -> int | None:
            if self._first:
                return super(Store, self).enter()
            return None if self.shared or self._env.durable is None else self._enter_folder()

        steps = self._leaders.agree(mine)
        return steps[0] if self.shared or self._env.durable is None else min(step or 0 for step in steps) or None

    def put(self, path: Path) -> None:
        manifest = checkpoint.manifest(path)
        if self.shared:
            self._put_together(path, cover.union(manifest))
        elif self._env.durable is not None:
            self._leaders.agree(lambda: self._put_folder(path))
        if self.in_bucket:
            step = f"{manifest['step']:08d}"
            with tempfile.TemporaryDirectory(dir=self._env.run_dir) as scratch:
                own = self._linked(path, Path(scratch) / f"step_{step}", self._own(manifest))
                self._leaders.agree(lambda: self._sync("part", self._env.run_id, str(own)))
                checkpoint.seal(own, cover.union(manifest))
                self._leaders.agree(self._if_first(lambda: self._sync("seal", self._env.run_id, str(own))))

    def _put_together(self, path: Path, whole: dict[str, Any]) -> None:
        root, env_fence = self._env.durable, self._env.fence
        assert root is not None
        target = root / path.name

        def begin() -> str:
            there = self._first and target.is_dir() and not checkpoint.verify(target)
            if there and checkpoint.digest(target) == checkpoint.digest_of(whole):
                return ""
            return checkpoint.begin(root, whole["step"], env_fence).name if self._first else ""

        name = self._leaders.agree(begin)[0]
        if not name:
            return
        temp = root / name

        def bring() -> None:
            for name in self._own(whole):
                into = temp / name
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, into)
                if checkpoint.sync_and_hash(into) != whole["files"][name]:
                    raise NexaError(f"checkpoint copy {target}: {name} is damaged", hint="check the disk")

        def place() -> None:
            checkpoint.seal(temp, whole)
            checkpoint.put(temp, target, env_fence)
            checkpoint.prune(root, self._keep, env_fence)

        try:
            self._leaders.agree(bring)
            self._leaders.agree(self._if_first(place))
        finally:
            if self._first:
                env_fence.sweep(root)

    def _own(self, manifest: dict[str, Any]) -> list[str]:
        """Files that this node brings: those that it wrote, unless a node before it wrote the same."""
        nodes = manifest[cover.KEY]["nodes"]
        before = {name for names in nodes[: self._ranks.node] for name in names}
        return [name for name in nodes[self._ranks.node] if name not in before]

    def _linked(self, source: Path, into: Path, names: list[str]) -> Path:
        into.mkdir()
        for name in names:
            checkpoint.link(source / name, into / name)
        return into

    def _if_first(self, act: Callable[[], object]) -> Callable[[], object]:
        return act if self._first else lambda: None
