# The image train-light: transformers, accelerate, peft. docker/README.md has the matrix.
# Build it from the root of the checkout: docker build -f docker/train-light.Dockerfile .
#
# Base: NVIDIA's runtime image of the CUDA that docker/cuda_torch.txt's torch is built for, by tag and by digest: the tag is
# for people, the digest is what is pulled. The digest was not pulled where it was written down (no registry was within
# reach); a dozen public repositories pin the same pair. A wrong one fails the build, it cannot slip in another image.
# configs/pins.yaml decides the values of BASE, PYTHON and TORCH_BACKEND; tests/unit/test_images.py holds all four together.
ARG BASE=docker.io/nvidia/cuda:13.0.1-runtime-ubuntu24.04@sha256:c3fde347d52d578c84fd644bc177bc7ec333feaf11550d990da4084d7612e4c7
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# What the wheels do not bring: a compiler, for Triton's kernels; the user-space of RDMA and EFA.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc git ibverbs-providers libc6-dev libhwloc15 libibverbs1 librdmacm1 python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's images have a user of their own with this number.
RUN if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --create-home --uid 1000 --shell /bin/bash runner \
    && install -d -o runner -g runner /workspace /home/runner/.cache /home/runner/.cache/huggingface

# The uv of the nodes, by its hashes; it brings Python with a checksum that it has itself.
COPY ansible/roles/uv_env/files/uv.txt /opt/nexa/lock/
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r /opt/nexa/lock/uv.txt
ENV PATH=/opt/nexa/env/bin:/opt/uv/bin:$PATH \
    VIRTUAL_ENV=/opt/nexa/env \
    UV_PYTHON_INSTALL_DIR=/opt/nexa/python
ARG PYTHON=3.11.18
ARG UV_NO_CACHE=1
RUN uv venv --no-project --python "$PYTHON" /opt/nexa/env

# torch and its CUDA libraries: the largest layer, which a change of the lock below does not touch.
COPY docker/cuda_torch.txt /opt/nexa/lock/
ARG TORCH_BACKEND=cu130
RUN uv pip install ${TORCH_BACKEND:+--torch-backend="$TORCH_BACKEND"} -r /opt/nexa/lock/cuda_torch.txt

# The lock of `environment: light`, as the nodes have it.
COPY docker/lock/train.txt /opt/nexa/lock/
RUN uv pip install --no-deps --require-hashes -r /opt/nexa/lock/train.txt \
    && python -I -c "import accelerate, datasets, peft, torch.distributed.run, transformers"

# What is in here, as CycloneDX: packages of the system and of Python.
COPY docker/sbom.py docker/entrypoints/health.sh /opt/nexa/bin/
RUN python -I /opt/nexa/bin/sbom.py >/opt/nexa/sbom.cdx.json

USER 1000:1000
WORKDIR /workspace
ENV HF_HOME=/home/runner/.cache/huggingface \
    PYTHONUNBUFFERED=1
HEALTHCHECK --interval=60s --timeout=10s --start-period=30s CMD ["/opt/nexa/bin/health.sh"]
CMD ["bash"]

# Last: they change with every build.
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG BASE
LABEL org.opencontainers.image.title="nexacompute-train-light" \
    org.opencontainers.image.description="Ranks of nexa run in the environment light" \
    org.opencontainers.image.source="https://github.com/nexacompute/nexacompute" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.created="$CREATED" \
    org.opencontainers.image.base.name="$BASE"
