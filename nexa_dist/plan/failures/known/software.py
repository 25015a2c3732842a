"""Known ways to fail of the software of a node. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import Signature, patterns, row, says

SOFTWARE = (
    row(
        "numpy_versions",
        "numpy on this node is of another age than what uses it: {detail}",
        "environment: {packages: [numpy<2]} in train.yaml for packages that were built before 2, a newer one for files"
        " that were pickled with 2",
        says(
            "ModuleNotFoundError: No module named 'numpy._core{detail}",
            "RuntimeError: Numpy is not available",
            "AttributeError: module 'numpy' has no attribute {detail}",
            "AttributeError: `np.{detail}` was removed",
            "_ARRAY_API not found",
            "numpy.core.multiarray failed to import",
        ),
    ),
    row(
        "bitsandbytes_setup",
        "bitsandbytes finds no CUDA library that it was built for",
        "take a newer bitsandbytes (its wheel brings its own), or name the CUDA that is there: BNB_CUDA_VERSION in"
        " env:; nexa ssh NODE -- nvidia-smi shows the driver",
        says(
            "CUDA Setup failed despite GPU being available",
            "CUDA Setup failed despite CUDA being available",
            "Could not load bitsandbytes native library",
            "has no attribute 'cquantize_",
            "has no attribute 'cget_col_row_stats",
        ),
    ),
    row(
        "executable_stack",
        "a library wants an executable stack, and the system of this node allows none",
        "take a newer build of it (torch from 2.7 has none); or clear its mark: nexa ssh NODE -- sudo apt-get install"
        " patchelf, then patchelf --clear-execstack FILE",
        says("cannot enable executable stack as shared object requires"),
    ),
    row(
        "static_tls",
        "a library came too late for its part of the thread storage",
        "import it before torch, or LD_PRELOAD in env: with the path of the library that is named",
        says("cannot allocate memory in static TLS block"),
    ),
    row(
        "no_triton",
        "torch.compile wants triton, and a triton that works is not there",
        "add it, environment: {packages: [triton]} in train.yaml, or do without: TORCHDYNAMO_DISABLE=1 in env:",
        says(
            "Cannot find a working triton installation",
            "TritonMissing",
            "Tried to instantiate dummy base class CUDAScheduling",
        ),
    ),
    Signature(
        "no_compiler",
        "Failed to find C compiler; No such file or directory: 'gcc'; Ninja is required; CUDA_HOME … is not set",
        "something is to be compiled on this node, and what that needs is not there: {detail}",
        "nexa ssh NODE -- sudo apt-get install build-essential python3-dev ninja-build on every node (nvcc and"
        " CUDA_HOME come with NVIDIA's cuda-toolkit); or do without: TORCHDYNAMO_DISABLE=1 in env: for torch.compile",
        patterns(
            r"(?P<detail>Failed to find C compiler|No working C\+\+ compiler found|InvalidCxxCompiler)",
            r"No such file or directory: '(?P<detail>(?:/usr/bin/)?(?:gcc|g\+\+|cc|c\+\+|clang|nvcc|ninja|ld))'",
            r"(?P<detail>Ninja is required to load C\+\+ extensions|CUDA_HOME environment variable is not set)",
            r"(?:/bin/)?sh: (?:[0-9]{1,3}: )?(?P<detail>gcc|g\+\+|cc|nvcc|ninja): (?:command )?not found",
            r"fatal error: (?P<detail>Python\.h): No such file",
            r"command '(?P<detail>[^'\n]{1,80})' failed: No such file or directory",
            r"\bld: cannot find (?P<detail>-l[a-z0-9_]{1,30})",
            r"(?P<detail>CUDA_HOME does not exist, unable to compile CUDA op|CUDA_HOME environment variable)",
        ),
    ),
    Signature(
        "extension_not_built",
        "Error building extension '…'; ninja: build stopped; has no attribute 'ds_opt_adam'; CUDAMismatchException",
        "an extension could not be compiled on this node: {detail}",
        "the compiler's own words stand above; most often nvcc is of another CUDA than torch (nexa ssh NODE -- nvcc"
        " --version), or the node has no compiler: build-essential; where it came halfway remove"
        " ~/.cache/torch_extensions",
        patterns(
            r"Error building extension '(?P<detail>[^'\n]{1,80})'",
            r"(?P<detail>ninja: build stopped|CUDAMismatchException)",
            r"'(?P<detail>DeepSpeedCPU[A-Za-z]{1,20})' object has no attribute 'ds_opt_",
        ),
    ),
    Signature(
        "built_for_another",
        "undefined symbol: …; numpy.dtype size changed; version `GLIBC_2.32' not found",
        "a package on this node was built for another version of what it uses: {detail}",
        "name versions that belong together, environment: {packages: [NAME==VERSION]} in train.yaml; torchvision and"
        " torchaudio beside a CPU build of torch want torch===VERSION there; GLIBC wants a newer system or an older"
        " wheel",
        patterns(
            r"(?P<detail>undefined symbol: [^\n]{1,80})",
            r"(?P<detail>numpy\.[a-z]{1,10} size changed)",
            r"(?P<detail>operator torchvision::[a-z_]{1,30} does not exist)",
            r"(?P<detail>PyTorch and (?:torchvision|torchaudio) were compiled with different CUDA[^\n]{0,40})",
            r"(?P<detail>A module that was compiled using NumPy 1\.x cannot be run)",
            r"(?P<detail>version `(?:GLIBC|GLIBCXX|CXXABI)_[0-9.]{1,10}' not found[^\n]{0,80})",
        ),
    ),
    Signature(
        "library_missing",
        "libGL.so.1: cannot open shared object file",
        "a shared library is not on this node: {detail}",
        "install it on every node: nexa ssh NODE -- sudo apt-get install PACKAGE (libGL.so.1 is in libgl1);"
        " libcudart and the like belong to another CUDA than this torch's: take the wheel that fits"
        " (docker/cuda_torch.txt)",
        patterns(r"(?P<detail>lib[A-Za-z0-9_.+-]{1,60}): cannot open shared object file"),
    ),
)

COMPILED = (
    row(
        "compile_failed",
        "torch.compile could not compile the model: {detail}",
        "TORCHDYNAMO_DISABLE=1 in env: trains without it; where it stands still it names the part (fullgraph=False"
        " lets it leave that out)",
        says(
            "BackendCompilerFailed: {detail}",
            "^torch._inductor.exc.{detail}",
            "^torch._dynamo.exc.{detail}",
            "Internal Triton PTX codegen error",
            "triton.compiler.errors.CompilationError: {detail}",
        ),
    ),
)
