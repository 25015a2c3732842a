"""Shards of a checkpoint in the format of torch.distributed.checkpoint, each rank's by itself.

`__<rank>_0.distcp` holds the parts of one rank, `__<rank>.metadata` (a pickle of torch's Metadata) says what they are
parts of. torch's own `save` plans and ends with messages between the ranks, which must not pass beside those of the
training; nothing here sends any, so a rank may write while it trains. Reading takes all the metadata as one, hence any
number of ranks reads what another number wrote.
"""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from nexa_dist.errors import NexaError


def write(folder: Path, rank: int, state: dict[str, Any]) -> None:
    """This rank's parts of the DTensors of `state`, and whatever else it holds, under names of this rank's."""
    planner, writer = (
        DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
        FileSystemWriter(folder, sync_files=False),
    )
    planner.set_up_planner(state, is_coordinator=True)
    writer.set_up_storage_writer(True, rank=rank, use_collectives=False)
    plans, metadata = create_default_global_save_plan([writer.prepare_local_plan(planner.create_local_plan())])
    written = writer.write_data(planner.finish_plan(plans[0]), planner)
    written.wait()
    metadata.storage_data = {one.index: one.storage_data for one in written.value()}
    (folder / f"__{rank}.metadata").write_bytes(pickle.dumps(metadata))


def read(folder: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of `state` in place, and replace its other values. Raises NexaError where a part is missing."""
    with warnings.catch_warnings(action="ignore"):  # that nothing is sent
        load(
            state,
            storage_reader=_AllRanks(folder),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            no_dist=True,
        )


class _AllRanks(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """That of every rank as one."""
        whole = Metadata({}, storage_data={}, storage_meta=StorageMeta(load_id=self.load_id))
        for path in sorted(Path(self.path).glob("__*.metadata")):
            part = super().read_metadata(rank=path.stem.removeprefix("__"))
            whole.storage_data |= part.storage_data
            for name, entry in part.state_dict_metadata.items():
                known = whole.state_dict_metadata.setdefault(name, entry)
                if isinstance(known, TensorStorageMetadata) and isinstance(entry, TensorStorageMetadata):
                    known.chunks += [chunk for chunk in entry.chunks if chunk not in known.chunks]
        for name, entry in whole.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                there, all_of_it = sum(math.prod(chunk.sizes) for chunk in entry.chunks), math.prod(entry.size)
                if there != all_of_it:
                    raise NexaError(f"checkpoint {self.path}: {there} of {all_of_it} values of {name} are there")
        return whole
