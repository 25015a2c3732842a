"""Known ways to fail of a program and of its machine. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.signature import Signature, Tier, patterns

MACHINE = (
    Signature(
        "host_oom",
        "a rank ended by SIGKILL, and the kernel's out-of-memory counter moved",
        "the kernel ended it for want of memory on the node (not on the GPU)",
        "use fewer DataLoader workers, smaller prefetch and batches, or a node with more memory; checkpoints that are"
        " gathered on rank 0 need room for the whole model",
        exits=lambda e: e.signal == 9 and e.oom,
    ),
    Signature(
        "memory_error",
        "MemoryError; DefaultCPUAllocator: can't allocate memory; [Errno 12]",
        "the node had no memory left for it (not the GPU): {detail}",
        "look at what that line allocates; use fewer workers or smaller batches, or a node with more memory",
        patterns(
            r"DefaultCPUAllocator: can't allocate memory: (?P<detail>you tried to allocate [0-9]{1,24} bytes)",
            r"^(?:numpy\.[\w.]{1,40})?(?:_Array)?MemoryError",
            r"\[Errno 12\] Cannot allocate memory",
            r"^std::bad_alloc|what\(\):  std::bad_alloc",
        ),
    ),
    Signature(
        "too_many_files",
        "[Errno 24] Too many open files",
        "the process has as many files or sockets open as it may",
        "raise the limit (ulimit -n), use fewer DataLoader workers, or"
        ' torch.multiprocessing.set_sharing_strategy("file_system")',
        patterns(r"Too many open files"),
    ),
    Signature(
        "disk_full",
        "[Errno 28] No space left on device; inline_container.cc … unexpected pos",
        "the disk is full: {detail}",
        "free room on the node (nexa ssh NODE -- df -h), write less often, or ask for a larger volume_gb",
        patterns(
            r"No space left on device: '(?P<detail>[^'\n]{1,200})'",
            r"No space left on device|Disk quota exceeded",
            r"inline_container\.cc:[0-9]{1,5}\] \. unexpected pos",
            r"PytorchStreamWriter failed writing file",
        ),
    ),
    Signature(
        "checkpoint_damaged",
        "checkpoint … is damaged; PytorchStreamReader failed; Error while deserializing header; invalid load key",
        "a checkpoint cannot be read, it is damaged: {detail}",
        "resume from an older one: nexa run --resume takes the newest that verifies; nexa ssh NODE -- df -h for the"
        " disk that it lay on",
        patterns(
            r"checkpoint (?P<detail>[^\n]{1,200}?) is damaged",
            r"PytorchStreamReader failed|PyTorchFileReader\(name_or_buffer\)",
            r"Error while deserializing header|SafetensorError",
            r"UnpicklingError|EOFError: Ran out of input",
        ),
    ),
    Signature(
        "permission_denied",
        "[Errno 13] Permission denied; [Errno 30] Read-only file system",
        "the node's user may not write or read there: {detail}",
        "write below $NEXA_SCRATCH, $NEXA_SHARED or $NEXA_DURABLE, or give the folder to the user that nexa logs in as",
        patterns(
            r"(?:Permission denied|Read-only file system): '(?P<detail>[^'\n]{1,200})'",
            r"PermissionError|Read-only file system",
        ),
    ),
    Signature(
        "dataloader_worker",
        "DataLoader worker (pid(s) …) exited unexpectedly; is killed by signal",
        "a worker process of the DataLoader was killed, most often by the kernel for want of memory",
        "use fewer workers or a smaller prefetch_factor; num_workers=0 shows an exception of the dataset itself",
        patterns(r"DataLoader worker \(pid(?:\(s\))? [0-9, ]{1,60}\) (?:exited unexpectedly|is killed by signal)"),
    ),
)

PROGRAM = (
    Signature(
        "data_differs",
        "error: the dataset differs: rank 0 has …; the nodes would start from different steps",
        "the nodes do not have the same: {detail}",
        "prepare the data on every node from the same files with the same Python; for different steps use"
        " nexa run --resume, which sends rank 0's checkpoint to every node",
        patterns(
            r"^(?:\w{1,80}: )?(?:[\w.]{1,80}: )?(?P<detail>[^\n:]{1,100}) differs: rank 0 has",
            r"(?P<detail>the nodes would start from different steps[^\n]{0,100})",
        ),
    ),
    Signature(
        "version_mismatch",
        "torch differs between nodes: n0 2.13.0, n1 2.12.1",
        "the nodes do not have the same software: {detail}",
        "bootstrap them again (nexa provision), or install the same versions on your own hosts",
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
        patterns(r"[Nn]o API key configured", r"api_key not configured"),
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
            r"^[^\n ]{1,200}/python[0-9.]{0,5}: (?P<detail>No module named [^\n]{1,100})",
            r"^nexa: (?P<detail>[^\n]{1,200}): \[Errno (?:2|13)\]",
        ),
    ),
    Signature(
        "import_error",
        "ModuleNotFoundError: No module named '…'; ImportError: cannot import name",
        "a package is missing on the node, or not in the version that the program wants: {detail}",
        "add it to the environment of the nodes and bootstrap again (nexa provision); for a module of your own check"
        " that it is committed and not ignored by git",
        patterns(r"^(?:ModuleNotFoundError|ImportError): (?P<detail>[^\n]{1,160})"),
    ),
    Signature(
        "file_missing",
        "FileNotFoundError: [Errno 2] No such file or directory: '…'",
        "a file is not on this node: {detail}",
        "what git ignores is not sent, and rank 0's files are on the first node only: put it on every node, or read it"
        " from $NEXA_SHARED",
        patterns(r"FileNotFoundError: \[Errno 2\] No such file or directory: '(?P<detail>[^'\n]{1,200})'"),
    ),
    Signature(
        "python_exception",
        "Traceback (most recent call last) …",
        "{detail}",
        "an error of the program: mend it there; every attempt would end the same way",
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
        "look at nexa ssh NODE -- dmesg: when the kernel did it, it ran out of memory; otherwise a person or a"
        " scheduler of the host",
        exits=lambda e: e.signal == 9,
        tier=Tier.SETUP,
    ),
    Signature(
        "terminated",
        "signal 15 or exit code 143, and nobody asked nexa for it",
        "it was asked to end (SIGTERM) by somebody other than nexa",
        "look for what sends SIGTERM on the node: a scheduler, a shutdown, a person",
        exits=lambda e: e.asked,
        tier=Tier.LATE,
    ),
    Signature(
        "unknown",
        "an exit code without a word",
        "it ended with {detail}, and nothing in its log is known here",
        "read its last lines; nexa logs --rank N has them all",
        exits=lambda e: e.bad,
        tier=Tier.LATE,
    ),
)
