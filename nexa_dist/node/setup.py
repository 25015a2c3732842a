"""The command `setup`: what a run needs of this node beside its environment, before anything of it starts.

Packages of the system first, then RUN_DIR/layer: a virtual environment over that of the ranks, with the project itself
in it, editable; then the user's own lines. The layer is the run's alone: what the lines install changes no other run.

What was made is written down, so that a later run of the same code takes it from an earlier one, while all of it is as
it was left: RUN_DIR/layer/nexa.json {"key", "lines": the key of those that have changed it, "files": what its making
left in the working folder, "seen"}, and RUN_DIR/setup.json {"key", "files": what the lines made there, "installed":
whether they changed the layer, "once": it is too much to be taken, or names this run's own folder}.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shlex
import shutil
import subprocess
from typing import Any

from .code import taking
from .oslib import read_json, write_json
from .protocol import Reason

MOST_FILES = 50_000
LOOKED_AT = 50
"""Earlier runs here, the newest, in which the same setup is looked for."""
APT = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300")
SITES = """
import json, site, sys
mine = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
print(json.dumps(["lib/python%d.%d/site-packages" % sys.version_info[:2], site.getsitepackages() + mine]))
"""
LACKS = r"""
import importlib.metadata as m, json, re, sys
try: from packaging.requirements import Requirement
except ImportError: Requirement = None
def lacks(text):
    try:
        if Requirement is None: return ";" not in text and not m.version(re.split(r"[^\w.-]", text)[0])
        want = Requirement(text)
        if want.marker and not want.marker.evaluate({"extra": ""}): return False
        return not want.specifier.contains(m.version(want.name), prereleases=True)
    except m.PackageNotFoundError: return True
def named(texts): return [text.split(";")[0].strip() for text in texts or () if lacks(text)]
def scripts(dists): return sorted({e.name for d in dists for e in d.entry_points if e.group == "console_scripts"})
own = list(m.distributions(path=[sys.argv[1]]))
print(json.dumps({"build": named(json.loads(sys.argv[2])), "scripts": scripts(m.distributions()), "own": scripts(own),
                  "project": {d.metadata["Name"]: named(d.requires) for d in own}}))
"""


class Failed(Exception):
    """The setup cannot be done; its words, and an exit code."""

    def __init__(self, words: str, code: int = 1) -> None:
        super().__init__(words)
        self.code = code


def main(run_dir: str) -> int:
    """Does what spec.json asks for. Why not, if so, is in RUN_DIR/setup.attempt_N for the daemon."""
    spec = read_json(os.path.join(run_dir, "spec.json"))
    try:
        Setup(run_dir, spec).all()
    except (Failed, OSError) as error:
        print("nexa: %s" % error, flush=True)
        why = "%s: %s" % (Reason.SETUP, error)
        write_json(os.path.join(run_dir, "setup.attempt_%d" % spec["attempt"]), {"why": why[:1000]})
        return error.code if isinstance(error, Failed) else 1
    return 0


def say(text: str) -> None:
    print("nexa: " + text, flush=True)


class Setup:
    """The setup of one attempt on this node."""

    def __init__(self, run_dir: str, spec: dict[str, Any]) -> None:
        self.run_dir, self.work, self.told = run_dir, spec["cwd"], spec["setup"]
        self.layer: str = self.told["layer"]
        self.python = os.path.join(self.layer, "bin", "python")
        tools = glob.glob(os.path.join(glob.escape(self.told["shared"]), "uv-*", "bin", "uv"))
        self.uv = shutil.which("uv") or next((uv for uv in sorted(tools, reverse=True)), "")
        path = [os.path.dirname(self.python), os.environ.get("PATH", os.defpath), os.path.dirname(self.uv)]
        self.environment = {
            **os.environ,
            "VIRTUAL_ENV": self.layer,
            "PATH": os.pathsep.join(filter(None, path if self.layer else path[1:2])),
            "UV_CACHE_DIR": os.path.join(self.told["shared"], "uv-cache"),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "1",
            "UV_NO_PROGRESS": "1",
        }

    def all(self) -> None:
        self.packages()
        if self.layer:
            self.make_layer()
        if self.told["lines"]:
            self.run_lines()

    def packages(self) -> None:
        """Packages of the system, those that are not there."""
        wanted = [name for name in self.told["apt"] if not _has_package(name)]
        for words in (("update",), ("install", "-y", "--no-install-recommends", *wanted)) if wanted else ():
            say("apt-get " + " ".join(words))
            code = self.by_root(*APT, *words)
            if code and words[0] == "install" and glob.glob("/var/lib/dpkg/updates/[0-9]*"):
                say("dpkg --configure -a, since an installation was cut off")
                code = self.by_root(*APT[:2], "dpkg", "--configure", "-a") or self.by_root(*APT, *words)
            if code:
                raise Failed("apt: apt-get %s: exit code %d" % (" ".join(words), code), code)

    def by_root(self, *argv: str) -> int:
        root = () if os.geteuid() == 0 else ("sudo", "-n")
        return subprocess.call([*root, *argv], env=self.environment, umask=0o022)  # the whole system uses what is made

    def make_layer(self) -> None:
        """The layer, unless it is there for this environment and this project."""
        mine = (self.told["key"], "")
        if any(self.usable(self.run_dir, lines) is not None for lines in mine):
            return
        from .warm import client as warm_client

        warm_client.release(self.run_dir)  # one of an attempt before has the layer of then
        shutil.rmtree(self.layer, ignore_errors=True)
        for lines in mine:
            for run in self.runs():
                files = self.usable(run, lines)
                if files is not None:
                    say("installed before on this node, by %s" % os.path.basename(run))
                    taking.move(os.path.join(run, "layer"), self.layer, run, self.run_dir)
                    taking.copy(os.path.join(run, "work"), self.work, files)
                    self.note_layer(lines, files)
                    return
        before = taking.seen(self.work)
        whole = self.build_layer()
        self.note_layer("", taking.made(before, self.work), whole)

    def usable(self, run: str, lines: str) -> dict[str, Any] | None:
        """Record of the layer in a run's working folder, if the layer is the one wanted here, and as it was left."""
        note = taking.noted(os.path.join(run, "layer", taking.NOTE))
        if (note["key"], note.get("lines")) != (self.told["layer_key"], lines) or len(note["files"]) > MOST_FILES:
            return None
        whole = note.get("seen") == taking.digest(os.path.join(run, "layer")) and taking.as_left(run, note["files"])
        return dict(note["files"]) if whole or run == self.run_dir else None

    def note_layer(self, lines: str, files: dict[str, Any], whole: bool = True) -> None:
        note = {
            "key": self.told["layer_key"] if whole else "",
            "lines": lines,
            "files": files,
            "seen": taking.digest(self.layer),
        }
        write_json(os.path.join(self.layer, taking.NOTE), note)

    def runs(self) -> list[str]:
        """Folders of earlier runs here, the newest first."""
        scratch = os.path.dirname(self.run_dir)
        found = [os.path.join(scratch, name) for name in sorted(os.listdir(scratch), reverse=True)[:LOOKED_AT]]
        return [run for run in found if run != self.run_dir]

    def build_layer(self) -> bool:
        """Build the layer; True when all of it is there."""
        base = self.told["python"]
        self.call([base, "-I", "-m", "venv", "--without-pip", self.layer], "the layer of the run cannot be made")
        inside, sites = json.loads(self.call([base, "-c", SITES], "%s does not run" % base))
        site = os.path.join(self.layer, inside)
        with open(os.path.join(site, "nexa_environment.pth"), "w") as file:
            file.writelines("import site; site.addsitedir(%r)\n" % path for path in sites)
        pip = os.path.join(self.layer, "bin", "pip")  # one of the environment's own would change that for all runs
        with open(pip, "w") as file:
            words = [self.uv, "pip"] if self.uv else [self.python, "-m", "pip"]
            file.write('#!/bin/sh\nexec %s "$@"\n' % " ".join(map(shlex.quote, words)))
        os.chmod(pip, 0o700)
        return self.told["requires"] is None or self.install_project(site)

    def install_project(self, site: str) -> bool:
        """The project in the working folder, editable and without what it depends on: that is the environment's."""
        lacking = self.ask(site)["build"]
        if self.uv:
            argv = [self.uv, "pip", "install", "-q", "--python", self.python]
        else:
            argv = [self.python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        # Its build comes from the environment where that has it: no network is needed then, and no time is lost.
        argv += ["--no-deps", *([] if lacking else ["--no-build-isolation"]), "--editable", "."]
        # A version that is taken from git has none here: the nodes get the files alone.
        versions = dict.fromkeys(("SETUPTOOLS_SCM_PRETEND_VERSION", "PDM_BUILD_SCM_VERSION"), "0")
        bare = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        code = subprocess.call(argv, env={**versions, **bare}, cwd=self.work)
        if code:
            cure = "mend pyproject.toml, or install: false in train.yaml"
            if lacking:
                cure = "the environment lacks what builds it: environment: {packages: %s}, or install: false" % (
                    json.dumps(lacking)
                )
            words = "the project cannot be installed (exit code %d): %s" % (code, cure)
            if self.told["must"]:
                raise Failed(words, code)
            say("warning: it goes on without: " + words)
            return False
        found = self.ask(site)
        for name, wants in found["project"].items():
            if wants:
                say(
                    "%s wants what the environment does not have: environment: {packages: %s}"
                    % (name, json.dumps(wants))
                )
        program = self.told["program"]
        if program and program not in found["scripts"]:
            known = ", ".join(found["own"]) or "none"
            raise Failed("program: %s is no console script; the project's are: %s" % (program, known), 2)
        return True

    def ask(self, site: str) -> dict[str, Any]:
        """Ask the layer's interpreter what it finds."""
        requires = json.dumps(self.told["requires"])
        return dict(json.loads(self.call([self.python, "-c", LACKS, site, requires], "%s does not run" % self.python)))

    def call(self, argv: list[str], what: str) -> str:
        bare = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        done = subprocess.run(argv, env=bare, capture_output=True, text=True)
        if done.returncode:
            raise Failed("%s: %s" % (what, (done.stderr or done.stdout).strip()[-600:]), done.returncode)
        return done.stdout

    # -- the user's lines ------------------------------------------------------------------------------------------

    def run_lines(self) -> None:
        note, key = os.path.join(self.run_dir, "setup.json"), self.told["key"]
        if taking.noted(note)["key"] == key:
            return
        layer = taking.noted(os.path.join(self.layer, taking.NOTE))
        for run in self.runs():
            done = taking.noted(os.path.join(run, "setup.json"))
            if done["key"] != key or done.get("once") or (done.get("installed") and layer.get("lines") != key):
                continue
            if taking.as_left(run, done["files"]):
                say("done before on this node, by %s: %d files copied" % (os.path.basename(run), len(done["files"])))
                taking.copy(os.path.join(run, "work"), self.work, done["files"])
                write_json(note, done)
                return
        before = taking.seen(self.work)
        self.shell()
        made = taking.made(before, self.work)
        installed = taking.digest(self.layer) != layer.get("seen")
        if installed:
            self.note_layer(key, layer["files"], bool(layer["key"]))
        many = len(made) > MOST_FILES
        once = many or taking.bound(self.run_dir, made)
        write_json(note, {"key": key, "files": {} if many else made, "installed": installed, "once": once})

    def shell(self) -> None:
        """Run all lines in one shell, which notes where it is."""
        lines, at = self.told["lines"], os.path.join(self.run_dir, "setup.line")
        path = os.path.join(self.run_dir, "setup.sh")
        bash = shutil.which("bash")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(at)
        with open(path, "w") as file:
            file.write("set -o pipefail\n" if bash else "")
            for number, line in enumerate(lines, 1):
                said = shlex.quote("+ " + line)
                file.write("printf '%%s\\n' %s\necho %d > %s\n" % (said, number, shlex.quote(at)))
                file.write("eval %s || exit\n" % shlex.quote(line))
        code = subprocess.call([bash or "sh", path], cwd=self.work, env=self.environment)
        if code:
            number = int(read_json(at, 0))
            code = code if code > 0 else 128 - code
            line = lines[number - 1] if number else "the shell"
            short = line if len(line) <= 200 else line[:200] + "…"
            raise Failed("line %d of %d (%s): exit code %d" % (number, len(lines), short, code), code)


def _has_package(name: str) -> bool:
    asked = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", name], capture_output=True, text=True)
    return asked.returncode == 0 and asked.stdout == "installed"
