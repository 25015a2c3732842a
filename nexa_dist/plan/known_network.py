"""Known ways to fail of GPUs and of the network between the ranks. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.signature import Signature, Tier, patterns

CUDA = (
    Signature(
        "cuda_oom",
        "CUDA out of memory. Tried to allocate …",
        "the GPU ran out of memory: {detail}",
        "lower trainer.batch_size or dataset.sequence_length, use bf16 or gradient checkpointing; when the GPU was"
        " full before the run began, something else holds it: nexa ssh NODE -- nvidia-smi",
        patterns(
            r"CUDA out of memory\. (?P<detail>Tried to allocate [0-9.]{1,12} [KMGT]?i?B)",
            r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure 'out of memory'|CUDA error: out of memory",
        ),
    ),
    Signature(
        "gpu_hardware",
        "uncorrectable ECC error encountered; Xid …; GPU has fallen off the bus",
        "a GPU of this node is broken: {detail}",
        "replace the node (nexa replaces it when the provider can); do not restart on it",
        patterns(r"(?P<detail>uncorrectable ECC error|fallen off the bus|NVRM: Xid[^\n]{0,80})"),
    ),
    Signature(
        "cuda_driver_old",
        "The NVIDIA driver on your system is too old (found version 12020)",
        "the NVIDIA driver of the node is older than the CUDA of this torch",
        "use an image with a newer driver, or a torch built for an older CUDA (docker/cuda_torch.txt)",
        patterns(r"NVIDIA driver on your system is too old", r"CUDA driver version is insufficient"),
    ),
    Signature(
        "cuda_no_kernel_image",
        "no kernel image is available for execution on the device",
        "torch, or an extension of it, was not built for this kind of GPU",
        "use a torch whose CUDA knows the GPU; build extensions again with TORCH_CUDA_ARCH_LIST set for it",
        patterns(r"no kernel image is available"),
    ),
    Signature(
        "cuda_not_available",
        "Torch not compiled with CUDA enabled; Found no NVIDIA driver; No CUDA GPUs are available",
        "the program wants a GPU and torch finds none: {detail}",
        "nexa ssh NODE -- nvidia-smi; install a CUDA build of torch, or use nodes with GPUs",
        patterns(
            r"(?P<detail>Torch not compiled with CUDA enabled|Found no NVIDIA driver on your system"
            r"|No CUDA GPUs are available)",
        ),
    ),
    Signature(
        "gpu_missing",
        "CUDA error: invalid device ordinal",
        "a rank asks for a GPU that the node does not have: more ranks than GPUs, or CUDA_VISIBLE_DEVICES hides some",
        "set nproc_per_node to the number of GPUs of a node; take the device from LOCAL_RANK",
        patterns(r"CUDA error: invalid device ordinal"),
    ),
    Signature(
        "cuda_device_assert",
        "CUDA error: device-side assert triggered",
        "an assertion failed on the GPU, most often an index out of bounds (labels or token ids beyond the table)",
        "compare ids with vocabulary and class counts; CUDA_LAUNCH_BLOCKING=1 in env: shows the true line",
        patterns(r"CUDA error: device-side assert triggered"),
    ),
    Signature(
        "cuda_error",
        "CUDA error: …",
        "CUDA failed: {detail}",
        "run once with CUDA_LAUNCH_BLOCKING=1 in env: to see the true line; if it moves between nodes it is the"
        " program, if it stays on one node it is the GPU",
        patterns(r"CUDA error: (?P<detail>[^\n]{1,120})"),
    ),
)

NETWORK = (
    Signature(
        "gpu_shared",
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device …",
        "two ranks use the same GPU",
        'call torch.cuda.set_device(int(os.environ["LOCAL_RANK"])) before init_process_group',
        patterns(r"Duplicate GPU detected"),
    ),
    Signature(
        "shared_memory_full",
        "unable to allocate shared memory(shm); DataLoader worker … killed by signal: Bus error; NCCL: Error while"
        " creating shared memory segment",
        "the shared memory of the node (/dev/shm) is full",
        "give the container more (--shm-size, --ipc=host), use fewer DataLoader workers, or"
        ' torch.multiprocessing.set_sharing_strategy("file_system")',
        patterns(
            r"unable to allocate shared memory\(shm\)",
            r"killed by signal: Bus error",
            r"Error while creating shared memory segment",
            r"unable to mmap [0-9]{1,20} bytes from file </torch_",
        ),
    ),
    Signature(
        "gloo_refused",
        "connectFullMesh failed … Connection refused",
        "could not connect to another rank (gloo): {detail}",
        "look at the other rank first: it may have ended before; if it did not, both nodes use an interface whose"
        " address they share (docker0): leave GLOO_SOCKET_IFNAME unset",
        patterns(r"gloo/transport/tcp/[^\n]{1,200}(?P<detail>Connection refused[^\n]{0,60})"),
        tier=Tier.LATE,
    ),
    Signature(
        "wrong_interface",
        "Unable to find address for: eth7; Bootstrap : no socket interface found; connectFullMesh failed …"
        " No route to host, Network is unreachable, timed out connecting",
        "gloo or NCCL uses a network interface by which the other nodes cannot be reached: {detail}",
        "leave GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME unset (nexa chooses the one on the route to the other nodes),"
        " or name it per node; docker0 and tailscale0 are wrong unless the nodes reach each other by them",
        patterns(
            r"(?P<detail>Unable to find address for: [^\n]{1,40})",
            r"(?P<detail>Bootstrap : no socket interface found)",
            r"gloo/transport/tcp/[^\n]{1,200}(?P<detail>No route to host|Network is unreachable)[^\n]{0,60}",
            r"timed out connecting: (?P<detail>[^\n]{1,100})",
            r"ncclSocketInit: connecting to address  with family",
        ),
        tier=Tier.SETUP,
    ),
    Signature(
        "nccl_timeout",
        "Watchdog caught collective operation timeout: WorkNCCL(…)",
        "a collective of NCCL did not end in time: {detail}; some rank never joined it, or joined another one",
        "look at the rank that has no such message: it hung, or skipped the collective (rank-dependent if, uneven"
        " data); only a slow step that every rank does needs a longer timeout in init_process_group",
        patterns(r"Watchdog caught collective operation timeout: WorkNCCL\((?P<detail>[^\n)]{1,70})"),
        tier=Tier.LATE,
    ),
    Signature(
        "nccl_remote",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely",
        "lost the connection to another rank (NCCL)",
        "look at the rank that failed first; if none did, at the network between the nodes (NCCL_DEBUG=INFO)",
        patterns(
            r"ncclRemoteError", r"remote process exited or there was a network error", r"NCCL communicator was aborted"
        ),
        tier=Tier.FOLLOWS,
    ),
    Signature(
        "nccl_error",
        "NCCL error in: …, unhandled system error",
        "NCCL failed: {detail}",
        "set NCCL_DEBUG=INFO in env: and look for its WARN lines; check that the nodes reach each other on all ports",
        patterns(
            r"^nccl[A-Z][A-Za-z]{3,30}: [^\n]{1,200}\nLast error:\n(?P<detail>[^\n]{1,160})",
            r"^(?P<detail>nccl[A-Z][A-Za-z]{3,30}: [^\n]{1,100})",
            r"NCCL error in: [^\n,]{1,200}, (?P<detail>[^\n]{1,100})",
        ),
        tier=Tier.SETUP,
    ),
    Signature(
        "sizes_differ",
        "op.preamble.length <= op.nbytes … Received data size doesn't match expected size",
        "the ranks gave tensors of different sizes to one collective",
        "look for what depends on the rank: uneven last batch (drop_last=True), conditional layers, different data",
        patterns(r"op\.preamble\.length <= op\.nbytes", r"Received data size doesn't match expected size"),
    ),
    Signature(
        "collectives_differ",
        "Detected mismatch between collectives on ranks",
        "the ranks called different collectives at the same time",
        "make every rank call the same collectives in the same order; rank-dependent code must not hold one",
        patterns(r"Detected mismatch between collectives on ranks"),
    ),
    Signature(
        "gloo_timeout",
        "Timed out waiting 1800000ms for recv operation to complete",
        "a collective of gloo did not end in time ({detail} ms): another rank did not come",
        "look at the rank without such a message: it hung, is slow, or skipped the collective",
        patterns(
            r"Timed out waiting (?P<detail>[0-9]{1,12})ms for (?:recv|send) operation",
            r"failed to pass monitoredBarrier",
        ),
        tier=Tier.LATE,
    ),
    Signature(
        "gloo_closed",
        "gloo/transport/tcp/pair.cc … Connection closed by peer; Connection reset by peer",
        "lost the connection to another rank (gloo)",
        "look at the rank that failed first; if none did, at the network between the nodes",
        patterns(r"gloo/transport/tcp/[^\n]{1,200}(?:Connection closed by peer|Connection reset by peer|Broken pipe)"),
        tier=Tier.FOLLOWS,
    ),
    Signature(
        "port_taken",
        "The server socket has failed to listen on any local network address. … EADDRINUSE",
        "the port of the rendezvous is taken on this node{detail}",
        "end what holds it (nexa ssh NODE -- ss -ltnp), often a left-over of an earlier run; or leave rdzv out of"
        " cluster.yaml, then a free port is chosen",
        patterns(r"EADDRINUSE", r"[Aa]ddress already in use"),
    ),
    Signature(
        "hub_unreachable",
        "We couldn't connect to '…' to load the files; LocalEntryNotFoundError; outgoing traffic has been disabled",
        "the model hub cannot be reached from the node, and the files are not in its cache",
        "download them before (nexa ssh NODE, or a prepare step), give model.path, or open the way to the hub;"
        " HF_HUB_OFFLINE=1 forbids it on purpose",
        patterns(r"We couldn't connect to '", r"LocalEntryNotFoundError", r"OfflineModeIsEnabled"),
    ),
    Signature(
        "hub_gated",
        "You are trying to access a gated repo; GatedRepoError",
        "the model is gated and this token has no access to it",
        "ask for access on the model's page, then run with that account's HF_TOKEN in your environment",
        patterns(r"GatedRepoError", r"trying to access a gated repo"),
    ),
    Signature(
        "hub_not_found",
        "… is not a local folder and is not a valid model identifier; RepositoryNotFoundError",
        "the model hub knows no such model, or it is private and the token may not see it: {detail}",
        "check the name; for a private one set HF_TOKEN in your environment (nexa passes it on)",
        patterns(
            r"^(?:OSError: )?(?P<detail>[^\n]{1,120}?) is not a local folder and is not a valid model identifier",
            r"RepositoryNotFoundError",
        ),
    ),
    Signature(
        "hub_unauthorized",
        "401 Client Error; Invalid username or password",
        "the model hub does not accept the token (HF_TOKEN)",
        "make a new token and set HF_TOKEN in your environment (nexa passes it on)",
        patterns(r"401 (?:Client Error|Unauthorized)", r"Invalid username or password", r"Invalid user token"),
    ),
    Signature(
        "name_not_resolvable",
        "gai error: -2 - Name or service not known; Temporary failure in name resolution",
        "a host name cannot be resolved on this node: {detail}",
        "name the nodes by IP address in cluster.yaml (host, rdzv), or add them to /etc/hosts",
        patterns(
            r"addresses of \((?P<detail>[^\n,]{1,100}), [0-9]{1,5}\) cannot be retrieved \(gai error",
            r"(?P<detail>Name or service not known|Temporary failure in name resolution)",
        ),
        anywhere=True,
    ),
    Signature(
        "rendezvous_timeout",
        "RendezvousTimeoutError; The client socket has timed out after … while trying to connect to (…)",
        "not every node came to the rendezvous in time: {detail}",
        "look at the nodes that did not come; check that they reach the first node's rendezvous address and port"
        " (firewall, security group)",
        patterns(
            r"client socket has timed out after [0-9]{1,9}ms while trying to connect to (?P<detail>\([^\n)]{1,100}\))",
            r"RendezvousTimeoutError",
            r"(?P<detail>Timed out after [0-9]{1,9} seconds waiting for clients[^\n]{0,60})",
        ),
        tier=Tier.LATE,
    ),
    Signature(
        "rendezvous_lost",
        "RendezvousConnectionError; DistNetworkError: failed to recv, got 0 bytes",
        "lost the connection to the rendezvous on the first node",
        "look at what happened on the first node",
        patterns(
            r"RendezvousConnectionError",
            r"[Ff]ailed to recv, got 0 bytes",
            r"recvValueWithTimeout failed on SocketImpl",
        ),
        tier=Tier.FOLLOWS,
    ),
)
