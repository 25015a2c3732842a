"""The nodes of a cluster over the system's ssh: one connection each, reused, all nodes at once."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from nexa_dist import wire
from nexa_dist.errors import NexaError
from nexa_dist.model import Cluster, Node, absolute
from nexa_dist.run import agent_file, files
from nexa_dist.run.runner import TOO_MUCH, CommandFailed, Result, Runner, Stream, abandoning, forget
from nexa_dist.run.ssh import consent
from nexa_dist.run.ssh.options import SSH_OPTIONS, USER_FILES, own_folder, refusal, ssh_config_of

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


T = TypeVar("T")
R = TypeVar("R")
N = TypeVar("N", Node, "Link")

_KEEPING = threading.Lock()
UNREACHABLE = 255
"""ssh's own exit code when there is no connection."""


class Unreachable(NexaError):
    """A node does not answer over ssh."""


@dataclass(frozen=True)
class Ssh:
    """Ssh: runs commands on the nodes of one cluster. `sockets` is a short folder for shared connections; one that is
    `kept` is made anew when a cleaner of /tmp took it away."""

    runner: Runner
    cluster: Cluster
    sockets: str
    kept: bool = False
    routes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """ssh options by node name, where the usual way is cut and another one is not."""

    def __post_init__(self) -> None:
        """Ask for the consent that ssh needs. Raises Unconsented."""
        if self.cluster.ssh_config:
            consent.refuse_unconsented(self.cluster.ssh_config)

    def argv(self, node: Node, *options: str) -> tuple[str, ...]:
        """ssh up to the host, which is never read as an option. The first value of an ssh option counts, so
        `options` win over ours."""
        if self.cluster.traits.by_job:
            return ("sh", "-c")  # reads the command as the shell behind ssh does
        file = self._keep() if self.kept else self.cluster.ssh_config
        config = ("-F", file) if file else ()
        route = self.routes.get(node.name, ())
        made = [f"-o{option}" for option in (*route, *SSH_OPTIONS)]
        # The hash does not know of the way: what is shared over one that is cut must not be taken for another.
        made.append(f"-oControlPath={self.sockets}/{'v' * bool(route)}%C")
        if self.cluster.traits.users_ssh:
            made += [f"-p{node.port}"] * (node.port != 22) + [f"-l{node.user}"] * bool(node.user)
            return ("ssh", *config, *options, *made, "--", node.address)
        return ("ssh", *config, *options, *made, "--", node.name)

    def by(self, node: Node, *route: str) -> Ssh:
        """The same, but for the way to one node."""
        return replace(self, routes={**self.routes, node.name: route})

    def _keep(self) -> str:
        """The folder of the shared connections, and the ssh_config to use with it."""
        with _KEEPING:
            own_folder(self.sockets)
            if not self.cluster.traits.users_ssh:
                return self.cluster.ssh_config
            file = Path(self.sockets, "config")
            if not file.exists():
                named = [self.cluster.ssh_config] if self.cluster.ssh_config else USER_FILES
                files.write_text(file, ssh_config_of(named), 0o600)
            return str(file)

    def run(
        self, node: Node, command: Sequence[str], stdin: bytes | IO[bytes] = b"", timeout_s: float = 60.0
    ) -> Result:
        """`command` as it is, word by word. Raises Unreachable when there is no connection."""
        argv = (*self.argv(node), shlex.join(command))
        result = self.runner.run(argv, stdin=stdin, timeout_s=timeout_s, most_bytes=wire.SAID_BYTES)
        if result.code == TOO_MUCH:
            raise wire.Faulty(node.name, "what it says", result.tail(1))
        if result.code == UNREACHABLE or (result.code == 124 and timeout_s):
            said, hint = refusal(result, self.cluster.traits)
            raise Unreachable(f"node {node.name} ({node.address}): {said}", hint=hint)
        return result


def talkative(node: Node, result: Result) -> NexaError:
    """Refuses an answer before which the login shell printed something: its reply is not JSON then."""
    line = result.out.decode(errors="replace").strip().partition("\n")[0][:100]
    return NexaError(
        f"{node.name} ({node.address}): its shell prints text of its own to every session: {line!r}",
        hint="what ~/.bashrc and the like print must depend on a terminal: put [ -t 1 ] || return before it",
    )


@dataclass(frozen=True)
class Link:
    """One node with the agent in place. Paths are absolute there."""

    ssh: Ssh
    node: Node
    home: str

    @property
    def name(self) -> str:
        return self.node.name

    def path(self, path: str) -> str:
        """`~/x` as an absolute path on the node."""
        return absolute(path, self.home)

    def run_dir(self, run_id: str) -> str:
        """The run's folder on the node. Hosts of one's own may share their home, and with it scratch: then each needs
        a folder of its own, and nobody can tell from here whether they do."""
        own = f".{self.node.name}" if self.ssh.cluster.traits.shared_home else ""
        return f"{self.path(self.ssh.cluster.layout.scratch)}/{run_id}{own}"

    @property
    def agent(self) -> str:
        return self.path(_agent_path(self.ssh.cluster))

    @property
    def python(self) -> str:
        return self.path(self.ssh.cluster.layout.python)

    def agent_argv(self, *arguments: str) -> tuple[str, ...]:
        """The agent, if it is the one that we sent."""
        run = (self.python, "-S", "-E", self.agent, *arguments)
        return ("sh", "-c", CHECKED, "sh", self.agent, agent_file.sha256(), *run)

    def call(self, *arguments: str, message: Any = None, timeout_s: float = 60.0) -> dict[str, Any]:
        """Call one command of the node agent, JSON in and out. Raises NexaError with the node's own words, or that they
        make no sense."""
        stdin = b"" if message is None else json.dumps(message).encode()
        return self._answer(arguments, stdin, timeout_s)

    def unpack(
        self, target: str, archive: bytes | IO[bytes], name: str = "", *, part: bool = False, timeout_s: float = 600.0
    ) -> None:
        """Makes folder `target` on the node from a tar archive. With `name`, the hash of code, the node checks it; with
        `part` the archive lacks what the node has."""
        self._answer(("unpack", target, *([name] if name else []), *(["part"] if part else [])), archive, timeout_s)

    def _answer(self, arguments: Sequence[str], stdin: bytes | IO[bytes], timeout_s: float) -> dict[str, Any]:
        verb, name = arguments[0], self.node.name
        result = self.ssh.run(self.node, self.agent_argv(*arguments), stdin, timeout_s)
        if result.code == NOT_OURS and isinstance(stdin, bytes):  # torn by a power cut, or overwritten
            put_agent(self)
            result = self.ssh.run(self.node, self.agent_argv(*arguments), stdin, timeout_s)
        if result.code == NOT_OURS:
            raise wire.Faulty(name, "its node agent", "it is not the file that was sent")
        if result.code and not result.out.startswith(b"{"):
            raise CommandFailed(f"{name}: node agent {verb}", result)
        try:
            answer = wire.answer(name, verb, result.out, failed=bool(result.code))
        except wire.Mute:
            if result.code or result.out.startswith(b"{"):
                raise
            raise talkative(self.node, result) from None
        if result.code:
            raise NexaError(f"{name}: {answer['error']}")
        return answer

    def stream(self, *arguments: str, message: Any) -> Stream:
        """Starts a command of the agent on a connection of its own: a stream of hours must not hold up the short ones.
        Raises OSError."""
        argv = self.ssh.argv(self.node, "-oControlMaster=no", "-oControlPath=none")
        words = (*argv, shlex.join(self.agent_argv(*arguments)))
        return self.ssh.runner.stream(words, stdin=json.dumps(message).encode() + b"\n")


def threads(count: int, **options: Any) -> ThreadPoolExecutor:
    """Pool of `count` threads. The library brings logging along, for which one node alone need not wait."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(count, **options)


Connecting = Callable[[], Sequence[Link]]
"""Waits for links to all nodes of a cluster, in their order."""


def connect(ssh: Ssh, nodes: Sequence[Node] | None = None) -> list[Link]:
    """A link to every node, with the agent there. Raises with every node that failed, not only the first."""
    return on_all(ssh.cluster.nodes if nodes is None else nodes, lambda node: _link(ssh, node))


@contextlib.contextmanager
def connecting(ssh: Ssh) -> Iterator[Connecting]:
    """Links to all nodes, made while the caller does something else; what went wrong is raised when it asks."""
    with threads(1) as pool:
        yield pool.submit(connect, ssh).result


LOOK = (
    'p=$1; case $p in "~/"*) p=$HOME/${p#??};; esac; '
    's=$(sha256sum < "$p" 2>/dev/null); test "${s%% *}" = "$2"; printf "%s\\n" "$?" "$HOME"'
)
"""Look in one trip: 0 when the file with this hash is there, and the home folder."""
PUT = (
    'umask 077; t=$1.$$; mkdir -p "${1%/*}" && cat > "$t" && s=$(sha256sum < "$t") && '
    'if [ "${s%% *}" != "$2" ]; then rm -f "$t"; echo "it did not arrive whole" >&2; exit 1; fi && '
    'sync "$t" && chmod 700 "$t" && mv "$t" "$1" && sync "${1%/*}"'
)
NOT_OURS = 77
CHECKED = f's=$(sha256sum < "$1") && test "${{s%% *}}" = "$2" || exit {NOT_OURS}; shift 2; exec "$@"'
"""The agent's file and its hash, then the command that runs it. A rank may write to that file, and a power cut may have
torn it."""
HOME = re.compile(r"/[^\x00-\x1f\x7f]{0,1000}")


def _agent_path(cluster: Cluster) -> str:
    return f"{cluster.layout.shared}/agent/{agent_file.digest()}/{agent_file.NAME}"


def _link(ssh: Ssh, node: Node) -> Link:
    answer = ssh.run(node, ("sh", "-c", LOOK, "sh", _agent_path(ssh.cluster), agent_file.sha256()))
    missing, _, home = answer.out.decode(errors="replace").rstrip("\n").partition("\n")
    if answer.code:
        raise CommandFailed(f"{node.name}: finding the home folder", answer)
    if missing not in ("0", "1") or not HOME.fullmatch(home):
        raise talkative(node, answer)
    link = Link(ssh, node, home)
    if missing != "0":
        put_agent(link)
    return link


def put_agent(link: Link) -> None:
    """Sends the node agent: whole, on the disk and as it should be, or not at all."""
    command = ("sh", "-c", PUT, "sh", link.agent, agent_file.sha256())
    made = link.ssh.run(link.node, command, agent_file.content())
    if made.code:
        raise CommandFailed(f"{link.node.name}: sending the node agent", made)


LONGEST_BASE = 20
"""Bytes: 104 (macOS), less our folder's name, ssh's hash of 40 digits and the 17 that it appends while it binds."""


@contextlib.contextmanager
def session(runner: Runner, cluster: Cluster) -> Iterator[Ssh]:
    """Shared connections for the length of one command; closed at its end, gone by themselves if we are killed."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    # Unix socket names are short: not below the cluster's folder, nor in a TMPDIR with a long name.
    # And for a jump host ssh calls itself through a shell, with the path as it is.
    short = len(os.fsencode(base)) <= LONGEST_BASE and shlex.quote(str(base)) == str(base)
    base = base if short else Path("/tmp")  # noqa: S108
    _remove_leftovers(base)
    prefix = f"nexa-ssh-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=base, ignore_cleanup_errors=True) as sockets:
        ssh = Ssh(runner, cluster, sockets, kept=True)
        try:
            yield ssh
        finally:
            if glob.glob(f"{sockets}/{'[0-9a-f]' * 40}"):
                with threads(16) as pool:
                    list(pool.map(lambda n: runner.run((*ssh.argv(n, "-Oexit"),), timeout_s=5), cluster.nodes))


def _remove_leftovers(base: Path) -> None:
    """Folders of commands that were killed; their connections ended by themselves a minute later."""
    for folder in base.glob("nexa-ssh-*-*"):
        pid = folder.name.split("-")[2]
        with contextlib.suppress(FileNotFoundError):  # another nexa was quicker
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and folder.lstat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)


def on_all(items: Sequence[T], act: Callable[[T], R]) -> list[R]:
    """`act` on all items at once, answers in order. All failures are reported together. Ctrl-C ends what they wait
    for."""
    if len(items) == 1:
        return [act(items[0])]
    results: list[R] = []
    errors: list[NexaError] = []
    idents: list[int] = []
    try:
        with (
            threads(max(1, min(64, len(items))), initializer=lambda: idents.append(threading.get_ident())) as pool,
            abandoning(idents),
        ):
            for future in [pool.submit(act, item) for item in items]:
                try:
                    results.append(future.result())
                except NexaError as error:
                    errors.append(error)
    finally:
        forget(idents)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = Unreachable if all(isinstance(e, Unreachable) for e in errors) else NexaError
        raise kind("\n".join(str(e) for e in errors), hint=errors[0].hint)
    return results


def by_node(items: Sequence[N], act: Callable[[N], R]) -> dict[str, R]:
    """`on_all`, with the answers by the name of the node."""
    return dict(zip((item.name for item in items), on_all(items, act), strict=True))


def asked(items: Sequence[N], act: Callable[[N], R]) -> tuple[dict[str, R], dict[str, str]]:
    """`by_node` where a failure keeps nobody from the rest: the answers, and why the other nodes gave none."""
    silent: dict[str, str] = {}

    def one(item: N) -> list[R]:
        try:
            return [act(item)]
        except NexaError as error:
            silent[item.name] = str(error)
            return []

    answers = by_node(items, one)
    return {name: found[0] for name, found in answers.items() if found}, {n: silent[n] for n in answers if n in silent}


def reach(ssh: Ssh, nodes: Sequence[Node]) -> tuple[list[Link], dict[str, str]]:
    """Links to the nodes that answer, and why the others do not, by name."""
    links, silent = asked(nodes, lambda node: connect(ssh, [node])[0])
    return list(links.values()), silent
