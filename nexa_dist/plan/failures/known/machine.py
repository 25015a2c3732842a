"""Known ways to fail of a node: memory, disk, files. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import Signature, patterns, row, says

POINTER = patterns(
    r"invalid load key, '[v<]'",
    r"Unsupported operand (?:118|60)\b",
    r"git-lfs",
    r"HeaderTooLarge|deserializing header: header too large",
)
"""Words of loaders about a text that begins with `version` or `<`."""

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
            r"slurmstepd: error: Detected [0-9]{1,6} (?P<detail>oom[-_]kill event)",
            r"^std::bad_alloc|what\(\):  std::bad_alloc",
        ),
    ),
    Signature(
        "too_many_files",
        "[Errno 24] Too many open files",
        "the process has as many files or sockets open as it may",
        'use fewer DataLoader workers, or torch.multiprocessing.set_sharing_strategy("file_system"), or raise the'
        " limit in"
        " the program (resource.setrlimit); nexa provision raises it on aws, and on hosts of your own with"
        " system_changes: true",
        patterns(r"Too many open files", r"received 0 items of ancdata"),
    ),
    Signature(
        "disk_quota",
        "[Errno 122] Disk quota exceeded",
        "the quota of the node's user is used up there: {detail}",
        "free what is yours there (nexa ssh NODE -- du -xsh FOLDER), ask who runs the storage for more, or write below"
        " $NEXA_SCRATCH",
        patterns(r"Disk quota exceeded: '(?P<detail>[^'\n]{1,200})'", r"Disk quota exceeded"),
    ),
    Signature(
        "disk_full",
        "[Errno 28] No space left on device; inline_container.cc … unexpected pos",
        "the disk is full: {detail}",
        "free room on the node (nexa ssh NODE -- df -h), write less often, or on aws ask for a larger volume_gb",
        patterns(
            r"No space left on device: '(?P<detail>[^'\n]{1,200})'",
            r"No space left on device",
            r"inline_container\.cc:[0-9]{1,5}\] \. unexpected pos",
            r"PytorchStreamWriter failed writing file",
        ),
    ),
    Signature(
        "storage_failed",
        "[Errno 5] Input/output error; [Errno 116] Stale file handle; Transport endpoint is not connected",
        "the storage of this node failed: {detail}",
        "nexa ssh NODE -- sudo dmesg; a disk that fails (Input/output error) wants another machine, a network file"
        " system that went away (Stale file handle, Transport endpoint) wants to be mounted again; then nexa run"
        " --resume RUN",
        patterns(
            r"(?P<detail>Input/output error|Remote I/O error|Stale (?:NFS )?file handle|Structure needs cleaning)",
            r"\[Errno 107\] (?P<detail>Transport endpoint is not connected)(?:: '|$)",
        ),
    ),
    Signature(
        "weights_only",
        "_pickle.UnpicklingError: Weights only load failed",
        "torch.load takes nothing but weights, and this file holds other objects too: it is not damaged",
        "for a file that you trust torch.load(…, weights_only=False), or name its classes in"
        " torch.serialization.add_safe_globals",
        patterns(r"Weights only load failed"),
        unless=(*POINTER, *patterns(r"Unsupported operand [0-9]")),
    ),
    Signature(
        "lfs_pointer",
        "invalid load key, 'v'; Error while deserializing header: header too large; You seem to have cloned … git-lfs",
        "a file of the model or the data is no such file, but a text: a pointer of git-lfs, or a page of a server",
        "nexa ssh NODE -- head -c 200 FILE shows it; git lfs pull where the project lies, then nexa run again: what"
        " is sent is what lies there",
        POINTER,
    ),
    Signature(
        "checkpoint_damaged",
        "checkpoint … is damaged; PytorchStreamReader failed; Error while deserializing header; invalid load key",
        "a checkpoint cannot be read, it is damaged: {detail}",
        "resume from an older one: nexa run --resume RUN takes the newest that verifies; a model that was downloaded"
        " is to be removed from the cache and fetched again; nexa ssh NODE -- df -h for the disk that it lay on",
        patterns(
            r"checkpoint (?P<detail>[^\n]{1,200}?) is damaged",
            r"PytorchStreamReader failed|PyTorchFileReader\(name_or_buffer\)",
            r"Error while deserializing header|SafetensorError",
            r"UnpicklingError|EOFError: Ran out of input",
        ),
        unless=patterns(r"/multiprocessing/(?:spawn|connection|forkserver|managers|queues|reduction)\.py"),
    ),
    row(
        "data_is_kept",
        "what data: names is for reading, and a file of it was to be written: {detail}",
        'open it for reading (np.memmap(…, mode="r")), and write below the working folder or $NEXA_SCRATCH',
        says("Permission denied: '{detail}/files/…'"),
    ),
    Signature(
        "permission_denied",
        "[Errno 13] Permission denied",
        "the node's user may not write or read there: {detail}",
        "write below $NEXA_SCRATCH, $NEXA_SHARED or $NEXA_DURABLE, or give the folder to the user that nexa logs in as",
        patterns(
            r"Permission denied: '(?P<detail>[^'\n]{1,200})'",
            r"PermissionError: \[Errno 13\]",
        ),
    ),
    Signature(
        "dataloader_worker",
        "DataLoader worker (pid(s) …) exited unexpectedly; is killed by signal; Pin memory thread exited unexpectedly",
        "a worker process of the DataLoader was killed, most often by the kernel for want of memory",
        "use fewer workers or a smaller prefetch_factor; num_workers=0 shows an exception of the dataset itself;"
        " nexa ssh NODE -- sudo dmesg tells whether the kernel did it",
        patterns(
            r"DataLoader worker \(pid(?:\(s\))? [0-9, ]{1,60}\) (?:exited unexpectedly|is killed by signal)",
            r"Pin memory thread exited unexpectedly",
        ),
        child=True,
    ),
    Signature(
        "child_killed",
        "process … terminated with signal SIGKILL; A process in the process pool was terminated abruptly",
        "a process that the program itself started was killed, most often by the kernel for want of memory",
        "nexa ssh NODE -- sudo dmesg tells whether the kernel did it; start fewer processes, or use a node with more"
        " memory",
        patterns(
            r"ProcessExitedException: process [0-9]{1,7} terminated with signal SIG(?:KILL|BUS)",
            r"A process in the process pool was terminated abruptly",
            r"CalledProcessError: [^\n]{1,200} died with <Signals\.SIGKILL",
        ),
        child=True,
    ),
)
