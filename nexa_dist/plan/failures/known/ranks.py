"""Known ways to fail of ranks that meet, and of processes that they start. The order is that of the search."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import Signature, Tier, row, says

RANKS = (
    row(
        "barrier_missed",
        "not every rank came to a monitored barrier in time: {detail}",
        "look at the rank that is named (nexa logs --rank N): it hung, is slow, or took another way; on other ranks"
        " than 0 the log of rank 0 names it",
        says(
            "]: {detail} failed to pass monitoredBarrier",
            "successfully reached monitoredBarrier, but received errors while waiting {detail}",
            "Rank {detail} timed out in monitoredBarrier",
        ),
        tier=Tier.LATE,
    ),
    row(
        "locked_memory",
        "the InfiniBand adapter could not lock memory: the limit of the process is too low",
        "set memlock to unlimited for the user and for sshd on that host (/etc/security/limits.d, LimitMEMLOCK of the"
        ' service; docker run --ulimit memlock=-1); NCCL_IB_DISABLE: "1" in env: does without the adapter, and slower',
        says(
            "Call to ibv_reg_mr failed with error Cannot allocate memory",
            "Call to ibv_create_qp failed with error Cannot allocate memory",
            "Call to ibv_create_cq failed with error Cannot allocate memory",
            "Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
        ),
        tier=Tier.SETUP,
    ),
    row(
        "rdma_failed",
        "the InfiniBand adapter had no answer from another rank's: {detail}",
        "look at the rank that failed first; if none did, the link is at fault: nexa diag --deep tests every pair of"
        ' nodes, NCCL_IB_DISABLE: "1" in env: does without the adapter, and slower',
        says(
            "NET/IB : Got completion from peer {detail}",
            "NET/IB: Got async event : {detail}",
            "Got completion with error {detail}",
        ),
        tier=Tier.FOLLOWS,
    ),
    row(
        "efa_missing",
        "NCCL's plugin for EFA found no adapter that it can use: {detail}",
        "nexa ssh NODE -- ls /sys/class/infiniband shows them; the security group has to let the nodes' own traffic"
        " pass; NCCL_NET: Socket in env: does without, and slower",
        says(
            "NET/OFI {detail}",
            "Failed to initialize any NET plugin{detail}",
            "No eligible providers were found{detail}",
        ),
        tier=Tier.SETUP,
    ),
    row(
        "nccl_unreachable",
        "NCCL could not connect to another rank: {detail}",
        "both nodes have to reach each other on any port (a firewall, a security group); leave NCCL_SOCKET_IFNAME"
        " unset, and look at the address: docker0 (172.17.0.1) is each node's own; nexa diag tests every pair",
        says(
            "socketStartConnect: Connect to {detail}",
            "socketPollConnect: Connect to {detail}",
            "Call to connect returned {detail}",
            "Call to connect to {detail} failed",
            "Connect to {detail} failed : ",
        ),
        near=says("NCCL", "nccl"),
        tier=Tier.SETUP,
    ),
    row(
        "not_by_the_launcher",
        "the program asks for a variable that the launcher sets, and it is not there: {detail}",
        "read RANK, WORLD_SIZE and MASTER_ADDR from the environment of the rank itself: a process that it starts with"
        " an environment of its own (env=), or by sudo or ssh, has none",
        says(
            "environment variable {detail} expected, but not set", "^KeyError: 'LOCAL_RANK'", "^KeyError: 'MASTER_ADDR'"
        ),
    ),
    row(
        "no_process_group",
        "a collective was called before the ranks met, or after they parted",
        "call init_process_group first (accelerate: make the Accelerator or PartialState before), in each process that"
        " uses collectives; not in a worker of the DataLoader",
        says(
            "Default process group has not been initialized",
            "default process group is not initialized",
            "You must initialize the accelerate state",
            "AssertionError: {detail} parallel group is not initialized",
        ),
    ),
    row(
        "cuda_in_fork",
        "CUDA was used in a process that was forked from one that had used it",
        'multiprocessing_context="spawn" for the DataLoader (multiprocessing.set_start_method("spawn")), and no'
        " tensor of a GPU in a dataset",
        says("Cannot re-initialize CUDA in forked subprocess"),
    ),
    row(
        "not_picklable",
        "what was to be sent to another process cannot be: {detail}",
        "define functions and classes at the top of a module instead of a lambda or an inner one; open files, locks and"
        " connections in the worker; num_workers=0 does without",
        says(
            "AttributeError: Can't pickle local object {detail}",
            "AttributeError: Can't get local object {detail}",
            "TypeError: cannot pickle {detail}",
            "TypeError: can't pickle {detail}",
            "PicklingError: {detail}",
        ),
    ),
    row(
        "shared_memory_gone",
        "a piece of shared memory that another process had made is gone",
        "the process that made it ended first: keep it until the others are through; with many tensors"
        ' torch.multiprocessing.set_sharing_strategy("file_system")',
        says("</torch_…: No such file or directory (2)", "No such file or directory: '/psm_"),
    ),
    row(
        "backend_device",
        "a collective got a tensor of a device that its backend does not serve: {detail}",
        'NCCL wants tensors on the GPU, gloo on the CPU: move them, or init_process_group("cpu:gloo,cuda:nccl")'
        " serves both",
        says("Tensors must be CUDA and dense", "No backend type associated with device type {detail}"),
    ),
    row(
        "process_group_twice",
        "the process group was made a second time",
        "call init_process_group once: under accelerate, transformers' Trainer or Lightning not at all",
        says("trying to initialize the default process group twice"),
    ),
    row(
        "dataloader_timeout",
        "the DataLoader waited in vain for its workers: {detail}",
        "a worker is slow or stuck (a network file system, a lock after a fork): timeout=0 waits without end,"
        " num_workers=0 shows where it stands; nexa ssh NODE -- sudo dmesg tells of a disk that fails",
        says("RuntimeError: DataLoader timed out after {detail}"),
    ),
    row(
        "parallel_sizes",
        "the ranks cannot be dealt out to the parallel sizes that were asked for: {detail}",
        "the number of ranks has to be a multiple of tensor times pipeline times context parallel: change those, or"
        " nodes and gpus_per_node in cluster.yaml",
        says("world size ({detail} is not divisible by", "world_size ({detail} is not divisible by"),
    ),
    row(
        "zero_inflight",
        "the ranks of ZeRO 3 did not go through the same layers in the same order: {detail}",
        "let every rank call every layer (experts, a branch that depends on the batch), set stage3_prefetch_bucket_size"
        " to 0 in DeepSpeed's config, or take stage 2",
        says("still have inflight params{detail}"),
    ),
    row(
        "no_more_processes",
        "no further thread or process could be started: {detail}",
        "start fewer (num_workers, OMP_NUM_THREADS in env:), or raise the limit of the node's user (ulimit -u,"
        " TasksMax of the service, docker run --pids-limit)",
        says(
            "can't start new thread{detail}",
            "pthread_create failed for thread {detail}",
            "libgomp: Thread creation failed: {detail}",
            "fork: retry: Resource temporarily unavailable",
        ),
    ),
    row(
        "fork_refused",
        "no further process could be started: a limit of the node's user, or of its container, is reached",
        "start fewer (num_workers), look for what an earlier run left (nexa ssh NODE -- ps -ef), or raise the limit"
        " (ulimit -u, TasksMax of the service, docker run --pids-limit)",
        says("[Errno 11] Resource temporarily unavailable"),
        near=says("/popen_fork.py", "/subprocess.py", "/popen_spawn_posix.py"),
    ),
    row(
        "host_memory_ray",
        "Ray ended a process for want of memory on the node (not on the GPU)",
        "use fewer workers or smaller batches, or a node with more memory; RAY_memory_usage_threshold in env: sets"
        " when it does",
        says(
            "ray.exceptions.OutOfMemoryError",
            "killed due to the node running low on memory",
            "due to memory pressure (OOM)",
        ),
    ),
)

CHILDREN = (
    Signature(
        "child_crashed",
        "process 3 terminated with signal SIGSEGV; died with <Signals.SIGABRT: 6>",
        "a process that the program itself started crashed in native code: {detail}",
        "its last words stand further up in this log (nexa logs --rank N); most often an extension that was built for"
        " another torch or CUDA; num_workers=0 or one process alone shows its stack",
        says(
            "ProcessExitedException: process … terminated with signal {detail}",
            "died with <Signals.{detail}",
            "is killed by signal: {detail}",
        ),
        child=True,
    ),
    Signature(
        "child_ended",
        "process 1 terminated with exit code 1; returned non-zero exit status",
        "a process that the program itself started failed: {detail}",
        "its own words stand further up in this log (nexa logs --rank N)",
        says(
            "ProcessExitedException: process … terminated with {detail}",
            "subprocess.CalledProcessError: {detail}",
            "^RuntimeError: Engine core initialization failed. {detail}",
            "Pool … broken: {detail}",
        ),
        tier=Tier.OWN,
        child=True,
    ),
)
