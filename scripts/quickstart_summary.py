"""The last words of scripts/quickstart: what was made, what it would have cost, where it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(seconds: float) -> int:
    manifest_path = max(Path("runs/manifests").glob("*.json"), key=lambda path: path.stat().st_mtime)
    manifest = json.loads(manifest_path.read_text())
    report, nodes = manifest["eval_report"], manifest["hardware"]["nodes"]
    hours = nodes * seconds / 3600
    print(f"model       {manifest['model']}, {manifest['hardware']['world_size']} ranks on {nodes} nodes")
    print(
        f"loss        {report['train_loss_first']:.2f} → {report['train_loss_last']:.2f} nats; held out "
        f"{report['eval_loss_nats']:.2f}, unigram entropy {report['unigram_entropy_nats']:.2f}"
    )
    print(
        f"cost        {manifest['cost_usd']:.2f} USD here; {hours:.3f} node-hours, so that many USD at 1 USD/h a node"
    )
    print(f"checkpoint  {Path(manifest['checkpoint']['path'])}")
    print(f"logs        {manifest['logs']}")
    print(f"manifest    {manifest_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
