"""Checkpoints of which every rank writes a part: whole on all nodes together, or absent. See shards/cover.py."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nexa_dist.errors import NexaError
from nexa_dist.train import checkpoint, progress
from nexa_dist.train.env import RankEnv
from nexa_dist.train.fence import Superseded
from nexa_dist.train.keeper import KEEP, Keeper
from nexa_dist.train.shards.cover import KEY, Cover, Part, cover, describe, part_of
from nexa_dist.train.shards.ranks import Move, Ranks
from nexa_dist.train.shards.store import Store

Held = dict[tuple[int, str], Part]
"""By node and folder."""


class ShardKeeper:
    """Every rank makes one, after control.join(env), and makes the same calls in the same order: each is a collective,
    in groups of its own. What one rank cannot do is the same NexaError on all.

    A step is a folder of the same name on every node: the files that its ranks wrote, and (`NEXA_REPLICAS`) those of
    the nodes before it. Its manifest says what all nodes have, and is written when all files are there.
    """

    def __init__(self, env: RankEnv) -> None:
        self._env, self._ranks = env, Ranks(env)
        self._all = self._ranks.everyone
        store = Store(env, self._ranks, KEEP)
        store.look()
        self._keeper = Keeper(env, store) if self._ranks.leads else None
        kept = store.shared or store.in_bucket
        wanted = env.replicas if env.replicas is not None else 0 if kept else 1
        self.replicas = min(wanted, len(self._ranks.nodes) - 1)
        """Other nodes that have the files of each."""
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self) -> tuple[int, Path] | None:
        """Step and folder on this node, with all files of the step; None for a fresh start.

        The newest step that the nodes hold together is taken; what a node lacks of it comes from the others. Where
        NEXA_RESUME_FROM names a step, that one, or NexaError.
        """
        env, given = self._env, self._env.resume_from
        near = [env.checkpoints] if given is None else [*dict.fromkeys((given.parent, env.checkpoints))]
        steps = self._ranks.on_leaders(lambda: checkpoint.steps(env.checkpoints) if given is None else [_step_of(env)])
        for step in sorted({step for found in steps for step in found}, reverse=True):
            held = self._look(step, near)
            found = cover(held)
            if isinstance(found, str) and given is not None:
                held |= self._look(step, [env.durable] if env.durable else [])
                found = cover(held)
            if isinstance(found, Cover):
                return step, self._complete(step, {key: p for key, p in held.items() if p.digest == found.digest})
            if given is not None:
                raise NexaError(f"checkpoint of step {step} is not whole: {found}", hint="resume from an older one")
            if env.rank == 0:
                print(f"skipped checkpoint of step {step}: {found}", flush=True)
        return None

    def _look(self, step: int, roots: Iterable[Path]) -> Held:
        """What every node holds of a step; what is damaged is said and left out."""

        def mine() -> dict[str, Part]:
            found = {}
            for path in (root / checkpoint.step_name(step) for root in roots):
                if path.is_dir():
                    problems = checkpoint.verify(path)
                    part = None if problems else part_of(checkpoint.manifest(path))
                    if part is not None:
                        found[str(path)] = part
                    else:
                        why = problems[0] if problems else "it is not of a backend that saves in shards"
                        print(f"skipped checkpoint {path}: {why}", flush=True)
            return found

        answers = self._ranks.on_leaders(mine)
        return {(node, path): part for node, parts in enumerate(answers) for path, part in parts.items()}

    def _complete(self, step: int, held: Held) -> Path:
        """The folder on this node that has all files of the step, made where there is none. `held` is of one save."""
        (source, known), *_ = held
        answers = self._ranks.on_leaders(lambda: checkpoint.manifest(Path(known)) if self._ranks.node == source else {})
        manifest, node = answers[source], self._ranks.node
        of, names = manifest[KEY]["of"], sorted(manifest[KEY]["of"])
        have: list[dict[str, Path]] = [{} for _ in self._ranks.nodes]
        whole: list[Path | None] = [None for _ in self._ranks.nodes]
        for (at, path), part in held.items():
            have[at] |= {names[number]: Path(path) for number in part.has}
            whole[at] = whole[at] or (Path(path) if part.is_all else None)
        if all(whole):
            return whole[node] or Path()
        moves = []
        for turn, name in enumerate(names):
            sources = [at for at, mine in enumerate(have) if name in mine]
            takers = [at for at, mine in enumerate(have) if whole[at] is None and name not in mine]
            moves += [self._ranks.carry(name, of[name], sources[turn % len(sources)], at, turn) for at in takers]
        if self._env.rank == 0:
            size = sum(move.bytes for move in moves)
            print(f"step {step}: {len(moves)} files ({size / 1e6:.1f} MB) go to nodes that lack them", flush=True)

        def link(temp: Path) -> None:
            for name, folder in have[node].items():
                checkpoint.link(folder / name, temp / name)

        with self._folder(step) as temp:
            self._ranks.on_leaders(lambda: link(temp) if whole[node] is None else None)
            self._all.agree(lambda: self._all.move(moves, temp, lambda name: have[node][name] / name))
            made = self._close(temp, manifest, skip=whole[node] is not None)
        return whole[node] or made

    @contextlib.contextmanager
    def _folder(self, step: int) -> Iterator[Path]:
        """The unfinished folder that the ranks of this node share; gone in the end, unless it got its name."""
        root, fence = self._env.checkpoints, self._env.fence
        made = self._ranks.on_leaders(lambda: str(checkpoint.begin(root, step, fence)))
        try:
            yield Path(made[self._ranks.node])
        finally:
            if self._ranks.leads:
                fence.sweep(root)

    def _close(self, temp: Path, body: Mapping[str, Any], *, skip: bool = False) -> Path:
        """The manifests, once all files of all nodes are there, and the name. Returns the folder on this node."""
        of, final = body[KEY]["of"], self._env.checkpoints / checkpoint.step_name(body["step"])
        known = {key: value for key, value in body.items() if key not in ("files", "sha256", KEY)}

        def seal() -> None:
            files = {name: of[name] for name in checkpoint.names(temp)}
            checkpoint.seal(temp, {**known, "files": files, KEY: body[KEY]})

        self._ranks.on_leaders(lambda: None if skip else seal())
        self._ranks.on_leaders(lambda: None if skip else checkpoint.put(temp, final, self._env.fence) and None)
        return final

    def begin(self, step: int) -> None:
        """Locks older attempts out of every place; `step` is where this one starts (0: from nothing)."""
        self._ranks.on_leaders(lambda: self._keeper.begin(step) if self._keeper else None)

    def save(self, step: int, fill: Callable[[Path], None], *, later: bool = False) -> None:
        """`fill(folder)` writes this rank's files under names that no other rank uses, into a folder that the ranks of
        a node share. `later`: in a thread, so that `fill` may read only what nobody changes; one at a time."""
        self.settle()
        if not later:
            self._save(step, fill)
            return
        self._writer = threading.Thread(target=self._try_to_save, args=(step, fill), daemon=True, name="save")
        self._writer.start()

    def settle(self) -> None:
        """Wait for the save in the background, and raise what it raised."""
        if self._writer is not None:
            self._writer.join()
        self._writer, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def _try_to_save(self, step: int, fill: Callable[[Path], None]) -> None:
        try:
            self._save(step, fill)
        except BaseException as error:  # handed to the main thread, which asks for it
            self._error = error

    def _save(self, step: int, fill: Callable[[Path], None]) -> None:
        env, keeper = self._env, self._keeper
        try:
            progress.note(saving=True)
            self._ranks.on_leaders(lambda: keeper.check() if keeper else None)
            with self._folder(step) as temp:
                self._all.agree(lambda: fill(temp))
                shards = self._hashed(step, temp)
                self._all.agree(lambda: self._all.move(self._copies(shards), temp, lambda name: temp / name))
                meta = {"world_size": env.world_size, "run_id": env.run_id, "attempt": env.attempt, KEY: shards}
                path = self._close(temp, {"version": checkpoint.VERSION, "step": step, **meta})
            self._ranks.on_leaders(lambda: keeper.is_saved(step, path) if keeper else None)
        except NexaError as error:
            kind = Superseded if isinstance(error, Superseded) else NexaError
            raise kind(f"checkpoint at step {step} was not saved: {error}", hint=error.hint) from error
        finally:
            progress.note(saving=False)

    def _hashed(self, step: int, temp: Path) -> dict[str, Any]:
        """`shards` of the manifest. The ranks of a node share the hashing of its files."""
        nodes, mine = self._ranks.nodes, self._ranks.nodes[self._ranks.node]
        share = checkpoint.names(temp)[self._env.local_rank :: len(mine)]
        hashed = self._all.agree(lambda: {name: checkpoint.sync_and_hash(temp / name) for name in share})
        of: dict[str, Any] = {}
        for rank, files in enumerate(hashed):
            for name, about in files.items():
                if of.setdefault(name, about) != about:
                    raise NexaError(f"rank {rank}'s node wrote another {name} than a node before it")
        wrote = [[name for rank in ranks for name in hashed[rank]] for ranks in nodes]
        return describe(step, of, wrote, [len(ranks) for ranks in nodes])

    def _copies(self, shards: Mapping[str, Any]) -> list[Move]:
        """Every node's files to the nodes after it."""
        of, wrote = shards["of"], shards["nodes"]
        moves: dict[tuple[str, int], Move] = {}
        for distance in range(1, self.replicas + 1):
            for source, names in enumerate(wrote):
                target = (source + distance) % len(wrote)
                for turn, name in enumerate(names):
                    if name not in wrote[target]:
                        moves.setdefault((name, target), self._ranks.carry(name, of[name], source, target, turn))
        return list(moves.values())

    def stopped(self, step: int, signal_at: float) -> None:
        """Wait for the saves after a stop, and say on rank 0 what came of them. `signal_at` is of time.monotonic()."""
        self.settle()
        self._say(lambda keeper: keeper.stopped(step, signal_at))

    def finish(self, step: int, resumed_from: Path | None) -> dict[str, Any]:
        """Wait for the saves after the last step. `checkpoint` of result.json on rank 0, empty elsewhere.
        `resumed_from` is given where nothing was left to train, so that nothing was saved here."""
        self.settle()
        if resumed_from is not None:
            self._ranks.on_leaders(lambda: self._keeper.adopt(resumed_from) if self._keeper else None)
        self._say(lambda keeper: keeper.finish())
        if self._keeper is None or self._env.rank != 0:
            return {}
        saved = self._keeper.describe(step)
        return {
            **saved,
            "digest": checkpoint.manifest(Path(saved["path"]))[KEY]["digest"],
            "nodes": len(self._ranks.nodes),
        }

    def _say(self, what: Callable[[Keeper], str]) -> None:
        said = self._ranks.on_leaders(lambda: what(self._keeper) if self._keeper else "")
        if self._env.rank == 0:
            print(said[0], flush=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """result.json of the run folder, by rank 0."""
        if self._keeper and self._env.rank == 0:
            self._keeper.write_result(result)


def _step_of(env: RankEnv) -> int:
    assert env.resume_from is not None
    step = checkpoint.step_of(env.resume_from)
    if step is None or env.resume_step not in (None, step):
        raise NexaError(f"{env.resume_from} is no checkpoint of step {env.resume_step}")
    return step
