"""The command line: every verb with its options. `nexa --help` reads this file and _parser.py alone, so they import
nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

from nexa_dist import __version__
from nexa_dist.verbs._parser import Parser, Top

COMMON: dict[str, dict[str, Any]] = {
    "--cluster": {"metavar": "NAME|FILE", "help": "may be left out when one cluster is known"},
    "--json": {"action": "store_true", "help": "machine-readable output on stdout"},
    "--set": {
        "action": "append", "default": [], "metavar": "a.b=c",
        "help": "override a value of the file; a.b=[c, d] replaces a list, a.b+=c adds to it",
    },
    "--plan": {
        "metavar": "v1|v2|v3|v4|FILE",
        "help": "lay a compute plan over the file, under --set: stability, performance, full, production, or your own",
    },
    "--yes": {"action": "store_true", "help": "do not ask"},
}  # fmt: skip
"""Options that mean the same wherever they are."""
METHODS = ("hf", "acc", "ds", "ds-cpu", "ax", "ax-fsdp", "ax-qlora")
"""Those of plan/fit/method.py, which is not imported here."""
Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Top(
        prog="nexa",
        description="Rent GPU nodes, train on all of them, give everything back.",
        epilog="exit codes: 0 done, 1 failed, 2 bad usage or config, 3 over budget or time, "
        "4 something may still be running",
    )
    top.add_argument("--version", action="version", version=f"nexa {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    groups = (_files, _made, _looked_at, _ended, _kept, _begun, _read, _brought, _taken, _served, _money, _chained)
    for add in groups:
        add(verbs)
    return top


def _files(verbs: Verbs) -> None:
    init = verbs.add_parser("init", help="write a commented cluster.yaml and train.yaml to start from")
    init.add_argument("folder", nargs="?", default=".", metavar="DIR")
    _dry(init, "print which files would be written")

    config = verbs.add_parser("config", help="show a config file as resolved, or every error in it")
    config.add_argument("file", nargs="?", metavar="FILE", help="a cluster or train file")
    schemas = ("cluster", "train", "manifest", "pipeline", "stage")
    config.add_argument("--schema", choices=schemas, help="print the JSON Schema instead")
    _common(config, "--plan", "--set", "--json")


def _made(verbs: Verbs) -> None:
    plan = verbs.add_parser("plan", help="what would be made, where and for how much; changes nothing")
    plan.add_argument("--cluster", required=True, metavar="FILE")
    plan.add_argument("-o", "--out", metavar="PLAN", help="save it for nexa provision --plan")
    plan.add_argument("--for", metavar="TRAIN.yaml", dest="train", help="whether that training fits; no plan if not")
    plan.add_argument("--offline", action="store_true", help="only the bill, from the price book; nobody is asked")
    _common(plan, "--set", "--json")

    provision = verbs.add_parser("provision", help="make the nodes, bootstrap them, prove that they work")
    provision.add_argument("--cluster", metavar="FILE")
    provision.add_argument("--plan", metavar="PLAN", help="apply exactly what nexa plan -o saved")
    provision.add_argument("--for", metavar="TRAIN.yaml", dest="train", help="its environment too, before any run")
    _common(provision, "--yes", "--set", "--json")
    _dry(provision, "print what would be made and run; nobody is asked")


def _looked_at(verbs: Verbs) -> None:
    status = verbs.add_parser("status", help="clusters, their nodes and active runs, as they are now")
    _common(status, "--cluster", "--json")

    ssh = verbs.add_parser("ssh", help="a shell (or a command) on a node")
    ssh.add_argument("--cluster", metavar="NAME|FILE")
    ssh.add_argument("node", nargs="?", default="", metavar="NODE", help="may be left out when there is one")
    ssh.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")

    diag = verbs.add_parser("diag", help="what is wrong with which node or link; exit 1 when something is")
    diag.add_argument("cluster", nargs="?", metavar="CLUSTER", help="may be left out when one cluster is known")
    diag.add_argument("--deep", action="store_true", help="longer: disks too, and every pair of nodes for longer")
    diag.add_argument("--picture", metavar="FILE.svg", help="what each node sends to each other one, drawn")
    _common(diag, "--json")
    _dry(diag, "print which nodes would be asked and tested")


def _ended(verbs: Verbs) -> None:
    teardown = verbs.add_parser("teardown", help="destroy a cluster and prove that nothing is left")
    _common(teardown, "--cluster", "--yes")
    _dry(teardown, "print what would go")
    teardown.add_argument(
        "--without", action="append", default=[], metavar="NODE", help="a host of your own that is gone for good"
    )
    teardown.add_argument(
        "--keep-nothing", action="store_true", help="end it also where checkpoints or outputs are nowhere else"
    )
    teardown.add_argument("--delete-bucket", action="store_true", help="the durable bucket too, with all that is in it")
    _common(teardown, "--json")

    sweep = verbs.add_parser("sweep", help="what is yours in every region of the cloud, orphans marked")
    sweep.add_argument("--delete", action="store_true", help="end the orphans")
    sweep.add_argument("--region", action="append", default=[], metavar="REGION", help="only there; may be repeated")
    sweep.add_argument("--owner", action="append", default=[], metavar="OWNER", help="only his; may be repeated")
    _common(sweep, "--yes", "--json")
    _dry(sweep, "print what --delete would end")


def _kept(verbs: Verbs) -> None:
    image = verbs.add_parser(
        "image", help="machine images of nodes that are set up, so that later ones are ready sooner"
    )
    image.add_argument("action", choices=("bake", "list", "delete"), help="make one, show them, delete one")
    image.add_argument("image", nargs="?", metavar="AMI", help="which one to delete")
    image.add_argument("--cluster", metavar="FILE", help="whose node it is made of; whose region and owner it has")
    image.add_argument("--region", default="", metavar="REGION", help="the file's, else AWS_REGION")
    _common(image, "--yes", "--json")
    _dry(image, "print what would be rented, made or deleted")

    snap = verbs.add_parser(
        "snapshot", help="packages, driver, kernel, environment, configs, code: one file; diff of two"
    )
    snap.add_argument("action", nargs="?", choices=("diff",), help="what differs; exit 1 when something does")
    snap.add_argument("snapshots", nargs="*", metavar="A B", help="with diff: two files, or names of kept ones")
    snap.add_argument("-o", "--out", metavar="FILE", help="where it goes too (default: .nexa/snapshots)")
    _common(snap, "--cluster", "--json")
    _dry(snap, "print which nodes would be asked")

    trust = verbs.add_parser("trust", help="say that a workspace, or programs that a file of it names, are yours")
    trust.add_argument("path", nargs="?", default=".", metavar="DIR|FILE", help="the workspace (default: this folder)")
    _dry(trust, "print what would be trusted")

    notify = verbs.add_parser("notify", help="send what a run could not tell, or a test, to those that notify names")
    notify.add_argument("run", nargs="?", default="", metavar="RUN", help="without it, the newest")
    notify.add_argument("--test", action="store_true", help="one message to each of them, and what became of it")
    notify.add_argument("--from-nodes", action="store_true", help="with --test: also from every node, where it may")
    _common(notify, "--cluster", "--json")
    _dry(notify, "print who would be told what")

    completion = verbs.add_parser("completion", help="what bash, zsh or fish needs to complete words of nexa")
    completion.add_argument(
        "shell", choices=("bash", "zsh", "fish"), help='for instance: eval "$(nexa completion bash)"'
    )


def _begun(verbs: Verbs) -> None:
    before = verbs.add_parser("preflight", help="whether a training fits, how long it takes and what it costs")
    before.add_argument("train", metavar="TRAIN.yaml")
    before.add_argument("--backend", choices=METHODS, help="as if another one trained it: what would it take?")
    _common(before, "--cluster", "--plan", "--set", "--json")

    run = verbs.add_parser("run", help="start a training on every node and follow it")
    run.add_argument("train", nargs="?", metavar="TRAIN.yaml")
    run.add_argument("more", nargs="*", metavar="TRAIN.yaml", help="more of them run one after the other")
    run.usage = (
        "nexa run [TRAIN.yaml …] [--resume RUN | --from RUN] [--cluster NAME|FILE] [--set a.b=c] [options] [-- ARGS …]"
    )
    run.epilog = "what stands after -- comes after the arguments that the file has"
    _common(run, "--cluster", "--plan", "--set")
    run.add_argument(
        "--profile", dest="set", action="append", type="profile.steps={}".format, metavar="STEPS",
        help="where the time goes in so many steps, or in FIRST-LAST, of a backend of ours",
    )  # fmt: skip
    run.add_argument(
        "--image", dest="set", action="append", type="image={}".format, metavar="IMAGE",
        help="a container image that the ranks run in, by docker or podman of the nodes",
    )  # fmt: skip
    run.add_argument("--resume", metavar="RUN", help="go on with a run: take it over, or start it again")
    run.add_argument("--from", dest="origin", default="", metavar="RUN", help="run again what RUN had: code, config, …")
    run.add_argument("--anyway", action="store_true", help="--from: also where not all of it is as it was")
    run.add_argument("--detach", action="store_true", help="leave once every node runs")
    run.add_argument("--rank", default="0", metavar="N,N|all", help="ranks whose lines are shown (default: 0)")
    run.add_argument("--ignore-diag", action="store_true", help="run on nodes that the newest nexa diag found unfit")
    _dry(run, "show each node's command; the nodes are asked", "--print")
    _queued(run)
    _common(run, "--json")

    queue = verbs.add_parser("queue", help="runs one after the other on a cluster: show, add, remove, move, go on")
    actions = ("add", "remove", "move", "run")
    queue.add_argument("action", nargs="?", choices=actions, help="without one: show what it has")
    queue.add_argument(
        "more", nargs="*", metavar="TRAIN.yaml|ID", help="files to add; what to remove; ID PLACE to move"
    )
    queue.usage = "nexa queue [add TRAIN.yaml … | remove ID … | move ID PLACE | run] [options] [-- ARGS …]"
    queue.epilog = "what stands after -- comes after the arguments that a file which is added has"
    _common(queue, "--cluster", "--plan", "--set")
    _queued(queue)
    queue.add_argument("--rank", default="0", metavar="N,N|all", help="ranks whose lines are shown (default: 0)")
    queue.add_argument("--ignore-diag", action="store_true", help="run on nodes that the newest nexa diag found unfit")
    _dry(queue, "print what would be added, changed or begun")
    _common(queue, "--json")

    slurm = verbs.add_parser("slurm", help="submit a training to Slurm, as a job or an array of them")
    slurm.add_argument("action", choices=("submit",), help="put it into Slurm's queue")
    slurm.add_argument("train", metavar="TRAIN.yaml")
    slurm.usage = "nexa slurm submit TRAIN.yaml [--array 0-3%%2] [--grid a.b=x,y] [--print] [options] [-- ARGS …]"
    slurm.epilog = "what stands after -- comes after the arguments that the file has"
    slurm.add_argument("--array", metavar="0-3%%2", help="elements of an array, and how many at once")
    slurm.add_argument(
        "--grid", action="append", default=[], metavar="a.b=x,y", help="an element for each value, or combination"
    )
    _common(slurm, "--plan", "--set")
    _dry(slurm, "show the batch script, what it may cost, and when Slurm would begin it", "--print")
    _common(slurm, "--json")

    attach = verbs.add_parser("attach", help="follow a run that goes on without us")
    attach.add_argument("run", nargs="?", default="", metavar="RUN")
    attach.add_argument("--rank", default="0", metavar="N,N|all")
    _common(attach, "--json")

    stop = verbs.add_parser("stop", help="end a run on every node")
    stop.add_argument("run", nargs="?", metavar="RUN")
    stop.add_argument("--grace", type=_seconds, default=25.0, metavar="S", help="seconds for a checkpoint")
    _common(stop, "--json")
    _dry(stop, "print which run would be ended, and where")


def _brought(verbs: Verbs) -> None:
    env = verbs.add_parser("env", help="environments on the nodes: size, last use; remove those that nobody uses")
    env.add_argument("action", nargs="?", choices=("list", "prune"), default="list", help="default: list")
    _common(env, "--cluster", "--json")
    _dry(env, "print what prune would remove")


def _read(verbs: Verbs) -> None:
    _common(verbs.add_parser("runs", help="every run known here"), "--json")

    logs = verbs.add_parser("logs", help="the lines of every rank")
    logs.add_argument("run", nargs="?", default="", metavar="RUN")
    logs.add_argument(
        "--rank", default="", metavar="N,N|setup|all", help="only these ranks, or what was set up for them"
    )
    logs.add_argument("--node", metavar="NODE", help="only this node")
    logs.add_argument("--attempt", type=int, metavar="N", help="only this attempt (default: all)")
    logs.add_argument("--grep", metavar="REGEX", help="only lines that match")
    logs.add_argument("--since", metavar="5m|TIME", help="only lines of the last 30s, 5m, 2h, or since an ISO time")
    logs.add_argument("--tail", type=int, metavar="N", help="only the last N lines of each log")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    _common(logs, "--json")

    why = verbs.add_parser("why", help="which rank failed first, of what, and what mends it")
    why.add_argument("run", nargs="?", default="", metavar="RUN")
    why.add_argument("--attempt", type=int, metavar="N", help="this attempt (default: the newest that failed)")
    _common(why, "--json")

    report = verbs.add_parser("report", help="one page of a run, to be mailed: curves, attempts, time line, bill")
    report.add_argument("run", nargs="?", default="", metavar="RUN")
    report.add_argument("-o", "--out", metavar="FILE.html", help="where it goes (default: RUN.html in this folder)")
    _common(report, "--json")


def _taken(verbs: Verbs) -> None:
    pull = verbs.add_parser("pull", help="bring a run's checkpoint, result and outputs here")
    pull.add_argument("run", nargs="?", default="", metavar="RUN", help="without it, the newest")
    pull.add_argument("folder", nargs="?", default="", metavar="DIR", help="without it, runs/RUN")
    pull.add_argument("--checkpoint", default="newest", metavar="newest|STEP", help="which one (default: newest)")
    pull.add_argument("--all", action="store_true", help="also what it wrote and outputs: does not name")
    _common(pull, "--json")
    _dry(pull, "print what would be brought; the nodes are asked")
    board = verbs.add_parser("leaderboard", help="what was evaluated, the best first, with its cost beside it")
    board.add_argument("name", nargs="?", default="", metavar="NAME", help="one evaluation; without it all")
    board.add_argument("--html", metavar="FILE.html", help="also as one page that needs no network")
    _common(board, "--json")


def _served(verbs: Verbs) -> None:
    serve = verbs.add_parser("serve", help="a run's model behind OpenAI's API, and a port here that leads to it")
    serve.add_argument("what", metavar="RUN|ALIAS|DIR|stop|status|connect", help="what to serve, or what to do")
    serve.add_argument("run", nargs="?", default="", metavar="RUN", help="of stop, status, connect: which one")
    serve.add_argument("--checkpoint", default="newest", metavar="newest|STEP", help="which one (default: newest)")
    serve.add_argument("--node", default="", metavar="NODE", help="default: the first of the cluster")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="of this machine; 0: a free one (8000)")
    serve.add_argument("--engine", choices=("auto", "vllm", "transformers"), default="auto",
                       help="auto: vLLM where it has a device")  # fmt: skip
    serve.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="of the node; but for 127.0.0.1 with a key"
    )
    serve.add_argument("--key-env", default="", metavar="NAME", help="variable with the key to ask for")
    serve.add_argument("--max-model-len", type=int, metavar="N", help="longest context, in tokens (vLLM)")
    serve.add_argument("--startup-s", type=float, default=900.0, metavar="S", help="most seconds until it answers")
    serve.add_argument("--max-hours", type=float, metavar="H", help="deadline of the run")
    serve.add_argument("--budget-usd", type=float, metavar="USD", help="most that the run may cost")
    serve.add_argument("--detach", action="store_true", help="end this command once it answers")
    _common(serve, "--cluster", "--json")
    _dry(serve, "print what would be brought, started or stopped")

    promote = verbs.add_parser("promote", help="name a run's model staging or production, if it is good enough")
    promote.add_argument("run", nargs="?", default="", metavar="RUN", help="left out with --rollback and --list")
    promote.add_argument("--to", choices=("staging", "production"), help="the name")
    promote.add_argument("--checkpoint", default="newest", metavar="newest|STEP", help="which one (default: newest)")
    promote.add_argument("--min", action="append", default=[], metavar="NAME=X", help="least score; may be repeated")
    promote.add_argument("--max", action="append", default=[], metavar="NAME=X", help="most: of perplexity, for one")
    promote.add_argument("--eval", default="", metavar="FILE", help="its scores (default: newest evals/NAME_RUN.json)")
    promote.add_argument("--rollback", action="store_true", help="give the name back to what had it before")
    promote.add_argument("--list", action="store_true", help="who has which name, since when and by whom")
    _common(promote, "--json")
    _dry(promote, "print what would be promoted, and what keeps it from that")


def _money(verbs: Verbs) -> None:
    cost = verbs.add_parser("cost", help="what a cluster or a run has cost, and where that went")
    cost.add_argument("what", nargs="?", default="", metavar="CLUSTER|RUN", help="also one that is gone")
    cost.add_argument("--waste", action="store_true", help="what did not train, and what would have saved most")
    _common(cost, "--json")

    budget = verbs.add_parser("budget", help="what may be spent on a cluster and what is; more of it with extend")
    budget.add_argument("action", nargs="?", choices=("extend",), help="add USD to it")
    budget.add_argument("usd", nargs="?", type=float, metavar="USD")
    _common(budget, "--cluster", "--json")
    _dry(budget, "print what extend would change")

    timeline = verbs.add_parser("timeline", help="where the minutes of a cluster went")
    _common(timeline, "--cluster", "--json")


def _chained(verbs: Verbs) -> None:
    chain = verbs.add_parser("pipeline", help="stages from raw rows to a served model, those alone that are not done")
    chain.add_argument("action", choices=("run", "status"), help="do what is not done; or show what is")
    chain.add_argument("file", metavar="PIPELINE.yaml", help="a pipeline, or one stage.yaml or train.yaml")
    _common(chain, "--cluster", "--json")
    _dry(chain, "print what would be done")

    data = verbs.add_parser("data", help="versions of what stages made: their content, differences, damage")
    data.add_argument("action", choices=("list", "show", "diff", "verify"), help="verify reads every byte")
    data.add_argument("versions", nargs="*", metavar="NAME[@vN]", help="without them, for list and verify, all")
    data.add_argument("--picture", metavar="FILE.svg", help="with diff: the shares of each column's bins, drawn")
    _common(data, "--json")

    lineage = verbs.add_parser("lineage", help="where a version or run comes from, down to the raw rows")
    lineage.add_argument("of", metavar="RUN|NAME[@vN]", help="a run, or a version")
    lineage.add_argument("--picture", metavar="FILE.svg", help="the same, drawn")
    _common(lineage, "--json")


def _queued(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="a.b=x,y",
        help="a run for each value, or each combination of them",
    )
    verb.add_argument("--stop-on-failure", action="store_true", help="begin no other run when one of them failed")
    verb.add_argument("--picture", metavar="FILE.svg", help="the loss over the values of --grid, drawn")


def _common(verb: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        verb.add_argument(*(["-y"] if name == "--yes" else []), name, **COMMON[name])


def _dry(verb: argparse.ArgumentParser, text: str, *names: str) -> None:
    verb.add_argument(*names, "--dry-run", action="store_true", dest="dry_run", help=f"{text}; changes nothing")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError("from 0 to 3600 seconds")
    return value
