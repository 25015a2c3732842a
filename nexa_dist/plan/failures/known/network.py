"""Known ways to fail of the network: between the ranks, to the model hub. The order is the order of the search."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import Signature, Tier, patterns, says

BUSY = (
    r"(?P<detail>429 (?:Client Error|Too Many Requests)[^\n]{0,30})",
    r"(?P<detail>50[0234] (?:Server Error|Internal Server Error|Bad Gateway|Service Unavailable|Gateway Time))",
)
HUB = patterns(r"huggingface", r"hf\.co/", r"HfHub", r"transformers/utils/hub\.py", r"hub\.internal")

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
        "nexa ssh NODE -- df -h /dev/shm shows it, nexa ssh NODE -- sudo mount -o remount,size=80% /dev/shm enlarges it"
        " (of a host that is a container: docker run --shm-size); or use fewer DataLoader workers, or"
        ' torch.multiprocessing.set_sharing_strategy("file_system")',
        (
            *patterns(
                r"unable to allocate shared memory\(shm\)",
                r"killed by signal: Bus error",
                r"Error while creating shared memory segment",
                r"unable to mmap [0-9]{1,20} bytes from file </torch_",
                r"Unexpected bus error encountered in worker",
            ),
            *says("unable to … </torch_…>…: No space left"),
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
            r"connectFullMesh failed with \[[^\]\n]{1,200}\] (?P<detail>no error)",
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
        patterns(
            r"Watchdog caught collective operation timeout: WorkNCCL\((?P<detail>[^\n)]{1,70})",
            r"Received a dump signal due to a (?P<detail>collective timeout from rank [0-9]{1,7})",
            r"(?P<detail>watchdog (?:got stuck for [0-9]{1,7} seconds|hang\b))",
        ),
        tier=Tier.LATE,
    ),
    Signature(
        "nccl_remote",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely",
        "lost the connection to another rank (NCCL)",
        "look at the rank that failed first; if none did, at the network between the nodes (NCCL_DEBUG=INFO)",
        patterns(
            r"ncclRemoteError",
            r"remote process exited or there was a network error",
            r"NCCL communicator was aborted",
            r"Connection closed by remote peer",
            r"^Last error:\n[^\n]{0,200}(?:Connection reset by peer|Broken pipe)",
        ),
        tier=Tier.FOLLOWS,
    ),
    Signature(
        "nccl_error",
        "NCCL error in: …, unhandled system error",
        "NCCL failed: {detail}",
        "set NCCL_DEBUG=INFO in env: and look for its WARN lines; nexa diag --deep tests every pair of nodes",
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
        patterns(
            r"EADDRINUSE", r"[Aa]ddress already in use", r"on port `[0-9]{1,5}`, but another process is utilizing it"
        ),
        near=patterns(
            r"server socket has failed to (?:listen|bind)",
            r"/torch/distributed/(?:rendezvous|elastic)",
            r"Tried to launch distributed communication on port",
        ),
    ),
    Signature(
        "port_of_program",
        "OSError: [Errno 98] Address already in use",
        "a port that the program itself opens is taken on this node",
        "let the program take a free port (0), or a port of its own for each rank (LOCAL_RANK counts those of a node);"
        " nexa ssh NODE -- ss -ltnp shows what holds it",
        patterns(r"\[Errno 98\]", r"[Aa]ddress already in use", r"EADDRINUSE"),
    ),
    Signature(
        "hub_unreachable",
        "We couldn't connect to '…' to load the files; LocalEntryNotFoundError; outgoing traffic has been disabled",
        "the model hub cannot be reached from the node, and the files are not in its cache",
        "put them on every node before (nexa ssh NODE), below $NEXA_SHARED, and name that place with model.path or"
        " HF_HOME in env:; or open the way to the hub. HF_HUB_OFFLINE=1 forbids it on purpose",
        patterns(
            r"We couldn't connect to '",
            r"LocalEntryNotFoundError",
            r"OfflineModeIsEnabled",
            r"Couldn't reach '?[^\n']{1,120}'? on the Hub",
        ),
        unless=patterns(*BUSY),
    ),
    Signature(
        "hub_busy",
        "429 Client Error: Too Many Requests; 503 Server Error …",
        "the model hub is too busy, or refuses more requests of this address: {detail}",
        "every rank asks the hub at once: download once a node, below $NEXA_SHARED (HF_HOME in env:), and then set"
        " HF_HUB_OFFLINE=1 there; a HF_TOKEN in your environment (nexa passes it on) is allowed more. Later is also"
        " a cure",
        patterns(*BUSY),
        near=HUB,
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
            r"Dataset '(?P<detail>[^'\n]{1,120})' doesn't exist on the Hub or cannot be accessed",
        ),
    ),
    Signature(
        "hub_unauthorized",
        "401 Client Error; Invalid username or password",
        "the model hub does not accept the token (HF_TOKEN)",
        "make a new token and set HF_TOKEN in your environment (nexa passes it on)",
        patterns(
            r"401 (?:Client Error|Unauthorized)",
            r"Invalid (?:username or password|user token)",
            r"Token is required \(`token=True`\), but no token found",
        ),
        near=HUB,
    ),
    Signature(
        "certificate_refused",
        "[SSL: CERTIFICATE_VERIFY_FAILED]",
        "the certificate of a server outside could not be verified on this node",
        "look at the node's clock first (nexa diag); behind a proxy with a certificate of its own name that in env: as"
        " SSL_CERT_FILE and REQUESTS_CA_BUNDLE; else nexa ssh NODE -- sudo apt-get install ca-certificates",
        patterns(r"CERTIFICATE_VERIFY_FAILED", r"certificate verify failed"),
    ),
    Signature(
        "name_not_resolvable",
        "gai error: -2 - Name or service not known; Temporary failure in name resolution",
        "a host name cannot be resolved on this node: {detail}",
        "name the nodes by IP address in cluster.yaml (host, rdzv), or add them to /etc/hosts of every node",
        patterns(r"addresses of \((?P<detail>[^\n,]{1,100}), [0-9]{1,5}\) cannot be retrieved \(gai error"),
        anywhere=True,
    ),
    Signature(
        "no_dns",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution; Failed to resolve '…'; Could not resolve"
        " host",
        "the program asked for a host name that this node cannot resolve: {detail}",
        "nexa ssh NODE -- getent hosts NAME; for a service outside mend the node's /etc/resolv.conf or bring the"
        " data to the node before (below $NEXA_SHARED); for another node use its IP address",
        patterns(
            r"Failed to resolve '(?P<detail>[^'\n]{1,100})'",
            r"(?:Could not resolve host:|unable to resolve host address) (?P<detail>[^\s]{1,100})",
            r"(?P<detail>Name or service not known|Temporary failure in name resolution)",
            r"(?P<detail>nodename nor servname provided|No address associated with hostname)",
        ),
    ),
    Signature(
        "rendezvous_timeout",
        "RendezvousTimeoutError; The client socket has timed out after … while trying to connect to (…)",
        "not every node came to the rendezvous in time: {detail}",
        "look at the nodes that did not come; nexa diag tests whether they reach the first node's rendezvous address"
        " and port (a firewall, a security group)",
        patterns(
            r"client socket has timed out after [0-9]{1,9}ms while trying to connect to (?P<detail>\([^\n)]{1,100}\))",
            r"RendezvousTimeoutError",
            r"Timed out initializing process group in store based barrier[^\n]{0,60}"
            r"(?P<detail>\(world_size=[^\n)]{1,80}\))",
            r"client socket has failed to connect to any network address of (?P<detail>\([^\n)]{1,100}\))",
            r"(?P<detail>Timed out after [0-9]{1,9} seconds waiting for clients[^\n]{0,60})",
            r"store->get\([^)\n]{1,80}\) got error: (?P<detail>(?:Socket Timeout|wait timeout)[^\n]{0,80})",
            r"(?P<detail>wait timeout after [0-9]{1,9}ms, keys: [^\n]{1,80})",
        ),
        tier=Tier.LATE,
    ),
    Signature(
        "rendezvous_lost",
        "RendezvousConnectionError; DistNetworkError: failed to recv, got 0 bytes",
        "lost the connection to the rendezvous on the first node",
        "look at what happened on the first node",
        patterns(
            r"RendezvousConnectionError|RendezvousClosedError",
            r"[Ff]ailed to recv, got 0 bytes",
            r"recvValueWithTimeout failed on SocketImpl",
            r"store->get\([^)\n]{1,80}\) got error: ",
        ),
        tier=Tier.FOLLOWS,
    ),
)
