"""Known ways to fail of a program. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import Signature, Tier, patterns

LEFT = (
    "died|dead|gone|lost|left|closed|reset|exited|vanished|disappeared|disconnect(?:ed)?|departed|unreachable|went away"
    "|hung up|hang ?up|no longer|not alive|dropped|broken|broke|severed|cut off"
)
GONE = (
    LEFT
    + "|aborted|crashed|refused|failed|terminated|killed|unavailable|not responding|unresponsive|shut ?down|missing"
)
PEER = "peer|rank|remote|worker|connection|socket|pipe|process group|communicator|actor|stream|session|channel|replica"
OTHER = "process|node|host|server|store|agent|neighbou?r|partner|member|participant|coordinator|other (?:side|end)|link"
OUTSIDE = patterns(r"https?://", r"HTTPS?ConnectionPool", r"\b(?:requests|urllib3|httpx|botocore|aiohttp|boto3)\.")
"""A service outside is no peer."""

MISTAKE = "an error of the program: mend it there; every attempt would end the same way"
NOT_KNOWN = (
    "nothing more is known of it here: look where it points; if one node alone has it, look at that with nexa diag"
)
"""Cure of an exception that a node can bring about as well as a program."""

PROGRAM = (
    Signature(
        "data_differs",
        "error: the dataset differs: rank 0 has …; the nodes would start from different steps",
        "the nodes do not have the same: {detail}",
        "prepare the data on every node from the same files with the same Python; for different steps use"
        " nexa run --resume RUN, which sends rank 0's checkpoint to every node",
        patterns(
            r"^(?:\w{1,80}: )?(?:[\w.]{1,80}: )?(?P<detail>[^\n:]{1,100}) differs: rank 0 has",
            r"(?P<detail>the nodes would start from different steps[^\n]{0,100})",
        ),
    ),
    Signature(
        "version_mismatch",
        "torch differs between nodes: n0 2.13.0, n1 2.12.1",
        "the nodes do not have the same software: {detail}",
        "bootstrap them again (nexa provision); on hosts of your own that are not provisioned install the same"
        " versions",
        patterns(r"(?P<detail>(?:torch|python) differs between nodes: [^\n]{1,160})"),
    ),
    Signature(
        "dataset_missing",
        "dataset.path …: no such file or directory on this node",
        "the data is not on this node: {detail}",
        "send it with the project (git add), put it on every node, or name a place that every node sees",
        patterns(r"dataset\.path (?P<detail>[^\n]{1,200}?): no "),
    ),
    Signature(
        "model_missing",
        "Can't load tokenizer for '…'; Repo id must be in the form …: '/srv/models/mine'",
        "the model or its tokenizer is not where it was looked for: {detail}",
        "check model.path on every node; the folder needs config.json, the weights and tokenizer.json",
        patterns(
            r"Can't load (?:the )?(?:tokenizer for|configuration of|model for) '(?P<detail>[^'\n]{1,200})'",
            r"Repo id must [^\n]{1,120}?: '(?P<detail>[^'\n]{1,200})'",
            r"Couldn't instantiate the backend tokenizer|Unable to load vocabulary from file",
            r"no file named (?:pytorch_model|model|config)[^\n]{0,200} found in directory",
        ),
    ),
    Signature(
        "wandb_login",
        "No API key configured. Use `wandb login` to log in",
        "Weights & Biases is asked for and there is no key",
        "set WANDB_API_KEY in your environment (nexa passes it on), or wandb: offline in train.yaml",
        patterns(
            r"[Nn]o API key configured|api_key not configured",
            r"API key must be (?:at least )?[0-9]{2} characters long",
        ),
    ),
    Signature(
        "ddp_unused_parameters",
        "Expected to have finished reduction in the prior iteration before starting a new one",
        "DistributedDataParallel waits for gradients of parameters that the loss does not use",
        "leave those parameters out or freeze them, or pass find_unused_parameters=True",
        patterns(r"Expected to have finished reduction in the prior iteration"),
    ),
    Signature(
        "state_dict_mismatch",
        "Error(s) in loading state_dict for …: size mismatch, Missing key(s), Unexpected key(s)",
        "the checkpoint does not fit the model: {detail}",
        "resume with the model settings that wrote it, or start anew; a compiled or wrapped model adds prefixes"
        " (_orig_mod., module.)",
        patterns(
            r"Error\(s\) in loading state_dict for [\w.]{1,80}:\s{1,8}(?P<detail>[^\n]{1,160})",
            r"loaded state dict (?:has|contains) ",
        ),
    ),
    Signature(
        "missing_script",
        "can't open file '…': [Errno 2]; No module named … (with -m); exit code 127",
        "the program is not on the node: {detail}",
        "check script or module in train.yaml; what git ignores is not sent",
        patterns(
            r"can't open file '(?P<detail>[^'\n]{1,200})'",
            r"^(?:[^\n ]{1,200}/)?python[0-9.]{0,5}: (?P<detail>No module named [^\n]{1,100})",
            r"^(?:[^\n ]{1,200}/)?python[0-9.]{0,5}: Error while finding module [a-z]{1,13} for"
            r" '(?P<detail>[^'\n]{1,90})",
            r"^nexa: (?P<detail>[^\n]{1,200}): \[Errno (?:2|13)\]",
        ),
    ),
    Signature(
        "import_error",
        "ModuleNotFoundError: No module named '…'; ImportError: cannot import name",
        "a package is missing on the node, or not in the version that the program wants: {detail}",
        "name it in train.yaml, environment: {packages: [NAME]}, or give a file of yours, {requirements: FILE}; for a"
        " module of your own check that it is committed and not ignored by git",
        patterns(
            r"^(?:ModuleNotFoundError|ImportError): (?P<detail>[^\n]{1,160})",
            r"because of the following error[^\n]{0,60}:\s{1,8}(?P<detail>No module named[^\n]{1,120})",
        ),
    ),
    Signature(
        "file_missing",
        "FileNotFoundError: [Errno 2] No such file or directory: '…'",
        "a file is not on this node: {detail}",
        "what git ignores is not sent: add it to files: of train.yaml; and what rank 0 writes is on the first node"
        " only: read it there, or from $NEXA_SHARED",
        patterns(r"FileNotFoundError: \[Errno 2\] No such file or directory: '(?P<detail>[^'\n]{1,200})'"),
    ),
    Signature(
        "cloud_credentials",
        "NoCredentialsError: Unable to locate credentials",
        "the program asks a cloud for something and has no credentials there",
        "nexa sends none of yours to a node: bring the data there before (git add, or below $NEXA_SHARED);"
        " checkpoints go to the cluster's bucket without any (bucket in cluster.yaml)",
        patterns(
            r"NoCredentialsError|Unable to locate credentials",
            r"DefaultCredentialsError",
            r"CredentialUnavailableError",
        ),
    ),
    Signature(
        "no_main_guard",
        "An attempt has been made to start a new process before the current process has finished its bootstrapping"
        " phase",
        "the script starts processes (spawn) while it is imported: its main part is not guarded",
        'put the main part of the script under if __name__ == "__main__":',
        patterns(r"before the\s{1,12}current process has finished its bootstrapping phase"),
        anywhere=True,
    ),
    Signature(
        "child_lost",
        "EOFError or ConnectionResetError in multiprocessing/connection.py, spawn.py, managers.py",
        "a process that the program itself started and its parent lost each other",
        "look for the first of them that ended, further up in this log (nexa logs --rank N); no checkpoint is meant",
        patterns(r"^(?:EOFError|ConnectionResetError|BrokenPipeError|_pickle\.UnpicklingError)\b"),
        near=patterns(r"/multiprocessing/(?:spawn|connection|forkserver|managers|queues|reduction)\.py"),
        tier=Tier.OWN,
        child=True,
    ),
    Signature(
        "distributed_checkpoint",
        "CheckpointException ranks:dict_keys([1])",
        "a distributed checkpoint could not be written or read: {detail}",
        "the ranks in brackets are those that failed: nexa logs --rank N shows theirs",
        patterns(r"CheckpointException (?P<detail>ranks:dict_keys\(\[[0-9, ]{1,200}\]\))"),
        tier=Tier.OWN,
    ),
    Signature(
        "peer_lost",
        "an exception that tells of a peer, a rank or a connection that went away, in words that are not known here",
        "lost another process: {detail}",
        "look at the rank that failed first; if none did, at what it was connected to",
        patterns(
            *(rf"(?i)\b(?:{who})[^\n]{{0,40}}\b(?:{did})\b" for who, did in ((PEER, GONE), (OTHER, LEFT))),
            *(rf"(?i)\b(?:{did})\b[^\n]{{0,40}}\b(?:{who})" for who, did in ((PEER, GONE), (OTHER, LEFT))),
            r"^[\w.]{0,80}(?:ConnectionResetError|BrokenPipeError|ConnectionAbortedError|ConnectionRefusedError)\b",
            r"^EOFError$",
            r"(?:Peer|Rank|Worker|Remote|Actor|Connection|Channel|Socket)[A-Za-z]{0,12}(?:Lost|Gone|Dead|Died)",
            r"^[\w.]{0,80}(?:DistNetworkError|DistBackendError|DistStoreError|RemoteError|ActorDiedError)\b",
            r"\bgloo/transport/",
        ),
        unless=OUTSIDE,
        raised=True,
        tier=Tier.FOLLOWS,
    ),
    Signature(
        "peer_late",
        "an exception that tells of a time-out, in words that are not known here",
        "waited in vain for another process: {detail}",
        "look at the rank without such a message: it hung, is slow, or is gone",
        patterns(
            r"(?i)\b(?:timed[ -]?out|time-?out|timeouterror|deadline exceeded|waited (?:in vain|too long))\b",
            r"(?i)\b(?:did not|never) (?:come|came|arrived?|answer(?:ed)?|respond(?:ed)?|join(?:ed)?|reply|replied)\b",
        ),
        unless=OUTSIDE,
        raised=True,
        tier=Tier.LATE,
    ),
    Signature(
        "python_exception",
        "Traceback (most recent call last) …",
        "{detail}",
        MISTAKE,
        tier=Tier.OWN,
    ),
    Signature(
        "wrong_world",
        "nexa: torchrun made rank … of world size …; exit code 78",
        "the ranks did not find each other as planned",
        "look for another torchrun on the rendezvous port, or nproc_per_node that differs between nodes",
        exits=lambda e: e.code == 78,
    ),
    Signature(
        "config_error",
        "error: …; usage: …; exit code 2",
        "the program refuses its options or config: {detail}",
        "mend train.yaml or args; exit code 2 is never tried again",
        patterns(r"(?:^|: )error: (?P<detail>[^\n]{1,200})"),
        exits=lambda e: e.code == 2,
    ),
    Signature(
        "segfault",
        "Fatal Python error: Segmentation fault; signal 11",
        "it crashed in native code (segmentation fault): {detail}",
        "look at the top of its stack; most often an extension that was built for another torch or CUDA",
        exits=lambda e: e.signal == 11,
    ),
    Signature(
        "illegal_instruction",
        "signal 4",
        "native code used an instruction that the processor of this node does not have: {detail}",
        "install a build for this kind of processor (nexa ssh NODE -- lscpu), or build it again on the node",
        exits=lambda e: e.signal == 4,
    ),
    Signature(
        "bus_error",
        "Fatal Python error: Bus error; signal 7",
        "it read or wrote a memory map that has nothing behind it (bus error): {detail}",
        "look for a file that was cut while it was mapped, for a full disk and for a full /dev/shm",
        exits=lambda e: e.signal == 7,
    ),
    Signature(
        "aborted",
        "Fatal Python error: Aborted; terminate called after throwing …; signal 6",
        "native code gave up (abort): {detail}",
        "read the lines above the stack; they say which library and why",
        patterns(r"what\(\):  (?P<detail>[^\n]{1,160})"),
        exits=lambda e: e.signal == 6,
    ),
    Signature(
        "killed",
        "signal 9, and no sign that the kernel did it",
        "somebody or something killed it (SIGKILL)",
        "look at nexa ssh NODE -- sudo dmesg: when the kernel did it, it ran out of memory; otherwise a person or a"
        " scheduler of the host",
        exits=lambda e: e.signal == 9,
        tier=Tier.OWN,
    ),
    Signature(
        "terminated",
        "signal 15 or exit code 143 (or SIGINT, SIGHUP), and nobody asked nexa for it",
        "it was asked to end ({detail}) by somebody other than nexa",
        "look for what sends that signal on the node: a scheduler, a shutdown, a person",
        exits=lambda e: e.asked,
        tier=Tier.OWN,
    ),
    Signature(
        "unknown",
        "an exit code without a word",
        "it ended with {detail}, and nothing in its log is known here",
        "read its last lines; nexa logs --rank N has them all",
        exits=lambda e: e.bad,
        tier=Tier.OWN,
    ),
)
