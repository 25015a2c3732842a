"""Known ways to fail of GPUs and their drivers. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import Signature, patterns, row, says

CUDA = (
    row(
        "gpu_lost_in_container",
        "this container has lost its GPUs",
        "the host reloaded its units and took the devices away: start the container again with docker run --device for"
        " each /dev/nvidia*, or with the host's docker on cgroupfs; nexa ssh NODE -- nvidia-smi shows it",
        says("Failed to initialize NVML: Unknown Error", "NVMLError_Unknown: "),
    ),
    row(
        "driver_stub",
        "the library of the driver that was loaded is the stub to build with, not the driver's own",
        "take …/stubs out of LD_LIBRARY_PATH; nexa ssh NODE -- nvidia-smi shows whether the driver is there",
        says("CUDA driver is a stub library"),
    ),
    row(
        "gpu_taken",
        "the GPU lets no further process in: another one holds it, or it is in exclusive mode",
        "nexa ssh NODE -- nvidia-smi shows who holds it, and its compute mode (Default lets several in; with MIG a"
        " part has to be named); end what is left over",
        says("CUDA-capable devices are busy or unavailable", "CUDA error: exclusive-thread device already in use"),
    ),
    row(
        "gpu_too_old",
        "this kind of GPU cannot do what the program asks of it: {detail}",
        'attn_implementation="sdpa" (or "eager") instead of flash attention, fp16 instead of bf16'
        " (trainer.precision), or another kind of GPU (offers)",
        says(
            "FlashAttention only supports {detail}",
            "Bfloat16 is only supported on {detail}",
            "Your setup doesn't support bf16{detail}",
            "No operator found for `{detail}`",
            "bf16 is not supported on {detail}",
            "fp8{detail} is only supported on ",
            "requires compute capability {detail}",
        ),
    ),
    row(
        "kernel_too_big",
        "a kernel of triton wants more of the GPU than it has: {detail}",
        "smaller blocks or fewer num_stages; where torch.compile made it TORCHDYNAMO_DISABLE=1 in env:, or a newer"
        " triton",
        says("out of resource: {detail}"),
    ),
    row(
        "cublas_not_initialized",
        "cuBLAS could not be set up on the GPU; most often its memory is full, or an index out of bounds came before",
        "a smaller batch, and nexa ssh NODE -- nvidia-smi for what else holds the GPU; CUDA_LAUNCH_BLOCKING=1 in env:"
        " shows the true line, and ids are to be compared with the vocabulary",
        says("CUBLAS_STATUS_NOT_INITIALIZED", "cusolver error: "),
    ),
    row(
        "cudnn_failed",
        "cuDNN failed: {detail}",
        "another cuDNN than torch's own is found first: take it out of LD_LIBRARY_PATH, and take nvidia-cudnn of"
        " torch's version; when it comes with large batches only, the GPU's memory is full",
        says(
            "cuDNN error: {detail}",
            "cuDNN version incompatibility: {detail}",
            "GET was unable to find an engine to execute this computation{detail}",
            "Unable to find a valid cuDNN algorithm{detail}",
            "CUDNN_BACKEND_OPERATION: cudnnFinalize{detail}",
        ),
    ),
    Signature(
        "cuda_oom",
        "CUDA out of memory. Tried to allocate …",
        "the GPU ran out of memory: {detail}",
        "lower trainer.batch_size or dataset.sequence_length, set trainer.precision to bf16 (in a script of your own"
        " the same there, or gradient checkpointing); when the GPU was full before the run began, something else"
        " holds it: nexa ssh NODE -- nvidia-smi",
        patterns(
            r"CUDA out of memory\. (?P<detail>Tried to allocate [0-9.]{1,12} [KMGT]?i?B)",
            r"HIP out of memory\. (?P<detail>Tried to allocate [0-9.]{1,12} [KMGT]?i?B)",
            r"(?P<detail>Allocation on device [0-9]{0,3}[^\n]{0,40}exceed allowed memory)",
            r"RESOURCE_EXHAUSTED: (?P<detail>Out of memory[^\n]{0,80})",
            r"(?P<detail>OOM when allocating tensor[^\n]{0,80})|Triton Error \[CUDA\]: out of memory",
            r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure 'out of memory'|CUDA error: out of memory",
        ),
    ),
    Signature(
        "gpu_hardware",
        "uncorrectable ECC error encountered; Xid …; GPU has fallen off the bus",
        "a GPU of this node is broken: {detail}",
        "use another machine: nexa diag names it, nexa provision puts another in its place once where the provider can;"
        " a host of your own is to be taken out of cluster.yaml",
        patterns(
            r"(?P<detail>uncorrectable ECC error|[Uu]ncorrectable NVLink error|fallen off the bus)",
            r"(?P<detail>NVRM: Xid \([^)\n]{1,40}\): (?:46|48|6[234]|74|79|9[245]|1[12][0-9]|14[0-9])\b[^\n]{0,60})",
        ),
    ),
    Signature(
        "driver_mismatch",
        "Driver/library version mismatch; Error 803: unsupported display driver / cuda driver combination",
        "the NVIDIA driver that is loaded on the node and its libraries are of different versions",
        "the driver was changed while the node ran: nexa ssh NODE -- sudo reboot, then nexa diag; in a container the"
        " host's driver counts",
        patterns(
            r"Driver/library version mismatch",
            r"NVML/RM version mismatch",
            r"\bError 80[34]\b",
            r"unsupported display driver / cuda driver",
        ),
    ),
    Signature(
        "fabric_manager",
        "cudaGetDeviceCount() … Error 802: system not yet initialized",
        "the GPUs of this node are joined by NVSwitch, and its fabric manager does not run",
        "nexa ssh NODE -- systemctl status nvidia-fabricmanager; it has to run and be of the driver's version"
        " (nvidia-smi shows that); then nexa diag. On aws take the image with the driver from the vendor (ami), or"
        " another node",
        patterns(r"\bError 802\b", r"system not yet initialized"),
    ),
    Signature(
        "cuda_driver_old",
        "The NVIDIA driver on your system is too old (found version 12020)",
        "the NVIDIA driver of the node is older than the CUDA of this torch",
        "use an image with a newer driver (ami; system_changes: true lets nexa provision install it on hosts of your"
        " own), or a torch built for an older CUDA (docker/cuda_torch.txt, then nexa provision)",
        patterns(
            r"NVIDIA driver on your system is too old",
            r"CUDA driver version is insufficient",
            r"PTX was compiled with an unsupported toolchain",
        ),
    ),
    Signature(
        "cuda_no_kernel_image",
        "no kernel image is available for execution on the device",
        "torch, or an extension of it, was not built for this kind of GPU",
        "use a torch whose CUDA knows the GPU; build extensions again with TORCH_CUDA_ARCH_LIST set for it",
        patterns(
            r"no kernel image is available",
            r"Value 'sm_[0-9a-z]{2,5}' is not defined for option 'gpu-name'",
            r"device kernel image is invalid",
        ),
    ),
    Signature(
        "nccl_without_gpu",
        "ProcessGroupNCCL is only supported with GPUs, no GPUs found!; Distributed package doesn't have NCCL built in",
        "the program wants NCCL, and this node has no GPU or no build of torch for one",
        'init_process_group("gloo") where there is no GPU; else nexa ssh NODE -- nvidia-smi, nexa diag, and nodes'
        " with GPUs"
        " (offers, gpus_per_node)",
        patterns(
            r"ProcessGroupNCCL is only supported with GPUs",
            r"doesn't have NCCL built in",
            r"requires? NCCL[^\n]{0,20} GPU",
        ),
    ),
    Signature(
        "cuda_not_available",
        "Torch not compiled with CUDA enabled; Found no NVIDIA driver; No CUDA GPUs are available",
        "the program wants a GPU and torch finds none: {detail}",
        "nexa ssh NODE -- nvidia-smi, and nexa diag; use nodes with GPUs and a CUDA build of torch"
        " (docker/cuda_torch.txt, then nexa provision)",
        patterns(
            r"(?P<detail>Torch not compiled with CUDA enabled|Found no NVIDIA driver on your system"
            r"|No CUDA GPUs are available|CUDA driver initialization failed|libcuda\.so[.0-9]{0,4}: cannot open)",
            r"(?P<detail>no CUDA-capable device is detected)",
            r"Attempting to deserialize object on a CUDA device but (?P<detail>torch\.cuda\.is_available\(\) is False)",
        ),
    ),
    Signature(
        "gpu_missing",
        "CUDA error: invalid device ordinal",
        "a rank asks for a GPU that the node does not have: more ranks than GPUs, or CUDA_VISIBLE_DEVICES hides some",
        "set nproc_per_node to the number of GPUs of a node; take the device from LOCAL_RANK",
        (
            *patterns(r"CUDA error: invalid device ordinal", r"Error 101: invalid device ordinal"),
            *says("Attempting to deserialize object on CUDA device ", "MisconfigurationException: You requested gpu: "),
        ),
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
        patterns(r"CUDA error: (?P<detail>[^\n]{1,120})", r"(?P<detail>CUDA unknown error[^\n]{0,80})"),
    ),
)
