"""Weights & Biases when train.yaml does not say: on for a script that uses it, when its key is there."""

from __future__ import annotations

import os
import re

from nexa_dist.config.train import TrainConfig
from nexa_dist.ops.context import Context
from nexa_dist.run.code.listing import listed, shown

KEY = "WANDB_API_KEY"
MARKS = (b"wandb", b"trainingarguments")
"""Marks of wandb in a script; also those of transformers, which reports to all that is installed."""
TEXTS = (".py", ".yaml", ".yml", ".toml", ".json", ".cfg")
_COMMENT = re.compile(rb"^\s*#.*$", re.MULTILINE)
MOST_BYTES = 1 << 20
"""Bytes of the largest file that is looked into: code is not longer."""
MOST_FILES = 5000


def settled(ctx: Context, config: TrainConfig) -> TrainConfig:
    """The same training with `wandb` decided, which is said where there is a key or a use for one."""
    if config.wandb is not None or {"WANDB_MODE", "WANDB_DISABLED"} & set(config.env):
        return config
    key, by = bool(os.environ.get(KEY)), "" if config.backend else used_by(ctx, config)
    if key and by:
        ctx.say(f"wandb: online, since {KEY} is there and {shown(by)} may use it; wandb: off in train.yaml silences it")
    elif key:
        ctx.say(f"wandb: off, since nothing asks for it; {KEY} is there, wandb: online in train.yaml uses it")
    elif by:
        ctx.say(f"wandb: off, since there is no {KEY}, though {shown(by)} may use it; wandb: offline keeps its files")
    return config.model_copy(update={"wandb": "online" if key and by else "off"})


def used_by(ctx: Context, config: TrainConfig) -> str:
    """Argument or file of the project that speaks of wandb; the script is looked at first."""
    if any(b"wandb" in word.lower().encode() for word in config.args):
        return "args"
    files = listed(ctx.runner, ctx.workspace.root, config.files).files
    names = sorted((name for name in files if name.endswith(TEXTS)), key=lambda name: (name != config.script, name))
    for name in names[:MOST_FILES]:
        path = files[name][1]
        try:
            if path.is_file() and path.stat().st_size <= MOST_BYTES:
                text = path.read_bytes().lower()
                if not name.endswith(".py"):  # train.yaml of nexa init has a word about wandb too
                    text = _COMMENT.sub(b"", text)
                if any(mark in text for mark in (MARKS if name.endswith(".py") else MARKS[:1])):
                    return name
        except OSError:  # the launch itself says that it cannot be read
            continue
    return ""
